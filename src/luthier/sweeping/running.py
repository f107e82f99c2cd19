"""`luthier sweep`: from a plan to a winner, on this machine or on a Ray cluster."""

from contextlib import ExitStack

from luthier.errors import StoreError
from luthier.sweeping.helpers import helping, own_share
from luthier.sweeping.slots import trial_slots
from luthier.sweeping.state import SweepState, read_state
from luthier.sweeping.study import Study, siblings
from luthier.sweeping.trial import Bench
from luthier.sweeping.working import ask_winner, make_shared, work


def run_sweep(bench: Bench, *, retry_failed: bool = False) -> SweepState:
    """Run every trial that is not done, then ask the winner the test rows.

    Raises:
        InterruptedRunError: a stop was requested; the same command goes on.
        LuthierError: what all trials share cannot be made, or every trial failed.
    """
    study = bench.study
    bench.reporter.say(_greeting(study))
    make_shared(bench)
    if retry_failed:
        _repeat_failed(study)
    if study.plan.section.executor == "ray":
        from luthier.sweeping.on_ray import work_on_ray

        work_on_ray(bench)
    else:
        _work_here(bench)
    ask_winner(bench)
    return read_state(study)


def _work_here(bench: Bench) -> None:
    slots, gpus = trial_slots(bench.study)
    with ExitStack() as stack:
        if slots > 1:
            bench.reporter.say(f"{slots} trials at once.")
            stack.enter_context(own_share(slots, gpus))
            stack.enter_context(helping(bench, slots - 1, gpus))
        work(bench)


def _greeting(study: Study) -> str:
    trials = study.trials() if study.exists else []
    name, key = study.plan.config.name, study.plan.key[:8]
    if trials:
        ended = sum(trial.state.is_finished() for trial in trials)
        return f"sweep of {name} ({key}): goes on, {ended} of {study.plan.trials} trials are done"
    others = siblings(study)
    beside = f"; {len(others)} with other settings or data are there too" if others else ""
    return f"sweep of {name} ({key}): new, {study.plan.trials} trials{beside}"


def _repeat_failed(study: Study) -> None:
    """Begin every failed trial again, once each: it goes on from its checkpoint.

    Raises:
        StoreError: none failed.
    """
    with study.deciding():
        trials = study.trials()
        repeated = {trial.user_attrs.get("repeats") for trial in trials}
        failed = {number for (number, _), run in study.records().items() if run.state == "failed"}
        again = [t for t in trials if t.number in failed - repeated and not t.values]
        for trial in again:
            study.repeat(trial)
    if not again:
        raise StoreError("--retry-failed: no trial of this sweep failed. Leave it out.")
