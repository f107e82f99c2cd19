"""Row indexes in plain words, for the tests of what is decided on them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from luthier.data.index import NO_KEY, NO_LABEL, RowIndex, make_index
from luthier.data.rows import SPLITS, Split


def key(*parts: object) -> int:
    """As the engine makes keys: the first 8 bytes of a SHA-256; no text has none."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclass(frozen=True)
class Line:
    """One row: a text and what is answered. `rejected` makes a preference of it."""

    text: str
    label: str | None = None
    split: Split = "train"
    group: str | None = None
    time: float = float("nan")
    answer: str = ""
    rejected: str | None = None
    source: int = 0
    tokens: int = 10

    @property
    def target(self) -> tuple[str, ...]:
        """What the target key is made of."""
        if self.rejected is not None:
            return (self.answer, self.rejected)
        return (self.label if self.label is not None else self.answer,)

    @property
    def mirror(self) -> int:
        """The target key of the opposite preference."""
        return NO_KEY if self.rejected is None else key(*self.target[::-1])

    @property
    def id(self) -> int:
        """The key of the whole row."""
        return key(self.text, *self.target)


def index_of(lines: Sequence[Line]) -> RowIndex:
    """The index that the engine would make of these rows."""
    labels = list(dict.fromkeys(line.label for line in lines if line.label is not None))
    return make_index(
        {
            "id_key": [line.id for line in lines],
            "prompt_key": [key(line.text) for line in lines],
            "target_key": [key(*line.target) for line in lines],
            "mirror_key": [line.mirror for line in lines],
            "group_key": [NO_KEY if x.group is None else key("group", x.group) for x in lines],
            "time": [line.time for line in lines],
            "label": [NO_LABEL if x.label is None else labels.index(x.label) for x in lines],
            "split": [SPLITS.index(line.split) for line in lines],
            "source": [line.source for line in lines],
            "tokens": [line.tokens for line in lines],
        },
        labels,
    )


def splits_of(index: RowIndex) -> list[Split]:
    """The split of every row."""
    return [SPLITS[position] for position in index.split]


def some_lines(count: int, group_size: int = 1) -> list[Line]:
    """Distinct texts: three of five are of the class games; time goes up."""
    labels = ["games", "games", "games", "net", "web"]
    return [
        Line(f"text {i}", labels[i % 5], group=f"g{i // group_size}", time=float(i))
        for i in range(count)
    ]


def plain_draw(key: int, seed: int, purpose: str) -> int:
    """splitmix64, as Vigna's splitmix64.c has it."""
    mask = 2**64 - 1
    z = key ^ int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8], "big")
    z = (z + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


any_lines = st.lists(
    st.builds(
        Line,
        text=st.integers(0, 30).map(lambda number: f"t{number}"),
        label=st.sampled_from("xyz"),
        split=st.sampled_from(SPLITS),
        group=st.sampled_from([None, "a", "b", "c", "d", "e"]),
        time=st.integers(0, 20).map(float),
        source=st.integers(0, 2),
        tokens=st.integers(1, 30),
    ),
    max_size=60,
)
