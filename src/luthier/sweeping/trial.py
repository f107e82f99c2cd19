"""One trial: the pipeline on its config, once a seed, watched; then what it came to is told."""

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.errors import GateError, InterruptedRunError, LuthierError, PrunedRunError
from luthier.interrupts import StopFlag
from luthier.pipeline import Choices, Pipeline
from luthier.progress import Reporter, Task
from luthier.store import Artifact
from luthier.sweeping.jobs import Job
from luthier.sweeping.study import PROGRESS_STEPS, RunRecord, RunState, Study
from luthier.watching import UNWATCHED, Watch

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from luthier.config import RunConfig


@dataclass
class Bench:
    """What the trials of one process share: the study, who is told, and artifacts whose every byte
    was read."""

    study: Study
    reporter: Reporter = field(default_factory=Reporter)
    stop: StopFlag = field(default_factory=StopFlag)
    verified: set[str] = field(default_factory=set)

    def pipeline(
        self, config: "RunConfig", reporter: Reporter | None = None, watch: Watch = UNWATCHED
    ) -> Pipeline:
        """For one config. Other candidates' interrupted runs are no reason to refuse it."""
        return Pipeline(
            config,
            self.study.store,
            reporter or self.reporter,
            self.stop,
            Choices(fresh=True),
            watch=watch,
            verified=self.verified,
        )


class TrialWatch(Watch):
    """Hands the validation losses of a trial's first run to Optuna, whose pruner may end it."""

    def __init__(self, study: Study, frozen: "FrozenTrial", clock: "_Clock") -> None:
        from optuna.trial import Trial

        self._trial: Trial = Trial(study.optuna, frozen._trial_id)
        self._known = dict(frozen.intermediate_values)
        self._sign = 1.0 if study.plan.measures[0].direction == "minimize" else -1.0
        self._reports = len(study.plan.measures) == 1  # of several Optuna takes none
        self._prunes = study.plan.section.pruning is not None
        self._clock = clock
        # A run that was killed between the verdict and its end.
        self._ends = bool(self._known) and self._is_behind(max(self._known))
        self.progress = max(self._known, default=0) / PROGRESS_STEPS

    def validated(self, progress: float, loss: float) -> None:
        """Report, unless a run that was killed did, and ask the pruner."""
        step = round(PROGRESS_STEPS * progress)
        if step not in self._known and self._reports:
            self._known[step] = self._sign * loss
            self._trial.report(self._known[step], step)
        self.progress = progress
        self._ends = self._is_behind(step)
        self._clock.note()

    @property
    def wants_end(self) -> bool:
        """Whether the candidate fell behind."""
        return self._ends

    def _is_behind(self, step: int) -> bool:
        # What ran to its end has a score of its own.
        return self._prunes and step < PROGRESS_STEPS and self._trial.should_prune()


class _Clock:
    """Seconds of a run, those of earlier processes included."""

    def __init__(self, study: Study, number: int, seed: int) -> None:
        self._study, self._run = study, (number, seed)
        self._before = study.spent(number, seed)
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Up to now."""
        return self._before + time.monotonic() - self._started

    def note(self) -> None:
        """Write them down, for the next process if this one is killed."""
        self._study.note_spent(*self._run, self.seconds)


class _TrialReporter(Reporter):
    """Shows the tasks of a trial, with its number; not what each stage says."""

    def __init__(self, inner: Reporter, title: str) -> None:
        self._inner, self._title = inner, title

    @contextmanager
    def task(
        self, label: str, total: int, unit: str = "", seconds: float | None = None
    ) -> Iterator[Task]:
        """Counted work."""
        with self._inner.task(f"{self._title}, {label}", total, unit, seconds) as task:
            yield task


def run_job(bench: Bench, job: Job) -> None:
    """Run what is not done of a job and write down what it came to.

    Raises:
        InterruptedRunError: a stop was requested; what is done is kept.
    """
    records = bench.study.records()
    frozen = bench.study.trials()[job.number]
    if job.is_trial and frozen.state.is_finished():
        return
    for seed in job.seeds:
        record = records.get((job.number, seed))
        if record is None:
            record = _run(bench, frozen, seed, watched=job.is_trial and seed == job.seeds[0])
            bench.study.keep(record)
        records[job.number, seed] = record
        if record.state != "done":
            break
    if job.is_trial:
        _tell(
            bench.study,
            job.number,
            [records[job.number, seed] for seed in job.seeds if (job.number, seed) in records],
        )


def _tell(study: Study, number: int, records: Sequence[RunRecord]) -> None:
    """End a trial of Optuna's: its mean over seeds, or that it has none."""
    from optuna.trial import TrialState

    ended = records[-1].state
    if ended == "done":
        columns = zip(*(record.values for record in records), strict=True)
        study.optuna.tell(number, [sum(column) / len(records) for column in columns])
        return
    # A failed gate is a bad place, of which a sampler shall learn; of a failure it learns nothing.
    # Of several objectives Optuna knows no such state.
    is_bad = ended in ("pruned", "gate failed") and len(study.plan.measures) == 1
    study.optuna.tell(number, state=TrialState.PRUNED if is_bad else TrialState.FAIL)


def _run(bench: Bench, frozen: "FrozenTrial", seed: int, *, watched: bool) -> RunRecord:
    """One run of the pipeline, reusing what is there."""
    study, number = bench.study, frozen.number
    clock = _Clock(study, number, seed)
    watch = TrialWatch(study, frozen, clock) if watched else Watch()
    ended: dict[str, Any] = {}
    state: RunState = "failed"
    try:
        made = _made(bench, study.params(frozen), number, seed, watch)
        ended["values"] = [measure.of(made) for measure in study.plan.measures]
        ended["keys"] = {stage: artifact.key for stage, artifact in made.items()}
        state = "done"
    except InterruptedRunError:
        clock.note()
        raise
    except PrunedRunError:
        state = "pruned"
        ended["progress"] = watch.progress if isinstance(watch, TrialWatch) else 0.0
    except GateError as error:
        state, ended["error"] = "gate failed", str(error)
    except LuthierError as error:
        ended["error"] = str(error)
    except Exception as error:  # noqa: BLE001, one trial's bug must not take the others with it
        ended["error"] = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    return RunRecord(number, seed, state, seconds=clock.seconds, **ended)


def _made(
    bench: Bench, params: dict[str, Any], number: int, seed: int, watch: Watch
) -> dict[str, Artifact]:
    """The artifacts of one run, by stage."""
    plan = bench.study.plan
    title = f"trial {number}" if seed == plan.config.seed else f"trial {number}, seed {seed}"
    reporter = _TrialReporter(bench.reporter, title)
    pipeline = bench.pipeline(plan.trial_config(params, seed), reporter, watch)
    try:
        return {step.stage: step.artifact for step in pipeline.run(plan.until)}
    except PrunedRunError:
        pipeline.discard_unfinished(plan.until)
        raise
