"""Markdown that stays what was meant, whatever a name, a label or a prompt contains.

The rules are CommonMark's (https://spec.commonmark.org/0.31.2/), of tables GitHub's
(https://github.github.com/gfm/#tables-extension-), where a pipe is escaped also inside code.
"""

import re
from collections.abc import Sequence

# Anywhere; before what makes a tag, an entity or a link of it; where a line begins.
_SPECIAL = re.compile(
    r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|<(?=[A-Za-z/!?])|&(?=[#\w])|(?<=www)\.|:(?=//)"
    r"|^[>#+=-]|^\d+[.)](?=\s|$)"
)
_HARMLESS = "\u200c\u200d"  # joiners are part of emoji and of Persian words
_SHORTEST = 3  # of a fence, and of a column's rule


def plain(text: str) -> str:
    """Text on one line in which nothing is markup."""
    return _SPECIAL.sub(_escaped, _one_line(text).strip())


def code(text: str) -> str:
    """Text on one line as a code span."""
    shown = _one_line(text)
    if not shown.strip():
        return f"`{shown or ' '}`"
    fence = "`" * (_longest_run(shown) + 1)
    padding = " " if shown[0] in "` " or shown[-1] in "` " else ""
    return f"{fence}{padding}{shown}{padding}{fence}"


def fenced(text: str, language: str = "") -> str:
    """A block of code; the fence is longer than any in the text. No line end after it."""
    fence = "`" * max(_SHORTEST, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """A table whose columns line up in a terminal too; each line ends with a line end.

    Args:
        header: one cell a column.
        rows: cells that are Markdown already (`code`, `plain`), one a column.
        align: `l` or `r` a column, such as "lrr"; left where nothing is said.
    """
    from rich.cells import cell_len

    lines = [[cell.replace("|", "\\|") for cell in cells] for cells in (header, *rows)]
    sides = align.ljust(len(header), "l")
    widths = [
        max(_SHORTEST, *(cell_len(cells[column]) for cells in lines))
        for column in range(len(header))
    ]

    def drawn(cells: Sequence[str]) -> str:
        padded = []
        for cell, width, side in zip(cells, widths, sides, strict=True):
            room = " " * (width - cell_len(cell))
            padded.append(room + cell if side == "r" else cell + room)
        return f"| {' | '.join(padded)} |\n"

    rule = [
        "-" * (width - 1) + (":" if side == "r" else "-")
        for width, side in zip(widths, sides, strict=True)
    ]
    return "".join(drawn(cells) for cells in (lines[0], rule, *lines[1:]))


def shortened(texts: Sequence[str], at_most: int) -> str:
    """Code spans with commas; of a longer list the first ones and how many more there are."""
    shown = ", ".join(code(text) for text in texts[:at_most])
    more = len(texts) - at_most
    return f"{shown} and {more:,} more" if more > 0 else shown


def _one_line(text: str) -> str:
    """Line ends become spaces; what does not print, or turns the direction, is spelled."""
    return "".join(
        char
        if char.isprintable() or char in _HARMLESS
        else " "
        if char in "\r\n\t"
        else char.encode("unicode_escape").decode()
        for char in text
    )


def _escaped(match: re.Match[str]) -> str:
    found = match[0]
    return f"{found[:-1]}\\{found[-1]}"  # of `1.` the dot


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
