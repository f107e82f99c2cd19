"""Row formats: columns become a conversation, or the row says why not."""

from typing import Any

import pytest

from luthier.data.formats import ROW_FORMATS, to_row
from luthier.data.rows import RawRow, Row, RowError


def make(
    task: str, values: dict[str, Any], system_prompt: str | None = None, **columns: str
) -> Row:
    raw = RawRow("a.jsonl", 3, values, "raw")
    return to_row(raw, ROW_FORMATS[task], columns, "train", system_prompt)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def test_classification_row() -> None:
    row = make("classification", {"text": " a ", "label": "x", "extra": 1}, "Say it.")
    assert row.messages == ({"role": "system", "content": "Say it."}, user(" a "), assistant("x"))
    assert (row.label, row.group, row.where) == ("x", None, "a.jsonl:3")


def test_columns_can_be_renamed_and_grouped() -> None:
    values = {"body": "a", "section": "x", "author": 12}
    row = make("classification", values, text="body", label="section", group="author")
    assert row.messages == (user("a"), assistant("x"))
    assert row.group == "12"


def test_ids_depend_on_the_rows_own_messages_alone() -> None:
    values = {"text": "a", "label": "x"}
    plain, with_system = make("classification", values), make("classification", values, "S")
    other_reply = make("classification", values | {"label": "y"})
    assert plain.id == with_system.id != other_reply.id
    assert plain.prompt_key == other_reply.prompt_key


CLASSIFICATION_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"text": "a"}, "column-missing: no 'label'"),
    ({"txt": "a", "label": "x"}, "did you mean 'txt'"),
    ({"text": None, "label": "x"}, "text-not-text: 'text' is null"),
    ({"text": "", "label": "x"}, "text-empty"),
    ({"text": " \n", "label": "x"}, "text-empty"),
    ({"text": "a", "label": None}, "label-not-text: 'label' is null"),
    ({"text": "a", "label": 3}, "label-not-text: 'label' is a number"),
    ({"text": "a", "label": True}, "label-not-text: 'label' is a boolean"),
    ({"text": "a", "label": ["x"]}, "label-not-text: 'label' is a list"),
    ({"text": "a", "label": ""}, "label-empty"),
    ({"text": "a", "label": "x "}, "label-whitespace"),
]


@pytest.mark.parametrize(("values", "reason"), CLASSIFICATION_FAULTS)
def test_faulty_classification_row(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        make("classification", values)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "group-not-text"), (1.5, "group-not-text"), (True, "group-not-text"), ("", "empty")],
)
def test_faulty_group(value: Any, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        make("classification", {"text": "a", "label": "x", "author": value}, group="author")


def test_chat_row_keeps_its_own_system_message() -> None:
    own = {"role": "system", "content": "Mine."}
    messages = [own, user("a"), assistant("b"), user("c"), assistant("d")]
    assert make("chat", {"messages": messages}, "Other.").messages == tuple(messages)
    assert make("chat", {"messages": messages[1:]}, "Other.").messages[0]["content"] == "Other."


CHAT_FAULTS: list[tuple[Any, str]] = [
    ("text", "messages-missing"),
    ([], "messages-missing"),
    (["text"], "message-fields: message 1 is text"),
    ([{"role": "user"}], "message-fields: message 1 has role, not role and content"),
    ([user("a"), assistant("b") | {"tool_calls": []}], "tool_calls"),
    ([user("a"), {"role": "bot", "content": "b"}], "role-unknown: message 2 has role 'bot'"),
    ([user("a"), {"role": ["x"], "content": "b"}], "role-unknown"),
    ([user("a")], "role-order: the last message is the user's"),
    ([assistant("b")], "role-order: the first message"),
    ([user("a"), {"role": "system", "content": "s"}, assistant("b")], "role-order: a system"),
    ([user("a"), assistant(None)], "content-not-text"),
    ([user([{"type": "text"}]), assistant("b")], "content-not-text: the content of message 1"),
    ([user("a"), assistant(" ")], "content-empty: message 2"),
]


@pytest.mark.parametrize(("messages", "reason"), CHAT_FAULTS)
def test_faulty_chat_row(messages: Any, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        make("chat", {"messages": messages})


def test_completion_row() -> None:
    row = make("completion", {"prompt": "1 + 1 =", "completion": " 2"})
    assert row.messages == (user("1 + 1 ="), assistant(" 2"))
    with pytest.raises(RowError, match="completion-empty"):
        make("completion", {"prompt": "1 + 1 =", "completion": ""})


def test_reasons_are_printable_and_short() -> None:
    with pytest.raises(RowError) as raised:
        make("chat", {"messages": [{"role": "\x1b[2J" + "x" * 5000, "content": "a"}]})
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400
