"""What stands at the end of `luthier run` and of the commands of single stages."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.report import spelling
from luthier.report.comparison import spell_seeds
from luthier.report.dataset_rows import DATASET_KINDS
from luthier.report.dataset_terminal import dataset_closing
from luthier.report.terminal import columns, copyable, facts, indented, printing, styled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import Console
    from rich.text import Text

    from luthier.evaluation.shipping import ShipVerdict
    from luthier.pipeline import DoneStep
    from luthier.report.scores import Target
    from luthier.report.summary import StageGates, Summary

_HELD_STATUS = {"holds": "pass", "cannot tell": "warn", "broken": "fail"}
_TONE_STATUS = {"good": "pass", "unsure": "warn", "bad": "fail", "none": ""}


def closing_table(summary: "Summary", page: Path) -> None:
    """Print what a run came to; stages that did not run leave their lines out."""
    verdict = summary.verdict
    with printing() as console:
        console.print()
        console.print(styled(f"{summary.name}: {verdict.word}", _TONE_STATUS[verdict.tone]))
        console.print(verdict.sentence)
        console.print()
        if summary.systems:
            _print_systems(console, summary)
            console.print()
        if summary.effects:
            _print_effects(console, summary)
            console.print()
        if summary.ship is not None:
            _print_rules(console, summary.ship)
            console.print()
        facts(console, [*run_facts(summary), *_gate_facts(summary)])
        console.print()
        if summary.bundle is not None:
            console.print(f"  bundle       {summary.bundle}", soft_wrap=True)
        console.print(f"  page         {page}", soft_wrap=True)
        for command in summary.serving:
            console.print()
            console.print(f"  serve it with {command.server}:")
            copyable(console, [f"  {line}" for line in command.lines])


def stage_closing(done: "DoneStep", config: str) -> None:
    """Print what one stage made; of a dataset also what became of the records."""
    sys.stdout.write(f"{done.ref}  {done.artifact.path}\n")
    if done.artifact.kind in DATASET_KINDS:
        dataset_closing(done.artifact, done.ref, config)


def done_json(done: "DoneStep") -> dict[str, Any]:
    """What happened to one stage, as JSON values."""
    return {
        "stage": done.stage,
        "state": done.state,
        "ref": done.ref,
        "digest": done.artifact.digest,
        "path": str(done.artifact.path),
        "seconds": round(done.seconds, 3),
        "gates": [gate.model_dump() for gate in done.artifact.manifest.gates],
    }


def _print_systems(console: "Console", summary: "Summary") -> None:
    has_f1 = any(score.macro_f1 is not None for score in summary.systems)
    has_speed = any(score.p50_seconds is not None for score in summary.systems)
    numbers = [
        summary.metric,
        "95 % interval",
        *(["macro-F1"] if has_f1 else []),
        "rows",
        *(["request"] if has_speed else []),
    ]
    table = columns(console, ("system", *numbers), right=numbers)
    for score in summary.systems:
        table.add_row(
            score.title,
            spelling.percent(score.score),
            spelling.percent_interval(score.low, score.high),
            *([spelling.decimal(score.macro_f1)] if has_f1 else []),
            spelling.count(score.rows),
            *([spelling.latency(score.p50_seconds)] if has_speed else []),
        )
    indented(console, table)


def _print_effects(console: "Console", summary: "Summary") -> None:
    numbers = ["sft", "dpo", "95 % interval", "change", "rows"]
    table = columns(console, ("measure", *numbers), right=numbers)
    for effect in summary.effects:
        change = effect.difference
        table.add_row(
            effect.what,
            spelling.percent(effect.before.share),
            spelling.percent(effect.after.share),
            spelling.percent_interval(effect.after.low, effect.after.high),
            spelling.points(change.share) if change else "",
            spelling.count(effect.rows),
        )
    indented(console, table)


def _print_rules(console: "Console", ship: "ShipVerdict") -> None:
    table = columns(console, ("rule", "", "measured"))
    for rule in ship.rules:
        table.add_row(rule.id, styled(rule.held, _HELD_STATUS[rule.held]), rule.said)
    indented(console, table)


def run_facts(summary: "Summary") -> "Iterator[tuple[str, str]]":
    """Target, training, sizes and times: a label and a text, of those that there are."""
    if summary.target is not None:
        yield "target", spell_target(summary.target)
    if summary.seeds is not None:
        yield "seeds", f"{summary.metric} {spell_seeds(summary.seeds)}"
    if summary.training:
        yield "training", spell_training(summary.training)
    if summary.measured_on is not None:
        merged = f"; merged into {summary.merged_into}" if summary.merged_into else ""
        yield "base", f"measured on {summary.measured_on}{merged}"
    if summary.sizes_bytes:
        sizes = summary.sizes_bytes.items()
        yield "sizes", ", ".join(f"{what} {spelling.size(number)}" for what, number in sizes)
    if summary.seconds:
        spent = [f"{stage} {spelling.duration(s)}" for stage, s in summary.seconds.items()]
        total = spelling.duration(sum(summary.seconds.values()))
        yield "times", f"{', '.join(spent)}; {total} in all"


def _gate_facts(summary: "Summary") -> "Iterator[tuple[str, Text]]":
    for place, one in enumerate(summary.gates):
        yield "" if place else "gates", _spelled_gates(one)


def spell_target(target: "Target") -> str:
    """What is wanted, what the tuned model reached, and what the best prompt did."""
    reached = ""
    if target.tuned is not None:
        word = "reached" if target.tuned >= target.wanted else "not reached"
        reached = f" {word} (tuned {spelling.percent(target.tuned)})"
    wanted = f"{target.metric} {spelling.percent(target.wanted)}{reached}"
    best = f"best prompt {spelling.percent(target.best_prompt)}"
    return f"{wanted}; {best}, advice before training: {target.advice}"


def spell_training(training: "Mapping[str, Any]") -> str:
    """Rows, steps, rate and seconds of a training, those that are known."""
    words = []
    if training.get("train_rows") is not None:
        words.append(f"{spelling.count(training['train_rows'])} rows")
    if training.get("steps") is not None:
        words.append(f"{spelling.count(training['steps'])} steps")
    if training.get("tokens_per_second") is not None:
        words.append(f"{spelling.rate(training['tokens_per_second'])} tokens/s")
    if training.get("seconds") is not None:
        words.append(spelling.duration(training["seconds"]))
    return ", ".join(words)


def _spelled_gates(one: "StageGates") -> "Text":
    passed = sum(gate.status == "pass" for gate in one.gates)
    text = styled(f"{one.stage} {passed} of {len(one.gates)} passed", "")
    for gate in one.gates:
        if gate.status != "pass":
            text.append(", ")
            text.append_text(styled(f"{gate.id} {spelling.status_word(gate.status)}", gate.status))
    return text
