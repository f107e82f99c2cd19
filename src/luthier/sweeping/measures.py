"""What a candidate can be chosen by: measures of the artifacts that its trial made."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.errors import ConfigError, DataError
from luthier.evaluation.entrants import Direction
from luthier.sweeping.section import ObjectiveSection

if TYPE_CHECKING:
    from luthier.data.rows import Task
    from luthier.store import Artifact

Made = Mapping[str, "Artifact"]  # by stage
TUNED = "tuned/"  # how the systems of the tuned model begin in evaluation.json


@dataclass(frozen=True)
class Measure:
    """One number of a trial: which way is better, and the stage that must have run.

    `has_answers`: it is one of the answers to rows, so that candidates can be compared row by row.
    """

    name: str
    stage: str
    direction: Direction
    read: Callable[[Made], float | None]
    has_answers: bool = False

    def of(self, made: Made) -> float:
        """Its value.

        Raises:
            DataError: these artifacts do not have it.
        """
        value = self.read(made)
        if not isinstance(value, float | int):
            raise DataError(
                f"{self.name}: {made[self.stage].ref} has no such number. What it needs was not "
                "measured there"
            )
        return float(value)


def known_measures(task: "Task") -> dict[str, Measure]:
    """All, by the name that `sweep.objective` uses."""
    from luthier.evaluation.metrics import METRICS

    found = [
        Measure(
            f"evaluate.{metric.name}",
            "evaluate",
            "maximize" if metric.is_score else "minimize",
            _score(metric.name),
            has_answers=True,
        )
        for metric in METRICS.values()
        if task in metric.tasks
    ]
    found += [
        Measure("evaluate.p50_seconds", "evaluate", "minimize", _seconds("p50")),
        Measure("evaluate.p95_seconds", "evaluate", "minimize", _seconds("p95")),
        Measure("evaluate.retention_increase_nats", "evaluate", "minimize", _forgotten),
    ]
    for stage in ("sft", "dpo"):
        found += [
            Measure(f"{stage}.validation_loss", stage, "minimize", _loss(stage)),
            Measure(f"{stage}.adapter_bytes", stage, "minimize", _bytes(stage)),
            Measure(f"{stage}.train_seconds", stage, "minimize", _train_seconds(stage)),
            Measure(f"{stage}.peak_memory_bytes", stage, "minimize", _peak(stage)),
        ]
    return {one.name: one for one in found}


def chosen_measures(
    objectives: Sequence[ObjectiveSection], task: "Task", stages: Sequence[str], place: str
) -> list[Measure]:
    """The measures that a sweep names.

    Raises:
        ConfigError: there is no such measure, its stage is no section of the config, or the wanted
            direction is the wrong one.
    """
    known, chosen = known_measures(task), []
    for objective in objectives:
        measure = known.get(objective.metric)
        if measure is None or measure.stage not in stages:
            raise ConfigError(f"{place}: {_unknown(objective.metric, measure, known, stages)}")
        if objective.direction not in (None, measure.direction):
            raise ConfigError(
                f"{place}: {objective.metric} is better the "
                f"{'higher' if measure.direction == 'maximize' else 'lower'} it is, so direction "
                f"must be {measure.direction}. Leave it out."
            )
        chosen.append(measure)
    return chosen


def _unknown(
    name: str, measure: Measure | None, known: Mapping[str, Measure], stages: Sequence[str]
) -> str:
    if measure is not None:
        return f"{name} needs the section {measure.stage}, which is not there. Add it."
    usable = [one for one in known if known[one].stage in stages]
    close = difflib.get_close_matches(name, usable, n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    return f"{name} is not measured.{meant} There are: {', '.join(usable)}."


def tuned_system(evaluation: "Artifact") -> str:
    """The system of the tuned model that is compared: the first way of scoring it."""
    from luthier.evaluation.summary import read_summary

    names: list[str] = list(read_summary(evaluation.path)["systems"])
    return next(name for name in names if name.startswith(TUNED))


def _score(metric: str) -> Callable[[Made], float | None]:
    def read(made: Made) -> float | None:
        evaluation = made["evaluate"]
        found: Any = evaluation.manifest.metrics[tuned_system(evaluation)].get(metric)
        return found  # type: ignore[no-any-return]

    return read


def _seconds(which: str) -> Callable[[Made], float | None]:
    def read(made: Made) -> float | None:
        from luthier.evaluation.speed import read_speeds

        speed = read_speeds(made["evaluate"].path).get(f"{TUNED}generation")
        return float(getattr(speed.request_seconds, which)) if speed else None

    return read


def _forgotten(made: Made) -> float | None:
    from luthier.evaluation.summary import read_summary

    kept = read_summary(made["evaluate"].path).get("retention") or {}
    return (kept.get("texts") or {}).get("increase_nats")


def _loss(stage: str) -> Callable[[Made], float | None]:
    def read(made: Made) -> float | None:
        """That of the weights that were kept."""
        manifest = made[stage].manifest
        kept_best = manifest.config.get("keep") == "best"
        return manifest.metrics["validation_loss" if kept_best else "last_validation_loss"]  # type: ignore[no-any-return]

    return read


def _bytes(stage: str) -> Callable[[Made], float | None]:
    def read(made: Made) -> float | None:
        outputs = made[stage].manifest.outputs
        return sum(file.size_bytes for file in outputs if file.path.endswith(".safetensors"))

    return read


def _train_seconds(stage: str) -> Callable[[Made], float | None]:
    return lambda made: made[stage].manifest.timings_seconds.get("train")


def _peak(stage: str) -> Callable[[Made], float | None]:
    return lambda made: made[stage].manifest.facts["training"].get("peak_memory_bytes")
