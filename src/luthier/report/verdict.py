"""The one sentence a run comes to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from luthier.gates import Gate
from luthier.report import spelling
from luthier.report.scores import Comparison, Scores

if TYPE_CHECKING:
    from luthier.evaluation.shipping import ShipVerdict

Tone = Literal["good", "unsure", "bad", "none"]


@dataclass(frozen=True)
class Verdict:
    """`word` is the short form, `sentence` the whole; `tone` chooses a colour."""

    tone: Tone
    word: str
    sentence: str


def judge(
    scores: Scores, failed: Mapping[str, Sequence[Gate]], ready: Mapping[str, int]
) -> Verdict:
    """What the run came to: stopped by a gate, or compared, or only measured, or neither.

    `ready` are the rows of each split of a dataset that nothing is trained on yet.
    """
    compared = _compared(scores.comparison) if scores.comparison else _measured(scores, ready)
    if not failed:
        return compared if scores.ship is None else _shipped(scores.ship, compared)
    stage, gates = next(iter(failed.items()))
    names = " and ".join(f"{gate.id} ({spell_gate(gate)})" for gate in gates)
    said = (
        f"Stage {stage} stopped the run: its gate{'s' if len(gates) > 1 else ''} {names} failed."
    )
    return Verdict(
        "bad", "stopped", said if compared.tone == "none" else f"{said} {compared.sentence}"
    )


def _shipped(ship: "ShipVerdict", compared: Verdict) -> Verdict:
    """The rules have the last word; the comparison is said with it."""
    tones: dict[str, Tone] = {"ship": "good", "do not ship": "bad", "cannot tell": "unsure"}
    broken, unsure = (
        list(dict.fromkeys(rule.id for rule in ship.rules if rule.held == held))
        for held in ("broken", "cannot tell")
    )
    said = "Every rule holds." if ship.word == "ship" else ""
    if broken:
        said = f"Broken: {', '.join(broken)}. "
    if unsure:
        said += f"These rows cannot tell: {', '.join(unsure)}."
    return Verdict(tones[ship.word], ship.word, f"{said.strip()} {compared.sentence}")


def spell_gate(gate: Gate) -> str:
    """Measured and wanted in a few words."""
    wanted = f"{gate.comparison} {spelling.value(gate.threshold)}"
    return f"measured {spelling.value(gate.measured)}, wanted {wanted}"


def spell_comparison(comparison: Comparison) -> str:
    """The difference with its interval and p-value."""
    return (
        f"{spelling.points(comparison.difference)} points, 95 % interval "
        f"{spelling.points(comparison.low)} to {spelling.points(comparison.high)}, "
        f"{spelling.p_value(comparison.p_value)} (exact McNemar, "
        f"{spelling.count(comparison.rows)} rows)"
    )


def _compared(comparison: Comparison) -> Verdict:
    best = f"the best prompted baseline, {comparison.baseline_title}"
    measured = spell_comparison(comparison)
    match comparison.verdict:
        case "better":
            return Verdict("good", "better", f"The tuned model beats {best}: {measured}.")
        case "worse":
            return Verdict("bad", "worse", f"The tuned model is worse than {best}: {measured}.")
    least = spelling.points(comparison.minimum_detectable_difference).lstrip("+")
    return Verdict(
        "unsure",
        "cannot tell",
        f"These rows cannot tell whether the tuned model is better than {best}: {measured}. "
        f"A true difference of {least} points would be found in 4 of 5 tries; "
        f"{_more_rows(comparison)}.",
    )


def _more_rows(comparison: Comparison) -> str:
    needed = comparison.rows_needed
    if needed is None:
        return "a smaller one needs more rows"
    from luthier.evaluation.power import two_digits

    enough = spelling.count(two_digits(needed))
    return f"for one as large as seen here about {enough} rows would do"


def _measured(scores: Scores, ready: Mapping[str, int]) -> Verdict:
    tuned = next((score for score in scores.systems if score.system == scores.tuned), None)
    if tuned is None and ready:
        rows = ", ".join(f"{spelling.count(number)} {split}" for split, number in ready.items())
        return Verdict("none", "data prepared", f"Nothing is trained yet. The rows: {rows}.")
    if tuned is None:
        return Verdict("none", "not evaluated", "No tuned model was evaluated.")
    score, interval = (
        spelling.percent(tuned.score),
        spelling.percent_interval(tuned.low, tuned.high),
    )
    if scores.split != "test":
        return Verdict(
            "unsure",
            "not compared",
            f"The tuned model reaches {score} {scores.metric} (95 % interval {interval}) on "
            f"{scores.split} rows, by which candidates are chosen; the test rows were not asked.",
        )
    return Verdict(
        "unsure",
        "not compared",
        f"The tuned model reaches {score} {scores.metric} (95 % interval {interval}). There is "
        "no baseline to compare it with: add a baseline section to the config.",
    )
