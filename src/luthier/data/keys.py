"""Keys of rows: of what a row says, asks and answers, and of its group."""

import hashlib
import json
from collections.abc import Mapping, Sequence

from luthier.data.index import NO_KEY
from luthier.data.rows import Message, Parsed, RawRow, RowError

KEY_BYTES = 8


def row_keys(row: Parsed) -> tuple[bytes, bytes, bytes, bytes]:
    """Keys of the whole row (16 bytes), its prompt, its target, and the mirror of a preference.

    All are made of the row's own messages, so that they stay the same when rows around it, the
    file's name or the system prompt change. A row without a prompt is its own prompt.
    """
    if row.chosen is not None and row.rejected is not None:
        prompt, chosen, rejected = map(_spelled, (row.messages, row.chosen, row.rejected))
        target, mirror = chosen + "\0" + rejected, rejected + "\0" + chosen
        return _key(prompt + target)[:16], _key(prompt), _key(target), _key(mirror)
    prompt, target = _spelled(row.messages[:-1]), _spelled(row.messages[-1:])
    if row.tools is not None:
        prompt = f"{json.dumps(row.tools, sort_keys=True)} {prompt}"
    whole = _key(prompt + target)
    return whole[:16], _key(prompt) if prompt else whole, _key(target), b"\0" * KEY_BYTES


def _spelled(messages: Sequence[Message]) -> str:
    """Messages as one text that no other messages have."""
    return "".join(
        f"{found['role']} {len(found.get('content') or '')} {found.get('content') or ''}"
        if len(found) == 2
        else json.dumps(found, sort_keys=True)
        for found in messages
    )


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def group_of(raw: RawRow, columns: Mapping[str, str]) -> str | None:
    """The group of a record, None when rows have none.

    Raises:
        RowError: the column is missing, or neither text nor a whole number.
    """
    if "group" not in columns:
        return None
    name = columns["group"]
    value = raw.values.get(name)
    if name not in raw.values:
        raise RowError("column-missing", f"no '{name}', which rows are grouped by")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RowError("group-not-text", f"'{name}' is not text")
    if not value.strip():
        raise RowError("group-empty", f"'{name}' is empty")
    return value


def group_key(group: str | None) -> int:
    """A group as a number; NO_KEY without one."""
    if group is None:
        return NO_KEY
    return int.from_bytes(_key(group)[:KEY_BYTES], "big") or 1
