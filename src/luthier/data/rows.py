"""What a record, a row and a rejected record are, from the readers to the splits."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Task = Literal[
    "classification", "extraction", "chat", "completion", "text", "preference", "grounded"
]

# role and content, and where there are some: tool_calls, tool_call_id, name
Message = Mapping[str, Any]

RAW_LIMIT_CHARACTERS = 1000  # of a bad row's text that quarantine.jsonl keeps
DETAIL_LIMIT_CHARACTERS = 300


class RowError(Exception):
    """Why one row cannot be used: a `kind` to count by, and what was found in this row."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {_printable(detail)}")
        self.kind = kind


@dataclass(frozen=True, slots=True)
class RawRow:
    """One record as a reader found it: column names and values, nothing changed.

    `line` is the first line of the record in its file, counted from 1 (the row's number in files
    without lines). `data` are the record's bytes, empty where the file has no such thing.
    """

    file: str
    line: int
    values: Mapping[str, object]
    data: bytes = b""

    @property
    def raw(self) -> str:
        """The record as text, capped, for quarantine.jsonl."""
        if self.data:
            return escaped(self.data)
        return cap_raw(json.dumps(self.values, ensure_ascii=True, default=str))


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
class Document:
    """One document of a grounded row. `is_gold`: the answer rests on it."""

    text: str
    title: str | None = None
    is_gold: bool = True


@dataclass(slots=True)
class Parsed:
    """What a row format makes of one record.

    `messages` is the conversation, the reply last; of a preference it is the prompt alone, and
    `chosen` and `rejected` are the two replies (one or more messages each). `label` is the class
    of a classification, `output` the canonical JSON text of an extraction.
    """

    messages: list[Message]
    label: str | None = None
    output: str | None = None
    chosen: list[Message] | None = None
    rejected: list[Message] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Document] | None = None


def message(role: str, content: str) -> Message:
    """A plain message."""
    return {"role": role, "content": content}


def escaped(data: bytes) -> str:
    """A bad record's bytes as text: what is not UTF-8 as \\xNN, a byte order mark visibly."""
    shown = data[: 4 * RAW_LIMIT_CHARACTERS + 4]
    text = cap_raw(shown.decode("utf-8", "backslashreplace").replace("\ufeff", "\\ufeff"))
    if len(shown) == len(data):
        return text
    return f"{text[:RAW_LIMIT_CHARACTERS]}… ({len(data)} bytes in all)"


def cap_raw(text: str) -> str:
    """At most `RAW_LIMIT_CHARACTERS` of a row, on one line's end, with the rest counted."""
    text = text.rstrip("\r\n")
    if len(text) <= RAW_LIMIT_CHARACTERS:
        return text
    return f"{text[:RAW_LIMIT_CHARACTERS]}… ({len(text) - RAW_LIMIT_CHARACTERS} more characters)"


def _printable(text: str) -> str:
    """Data quoted in a message: no control characters, no half surrogates, not too long."""
    shown = text[:DETAIL_LIMIT_CHARACTERS]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
