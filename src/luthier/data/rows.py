"""The canonical row, and the books that say what became of every row that was read."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Task = Literal["classification", "chat", "completion"]

Message = Mapping[str, str]

RAW_LIMIT_CHARACTERS = 1000  # of a bad row's text that quarantine.jsonl keeps
DETAIL_LIMIT_CHARACTERS = 300
_KEY_BYTES = 16  # of SHA-256; a collision among 1e9 texts has probability 1e-21


class RowError(Exception):
    """Why one row cannot be used: a `kind` to count by, and what was found in this row."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {_printable(detail)}")
        self.kind = kind


@dataclass(frozen=True, slots=True)
class RawRow:
    """One record as a reader found it: column names and values, nothing changed.

    `line` is the first line of the record, counted from 1; `raw` its text, capped.
    """

    file: str
    line: int
    values: Mapping[str, object]
    raw: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """One unusable record, a line of quarantine.jsonl. `reason` begins with its kind."""

    file: str
    line: int
    reason: str
    raw: str

    @property
    def kind(self) -> str:
        """What the counts call it."""
        return self.reason.partition(":")[0]

    def as_json_line(self) -> str:
        """`{file, line, reason, raw}` and a newline."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class Row:
    """The canonical row: a conversation whose last message is the reply.

    `id` is made of the row's own messages, so that it stays the same when rows around it, the
    file's name or the system prompt change. `prompt_key` stands for everything before the reply.
    """

    id: str
    group: str | None
    split: Split
    messages: tuple[Message, ...]
    label: str | None
    source_path: str
    source_line: int
    prompt_key: str
    raw: str

    @property
    def where(self) -> str:
        """`file:line`."""
        return f"{self.source_path}:{self.source_line}"


def content_key(messages: Sequence[Message]) -> str:
    """A key of the exact roles and texts."""
    text = json.dumps([[message["role"], message["content"]] for message in messages])
    return hashlib.sha256(text.encode()).hexdigest()[: 2 * _KEY_BYTES]


def _printable(text: str) -> str:
    """Data quoted in a message: no control characters, no half surrogates, not too long."""
    shown = text[:DETAIL_LIMIT_CHARACTERS]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def cap_raw(text: str) -> str:
    """At most `RAW_LIMIT_CHARACTERS` of a row, on one line's end, with the rest counted."""
    text = text.rstrip("\r\n")
    if len(text) <= RAW_LIMIT_CHARACTERS:
        return text
    return f"{text[:RAW_LIMIT_CHARACTERS]}… ({len(text) - RAW_LIMIT_CHARACTERS} more characters)"


class Ledger:
    """Every row that was read ends in exactly one place: kept, quarantined or dropped.

    Quarantined rows cannot be used as they are and are written down one by one; dropped rows are
    fine by themselves (a duplicate, a leak, above a limit) and only counted.
    """

    def __init__(self) -> None:
        self.read = 0
        self.quarantined: list[Rejected] = []
        self.dropped: Counter[str] = Counter()

    def quarantine(self, rejected: Rejected) -> None:
        """Write one record down."""
        self.quarantined.append(rejected)

    def quarantine_row(self, row: Row, error: RowError) -> None:
        """Write down a row that was read well and turned out unusable later."""
        self.quarantine(Rejected(row.source_path, row.source_line, str(error), row.raw))

    def drop(self, kind: str, count: int = 1) -> None:
        """Count rows left out."""
        if count:
            self.dropped[kind] += count

    @property
    def quarantined_by_kind(self) -> dict[str, int]:
        """Counts of quarantined records, by kind, sorted by name."""
        return dict(sorted(Counter(rejected.kind for rejected in self.quarantined).items()))

    @property
    def quarantined_fraction(self) -> float:
        """Share of the records read, 0 to 1."""
        return len(self.quarantined) / self.read if self.read else 0.0

    def assert_balanced(self, kept: int) -> None:
        """No row appeared or vanished: read = kept + quarantined + dropped."""
        accounted = kept + len(self.quarantined) + self.dropped.total()
        assert self.read == accounted, f"{self.read} rows read, {accounted} accounted for"

    def why(self) -> str:
        """What took the rows away, for a message: counts, then the first record quarantined."""
        counts = {**self.quarantined_by_kind, **self.dropped}
        reasons = (
            ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "nothing was read"
        )
        if not self.quarantined:
            return reasons
        first = self.quarantined[0]
        return f"{reasons}; the first is {first.file}:{first.line}: {first.reason}"
