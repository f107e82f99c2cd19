"""What a row format is, how one is registered, and how it meets a record's own column names."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from luthier.data.final_answer import final_answer
from luthier.data.formats.options import FormatOptions
from luthier.data.rows import Parsed, RawRow, RowError, Task

Parse = Callable[[Mapping[str, object], FormatOptions], Parsed]


@dataclass(frozen=True)
class RowFormat:
    """A format: the task it serves, the columns that it needs and those that it may have."""

    name: str
    task: Task
    needs: tuple[str, ...]
    may: tuple[str, ...]
    parse: Parse

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that the format reads, under its own names."""
        return self.needs + self.may


ROW_FORMATS: dict[str, RowFormat] = {}


def row_format(
    name: str, *, task: Task, needs: tuple[str, ...], may: tuple[str, ...] = ()
) -> Callable[[Parse], Parse]:
    """Register a function (columns under the format's names, options) -> Parsed.

    The function raises RowError for a record that it cannot use, and nothing else. A column of
    `may` that a record lacks is absent from its values.
    """

    def register(function: Parse) -> Parse:
        ROW_FORMATS[name] = RowFormat(name, task, needs, may, function)
        return function

    return register


def formats_of(task: Task) -> list[RowFormat]:
    """The formats that a task's rows may have."""
    return [one for one in ROW_FORMATS.values() if one.task == task]


def parse(
    raw: RawRow, row_format: RowFormat, columns: Mapping[str, str], options: FormatOptions
) -> Parsed:
    """What a format makes of one record.

    Args:
        columns: what the source calls the format's columns, where it has other names.

    Raises:
        RowError: the record cannot be used.
    """
    found, values = raw.values, {}
    for column in row_format.needs:
        name = columns.get(column, column)
        if name not in found:
            raise RowError("column-missing", missing_column(name, found))
        values[column] = found[name]
    for column in row_format.may:
        name = columns.get(column, column)
        if name in found:
            values[column] = found[name]
    try:
        parsed = row_format.parse(values, options)
    except RecursionError as error:
        raise RowError("nested-too-deep", "lists and objects inside each other") from error
    if options.answer_regex is not None:
        reply = str(parsed.messages[-1].get("content") or "")
        if final_answer(options.answer_regex, reply) is None:
            raise RowError("answer-not-found", "answer_regex finds nothing in the reply")
    return parsed


def missing_column(name: str, found: Mapping[str, object]) -> str:
    """Says that a column is not there, which ones are, and which of them was perhaps meant."""
    near = difflib.get_close_matches(name, found, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    there = ", ".join(f"'{other[:40]}'" for other in list(found)[:8])
    return f"no '{name}' among {there or 'no columns'}{hint}"
