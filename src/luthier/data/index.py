"""The index: what every decision about rows needs to know of them, some 70 bytes a row.

Texts and tokens stay on the disk; duplicates, contradictions, leaks, splits and limits are
decided here on arrays that hold one number a row. A key is the first 8 bytes of a SHA-256: among
ten million texts, two that differ share one with probability 3e-6.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from luthier.data.rows import SPLITS, Split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NO_KEY = 0  # of a row without a group or a mirror
NO_LABEL = -1


class Fate(IntEnum):
    """What became of a row that was read well. Some are faults, the others rows left out."""

    KEPT = 0
    LABEL_UNKNOWN = 1
    CONTRADICTION = 2
    DUPLICATE = 3
    LEAK_TEXT = 4
    LEAK_GROUP = 5
    NEAR_DUPLICATE = 6
    LEAK_NEAR = 7
    LEAK_NGRAM = 8
    CONTAMINATED = 9
    OVERLONG = 10
    MIXTURE = 11
    LIMIT = 12

    @property
    def is_fault(self) -> bool:
        """Whether the row goes to quarantine.jsonl; others are only counted."""
        return self in (Fate.LABEL_UNKNOWN, Fate.CONTRADICTION)

    @property
    def reason(self) -> str:
        """What the counts call it: `leak-text`."""
        return self.name.lower().replace("_", "-")


class Flag(IntEnum):
    """Bits of `RowIndex.flags`: what the gates found wrong with a row's tokens."""

    STOP_MISSING = 1
    TRUNCATED = 2
    NOTHING_SUPERVISED = 4
    PROMPT_NOT_PREFIX = 8
    BOS_COUNT = 16
    TEXT_LOST = 32


@dataclass
class RowIndex:
    """One number a row in each array, all arrays of one length, rows in the order of reading."""

    id_key: "NDArray[np.uint64]"  # roles and texts of the whole row
    prompt_key: "NDArray[np.uint64]"  # the same before the reply
    target_key: "NDArray[np.uint64]"  # the reply; of a preference chosen and rejected
    mirror_key: "NDArray[np.uint64]"  # of a preference: rejected and chosen; else NO_KEY
    group_key: "NDArray[np.uint64]"  # the group column; NO_KEY without
    time: "NDArray[np.float64]"  # seconds since 1970, NaN without
    label: "NDArray[np.int32]"  # position in `labels`; NO_LABEL without
    split: "NDArray[np.uint8]"  # position in SPLITS
    source: "NDArray[np.int16]"  # position in prepare.sources
    tokens: "NDArray[np.int32]"
    supervised: "NDArray[np.int32]"  # tokens with a loss
    flags: "NDArray[np.uint8]"  # Flag bits
    fate: "NDArray[np.uint8]"  # Fate
    labels: list[str] = field(default_factory=list)  # every label found, in order of appearance

    def __len__(self) -> int:
        return len(self.id_key)

    @property
    def kept(self) -> "NDArray[np.bool_]":
        """Rows that nothing has taken away yet."""
        kept: NDArray[np.bool_] = self.fate == Fate.KEPT
        return kept

    def inside(self, split: Split) -> "NDArray[np.bool_]":
        """Kept rows of a split."""
        inside: NDArray[np.bool_] = self.kept & (self.split == SPLITS.index(split))
        return inside

    def leave(self, rows: "NDArray[Any]", fate: Fate) -> int:
        """Give these rows (a mask, or positions) a fate, those still kept; how many that were."""
        import numpy as np

        mask = np.zeros(len(self), dtype=np.bool_)
        mask[rows] = True
        mask &= self.kept
        self.fate[mask] = fate
        return int(mask.sum())

    @contextmanager
    def aside(self, rows: "NDArray[np.bool_]") -> Iterator[None]:
        """While this lasts, these rows are not among the kept ones that are decided about."""
        waiting = self.kept & rows
        self.fate[waiting] = Fate.MIXTURE
        yield
        self.fate[waiting] = Fate.KEPT

    def counts(self) -> dict[Fate, int]:
        """Rows of every fate that occurs, KEPT included."""
        import numpy as np

        found = np.bincount(self.fate, minlength=len(Fate))
        return {fate: int(found[fate]) for fate in Fate if found[fate]}


def array_types() -> Mapping[str, str]:
    """NumPy's name for the type of each array of an index."""
    return {
        "id_key": "uint64",
        "prompt_key": "uint64",
        "target_key": "uint64",
        "mirror_key": "uint64",
        "group_key": "uint64",
        "time": "float64",
        "label": "int32",
        "split": "uint8",
        "source": "int16",
        "tokens": "int32",
        "supervised": "int32",
        "flags": "uint8",
        "fate": "uint8",
    }


def make_index(columns: Mapping[str, Sequence[Any]], labels: list[str]) -> RowIndex:
    """An index from plain columns; what is not given is absent from every row."""
    import numpy as np

    size = len(columns["id_key"])
    absent: Mapping[str, float] = {"time": float("nan"), "label": NO_LABEL}
    arrays = {
        name: np.asarray(columns[name], dtype=kind)
        if name in columns
        else np.full(size, absent.get(name, 0), dtype=kind)
        for name, kind in array_types().items()
    }
    return RowIndex(**arrays, labels=labels)


def joined(parts: Sequence[RowIndex]) -> RowIndex:
    """One index of several, in their order; their labels become one list."""
    import numpy as np

    labels = list(dict.fromkeys(label for part in parts for label in part.labels))
    place = {label: number for number, label in enumerate(labels)}
    for part in parts:
        moved = np.array([*(place[label] for label in part.labels), NO_LABEL], dtype=np.int32)
        part.label = moved[part.label]  # NO_LABEL is -1, the last entry
    names = [found.name for found in fields(RowIndex) if found.name != "labels"]
    types = array_types()
    return RowIndex(
        **{
            name: np.concatenate(
                [getattr(part, name) for part in parts] or [np.empty(0, dtype=types[name])]
            )
            for name in names
        },
        labels=labels,
    )
