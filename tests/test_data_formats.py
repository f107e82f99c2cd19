"""Row formats: columns become a conversation."""

import json
from typing import Any

import pytest

from luthier.data.formats import (
    ROW_FORMATS,
    ClassificationOptions,
    FormatOptions,
    label_list,
    parse,
)
from luthier.data.rows import Parsed, RawRow, RowError
from luthier.errors import DataError

SYSTEM = {"role": "system", "content": "Be brief."}
PLAIN = FormatOptions()


def made(name: str, options: FormatOptions = PLAIN, /, **values: Any) -> Parsed:
    return parse(RawRow("a.jsonl", 3, values), ROW_FORMATS[name], {}, options)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | more


def call(name: str, arguments: Any, call_id: str = "c1") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def answer(content: str, call_id: str = "c1") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def contents(row: Parsed) -> list[str]:
    return [message["content"] for message in row.messages]


def test_columns_can_have_other_names_and_optional_ones_be_absent() -> None:
    alpaca = ROW_FORMATS["alpaca"]
    raw = RawRow("a.jsonl", 3, {"ask": "a", "output": "b", "extra": 1})
    assert contents(parse(raw, alpaca, {"instruction": "ask"}, PLAIN)) == ["a", "b"]
    with pytest.raises(RowError, match=r"^column-missing: no 'asks' .* did you mean 'ask'\?$"):
        parse(raw, alpaca, {"instruction": "asks"}, PLAIN)


def test_messages_are_kept_as_they_are() -> None:
    messages = [SYSTEM, user(" a "), assistant("b"), user("c"), assistant("d")]
    assert made("messages", messages=messages).messages == messages


def test_null_fields_and_a_single_text_part_are_the_plain_message() -> None:
    found = [
        user([{"type": "text", "text": "a"}]) | {"name": None},
        assistant("b", refusal=None, tool_calls=[]),
    ]
    assert made("messages", messages=found).messages == [user("a"), assistant("b")]


def test_tool_calls_get_their_arguments_as_objects() -> None:
    found = [
        user("a"),
        assistant(None, tool_calls=[call("f", '{"x": 1}'), call("f", {"x": 2}, "c2")]),
        answer("", "c2"),
        answer("one"),
        assistant("b"),
    ]
    row = made("messages", messages=found, tools=[tool("f")])
    assert [one["role"] for one in row.messages] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    calls = row.messages[1]["tool_calls"]
    assert [one["function"]["arguments"] for one in calls] == [{"x": 1}, {"x": 2}]
    assert row.messages[1]["content"] == ""
    assert row.tools == [tool("f")]


def test_a_conversation_may_end_with_a_call_and_tools_be_json_text() -> None:
    found = [user("a"), assistant("", tool_calls=[call("f", {})])]
    row = made("messages", messages=found, tools=json.dumps([tool("f")]))
    assert row.tools == [tool("f")]
    assert made("messages", messages=found, tools=[]).tools is None


def test_sharegpt() -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": None}]
    assert made("sharegpt", conversations=turns).messages == [user("a"), assistant("b")]
    own = [{"from": "system", "value": "Be brief."}, *turns]
    assert made("sharegpt", conversations=own).messages[0] == SYSTEM
    assert made("sharegpt", conversations=turns, system="Be brief.").messages[0] == SYSTEM


def test_sharegpt_calls_are_answered_by_the_next_observation() -> None:
    turns = [
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "b"},
    ]
    row = made("sharegpt", conversations=turns, tools='[{"name": "f", "parameters": {}}]')
    assert row.messages[1]["tool_calls"] == [call("f", {"x": 1}, "call_2")]
    assert row.messages[2] == answer("7", "call_2")
    assert row.tools == [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.mark.parametrize("absent", [{}, {"input": ""}, {"input": None}])
def test_alpaca_joins_the_input_on_the_next_line(absent: dict[str, Any]) -> None:
    assert contents(made("alpaca", instruction="a", output="b", **absent)) == ["a", "b"]
    row = made("alpaca", instruction="a", input="x", output="b", system="Be brief.")
    assert row.messages == [SYSTEM, user("a\nx"), assistant("b")]


def test_plain_texts() -> None:
    row = made("prompt_completion", prompt="1 + 1 =", completion=" 2")
    assert row.messages == [user("1 + 1 ="), assistant(" 2")]
    assert made("text", text="all of it\n").messages == [assistant("all of it\n")]


def test_classification_and_its_template() -> None:
    row = made("classification", text=" a ", label="x")
    assert (row.messages, row.label) == ([user(" a "), assistant("x")], "x")
    options = FormatOptions(ClassificationOptions(template="Text {1}: {text}!"))
    assert contents(made("classification", options, text="{text}", label="x"))[0] == (
        "Text {1}: {text}!"
    )


def test_label_list_describes_what_it_can() -> None:
    assert label_list(["a", "b"], {"b": "the second"}) == "- a\n- b: the second"
    with pytest.raises(
        DataError, match=r"'fonds' is not one of the 2 labels. Did you mean 'fonts'"
    ):
        label_list(["fonts", "games"], {"fonds": "x"})


REPLIES = {"chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "q"} | REPLIES,
        {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": "bad"},
        {"prompt": "q"} | {side: [user("q"), assistant(text)] for side, text in REPLIES.items()},
    ],
)
def test_preference_with_a_prompt(values: dict[str, Any]) -> None:
    row = made("preference", **values)
    assert (row.messages, row.chosen, row.rejected) == (
        [user("q")],
        [assistant("good")],
        [assistant("bad")],
    )


def test_preference_of_conversations() -> None:
    asked = [SYSTEM, user("a"), assistant("b"), user("c")]
    both = {side: [*asked, assistant(text)] for side, text in REPLIES.items()}
    row = made("preference_conversations", **both)
    assert (row.messages, row.chosen, row.rejected) == (
        asked,
        [assistant("good")],
        [assistant("bad")],
    )
