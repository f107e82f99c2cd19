"""Ship or not: the config's rules, each held against what was measured.

A rule holds, is broken, or cannot be told from these rows (F35). Something ships when every rule
holds, does not when one is broken, and cannot be told otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from luthier.config import Field, Section
from luthier.errors import ConfigError
from luthier.evaluation.answers import Answer
from luthier.evaluation.class_changes import class_changes
from luthier.evaluation.power import two_digits
from luthier.evaluation.refusals import is_refusal
from luthier.evaluation.statistics import PairedTest, rows_to_rule_out, wilson_interval
from luthier.evaluation.target import Target
from luthier.gates import Gate, check

Held = Literal["holds", "broken", "cannot tell"]
Word = Literal["ship", "do not ship", "cannot tell"]


class ShipSection(Section):
    """The rules by which a tuned model is shipped; null leaves a rule out."""

    require: bool = Field(
        False, description="whether a model that is not to be shipped stops the run, exit code 3"
    )
    target: Target | None = Field(
        None, description="the lower end of its interval must reach this; null: baseline.target"
    )
    min_class_recall: float | None = Field(
        0.2, gt=0, le=1, description="what the recall of no class may surely be below"
    )
    max_class_drop: float | None = Field(
        0.1,
        ge=0,
        lt=1,
        description="by how much the F1 of a class may surely be below the baseline's",
    )
    max_production_drop: float | None = Field(
        0.02, ge=0, le=1, description="by how much it may be worse than what is in production"
    )
    linear: Literal["not-worse", "better"] | None = Field(
        "not-worse",
        description="what it must be than TF-IDF and a linear model on the same rows; not-worse "
        "is broken only where the paired test says that it is worse",
    )
    max_cut_off: float | None = Field(
        0.01, ge=0, le=1, description="share of the answers that max_new_tokens may cut off (F36)"
    )
    max_refused: float | None = Field(
        0.02, ge=0, le=1, description="share of the test rows that may be refused; English only"
    )


@dataclass(frozen=True)
class Rule:
    """One rule: whether it holds, and the figures."""

    id: str
    held: Held
    said: str


@dataclass(frozen=True)
class ShipVerdict:
    """What the rules come to."""

    word: Word
    rules: tuple[Rule, ...]

    @property
    def reasons(self) -> list[str]:
        """The figures of the rules that speak against shipping, the broken ones first."""
        against = [rule for rule in self.rules if rule.held != "holds"]
        return [f"{rule.id}: {rule.said}" for rule in sorted(against, key=lambda r: r.held)]

    def as_json(self) -> dict[str, Any]:
        """For evaluation.json."""
        return {"word": self.word, "rules": [asdict(rule) for rule in self.rules]}


@dataclass(frozen=True)
class Measured:
    """What the rules look at: the tuned model's answers, its summary, and what was compared.

    `old` are the best baseline's answers to the same rows, `target` is the baseline's own.
    """

    answers: Sequence[Answer]
    system: Mapping[str, Any]
    labels: Sequence[str]
    alpha: float
    seed: int
    old: Sequence[Answer] | None = None
    paired: PairedTest | None = None
    target: Target | None = None
    general: Sequence[Gate] = ()


def weigh(rules: Sequence[Rule]) -> ShipVerdict:
    """Ship when all hold; do not when one is broken."""
    held = {rule.held for rule in rules}
    word: Word = "ship"
    if "broken" in held:
        word = "do not ship"
    elif "cannot tell" in held:
        word = "cannot tell"
    return ShipVerdict(word, tuple(rules))


def read_verdict(found: Mapping[str, Any]) -> ShipVerdict:
    """The verdict that `as_json` wrote."""
    return ShipVerdict(found["word"], tuple(Rule(**rule) for rule in found["rules"]))


def ship_gate(verdict: ShipVerdict) -> Gate:
    """The gate of `require: true`."""
    detail = "; ".join(verdict.reasons) or "every rule holds"
    return check("ship", verdict.word, "==", "ship", detail)


def judge_rules(section: ShipSection, measured: Measured) -> list[Rule]:
    """Every rule that the section has and that these rows have figures for.

    Raises:
        ConfigError: the target is a metric that this task does not have.
    """
    rules = []
    if target := section.target or measured.target:
        rules.append(_target(target, measured))
    if measured.paired is not None:
        rules.append(_gain(measured.paired))
    if measured.labels and section.min_class_recall is not None:
        rules.append(_floor(section.min_class_recall, measured))
    if measured.labels and measured.old is not None and section.max_class_drop is not None:
        rules.append(_drop(section.max_class_drop, measured, measured.old))
    rules += [_of_gate(gate) for gate in measured.general]
    if section.max_cut_off is not None:
        cut = [answer.stop_reason == "length" for answer in measured.answers]
        rules.append(_share("answers-end", cut, section.max_cut_off, "cut off"))
    if section.max_refused is not None:
        refused = [_is_needless_refusal(answer) for answer in measured.answers]
        rules.append(_share("refusals", refused, section.max_refused, "refused"))
    return rules


def _is_needless_refusal(answer: Answer) -> bool:
    return is_refusal(answer.answer) and not is_refusal(answer.expected)


def _target(target: Target, measured: Measured) -> Rule:
    known = measured.system["intervals"]
    if target.metric not in known:
        raise ConfigError(
            f"evaluate.ship.target.metric is {target.metric}; this task has {', '.join(known)}."
        )
    low, high = known[target.metric]
    held: Held = "cannot tell"
    if low >= target.value:
        held = "holds"
    elif high < target.value:
        held = "broken"
    value = measured.system["metrics"][target.metric]
    said = (
        f"{target.metric} {100 * value:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f}; "
        f"target {100 * target.value:.1f}"
    )
    return Rule("target", held, said)


def _gain(paired: PairedTest) -> Rule:
    held: dict[str, Held] = {"better": "holds", "worse": "broken", "cannot tell": "cannot tell"}
    said = said_difference(paired, "the best baseline")
    return Rule("better-than-baseline", held[paired.verdict], said)


def said_difference(test: PairedTest, what: str) -> str:
    """The difference to another system, with its interval and the rows."""
    low, high = test.interval
    return (
        f"{100 * test.difference:+.1f} points against {what}, 95 % interval {100 * low:+.1f} to "
        f"{100 * high:+.1f}, {test.rows} rows"
    )


def against(rule: str, what: str, test: PairedTest, max_drop: float) -> Rule:
    """No more than `max_drop` below another system: by the whole paired interval, or because no
    row was lost, which few rows have no narrow interval for."""
    low, high = test.interval
    held: Held = "cannot tell"
    if low >= -max_drop or test.only_old_correct == 0:
        held = "holds"
    elif high < -max_drop:
        held = "broken"
    said = f"{said_difference(test, what)}; at most {100 * max_drop:.1f} below"
    needed = rows_to_rule_out(test, max_drop) if held == "cannot tell" else None
    if needed is not None:
        said += f", which about {two_digits(needed):,} rows would show"
    return Rule(rule, held, said)


def _floor(limit: float, measured: Measured) -> Rule:
    """Broken by a class whose whole interval lies below; named as well: those whose score does."""
    low: list[str] = []
    surely: list[str] = []
    for label, outcomes in _by_class(measured.answers).items():
        right, rows = sum(outcomes), len(outcomes)
        if right / rows < limit:
            is_sure = wilson_interval(right, rows)[1] < limit
            (surely if is_sure else low).append(f"{label} {right} of {rows}")
    said = f"least recall {100 * limit:.0f} %"
    if surely:
        return Rule("classes-kept", "broken", f"{said}; below it: {', '.join([*surely, *low])}")
    if low:
        return Rule("classes-kept", "cannot tell", f"{said}; perhaps below it: {', '.join(low)}")
    return Rule("classes-kept", "holds", said)


def _drop(limit: float, measured: Measured, old: Sequence[Answer]) -> Rule:
    """Broken by a class whose whole interval lies below.

    A drop that may be chance is no reason against: of many classes with some rows each, one drops.
    """
    changes = class_changes(
        old, measured.answers, measured.labels, alpha=measured.alpha, seed=measured.seed
    )
    worse = [
        f"{one.label} {one.old_f1:.2f} to {one.new_f1:.2f}" for one in changes if one.high < -limit
    ]
    if not worse:
        said = f"no class surely has an F1 more than {limit:.2f} below the baseline's"
        return Rule("classes-not-worse", "holds", said)
    return Rule("classes-not-worse", "broken", f"F1 of {', '.join(worse)}")


def _by_class(answers: Sequence[Answer]) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = {}
    for answer in answers:
        found.setdefault(answer.expected, []).append(answer.correct)
    return dict(sorted(found.items()))


def _share(rule: str, hits: Sequence[bool], limit: float, what: str) -> Rule:
    share = sum(hits) / len(hits)
    said = f"{sum(hits)} of {len(hits)} answers {what}, at most {100 * limit:.1f} %"
    return Rule(rule, "holds" if share <= limit else "broken", said)


def _of_gate(gate: Gate) -> Rule:
    said = f"{gate.detail}; at most {gate.threshold}"
    return Rule(gate.id, "holds" if gate.status == "pass" else "broken", said)


def describe_verdict(verdict: ShipVerdict) -> str:
    """A line for the terminal."""
    return f"  {verdict.word}: {'; '.join(verdict.reasons) or 'every rule holds'}"
