"""Every rule about rows in its order, and the reasons of those that cannot be used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from luthier.data import decisions
from luthier.data.index import Fate, RowIndex
from luthier.data.reading import Reading
from luthier.data.section import PrepareSection
from luthier.data.spooled import Places
from luthier.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_EXAMPLES = 3
_CONTRADICTABLE = ("classification", "extraction", "preference")


@dataclass(frozen=True)
class Verdict:
    """The labels that rows may have, and why rows are unusable that were read well."""

    labels: list[str]
    faults: Mapping[int, str]


def judge(section: PrepareSection, index: RowIndex, replayed: "NDArray[np.bool_]") -> Verdict:
    """Labels, contradictions, duplicates, and leaks between the splits that sources give.

    `replayed` rows are no part of the task: they have no labels to check.
    """
    labels: list[str] = []
    if section.task == "classification":
        labels = sorted(section.labels or decisions.train_labels(index))
        decisions.unknown_labels(index, labels, replayed)
    if section.task in _CONTRADICTABLE:
        with index.aside(replayed):
            decisions.contradictions(index)
    decisions.duplicates(index)
    if section.on_leak == "drop":
        decisions.leaks(index)
    return Verdict(labels, _faults(index, labels))


def _faults(index: RowIndex, labels: Sequence[str]) -> dict[int, str]:
    import numpy as np

    reason_of = cache(lambda name: decisions.label_reason(name, labels))
    faults = {}
    for row in np.flatnonzero(index.fate == Fate.LABEL_UNKNOWN).tolist():
        name = index.labels[index.label[row]]
        faults[row] = f"label-unknown: {reason_of(name)}"
    for row, reason in decisions.contradiction_reasons(index):
        faults[row] = f"contradiction: {reason}"
    return faults


def apply_length_limit(section: PrepareSection, index: RowIndex, places: Places) -> None:
    """Rows longer than `max_length_tokens`, as `on_overlong` says. Truncated ones are not longer.

    Raises:
        DataError: a row is longer and `on_overlong` is `fail`.
    """
    import numpy as np

    limit = section.max_length_tokens
    if section.on_overlong == "drop":
        decisions.overlong(index, limit)
        return
    overlong = np.flatnonzero(index.kept & (index.tokens > limit))
    if not len(overlong):
        return
    where = places.where(overlong[:_EXAMPLES].tolist())
    shown = ", ".join(
        f"{place} ({index.tokens[row]})"
        for place, row in zip(where, overlong[:_EXAMPLES], strict=True)
    )
    raise DataError(
        f"{len(overlong)} of {int(index.kept.sum())} rows are longer than "
        f"prepare.max_length_tokens = {limit}: "
        f"{shown}{', ...' if len(overlong) > _EXAMPLES else ''}. Raise it to "
        f"{index.tokens[overlong].max()}, shorten these rows, or set prepare.on_overlong: drop "
        "(leaves them out, counted)."
    )


def require_splits(section: PrepareSection, index: RowIndex, reading: Reading) -> None:
    """Every split that the section names must have rows.

    Raises:
        DataError: one has none.
    """
    for split in sorted(section.given_splits | set(section.fractions)):
        if index.inside(split).any():
            continue
        advice = "Mend the data or its columns in prepare.sources."
        if split in section.fractions:
            advice = f"Raise prepare.{split}_fraction, or give {split} rows by a source."
        lost = ", ".join(
            f"{count} {fate.reason}" for fate, count in index.counts().items() if fate
        )
        why = "; ".join(text for text in (reading.why(), lost) if text)
        raise DataError(
            f"prepare: no {split} rows are left of {reading.read} records ({why}). {advice}"
        )
