"""Seeded choices of rows: shares of train for other splits, mixtures of sources, limits.

Rows are chosen in the order of a draw from seed and content, not of their place in a file: the
same rows in another order, or a few more of them, give (nearly) the same choice.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from luthier.data.decisions import extremes, numbered
from luthier.data.draws import drawn, draws, proportional_shares, that_fit
from luthier.data.index import NO_KEY, NO_LABEL, Fate, RowIndex
from luthier.data.rows import SPLITS, Split
from luthier.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SplitBy = Literal["auto", "random", "stratified", "group", "time"]

_CUT_ORDER: tuple[Split, ...] = ("test", "validation")  # by time, test is what is latest

# what every train row must have: its name, and the advice when it is missing
_DEMANDS: Mapping[SplitBy, tuple[str, str]] = {
    "stratified": ("label", "Only classification has labels; choose split_by: random."),
    "group": ("group", "Name their column by prepare.group_by, or choose split_by: auto."),
    "time": ("time", "Name their column by prepare.time_by, or choose split_by: auto."),
}


def cut(
    index: RowIndex, fractions: Mapping[Split, float], seed: int, by: SplitBy = "auto"
) -> dict[Split, int]:
    """Move shares of the train rows to test, then to validation; how many went where.

    Every fraction is of the train rows as they come in. Rows of one group, or with one text, go
    together, directly or through others. No share is exceeded, and it is missed by less than one
    such unit as long as train has others to give.

    `auto` and `group` give each class its share (a unit counts as its most frequent label), or
    take any rows where there are no labels; `group` demands a group of every row, `stratified` a
    label, `random` looks at no labels. These leave a row of each class that they look at in
    train. `time` takes the latest rows: a unit is as late as its latest row, units of one time go
    together, and what stays in train is older than the latest row of every unit that went.

    Raises:
        DataError: rows lack what `by` needs, or the latest rows that belong together are too many.
    """
    import numpy as np

    rows = np.flatnonzero(index.inside("train"))
    counts = {split: round(fractions.get(split, 0.0) * len(rows)) for split in _CUT_ORDER}
    counts = {split: count for split, count in counts.items() if count}
    if not counts:
        return {}
    _check(index, by)
    unit = _units(index, rows)
    first = np.full(int(unit.max()) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(first, unit, index.id_key[rows])
    code = np.zeros(len(rows), np.int32) if by == "random" else _label_ranks(index, rows)
    stratum = _most_frequent(unit, code)
    for split, count in counts.items():
        if by == "time":
            moved = _latest(unit, index.time[rows], count, split)
        else:
            draw = draws(first, seed, split)
            moved = _chosen_units(unit, code, stratum, draw, count)[unit]
        index.split[rows[moved]] = SPLITS.index(split)
        counts[split] = int(moved.sum())
        rows, unit, code = rows[~moved], unit[~moved], code[~moved]
    return counts


def _check(index: RowIndex, by: SplitBy) -> None:
    import numpy as np

    if by not in _DEMANDS:
        return
    name, advice = _DEMANDS[by]
    train = index.inside("train")
    if by == "stratified":
        lacking = train & (index.label == NO_LABEL)
    elif by == "group":
        lacking = train & (index.group_key == NO_KEY)
    else:
        lacking = train & np.isnan(index.time)
    count, total = int(lacking.sum()), int(train.sum())
    if count:
        raise DataError(
            f"prepare.split_by: {by}, but {count} of {total} train rows have no {name}. {advice}"
        )


def _units(index: RowIndex, rows: "NDArray[np.int64]") -> "NDArray[np.int32]":
    """A number for each row; rows that must stay together, by group or by text, have one number.

    Two rows are linked through any chain of equal groups and equal texts. Numbers may be skipped.
    """
    import numpy as np

    text = numbered(index.prompt_key[rows])
    grouped = index.group_key[rows] != NO_KEY
    if not grouped.any():
        return text
    group = numbered(index.group_key[rows[grouped]])
    unit: NDArray[np.int32] = text + (group.max() + 1)  # rows without a group: one unit a text
    unit[grouped] = group
    low, high = extremes(text, unit)
    links = (low != high)[text]
    if not links.any():
        return unit
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    here, there = unit[links], low[text[links]]
    size = int(unit.max()) + 1
    edges = coo_array((np.ones(len(here), dtype=np.bool_), (here, there)), (size, size))
    whole: NDArray[np.int32] = connected_components(edges, directed=False)[1]
    return whole[unit]


def _chosen_units(
    unit: "NDArray[np.int32]",
    code: "NDArray[np.int32]",
    stratum: "NDArray[np.int32]",
    draw: "NDArray[np.uint64]",
    count: int,
) -> "NDArray[np.bool_]":
    """Units with `count` rows in all, each stratum in proportion, as nearly as whole units allow.

    What the strata could not give by themselves is taken from any of them. Of each code the last
    unit drawn never goes. `unit` and `code` are of rows, `stratum` and `draw` of units.
    """
    import numpy as np

    sizes = np.bincount(unit, minlength=len(draw)).astype(np.int32)
    rows = np.bincount(stratum, weights=sizes).astype(np.int64)
    shares = proportional_shares(rows.tolist(), count)
    last = np.zeros(int(code.max()) + 1, dtype=np.uint64)
    np.maximum.at(last, code, draw[unit])
    sizes[unit[draw[unit] == last[code]]] = len(unit) + 1  # fits into no share
    chosen = drawn(stratum, draw, sizes, shares)
    room = count - int(sizes[chosen].sum())
    rest = np.flatnonzero(~chosen & (sizes <= room))
    for units in that_fit(rest[np.argsort(draw[rest], kind="stable")], sizes, room):
        chosen[units] = True
    return chosen


def _most_frequent(unit: "NDArray[np.int32]", code: "NDArray[np.int32]") -> "NDArray[np.int32]":
    """The code that most rows of each unit have; the lowest of several."""
    import numpy as np

    most: NDArray[np.int32]
    most, high = extremes(unit, code)
    mixed = most != high
    rows = mixed[unit]
    codes = np.int64(high.max()) + 1
    pairs, counts = np.unique(unit[rows] * codes + code[rows], return_counts=True)
    of, found = np.divmod(pairs, codes)
    best = np.zeros(len(most), dtype=np.int64)
    np.maximum.at(best, of, counts)
    wins = counts == best[of]
    most[mixed] = high[mixed]
    np.minimum.at(most, of[wins], found[wins].astype(most.dtype))
    return most


def _latest(
    unit: "NDArray[np.int32]", time: "NDArray[np.float64]", count: int, into: Split
) -> "NDArray[np.bool_]":
    """The rows of the latest units, at most `count`, those of one time together."""
    import numpy as np

    latest = np.full(int(unit.max()) + 1, -np.inf)
    np.maximum.at(latest, unit, time)
    last = latest[unit]
    if count == len(last):
        return np.ones(count, dtype=np.bool_)
    moved: NDArray[np.bool_] = last > np.partition(last, -count - 1)[-count - 1]
    if not moved.any():
        together = int((last == last.max()).sum())
        raise DataError(
            f"prepare.{into}_fraction asks for the latest {count} train rows, but the latest "
            f"{together} stay together: they have one time, or are of one group or text with "
            f"one that has it. Raise prepare.{into}_fraction, or choose another split_by."
        )
    return moved


def mixture(index: RowIndex, weights: Sequence[float | None], seed: int) -> int:
    """Leave out train rows until the sources are in proportion to their weights; how many left.

    No row is repeated, so the source with the fewest rows for its weight sets the size of all.
    Sources without a weight keep all their rows. `weights` are those of prepare.sources, above 0.

    Raises:
        DataError: a source with a weight has no train rows.
    """
    import numpy as np

    # as written: 0.3 is 3/10 here, on which a row more or less can depend
    exact = {place: Fraction(str(w)) for place, w in enumerate(weights) if w is not None}
    rows = np.flatnonzero(index.inside("train") & np.isin(index.source, list(exact)))
    source = index.source[rows].astype(np.int32)
    found = np.bincount(source, minlength=len(weights)).tolist()
    for place in exact:
        if not found[place]:
            raise DataError(
                f"prepare.sources: number {place + 1} has weight {weights[place]}, but none of "
                "its rows is left for train. Take its weight away, or mend the source."
            )
    if not exact:
        return 0
    rows_a_weight = min(found[place] / weight for place, weight in exact.items())
    shares = [int(rows_a_weight * exact.get(place, 0)) for place in range(len(weights))]
    draw = draws(index.id_key[rows], seed, "mixture")
    chosen = drawn(source, draw, np.ones(len(rows), np.int32), shares)
    return index.leave(rows[~chosen], Fate.MIXTURE)


def limited(index: RowIndex, limit: Mapping[Split, int], seed: int) -> int:
    """At most `limit[split]` rows of a split stay, each class in proportion; how many left."""
    import numpy as np

    left = 0
    for split, count in limit.items():
        rows = np.flatnonzero(index.inside(split))
        if len(rows) <= count:
            continue
        code = _label_ranks(index, rows)
        shares = proportional_shares(np.bincount(code).tolist(), count)
        draw = draws(index.id_key[rows], seed, f"limit {split}")
        chosen = drawn(code, draw, np.ones(len(rows), np.int32), shares)
        left += index.leave(rows[~chosen], Fate.LIMIT)
    return left


def _label_ranks(index: RowIndex, rows: "NDArray[np.int64]") -> "NDArray[np.int32]":
    """The place of each row's label by name, from 1; 0 without. Codes depend on reading order."""
    import numpy as np

    rank = np.zeros(len(index.labels) + 1, dtype=np.int32)  # NO_LABEL is -1: the last entry
    rank[np.argsort(np.array(index.labels, dtype=object))] = np.arange(1, len(index.labels) + 1)
    return rank[index.label[rows]]
