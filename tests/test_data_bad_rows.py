"""Hostile and broken records: each is refused with the kind that it is counted by."""

import datetime
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.formats import ROW_FORMATS, FormatOptions, GroundedOptions, compose, parse
from luthier.data.formats.grounded import with_distractors
from luthier.data.rows import Parsed, RawRow, RowError

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
OPTIONS = FormatOptions(schema=json.dumps(SCHEMA))

SYSTEM = {"role": "system", "content": "s"}
USER = {"role": "user", "content": "u"}
REPLY = {"role": "assistant", "content": "r"}
ANSWER = {"role": "tool", "tool_call_id": "c", "content": "t"}


def calling(*calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def call(**more: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}"}
    return {"id": "c", "type": "function", "function": function} | more


def calls(arguments: Any) -> list[Any]:
    return [USER, calling(call(function={"name": "f", "arguments": arguments})), ANSWER, REPLY]


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


TOOL = {"type": "function", "function": {"name": "g"}}
MEGABYTE = "x" * (1 << 20)
DEEP = nested(200_000)
DATE = datetime.date(2026, 1, 1)
IMAGE, PART = {"type": "image_url"}, {"type": "text", "text": "u"}

MESSAGES: list[tuple[str, Any, str]] = [
    ("null", None, "messages-missing"),
    ("text", "u", "messages-missing"),
    ("an object", USER, "messages-missing"),
    ("an empty list", [], "messages-missing"),
    ("a list of texts", ["u", "r"], "message-fields"),
    ("nested lists", [[USER, REPLY]], "message-fields"),
    ("a null message", [USER, None], "message-fields"),
    ("an empty message", [{}, REPLY], "role-unknown"),
    ("no content", [USER, {"role": "assistant"}], "message-fields"),
    ("another field", [USER, REPLY | {"weight": 0}], "message-fields"),
    ("calls of the user", [USER | {"tool_calls": [call()]}, REPLY], "message-fields"),
    ("a role in capitals", [USER | {"role": "User"}, REPLY], "role-unknown"),
    ("an unknown role", [USER, REPLY | {"role": "bot"}], "role-unknown"),
    ("a role of developers", [SYSTEM | {"role": "developer"}, USER, REPLY], "role-unknown"),
    ("a list for a role", [USER | {"role": ["user"]}, REPLY], "role-unknown"),
    ("a null role", [USER | {"role": None}, REPLY], "role-unknown"),
    ("a huge role", [USER | {"role": MEGABYTE}, REPLY], "role-unknown"),
    ("a huge field", [USER | {MEGABYTE: 1}, REPLY], "message-fields"),
    ("two system messages", [SYSTEM, SYSTEM, USER, REPLY], "role-order"),
    ("a late system message", [USER, SYSTEM, REPLY], "role-order"),
    ("system alone", [SYSTEM], "role-order"),
    ("the assistant first", [REPLY, USER, REPLY], "role-order"),
    ("the assistant after system", [SYSTEM, REPLY], "role-order"),
    ("the user last", [USER, REPLY, USER], "role-order"),
    ("the user twice", [USER, USER, REPLY], "role-order"),
    ("the assistant twice", [USER, REPLY, REPLY], "role-order"),
    ("null content", [USER, REPLY | {"content": None}], "content-not-text"),
    ("content true", [USER | {"content": True}, REPLY], "content-not-text"),
    ("content 1", [USER | {"content": 1}, REPLY], "content-not-text"),
    ("content an object", [USER | {"content": {"text": "u"}}, REPLY], "content-not-text"),
    ("no parts", [USER | {"content": []}, REPLY], "content-parts"),
    ("two parts", [USER | {"content": [PART] * 2}, REPLY], "content-parts"),
    ("an image", [USER | {"content": [IMAGE]}, REPLY], "content-not-text"),
    ("a part 1", [USER | {"content": [PART | {"text": 1}]}, REPLY], "content-not-text"),
    ("empty content", [USER, REPLY | {"content": ""}], "content-empty"),
    ("blank content", [USER | {"content": " \n\t"}, REPLY], "content-empty"),
    ("a name 1", [USER | {"name": 1}, REPLY], "message-fields"),
    ("calls not a list", [USER, calling() | {"tool_calls": call()}], "tool-call-fields"),
    ("a call that is text", [USER, calling("f()")], "tool-call-fields"),
    ("a call without id", [USER, calling(call(id=None)), ANSWER, REPLY], "tool-call-id"),
    ("a call with id 1", [USER, calling(call(id=1)), ANSWER, REPLY], "tool-call-id"),
    ("two calls of one id", [USER, calling(call(), call())], "tool-call-id"),
    ("a call of another type", [USER, calling(call(type="retrieval"))], "tool-call-fields"),
    ("a call without function", [USER, calling(call(function=None))], "tool-call-fields"),
    ("a call without name", [USER, calling(call(function={"arguments": {}}))], "tool-call-fields"),
    ("arguments a list", calls([1]), "tool-arguments"),
    ("arguments null", calls(None), "tool-arguments"),
    ("arguments cut off", calls('{"x": '), "tool-arguments"),
    ("arguments NaN", calls('{"x": NaN}'), "tool-arguments"),
    ("arguments infinite", calls('{"x": 1e999}'), "tool-arguments"),
    ("arguments with a key twice", calls('{"x": 1, "x": 2}'), "tool-arguments"),
    ("arguments with half a character", calls('{"x": "\\ud800"}'), "tool-arguments"),
    ("arguments with a date", calls({"x": DATE}), "tool-arguments"),
    ("arguments nested deep", calls(DEEP), "nested-too-deep"),
    ("arguments spelled deep", calls('{"a":' * 200_000), "tool-arguments"),
    ("an answer to nobody", [USER, ANSWER, REPLY], "tool-call-unknown"),
    ("an answer after a reply", [USER, REPLY, ANSWER, REPLY], "tool-call-unknown"),
    ("an answer to another", [USER, calling(call(id="d")), ANSWER, REPLY], "tool-call-unknown"),
    ("two answers", [USER, calling(call()), ANSWER, ANSWER, REPLY], "tool-call-unknown"),
    (
        "an answer without id",
        [USER, calling(call()), ANSWER | {"tool_call_id": None}],
        "tool-call-id",
    ),
    ("a call unanswered", [USER, calling(call()), REPLY], "tool-call-unanswered"),
    (
        "one of two answered",
        [USER, calling(call(), call(id="d")), ANSWER, REPLY],
        "tool-call-unanswered",
    ),
    ("a tool's answer last", [USER, calling(call()), ANSWER], "role-order"),
    ("the user after a tool", [USER, calling(call()), ANSWER, USER, REPLY], "role-order"),
]


def turn(side: Any, value: Any, **more: Any) -> dict[str, Any]:
    return {"from": side, "value": value} | more


HUMAN, GPT = turn("human", "u"), turn("gpt", "r")
TURNS: list[tuple[str, Any, str]] = [
    ("null turns", None, "messages-missing"),
    ("no turns", [], "messages-missing"),
    ("a turn of text", ["u"], "message-fields"),
    ("from Human", [turn("Human", "u"), GPT], "role-unknown"),
    ("from bing", [HUMAN, turn("bing", "r")], "role-unknown"),
    ("from null", [turn(None, "u"), GPT], "role-unknown"),
    ("a null value", [HUMAN, turn("gpt", None)], "content-not-text"),
    ("an empty value", [HUMAN, turn("gpt", "")], "content-empty"),
    ("a weight", [HUMAN, turn("gpt", "r", weight=0)], "message-fields"),
    ("gpt first", [GPT, HUMAN, GPT], "role-order"),
    ("a call no JSON", [HUMAN, turn("function_call", "f()")], "tool-call-fields"),
    ("an answer to no call", [HUMAN, turn("tool", "t")], "tool-call-unknown"),
]
OWN_SYSTEM = [turn("system", "s"), HUMAN, GPT]
OTHER = REPLY | {"content": "other"}
WORSE = [USER, OTHER]
BAD_TOOL = {"type": "function", "function": {"name": "g", "parameters": 1}}

# format: (a good row, [(what is wrong, the columns changed, the kind), ...])
CHANGES: dict[str, tuple[dict[str, Any], list[tuple[str, dict[str, Any], str]]]] = {
    "messages": (
        {"messages": [USER, REPLY]},
        [
            ("tools an object", {"tools": {}}, "tools-fields"),
            ("tools of text", {"tools": ["f"]}, "tools-fields"),
            ("tools no JSON", {"tools": "f"}, "tools-fields"),
            ("a tool twice", {"tools": [TOOL] * 2}, "tools-fields"),
            ("parameters 1", {"tools": [BAD_TOOL]}, "tools-fields"),
            ("a call of no tool", {"messages": calls("{}"), "tools": [TOOL]}, "tool-unknown"),
            *((name, {"messages": found}, kind) for name, found, kind in MESSAGES),
        ],
    ),
    "sharegpt": (
        {"conversations": [HUMAN, GPT]},
        [
            (
                "a system twice",
                {"conversations": [turn("system", "s"), HUMAN, GPT], "system": "s"},
                "role-order",
            ),
            *((name, {"conversations": found}, kind) for name, found, kind in TURNS),
        ],
    ),
    "alpaca": (
        {"instruction": "u", "output": "r"},
        [
            ("a null instruction", {"instruction": None}, "instruction-not-text"),
            ("an input of blanks", {"input": " "}, "input-empty"),
            ("an input 1", {"input": 1}, "input-not-text"),
            ("an empty output", {"output": ""}, "output-empty"),
            ("a system of messages", {"system": [SYSTEM]}, "system-not-text"),
        ],
    ),
    "prompt_completion": (
        {"prompt": "p", "completion": "c"},
        [
            ("an empty completion", {"completion": ""}, "completion-empty"),
            ("a prompt of messages", {"prompt": [USER]}, "prompt-not-text"),
        ],
    ),
    "text": (
        {"text": "t"},
        [
            ("text true", {"text": True}, "text-not-text"),
            ("text of bytes", {"text": b"t"}, "text-not-text"),
            ("blank text", {"text": " " * 1000}, "text-empty"),
        ],
    ),
    "classification": (
        {"text": "t", "label": "x"},
        [
            ("text null", {"text": None}, "text-not-text"),
            ("label 3", {"label": 3}, "label-not-text"),
            ("label true", {"label": True}, "label-not-text"),
            ("label null", {"label": None}, "label-not-text"),
            ("a list of labels", {"label": ["x"]}, "label-not-text"),
            ("an empty label", {"label": ""}, "label-empty"),
            ("a label with a blank", {"label": "x "}, "label-whitespace"),
        ],
    ),
    "extraction": (
        {"text": "t", "output": {"a": 1}},
        [
            ("output null", {"output": None}, "output-not-object"),
            ("output 1", {"output": "1"}, "output-not-object"),
            ("output no JSON", {"output": "{'a': 1}"}, "output-not-json"),
            ("output NaN", {"output": {"a": 1, "b": float("nan")}}, "output-not-json"),
            ("output with a date", {"output": {"a": 1, "b": DATE}}, "output-not-json"),
            ("a key twice", {"output": '{"a": 1, "a": 1}'}, "output-not-json"),
            ("another type", {"output": {"a": "1"}}, "schema-violation"),
            ("output a list", {"output": []}, "schema-violation"),
            ("output without a key", {"output": "{}"}, "schema-violation"),
            ("output nested deep", {"output": {"a": 1, "b": DEEP}}, "nested-too-deep"),
            ("a huge wrong output", {"output": {"a": MEGABYTE}}, "schema-violation"),
        ],
    ),
    "preference": (
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        [
            ("a null prompt", {"prompt": None}, "prompt-not-text"),
            ("an empty prompt", {"prompt": ""}, "prompt-empty"),
            ("a prompt that ends with a reply", {"prompt": [USER, REPLY]}, "role-order"),
            ("rejected empty", {"rejected": ""}, "rejected-empty"),
            ("chosen null", {"chosen": None}, "chosen-not-text"),
            ("no chosen messages", {"chosen": []}, "messages-missing"),
            ("chosen is rejected", {"chosen": "bad"}, "chosen-is-rejected"),
            (
                "another prompt inside",
                {"chosen": [USER, REPLY], "rejected": WORSE},
                "prompt-mismatch",
            ),
            ("one whole, one reply", {"prompt": "u", "chosen": [USER, REPLY]}, "prompt-mismatch"),
            ("a reply with a question", {"chosen": [REPLY, USER, REPLY]}, "reply-role"),
        ],
    ),
    "preference_conversations": (
        {"chosen": [USER, REPLY], "rejected": WORSE},
        [
            ("texts without prompt", {"chosen": "good", "rejected": "bad"}, "prompt-missing"),
            ("two prompts", {"chosen": [USER | {"content": "v"}, REPLY]}, "prompt-mismatch"),
            ("equal conversations", {"rejected": [USER, REPLY]}, "chosen-is-rejected"),
            ("one goes on", {"rejected": [USER, REPLY, USER, REPLY]}, "prompt-mismatch"),
        ],
    ),
    "grounded": (
        {"question": "q", "documents": ["d"], "answer": "a"},
        [
            ("no documents", {"documents": []}, "documents-empty"),
            ("documents of text", {"documents": "d"}, "documents-not-list"),
            ("a null document", {"documents": ["d", None]}, "documents-fields"),
            ("an empty document", {"documents": [{"title": "t", "text": ""}]}, "documents-fields"),
            ("a title 1", {"documents": [{"title": 1, "text": "d"}]}, "documents-fields"),
            ("distractors of text", {"distractors": "d"}, "distractors-not-list"),
            ("an answer 1", {"answer": 1}, "answer-not-text"),
            ("gold true", {"gold": [True]}, "gold-not-positions"),
            ("gold by title", {"gold": ["d"]}, "gold-not-positions"),
            ("gold beyond", {"gold": [1]}, "gold-range"),
            ("gold below", {"gold": [-1]}, "gold-range"),
            ("gold without answer", {"answer": None, "gold": [0]}, "gold-mismatch"),
            ("an answer without gold", {"gold": []}, "gold-mismatch"),
            ("a null question", {"question": None}, "question-not-text"),
        ],
    ),
}
CASES = [
    pytest.param(name, good | changed, kind, id=f"{name}: {what}")
    for name, (good, changes) in CHANGES.items()
    for what, changed, kind in changes
]


@pytest.mark.parametrize("name", CHANGES)
def test_the_row_that_the_table_changes_is_good(name: str) -> None:
    """A refusal in the table is due to the change alone; every needed column is missed."""
    good, one = CHANGES[name][0], ROW_FORMATS[name]
    assert parse(RawRow("a.jsonl", 1, good), one, {}, OPTIONS).messages
    for column in one.needs:
        less = {key: value for key, value in good.items() if key != column}
        with pytest.raises(RowError, match=f"^column-missing: no '{column}'"):
            parse(RawRow("a.jsonl", 1, less), one, {}, OPTIONS)


def test_every_format_has_bad_rows() -> None:
    assert set(CHANGES) == set(ROW_FORMATS)


@pytest.mark.parametrize(("name", "values", "kind"), CASES)
def test_bad_row(name: str, values: dict[str, Any], kind: str) -> None:
    with pytest.raises(RowError) as raised:
        parse(RawRow("a.jsonl", 1, values), ROW_FORMATS[name], {}, OPTIONS)
    assert raised.value.kind == kind, str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "text", "title", "name"]) | st.text(max_size=2), inside
        )
    ),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool"]) | JSON,
        "content": st.sampled_from(["x", ""]) | JSON,
    },
    optional={
        "tool_calls": st.lists(st.sampled_from([call(), call(id="d")]) | JSON, max_size=2) | JSON,
        "tool_call_id": st.sampled_from(["c", "d"]) | JSON,
        "name": JSON,
    },
)
TURN = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt", "function_call", "tool"]) | JSON, "value": JSON}
)
VALUE = (
    JSON
    | st.lists(MESSAGE, max_size=5)
    | st.lists(TURN, max_size=4)
    | JSON.map(lambda value: json.dumps(value))
)


@pytest.mark.parametrize("name", sorted(ROW_FORMATS))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_values_become_a_row_or_a_row_error(name: str, data: st.DataObject) -> None:
    one = ROW_FORMATS[name]
    values = data.draw(
        st.fixed_dictionaries(
            dict.fromkeys(one.needs, VALUE), optional=dict.fromkeys(one.may, VALUE)
        )
    )
    try:
        row = parse(RawRow("a.jsonl", 1, values), one, {}, OPTIONS)
    except RowError:
        return
    assert isinstance(row, Parsed)
    assert row.messages
    if name == "grounded":
        options = GroundedOptions(distractors=1, unanswerable_fraction=1.0)
        given_rows, made = with_distractors([row, row], options, seed=1)
        assert all(compose(one, OPTIONS).messages for one in [*given_rows, *(r for _, r in made)])
