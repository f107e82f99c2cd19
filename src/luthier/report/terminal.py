"""What all terminal views share: one console, tables that wrap and never cut, lists of facts.

On a terminal tables have a line under their head and some colour; elsewhere the same text stands
in aligned columns. Text of users is never read as markup.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

STATUS_STYLES: Mapping[str, str] = {
    "pass": "green", "complete": "green", "reuse": "green", "present": "green",
    "warn": "yellow", "resume": "yellow", "wait": "dim", "gone": "yellow", "remade": "yellow",
    "fail": "bold red", "failed": "bold red", "missing": "bold red", "damaged": "bold red",
}  # fmt: skip
_LABEL_WIDTH = 11


@contextmanager
def printing() -> "Iterator[Console]":
    """A console whose text goes to standard output at the end, without blanks that end lines."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        yield console
    text = captured.get()
    if not console.is_terminal:
        text = "\n".join(line.rstrip() for line in text.split("\n"))
    sys.stdout.write(text)


def styled(text: str, status: str) -> "Text":
    """Text in the colour of a status."""
    from rich.text import Text

    return Text(text, style=STATUS_STYLES.get(status, ""))


def heading(console: "Console", text: str) -> None:
    """A title with an empty line above it."""
    from rich.text import Text

    console.print()
    console.print(Text(text, style="bold"))


def columns(console: "Console", names: Sequence[str], right: Sequence[str] = ()) -> "Table":
    """An empty table; the columns in `right` are aligned to the right."""
    from rich import box
    from rich.table import Table

    lined = box.SIMPLE_HEAD if console.is_terminal else None
    gap = 1 if lined else 2  # a box adds a blank of its own between columns
    table = Table(
        box=lined, show_edge=False, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0)
    )
    for name in names:
        justify = "right" if name in right else "left"
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def facts(console: "Console", rows: Iterable[tuple[str, "str | Text"]]) -> None:
    """Lines of a label and a text that wraps beside it."""
    from rich.padding import Padding
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", min_width=_LABEL_WIDTH, no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in rows:
        grid.add_row(label, text)
    if grid.row_count:
        console.print(Padding(grid, (0, 0, 0, 2), expand=False))


def indented(console: "Console", table: "Table") -> None:
    """Print a table two columns in."""
    from rich.padding import Padding

    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def copyable(console: "Console", lines: Iterable[str]) -> None:
    """Lines to copy: never wrapped, so that what is pasted is what was meant."""
    for line in lines:
        console.print(f"  {line}", soft_wrap=True)
