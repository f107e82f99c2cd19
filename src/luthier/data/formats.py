"""Row formats: how columns become a conversation. A new format is one decorated function."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from luthier.data.rows import Message, RawRow, Row, RowError, Split, content_key

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a format makes of one record: messages, the reply last; a class where there is one."""

    messages: Sequence[Message]
    label: str | None = None


Parse = Callable[[Mapping[str, object]], Conversation]


@dataclass(frozen=True)
class RowFormat:
    """A format and the columns it reads, under the names that its function sees."""

    name: str
    columns: tuple[str, ...]
    parse: Parse


ROW_FORMATS: dict[str, RowFormat] = {}


def row_format(name: str, *columns: str) -> Callable[[Parse], Parse]:
    """Register a function {column: value} -> Conversation; RowError for a bad record."""

    def register(function: Parse) -> Parse:
        ROW_FORMATS[name] = RowFormat(name, columns, function)
        return function

    return register


@row_format("classification", "text", "label")
def classification(values: Mapping[str, object]) -> Conversation:
    """`text` is the user's message, `label` the reply."""
    text, label = _text(values, "text"), _text(values, "label")
    if label != label.strip():
        raise RowError("label-whitespace", f"{label!r} begins or ends with white space")
    return Conversation([_message("user", text), _message("assistant", label)], label)


@row_format("chat", "messages")
def chat(values: Mapping[str, object]) -> Conversation:
    """`messages` as OpenAI writes them: system (first, optional), user and assistant (last)."""
    found = values["messages"]
    if not isinstance(found, list) or not found:
        raise RowError("messages-missing", "'messages' must be a list with at least two messages")
    messages = [_chat_message(number, message) for number, message in enumerate(found, start=1)]
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise RowError("role-order", "a system message after the first message")
    if next((role for role in roles if role != "system"), None) != "user":
        raise RowError("role-order", "the first message after the system's must be the user's")
    if roles[-1] != "assistant":
        raise RowError("role-order", f"the last message is the {roles[-1]}'s, not the assistant's")
    return Conversation(messages)


@row_format("completion", "prompt", "completion")
def completion(values: Mapping[str, object]) -> Conversation:
    """`prompt` and `completion`, plain text that no chat template touches."""
    return Conversation(
        [
            _message("user", _text(values, "prompt")),
            _message("assistant", _text(values, "completion")),
        ]
    )


def to_row(
    raw: RawRow,
    row_format: RowFormat,
    columns: Mapping[str, str],
    split: Split,
    system_prompt: str | None,
) -> Row:
    """The canonical row of one record.

    Args:
        columns: what this source calls a format's columns, and `group`, where rows have groups.
        system_prompt: put before conversations that have no system message of their own.

    Raises:
        RowError: the record cannot be used.
    """
    names = {column: columns.get(column, column) for column in row_format.columns}
    found = row_format.parse({column: _value(raw, name) for column, name in names.items()})
    messages = tuple(found.messages)
    row_id, prompt_key = content_key(messages), content_key(messages[:-1])
    if system_prompt is not None and messages[0]["role"] != "system":
        messages = (_message("system", system_prompt), *messages)
    group = _group(raw, columns["group"]) if "group" in columns else None
    return Row(
        row_id, group, split, messages, found.label, raw.file, raw.line, prompt_key, raw.raw
    )


def _value(raw: RawRow, column: str) -> object:
    if column not in raw.values:
        near = difflib.get_close_matches(column, raw.values, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        there = ", ".join(f"'{name[:40]}'" for name in list(raw.values)[:8])
        raise RowError("column-missing", f"no '{column}' among {there or 'no columns'}{hint}")
    return raw.values[column]


def _text(values: Mapping[str, object], column: str) -> str:
    value = values[column]
    if not isinstance(value, str):
        raise RowError(f"{column}-not-text", f"'{column}' is {_kind(value)}")
    if not value.strip():
        raise RowError(f"{column}-empty", f"'{column}' is empty")
    return value


def _group(raw: RawRow, column: str) -> str:
    value = _value(raw, column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RowError("group-not-text", f"'{column}' is {_kind(value)}")
    if not value.strip():
        raise RowError("group-empty", f"'{column}' is empty")
    return value


def _chat_message(number: int, message: object) -> Message:
    if not isinstance(message, dict):
        raise RowError("message-fields", f"message {number} is {_kind(message)}")
    if set(message) != {"role", "content"}:
        found = ", ".join(sorted(message)) or "nothing"
        raise RowError("message-fields", f"message {number} has {found}, not role and content")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise RowError(
            "role-unknown", f"message {number} has role {role!r}, not {', '.join(ROLES)}"
        )
    if not isinstance(content, str):
        raise RowError("content-not-text", f"the content of message {number} is {_kind(content)}")
    if not content.strip():
        raise RowError("content-empty", f"message {number} has no content")
    return _message(role, content)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _kind(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}
    return "null" if value is None else names.get(type(value), "an object")
