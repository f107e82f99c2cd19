"""Which format a file's rows have, told from its first records, with the reason in words."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.data.formats.options import FormatOptions
from luthier.data.formats.registry import ROW_FORMATS, RowFormat, formats_of, parse
from luthier.data.formats.values import kind_of
from luthier.data.rows import RawRow, RowError, Task
from luthier.errors import DataError

_SHOWN = 8  # columns and keys that a message names


@dataclass(frozen=True)
class _Fit:
    """A format that has its columns in these records, and how many of them it can read."""

    format: RowFormat
    readable: int


def detect(
    task: Task, columns_seen: Sequence[Mapping[str, object]], columns: Mapping[str, str]
) -> tuple[RowFormat, str]:
    """The format of a file, and why it was taken for that.

    Args:
        columns_seen: the values of the file's first records.
        columns: what the source calls a format's columns.

    Raises:
        DataError: no format of this task fits, or several do; says what to set.
    """
    formats = formats_of(task)
    if not columns_seen:
        return formats[0], f"no readable record: taken for {formats[0].name}"
    _refuse_unpaired(columns_seen, columns)
    fits = [fit for one in formats if (fit := _fit(one, columns_seen, columns)) is not None]
    fits = [fit for fit in fits if not any(_is_part(fit, other) for other in fits)]
    most = max((fit.readable for fit in fits), default=0)
    best = [fit for fit in fits if fit.readable == most]
    if len(best) != 1:
        raise DataError(_advice(task, columns_seen, columns, best))
    if most == 0:
        _refuse_misnamed(best[0].format, columns_seen, columns)
    return best[0].format, _reason(best[0], columns_seen, columns)


def named_format(
    task: Task,
    name: str,
    columns_seen: Sequence[Mapping[str, object]],
    columns: Mapping[str, str],
) -> tuple[RowFormat, str]:
    """The format that the config names for a source, when its columns are there.

    Raises:
        DataError: no such format, one of another task, or a column is in none of the records.
    """
    known = {one.name: one for one in formats_of(task)}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        task_of = (
            f" It is a format of task: {ROW_FORMATS[name].task}." if name in ROW_FORMATS else ""
        )
        raise DataError(
            f"format: {name} is not one of task: {task} ({', '.join(known)})."
            + (task_of or (f" Did you mean {near[0]}?" if near else ""))
        )
    wanted = [columns.get(column, column) for column in known[name].needs]
    missing = [column for column in wanted if not any(column in seen for seen in columns_seen)]
    if missing and columns_seen:
        raise DataError(
            f"format: {name} needs the columns {_listed(wanted)}; the first records have "
            f"{_seen(columns_seen)}. Set columns: {{{known[name].needs[0]}: ...}} or format: auto."
        )
    return known[name], f"format: {name} in the config"


def _fit(
    one: RowFormat, seen: Sequence[Mapping[str, object]], columns: Mapping[str, str]
) -> _Fit | None:
    """None where a column that the format needs is in no record, or `columns` names another's."""
    asked = {column for other in formats_of(one.task) for column in other.columns} & set(columns)
    names = [columns.get(column, column) for column in one.needs]
    if asked - set(one.columns) or not all(any(name in row for row in seen) for name in names):
        return None
    return _Fit(one, sum(_is_readable(row, one, columns) for row in seen))


def _is_readable(
    values: Mapping[str, object], row_format: RowFormat, columns: Mapping[str, str]
) -> bool:
    try:
        parse(RawRow("", 0, values), row_format, columns, FormatOptions())
    except RowError:
        return False
    return True


def _is_part(fit: _Fit, other: _Fit) -> bool:
    """Whether the other format needs all that this one does, and more."""
    return set(fit.format.needs) < set(other.format.needs)


def _refuse_unpaired(seen: Sequence[Mapping[str, object]], columns: Mapping[str, str]) -> None:
    """KTO's rows: trained on as completions, the bad ones would be learned with the good."""
    label = columns.get("label", "label")
    names = [columns.get(column, column) for column in ("prompt", "completion")]
    if any(isinstance(row.get(label), bool) and set(names) <= set(row) for row in seen):
        raise DataError(
            f"{_listed([*names, label])} are unpaired preferences (KTO), which nothing here "
            "trains on. Pair a good and a bad completion of each prompt: prompt, chosen, "
            "rejected, with task: preference; or keep the good ones alone and drop the column "
            f"'{label}', with task: completion."
        )


def _refuse_misnamed(
    chosen: RowFormat, seen: Sequence[Mapping[str, object]], columns: Mapping[str, str]
) -> None:
    advice = _renamed(chosen.task, seen)
    if advice and not set(columns) & set(chosen.columns):
        raise DataError(f"no row reads as {chosen.name}, but {advice}")


def _renamed(task: Task, seen: Sequence[Mapping[str, object]]) -> str:
    """Says which column holds what a format of one column needs under another name."""
    for one in formats_of(task):
        for name in _columns(seen) if len(one.needs) == 1 else ():
            fit = _fit(one, seen, {one.needs[0]: name})
            if fit is not None and fit.readable:
                return (
                    f"column '{name}' holds {_shape(name, seen)}, as {one.name} does. "
                    f"Set columns: {{{one.needs[0]}: {name}}}."
                )
    return ""


def _reason(fit: _Fit, seen: Sequence[Mapping[str, object]], columns: Mapping[str, str]) -> str:
    names = [columns.get(column, column) for column in fit.format.needs]
    held = ", ".join(f"'{name}' holds {_shape(name, seen)}" for name in names)
    doubt = "" if fit.readable else f", though none of the first {len(seen)} records can be read"
    return f"column {held}: {fit.format.name}{doubt}"


def _advice(
    task: Task,
    seen: Sequence[Mapping[str, object]],
    columns: Mapping[str, str],
    best: Sequence[_Fit],
) -> str:
    """What to do where not exactly one format fits."""
    if best:
        names = [fit.format.name for fit in best]
        return (
            f"these rows fit {' and '.join(names)}: they have {_seen(seen)}. "
            f"Set format: {' or format: '.join(names)}."
        )
    known = "; ".join(f"{one.name} ({', '.join(one.needs)})" for one in formats_of(task))
    hints = [hint for hint in (_other_task(task, seen), _renamed(task, seen)) if hint]
    hints = hints or [_near(task, seen, columns)]
    return (
        f"no format of task: {task} fits these rows. They have {_seen(seen)}. "
        f"Known for {task}: {known}. {hints[0][0].upper()}{hints[0][1:]}"
    )


def _other_task(task: Task, seen: Sequence[Mapping[str, object]]) -> str:
    fits = [
        fit
        for one in ROW_FORMATS.values()
        if one.task != task and (fit := _fit(one, seen, {})) is not None and fit.readable
    ]
    if not fits:
        return ""
    best = max(fits, key=lambda fit: (len(fit.format.needs), fit.readable)).format
    section = "preferences: with " if best.task == "preference" else ""
    return f"these rows have {_listed(best.needs)}: use {section}task: {best.task}."


def _near(task: Task, seen: Sequence[Mapping[str, object]], columns: Mapping[str, str]) -> str:
    there = _columns(seen)
    for one in formats_of(task):
        for column in one.needs:
            name = columns.get(column, column)
            near = difflib.get_close_matches(name, there, n=1)
            if name not in there and near:
                return (
                    f"did you mean '{near[0]}' for '{name}'? Set columns: {{{column}: {near[0]}}}."
                )
    return "set columns: {name of the format: name in the file} for this source."


def _columns(seen: Sequence[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for row in seen for name in row))


def _seen(seen: Sequence[Mapping[str, object]]) -> str:
    names = _columns(seen)
    shown = [f"'{name[:40]}' ({_shape(name, seen)})" for name in names[:_SHOWN]]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(shown) or "no columns") + more


def _shape(name: str, seen: Sequence[Mapping[str, object]]) -> str:
    """What the first record that has a column holds there."""
    value = next((row[name] for row in seen if row.get(name) is not None), None)
    if isinstance(value, list) and value:
        inside = value[0]
        if not isinstance(inside, dict):
            return f"a list of {kind_of(inside)}"
        return f"a list of {{{', '.join(str(key)[:40] for key in list(inside)[:_SHOWN])}}}"
    return kind_of(value)


def _listed(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
