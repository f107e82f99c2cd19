"""Working on a sweep: what trials share, trials one after another, and the winner's test."""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from luthier.errors import ConfigError, GateError, LuthierError
from luthier.models.shared_base import sharing_bases
from luthier.sweeping.jobs import Job, hopeless, next_job
from luthier.sweeping.state import describe_trial, read_state
from luthier.sweeping.study import Study
from luthier.sweeping.trial import Bench, run_job

if TYPE_CHECKING:
    from luthier.store import Artifact

_LOOK_EVERY_SECONDS = 0.3
_DATA_STAGE = "prepare"


def make_shared(bench: Bench) -> None:
    """What all trials share, before the first of them: one error instead of one a trial.

    Raises:
        ConfigError: the dataset has no validation rows to choose by.
        LuthierError: a stage cannot work with its input.
    """
    plan = bench.study.plan
    config = plan.trial_config({}, plan.config.seed)
    searched = {name.partition(".")[0] for name in plan.section.parameters}
    shared: str | None = None
    for stage in config.sections:
        if stage in searched:
            break
        shared = stage
    if shared is None:
        return
    made = {step.stage: step.artifact for step in bench.pipeline(config).run(shared)}
    if _DATA_STAGE in made and not _validation_rows(made[_DATA_STAGE]):
        raise ConfigError(
            f"{plan.config.path}: candidates are chosen by their validation rows, and the dataset "
            "has none. Give a source with split: validation, or set prepare.validation_fraction."
        )


def _validation_rows(dataset: "Artifact") -> int:
    rows: dict[str, int] = dataset.manifest.metrics.get("rows", {})
    return rows.get("validation", 0)


def work(bench: Bench) -> None:
    """Run jobs until none is left, others' unfinished ones included. Trials of one process load
    their base once.

    Raises:
        InterruptedRunError: a stop was requested.
        LuthierError: all that was tried failed.
    """
    study = bench.study
    with sharing_bases():
        while True:
            bench.stop.raise_if_requested()
            with study.deciding():
                job = next_job(study, study.try_lock)
            if job == "done":
                return
            if job == "wait":
                time.sleep(_LOOK_EVERY_SECONDS)
                continue
            assert isinstance(job, Job)
            try:
                bench.reporter.say(describe_trial(study, job.number))
                run_job(bench, job)
            finally:
                job.claim.release()
            bench.reporter.say(describe_trial(study, job.number))
            refuse_hopeless(study)


def refuse_hopeless(study: Study) -> None:
    """Raises LuthierError when everything that was tried failed."""
    failed = hopeless(study)
    if failed is not None:
        raise LuthierError(
            f"{study.plan.config.path}: every trial failed, trial {failed.number} with:\n"
            f"{(failed.error or '').splitlines()[0]}\n"
            "Mend that, and go on with: luthier sweep "
            f"{study.plan.config.path} --retry-failed"
        )


def ask_winner(bench: Bench) -> None:
    """Ask the test rows, for the winner and once: its own config, to the stage evaluate."""
    study, plan = bench.study, bench.study.plan
    winner = read_state(study).winner
    if winner is None or "evaluate" not in plan.config.sections:
        return
    with study.deciding():
        if winner in study.tested():
            return
        held = study.try_lock("test")
    if held is None:
        bench.reporter.say("Another process asks the winner the test rows.")
        return
    try:
        study.keep_test(winner, asdict(_tested(bench, winner)))
    finally:
        held.release()


@dataclass(frozen=True)
class Tested:
    """The winner on the test rows: keys of its artifacts by stage, or the gate that failed."""

    keys: dict[str, str]
    error: str | None = None


def _tested(bench: Bench, winner: int) -> Tested:
    study = bench.study
    params = study.params(study.trials()[winner])
    bench.reporter.say(f"The winner is trial {winner}; the test rows are asked now, for it alone.")
    pipeline = bench.pipeline(study.plan.winner_config(params))
    error: str | None = None
    try:
        pipeline.run("evaluate")
    except GateError as failed:
        error = str(failed)
    made: dict[str, Any] = pipeline.artifacts()
    return Tested({stage: artifact.key for stage, artifact in made.items()}, error)
