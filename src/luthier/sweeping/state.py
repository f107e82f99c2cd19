"""A sweep as it stands: its trials, their ranking on validation, and the winner on test."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.errors import StoreError
from luthier.evaluation.entrants import Direction, Entrant
from luthier.evaluation.ranking import Ranking, rank
from luthier.sweeping.jobs import best_candidates, spent_seconds, why_over
from luthier.sweeping.measures import tuned_system
from luthier.sweeping.study import PROGRESS_STEPS, RunRecord, Study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from luthier.evaluation.answers import Answer
    from luthier.store import Artifact

TrialWord = Literal["done", "pruned", "gate failed", "failed", "running", "interrupted"]


@dataclass(frozen=True)
class TrialState:
    """One candidate. `values`: the mean over its seeds, one for each objective; `scores`: the
    first objective by seed; `progress`: how far its run went, 0 to 1."""

    number: int
    params: Mapping[str, Any]
    state: TrialWord
    values: Sequence[float]
    scores: Mapping[int, float]
    progress: float
    seconds: float
    error: str | None


@dataclass(frozen=True)
class TestedState:
    """The winner on the test rows. `metric` is the task's own; None of what was not measured."""

    number: int
    metric: str
    score: float | None
    interval: tuple[float, float] | None
    rows: int
    ship: str | None
    error: str | None
    evaluation: str | None


@dataclass(frozen=True)
class SweepState:
    """All there is to see of a sweep.

    `over`: why no further trial begins; None while some are left. `front`: with several objectives
    the trials that none beats in all of them. `looks`: how many models of this store were ever
    asked the winner's test rows, 0 before it was.
    """

    name: str
    config: Path
    overrides: Sequence[str]
    folder: Path
    key: str
    parameters: Sequence[str]
    objectives: Sequence[tuple[str, Direction]]
    trials: Sequence[TrialState]
    wanted_trials: int
    over: str | None
    spent_seconds: float
    ranking: Ranking | None
    winner: int | None
    front: Sequence[int]
    tested: TestedState | None
    looks: int

    def trial(self, number: int) -> TrialState:
        """By its number."""
        return self.trials[number]


def read_state(study: Study) -> SweepState:
    """What the study and the artifacts of its trials say."""
    plan, records = study.plan, study.records()
    trials = [_trial_state(study, trial, records) for trial in study.trials()]
    winner = _winner(study, trials)
    return SweepState(
        name=plan.config.name,
        config=plan.config.path,
        overrides=plan.config.overrides,
        folder=study.folder,
        key=plan.key,
        parameters=list(plan.section.parameters),
        objectives=[(measure.name, measure.direction) for measure in plan.measures],
        trials=trials,
        wanted_trials=plan.trials,
        over=why_over(study),
        spent_seconds=spent_seconds(study),
        ranking=_ranking(study, trials, records, winner),
        winner=winner,
        front=[trial.number for trial in study.optuna.best_trials]
        if len(plan.measures) > 1
        else [],
        tested=_tested(study, winner),
        looks=_looks(study, winner),
    )


def _trial_state(
    study: Study, trial: "FrozenTrial", records: Mapping[tuple[int, int], RunRecord]
) -> TrialState:
    runs = [record for (number, _), record in records.items() if number == trial.number]
    done = [run for run in runs if run.state == "done"]
    ended = next((run for run in runs if run.state != "done"), None)
    state: TrialWord = "done"
    if not trial.state.is_finished():
        state = "running" if study.is_held(f"trial-{trial.number}") else "interrupted"
    elif trial.state != trial.state.COMPLETE:
        assert ended is not None, "a trial that failed has a run that did"
        state = ended.state
    last = max(trial.intermediate_values, default=0) / PROGRESS_STEPS
    columns = zip(*(run.values for run in done), strict=True)
    return TrialState(
        number=trial.number,
        params=study.params(trial),
        state=state,
        values=[sum(column) / len(done) for column in columns] if state == "done" else [],
        scores={run.seed: run.values[0] for run in done},
        progress=1.0 if state == "done" else last,
        seconds=sum(run.seconds for run in runs),
        error=ended.error if ended else None,
    )


def _winner(study: Study, trials: Sequence[TrialState]) -> int | None:
    """The best mean over seeds: of the finalists where there are some, else of all."""
    finalists = study.plan.section.finalists
    numbers = best_candidates(study, finalists.candidates if finalists else len(trials))
    upward = study.plan.measures[0].direction == "maximize"
    found = [trials[number] for number in numbers if trials[number].values]
    best = max if upward else min
    return best(found, key=lambda trial: trial.values[0]).number if found else None


def _ranking(
    study: Study,
    trials: Sequence[TrialState],
    records: Mapping[tuple[int, int], RunRecord],
    winner: int | None,
) -> Ranking | None:
    if winner is None:
        return None
    measure = study.plan.measures[0]
    entrants = [
        Entrant(
            name=str(trial.number),
            answers={
                seed: _answers(study, records[trial.number, seed])
                for seed in trial.scores
                if measure.has_answers
            },
            scores=trial.scores,
        )
        for trial in trials
        if trial.values
    ]
    return rank(
        entrants, direction=measure.direction, first=str(winner), seed=study.plan.config.seed
    )


def _answers(study: Study, record: RunRecord) -> "Sequence[Answer]":
    from luthier.evaluation.answers import read_answers

    evaluation = found_artifact(study, record.keys["evaluate"])
    return read_answers(evaluation.path)[tuned_system(evaluation)]


def found_artifact(study: Study, key: str) -> "Artifact":
    """An artifact that a trial made.

    Raises:
        StoreError: it is no longer there.
    """
    artifact = study.store.find(key)
    if artifact is None:
        raise StoreError(
            f"{study.folder}: what a trial made is no longer in the store (key {key[:16]}). "
            "Delete that folder to begin the sweep anew: what is still there is reused."
        )
    return artifact


def _tested(study: Study, winner: int | None) -> TestedState | None:
    from luthier.evaluation.summary import read_summary

    found = study.tested().get(winner) if winner is not None else None
    if found is None or winner is None:
        return None
    if "evaluate" not in found["keys"]:
        return TestedState(winner, "", None, None, 0, None, found["error"], None)
    evaluation = found_artifact(study, found["keys"]["evaluate"])
    summary = read_summary(evaluation.path)
    metric, system = summary["primary_metric"], summary["systems"][tuned_system(evaluation)]
    low, high = system["intervals"][metric]
    return TestedState(
        number=winner,
        metric=metric,
        score=system["metrics"][metric],
        interval=(low, high),
        rows=summary["rows"],
        ship=evaluation.manifest.metrics.get("ship"),
        error=found["error"],
        evaluation=evaluation.ref,
    )


def _looks(study: Study, winner: int | None) -> int:
    """Tuned models that answered the test rows of the winner's dataset: of this sweep, of others
    and of runs."""
    found = study.tested().get(winner) if winner is not None else None
    if found is None or "evaluate" not in found["keys"]:
        return 0
    dataset = _input(found_artifact(study, found["keys"]["evaluate"]), "dataset")
    return len(
        {
            _input(artifact, "adapter")
            for artifact in study.store.artifacts()
            if artifact.manifest.stage == "evaluate"
            and artifact.manifest.config.get("split", "test") == "test"
            and _input(artifact, "dataset") == dataset
        }
    )


def _input(artifact: "Artifact", slot: str) -> str:
    return next(ref.digest for ref in artifact.manifest.inputs if ref.slot == slot)


def describe_params(params: Mapping[str, Any]) -> str:
    """A candidate's values on one line."""
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {_plain(value)}"
        for name, value in params.items()
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def describe_trial(study: Study, number: int) -> str:
    """What is to be said of a trial when it begins and when it ends."""
    trial = study.trials()[number]
    found = _trial_state(study, trial, study.records())
    title = f"trial {number} of {study.plan.trials}"
    if not trial.state.is_finished():
        return f"{title}: {describe_params(found.params)}"
    if found.values:
        pairs = zip(study.plan.measures, found.values, strict=True)
        scores = ", ".join(f"{measure.name} {value:.4g}" for measure, value in pairs)
        seeds = f", mean of {len(found.scores)} seeds" if len(found.scores) > 1 else ""
        return f"{title}: {scores}{seeds} ({found.seconds:.0f} s)"
    if found.state == "pruned":
        return f"{title}: pruned after {100 * found.progress:.0f} % of its run"
    return f"{title}: {found.state}: {(found.error or '').splitlines()[0]}"
