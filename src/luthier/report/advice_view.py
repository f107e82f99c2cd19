"""What `luthier advise` prints."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from luthier.advice.advice import Advice, Reason, figures, methods
from luthier.advice.leaves import Leaf
from luthier.advice.questions import QUESTIONS, Value, spelled
from luthier.advice.rules import METHODS
from luthier.advice.tree import Change
from luthier.report.spelling import count, printable
from luthier.report.terminal import columns, copyable, facts, heading, indented, printing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

_RULE = "(rule of thumb)"


def print_advice(advice: Advice, asked: Mapping[str, Value], file: str | None) -> None:
    """Print the leaf, the path with what would change it, rules of thumb, and what to do next.

    `asked` are answers given in the terminal, `file` is where the next commands expect them.
    """
    with printing() as console:
        heading(console, f"Advice: {advice.leaf.title}")
        console.print(advice.leaf.text)
        heading(console, "why")
        for number, reason in enumerate(advice.reasons, 1):
            _reason(console, number, reason)
        for title, rows in _tables(advice):
            heading(console, title)
            facts(console, rows)
        if advice.leaf.fine_tunes:
            _methods(console, advice)
        if asked and file is not None:
            _answers(console, asked, file)
        heading(console, f"next: {advice.leaf.title}")
        for number, step in enumerate(advice.next_steps, 1):
            _hanging(console, f"{number}.", step.text)
            if step.command is not None:
                copyable(console, [f"     {step.command}"])


def _tables(advice: Advice) -> "Iterator[tuple[str, list[tuple[str, str]]]]":
    """What stands beside the advice: a title and its lines."""
    if advice.measured:
        yield "measured", _measured(advice.measured)
    if advice.data is not None:
        yield "data needed", list(_data(advice))
    if figures(advice.leaf):
        yield "also known", [("rule of thumb", text) for text in figures(advice.leaf)]
    if advice.unused:
        yield "not needed on this path", [("your answers", ", ".join(advice.unused))]


def _measured(measured: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(what, printable(text)) for what, text in measured]


def print_known(measured: Sequence[tuple[str, str]]) -> None:
    """Print what is known before anything is asked, and how to answer."""
    with printing() as console:
        if measured:
            heading(console, "measured")
            facts(console, _measured(measured))
        console.print()
        console.print("  Arrows choose, Enter answers, Ctrl-C leaves.", style="dim")
        console.print()


def _answers(console: "Console", asked: Mapping[str, Value], file: str) -> None:
    """Answers given in the terminal, as the file that says the same."""
    heading(console, f"your answers, to keep in {file}")
    copyable(console, [f"{name}: {spelled(value)}" for name, value in asked.items()])


def _reason(console: "Console", number: int, reason: Reason) -> None:
    is_measured = reason.step.known is not None and reason.step.known.is_measured
    source = ("measured: " if is_measured else "") + printable(reason.source)
    _hanging(console, f"{number}.", reason.step.node.text)
    _hanging(console, "", f"{reason.answer} ({source})")
    if reason.beside is not None:
        _hanging(console, "", printable(reason.beside), "yellow")
    _hanging(console, "", reason.step.branch.reason)
    for change in reason.changes:
        _hanging(console, "", _spelled_change(change), "dim")


def _spelled_change(change: Change) -> str:
    if isinstance(change.end, Leaf):
        return f"if {change.answer}: {change.end.title}"
    return f"if {change.answer}: next question, {change.end.text}"


def _hanging(console: "Console", mark: str, text: str, style: str = "") -> None:
    """A text that wraps beside its mark."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(min_width=4, justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(mark, Text(text, style))
    console.print(grid)


def _data(advice: Advice) -> "Iterator[tuple[str, str]]":
    assert advice.data is not None
    yield "rule of thumb", f"for {advice.data.goal}: {advice.data.text}"
    known = advice.labelled
    if known is not None:
        place = "measured" if known.is_measured else "your answer"
        there = f"{count(int(known.value))} examples"
        yield place, f"{there} ({printable(known.source)})" if known.is_measured else there


def _methods(console: "Console", advice: Advice) -> None:
    """The table of methods, the suggested one marked."""
    heading(console, f"method {_RULE}")
    table = columns(console, ("", "method", "for", "on", "quality against full SFT"))
    for name in methods(advice.leaf):
        method = METHODS[name]
        mark = "->" if name == advice.method else ""
        table.add_row(mark, method.name, method.use, method.hardware, method.quality)
    indented(console, table)
    match advice.hardware:
        case None:
            said = f"To have one marked, answer hardware: {QUESTIONS['hardware'].allowed}"
        case "cpu":
            said = "-> for cpu, with a very small model: configs/quickstart.yaml is one"
        case _:
            said = f"-> for {advice.hardware}"
    console.print()
    _hanging(console, "", said)
