"""The `sweep:` section of a run config: what is searched, for what, and how long.

No stage: it makes nothing by itself, and nothing that a stage makes depends on it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field as Bounded
from pydantic import model_validator

from luthier.config import Field, Section, result_free
from luthier.evaluation.entrants import Direction

Scalar = str | int | float | bool | None
Choice = Scalar | list[Any] | dict[str, Any]
Bounds = Annotated[list[float], Bounded(min_length=2, max_length=2)]
WholeBounds = Annotated[list[int], Bounded(min_length=2, max_length=2)]

_KINDS = ("choice", "uniform", "log_uniform", "int_uniform", "log_int_uniform")
# What trials run, so that only their sections can be searched.
SEARCHED_SECTIONS = ("base", "prepare", "sft", "preferences", "pairs", "dpo")
_MOST_OBJECTIVES = 3


class ObjectiveSection(Section):
    """What candidates are chosen by."""

    metric: str = Field(
        pattern=r"^[a-z]+\.[a-z0-9_]+$",
        description="stage.measure, such as evaluate.accuracy, evaluate.macro_f1, "
        "evaluate.p50_seconds, sft.validation_loss, sft.adapter_bytes",
    )
    direction: Direction | None = Field(
        None, description="null: as the measure has it, a score up and a loss, time or size down"
    )


class ParameterSection(Section):
    """The values that one field of the config may take: one of the five ways to say it."""

    choice: list[Choice] | None = Field(
        None, min_length=1, description="one of these; a whole mapping or list is one value"
    )
    uniform: Bounds | None = Field(None, description="a number from low to high, both included")
    log_uniform: Bounds | None = Field(
        None, description="a number from low to high, its logarithm evenly spread"
    )
    int_uniform: WholeBounds | None = Field(None, description="a whole number from low to high")
    log_int_uniform: WholeBounds | None = Field(
        None, description="a whole number from low to high, its logarithm evenly spread"
    )
    step: float | None = Field(
        None, gt=0, description="of uniform and int_uniform: only low, low + step and so on"
    )
    when: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict,
        description="other parameters and the value, or values, with which this one is searched",
    )

    @property
    def kind(self) -> str:
        """Which of the five it is."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def bounds(self) -> tuple[float, float]:
        """Low and high of a number."""
        low, high = getattr(self, self.kind)
        return low, high

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            said = f"has {' and '.join(given)}" if given else "has none"
            raise ValueError(f"must have exactly one of {', '.join(_KINDS)}, and {said}")
        if self.choice is not None:
            if self.step is not None:
                raise ValueError("step has no meaning for choice")
            if any(value in self.choice[:place] for place, value in enumerate(self.choice)):
                raise ValueError("choice has a value twice")
            return self
        self._check_bounds()
        return self

    def _check_bounds(self) -> None:
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"{self.kind} must be [low, high] with low below high")
        if self.kind.startswith("log") and low <= 0:
            raise ValueError(f"{self.kind} needs a low above 0, since it takes logarithms")
        if self.step is None:
            return
        if self.kind.startswith("log"):
            raise ValueError(f"step has no meaning for {self.kind}")
        if self.kind == "int_uniform" and self.step != int(self.step):
            raise ValueError("the step of int_uniform must be whole")
        if self.step > high - low:
            raise ValueError("step is larger than the range")


class PruningSection(Section):
    """Ending candidates early that fall behind in validation loss during sft."""

    kind: Literal["median", "hyperband"] = Field(
        "median",
        description="median: worse than the median of those before it at the same share of the "
        "run; hyperband: the best 1/reduction_factor go on at each rung",
    )
    startup_trials: int = Field(
        4, ge=1, description="of median: so many candidates run to their end first"
    )
    warmup_fraction: float = Field(
        0.0, ge=0, lt=1, description="of median: share of the run in which none is ended"
    )
    reduction_factor: int = Field(3, ge=2, le=10, description="of hyperband")


class FinalistsSection(Section):
    """After the search the best are trained with more seeds, and the best mean wins."""

    candidates: int = Field(3, ge=2, le=20, description="how many of the best")
    seeds: int = Field(3, ge=2, le=20, description="training seeds of each in all")


class RaySection(Section):
    """Where trials run with `executor: ray`."""

    address: str = Field(
        "auto", description="of a cluster that is there; auto: the one of this machine"
    )
    gpus_per_trial: float = Field(1.0, ge=0, description="Ray's num_gpus of a trial")
    cpus_per_trial: float = Field(1.0, ge=0, description="Ray's num_cpus of a trial")
    retries: int = Field(3, ge=0, description="of a trial whose node died, from its checkpoint")


class SweepSection(Section):
    """Search over this config: candidates differ in `parameters` and are chosen on validation."""

    objective: ObjectiveSection | list[ObjectiveSection] = Field(
        description="one, or a list of up to three whose trade-offs are searched"
    )
    parameters: dict[str, ParameterSection] = Field(
        min_length=1, description="by the dotted path of the field, such as sft.learning_rate"
    )
    trials: int = Field(
        20, ge=1, le=10_000, json_schema_extra=result_free, description="candidates in all"
    )
    sampler: Literal["tpe", "random", "grid", "cmaes", "gp"] = Field(
        "tpe", description="who proposes candidates (Optuna); grid: every combination in order"
    )
    pruning: PruningSection | None = Field(
        None, description="end candidates early; needs sft.evaluate_every_fraction. null: none"
    )
    seeds_per_candidate: int = Field(
        1, ge=1, le=20, description="training seeds of each candidate; its score is their mean"
    )
    finalists: FinalistsSection | None = Field(
        None,
        json_schema_extra=result_free,
        description="more seeds for the best before one of them wins; null: none",
    )
    max_hours: float | None = Field(
        None,
        gt=0,
        json_schema_extra=result_free,
        description="hours of all trials together after which none begins; null: no limit",
    )
    max_cost_usd: float | None = Field(
        None,
        gt=0,
        json_schema_extra=result_free,
        description="what they may cost at price_usd_per_hour before none begins; null: no limit",
    )
    price_usd_per_hour: float | None = Field(
        None,
        gt=0,
        json_schema_extra=result_free,
        description="of the machine that runs a trial",
    )
    concurrency: Annotated[int, Bounded(ge=1, le=256)] | Literal["auto"] | None = Field(
        None,
        json_schema_extra=result_free,
        description="trials at once; auto: as many as fit the GPUs' memory by its prediction, one "
        "on a CPU; null: one, on Ray as many as the cluster takes",
    )
    executor: Literal["local", "ray"] = Field(
        "local",
        json_schema_extra=result_free,
        description="local: processes of this machine; ray: tasks of a Ray cluster, on one store "
        "that all its nodes see",
    )
    ray: RaySection = Field(
        default_factory=RaySection, json_schema_extra=result_free, description="of executor: ray"
    )

    @property
    def objectives(self) -> Sequence[ObjectiveSection]:
        """One or several; the first ranks."""
        return self.objective if isinstance(self.objective, list) else [self.objective]

    @model_validator(mode="after")
    def _objectives_fit(self) -> Self:
        metrics = [one.metric for one in self.objectives]
        if not 1 <= len(metrics) <= _MOST_OBJECTIVES:
            raise ValueError(f"objective must be one, or a list of up to {_MOST_OBJECTIVES}")
        if len(set(metrics)) != len(metrics):
            raise ValueError("objective names a metric twice")
        if len(metrics) > 1 and self.pruning is not None:
            raise ValueError(
                "pruning needs a single objective: of several none says who is behind"
            )
        return self

    @model_validator(mode="after")
    def _budget_fits(self) -> Self:
        if self.max_cost_usd is not None and self.price_usd_per_hour is None:
            raise ValueError("max_cost_usd needs price_usd_per_hour")
        if self.finalists is not None and self.finalists.seeds <= self.seeds_per_candidate:
            raise ValueError(
                "finalists.seeds must be more than seeds_per_candidate, which they have already"
            )
        return self

    @model_validator(mode="after")
    def _parameters_fit(self) -> Self:
        check_parameters(self.parameters)
        if self.sampler == "grid":
            endless = [name for name, one in self.parameters.items() if not is_countable(one)]
            if endless:
                raise ValueError(
                    f"sampler: grid needs countable values, and {endless[0]} has any number "
                    "between two. Give it a choice or a step, or take another sampler"
                )
        return self


def is_countable(parameter: ParameterSection) -> bool:
    """Whether a parameter has a list of values."""
    return parameter.kind in ("choice", "int_uniform", "log_int_uniform") or bool(parameter.step)


def check_parameters(parameters: Mapping[str, ParameterSection]) -> None:
    """Raises ValueError for paths that no trial reads, and for conditions that cannot hold."""
    for name, parameter in parameters.items():
        head, *rest = name.split(".")
        if head not in SEARCHED_SECTIONS or not all(rest) or not rest:
            raise ValueError(
                f"parameters: {name} cannot be searched. Name a field of "
                f"{', '.join(SEARCHED_SECTIONS)}, such as sft.learning_rate"
            )
        if rest == ["seed"]:
            raise ValueError(
                f"parameters: {name} is no choice but chance. See seeds_per_candidate and "
                "finalists"
            )
        for other, wanted in parameter.when.items():
            _check_condition(name, other, wanted, parameters)
    in_order(parameters)


def _check_condition(
    name: str, other: str, wanted: Any, parameters: Mapping[str, ParameterSection]
) -> None:
    if other not in parameters:
        raise ValueError(f"parameters.{name}.when: {other} is not one of the parameters")
    values = wanted if isinstance(wanted, list) else [wanted]
    choice = parameters[other].choice
    strange = [value for value in values if choice is not None and value not in choice]
    if strange:
        raise ValueError(f"parameters.{name}.when: {other} is never {strange[0]!r}")


def in_order(parameters: Mapping[str, ParameterSection]) -> list[str]:
    """The names, each after those that its condition names.

    Raises:
        ValueError: conditions go round in a circle.
    """
    placed: list[str] = []
    waiting = list(parameters)
    while waiting:
        ready = [name for name in waiting if set(parameters[name].when) <= set(placed)]
        if not ready:
            raise ValueError(
                f"parameters: the conditions of {' and '.join(waiting)} go in a circle"
            )
        placed.append(ready[0])
        waiting.remove(ready[0])
    return placed
