"""`luthier inspect`: rows of a dataset as the model will see them, token for token."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from luthier.errors import DataError
from luthier.report import spelling
from luthier.report.dataset_rows import SplitRows, Worst, info_of, split_rows
from luthier.report.terminal import printing
from luthier.report.token_text import (
    NEWLINE_MARK,
    STOP_MARK,
    TAB_MARK,
    ShownRow,
    decoder_of,
    shown_row,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from luthier.report.token_text import Part, Stretch
    from luthier.store import Artifact, Store

OPENING, CLOSING = "⟦", "⟧"  # around supervised text where there is no colour
_STOP = "bold black on yellow"


@dataclass(frozen=True)
class RowChoice:
    """Which rows of one split: by number, the worst, those with a text, or evenly spread."""

    split: str = "train"
    row: int | None = None
    worst: Worst | None = None
    grep: str | None = None
    count: int = 5


@dataclass(frozen=True)
class Inspected:
    """The chosen rows, read as they are asked for; `matching` counts what `grep` found."""

    ref: str
    split: str
    split_rows: int
    matching: int | None
    rows: Iterator[ShownRow]

    def as_json(self) -> dict[str, Any]:
        """JSON values; the rows with the stretches of their text."""
        values = {"dataset": self.ref, "split": self.split, "split_rows": self.split_rows}
        return values | {"matching": self.matching, "rows": [asdict(row) for row in self.rows]}


def inspect_dataset(artifact: "Artifact", store: "Store", choice: RowChoice) -> Inspected:
    """Find the chosen rows.

    Raises:
        DataError: this is no dataset, or it has no such split or row, or no row with the text.
        StoreError: the base whose tokenizer made the rows is not in the store as it was.
    """
    chosen = [choice.row, choice.worst, choice.grep]
    if len(chosen) - chosen.count(None) > 1:
        raise DataError("Choose rows by one of --row, --worst and --grep.")
    info = info_of(artifact)
    rows = split_rows(artifact, choice.split)
    places = _places(rows, choice)
    decoder = decoder_of(artifact, store, info.stop_token_ids)
    return Inspected(
        ref=artifact.ref,
        split=choice.split,
        split_rows=len(rows),
        matching=len(places) if choice.grep is not None else None,
        rows=(
            shown_row(record, choice.split, place, decoder)
            for place, record in rows.at(places[: choice.count])
        ),
    )


def _places(rows: SplitRows, choice: RowChoice) -> list[int]:
    if choice.row is not None:
        if not 0 <= choice.row < len(rows):
            raise DataError(
                f"--row {choice.row}: {choice.split} has {spelling.count(len(rows))} rows, "
                f"numbered 0 to {len(rows) - 1}."
            )
        return [choice.row]
    if choice.worst is not None:
        return rows.worst(choice.worst, choice.count)
    if choice.grep is not None:
        found = rows.containing(choice.grep)
        if not found:
            raise DataError(
                f"--grep {choice.grep!r}: none of the {spelling.count(len(rows))} rows of "
                f"{choice.split} has this text in a message."
            )
        return found
    return rows.spread(choice.count)


def print_rows(inspected: Inspected) -> None:
    """Print each row below its head line, as soon as it is read."""
    for number, row in enumerate(inspected.rows):
        with printing() as console:
            if number == 0:
                console.print(_legend(inspected, console), soft_wrap=True)
            console.print()
            _print_row(console, row)


def _legend(inspected: Inspected, console: "Console") -> str:
    rows = f"{spelling.count(inspected.split_rows)} rows of {inspected.split} in {inspected.ref}"
    if inspected.matching is not None:
        rows += f", {spelling.count(inspected.matching)} with this text"
    place = "on green" if _has_colour(console) else f"in {OPENING} {CLOSING}"
    return (
        f"{rows}. Supervised text stands {place}; {STOP_MARK} is a supervised stop, "
        f"{NEWLINE_MARK} a newline of the text, {TAB_MARK} a tab."
    )


def _has_colour(console: "Console") -> bool:
    return console.color_system is not None and not console.no_color


def _print_row(console: "Console", row: ShownRow) -> None:
    from rich.text import Text

    console.print(Text(row.head, style="bold"), soft_wrap=True)
    for part in row.parts:
        if part.name:
            console.print(Text(f"{part.name}:", style="bold"))
        spelled = _coloured(part) if _has_colour(console) else _bracketed(part)
        console.print(spelled, soft_wrap=True)


def _coloured(part: "Part") -> "Text":
    from rich.text import Text

    text = Text()
    for stretch in part.stretches:
        text.append(stretch.visible, style=_style(stretch, part))
    return text


def _style(stretch: "Stretch", part: "Part") -> str:
    if stretch.stop:
        return _STOP
    if not stretch.supervised:
        return "dim cyan" if stretch.special else "dim"
    ground = "black on red" if part.is_rejected else "black on green"
    return f"bold {ground}" if stretch.special else ground


def _bracketed(part: "Part") -> "Text":
    from rich.text import Text

    text, is_open = Text(), False
    for stretch in part.stretches:
        if stretch.supervised != is_open:
            text.append(CLOSING if is_open else OPENING)
            is_open = stretch.supervised
        text.append(stretch.visible)
    return text.append(CLOSING if is_open else "")
