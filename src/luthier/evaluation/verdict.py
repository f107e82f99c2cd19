"""The verdict on a tuned model: against the baseline, against its base, by the config's rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.evaluation.answers import Answer
from luthier.evaluation.general import GeneralLimits, Shown, judge_general
from luthier.evaluation.linear import compare_linear
from luthier.evaluation.production import compare_production, describe_production
from luthier.evaluation.shipping import (
    Measured,
    ShipSection,
    describe_verdict,
    judge_rules,
    ship_gate,
    weigh,
)
from luthier.evaluation.statistics import PairedTest
from luthier.evaluation.versus import Baseline, beats_baseline, compare_rows
from luthier.gates import Gate


@dataclass(frozen=True)
class Candidate:
    """The tuned system: its answers to the test rows, their summary, what it can do of what it was
    not tuned for, after what its base can, and the production model's version and answers."""

    name: str
    answers: Sequence[Answer]
    measured: Mapping[str, Any]
    labels: Sequence[str]
    general: tuple[Shown, Shown] | None
    production: "tuple[str, Sequence[Answer]] | None" = None


@dataclass(frozen=True)
class Limits:
    """What the config says of the verdict."""

    ship: ShipSection
    general: GeneralLimits
    alpha: float
    seed: int


@dataclass(frozen=True)
class Judged:
    """What evaluation.json, the gates and the terminal get."""

    summary: dict[str, Any]
    paired: PairedTest | None
    gates: list[Gate]
    lines: list[str]


def judge(candidate: Candidate, baseline: Baseline | None, limits: Limits) -> Judged:
    """Compare and weigh; what was not measured has no rule."""
    found: dict[str, Any] = {}
    gates = list[Gate]()
    paired = None
    if baseline is not None:
        paired = compare_rows(
            candidate.answers,
            baseline.answers,
            old_name="The baseline",
            alpha=limits.alpha,
        )
        found["compared"] = {"new": candidate.name, "old": baseline.name}
        gates.append(beats_baseline(paired, candidate.name, baseline.name))
    general = judge_general(candidate.general, limits.general, alpha=limits.alpha)
    found |= general.summary
    lines = general.lines
    rules = judge_rules(
        limits.ship,
        Measured(
            answers=candidate.answers,
            system=candidate.measured,
            labels=candidate.labels,
            alpha=limits.alpha,
            seed=limits.seed,
            old=baseline.answers if baseline else None,
            paired=paired,
            target=baseline.target if baseline else None,
            general=general.gates,
        ),
    )
    if candidate.production is not None and limits.ship.max_production_drop is not None:
        ref, old = candidate.production
        found["production"], rule = compare_production(
            candidate.answers,
            old,
            ref,
            max_drop=limits.ship.max_production_drop,
            alpha=limits.alpha,
        )
        rules.append(rule)
        lines.append(describe_production(found["production"]))
    if baseline is not None and baseline.linear is not None and limits.ship.linear is not None:
        found["linear"], rule = compare_linear(
            candidate.answers, baseline.linear, wanted=limits.ship.linear, alpha=limits.alpha
        )
        rules.append(rule)
    verdict = weigh(rules)
    found["ship"] = verdict.as_json()
    gates += general.gates
    if limits.ship.require:
        gates.append(ship_gate(verdict))
    return Judged(found, paired, gates, [*lines, describe_verdict(verdict)])
