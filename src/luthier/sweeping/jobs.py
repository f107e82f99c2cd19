"""What runs next: trials that nobody works on any more, new ones, then the finalists' seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from luthier.sweeping.study import RunRecord, Study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SECONDS_PER_HOUR = 3600.0
# So many failed trials and none that did not: it is the config that is wrong, not the candidates.
_ALL_FAILED = 3


@dataclass(frozen=True)
class Job:
    """A unit of work: the runs of one trial with these seeds. `claim` is what holds it.

    `is_trial`: a trial of the search, which ends with these runs; else more seeds for a finalist.
    """

    number: int
    seeds: Sequence[int]
    unit: str
    is_trial: bool
    claim: Any


Claim = Callable[[str], Any]  # of a unit; None when somebody else has it


def next_job(study: Study, claim: Claim) -> Job | Literal["wait", "done"]:
    """The next job, claimed. `wait`: others work on what is left, and may die of it.

    Call it within `study.deciding`.
    """
    job = _trial_job(study, claim)
    if job is not None:
        return job
    if any(not trial.state.is_finished() for trial in study.trials()):
        return "wait"
    return _finalist_job(study, claim)


def _trial_job(study: Study, claim: Claim) -> Job | None:
    seeds = study.plan.first_seeds
    for trial in study.trials():
        unit = f"trial-{trial.number}"
        if not trial.state.is_finished() and (held := claim(unit)) is not None:
            return Job(trial.number, seeds, unit, True, held)
    if why_over(study) is not None:
        return None
    number = study.begin()
    unit = f"trial-{number}"
    # Whoever looks at the study may hold the lock for a moment; then it is the next one's.
    if number is None or (held := claim(unit)) is None:
        return None
    return Job(number, seeds, unit, True, held)


def _finalist_job(study: Study, claim: Claim) -> Job | Literal["wait", "done"]:
    finalists, records = study.plan.section.finalists, study.records()
    if finalists is None:
        return "done"
    waits = False
    for number in best_candidates(study, finalists.candidates):
        for seed in study.plan.seeds(finalists.seeds):
            if (number, seed) in records:
                continue
            unit = f"run-{number}-{seed}"
            held = claim(unit)
            if held is not None:
                return Job(number, [seed], unit, False, held)
            waits = True
    return "wait" if waits else "done"


def why_over(study: Study) -> str | None:
    """Why no further trial begins; None when one may."""
    section, trials = study.plan.section, study.trials()
    if _begun(trials) >= study.plan.trials:
        return f"all {study.plan.trials} trials were begun"
    hours = spent_seconds(study) / SECONDS_PER_HOUR
    if section.max_hours is not None and hours >= section.max_hours:
        return f"max_hours: {section.max_hours:g} are used up"
    if section.max_cost_usd is not None:
        assert section.price_usd_per_hour is not None, "the section sees to it"
        cost = hours * section.price_usd_per_hour
        if cost >= section.max_cost_usd:
            return f"max_cost_usd: {section.max_cost_usd:g} are used up"
    return None


def _begun(trials: "Sequence[FrozenTrial]") -> int:
    """Trials that count: one that repeats another counts for both."""
    return len(trials) - sum("repeats" in trial.user_attrs for trial in trials)


def spent_seconds(study: Study) -> float:
    """Seconds of all runs so far."""
    return sum(record.seconds for record in study.records().values())


def hopeless(study: Study) -> RunRecord | None:
    """The first failure of a study in which all that was tried failed."""
    records = list(study.records().values())
    if len(records) < _ALL_FAILED or any(record.state != "failed" for record in records):
        return None
    return min(records, key=lambda record: (record.number, record.seed))


def best_candidates(study: Study, count: int) -> list[int]:
    """Trials whose search score is best, the best first; of equal ones the first."""
    from optuna.trial import TrialState

    upward = study.plan.measures[0].direction == "maximize"
    done = [trial for trial in study.trials() if trial.state == TrialState.COMPLETE]
    ordered = sorted(done, key=lambda trial: -trial.values[0] if upward else trial.values[0])
    return [trial.number for trial in ordered[:count]]
