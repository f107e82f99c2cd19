"""Which format a file has: told from its first records, or said what to set."""

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.formats import ROW_FORMATS, detect, named_format
from luthier.data.rows import Task
from luthier.errors import DataError

USER, REPLY = {"role": "user", "content": "u"}, {"role": "assistant", "content": "r"}
OTHER = {"role": "assistant", "content": "other"}
MESSAGES = {"messages": [USER, REPLY]}
TURNS = {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "r"}]}
ALPACA = {"instruction": "u", "input": "", "output": "r"}
KTO = {"prompt": "p", "completion": "c", "label": True}

FOUND: list[tuple[Task, dict[str, Any], str]] = [
    ("chat", MESSAGES, "column 'messages' holds a list of {role, content}: messages"),
    ("chat", TURNS, "column 'conversations' holds a list of {from, value}: sharegpt"),
    ("chat", ALPACA, "column 'instruction' holds text, 'output' holds text: alpaca"),
    (
        "completion",
        {"prompt": "p", "completion": "c"},
        "column 'prompt' holds text, 'completion' holds text: prompt_completion",
    ),
    ("text", {"text": "t", "label": "x"}, "column 'text' holds text: text"),
    (
        "extraction",
        {"text": "t", "output": {"a": 1}},
        "column 'text' holds text, 'output' holds an object: extraction",
    ),
    (
        "preference",
        {"prompt": "p", "chosen": "c", "rejected": "r"},
        "column 'prompt' holds text, 'chosen' holds text, 'rejected' holds text: preference",
    ),
    (
        "preference",
        {"chosen": [USER, REPLY], "rejected": [USER, OTHER]},
        "column 'chosen' holds a list of {role, content}, 'rejected' holds a list of "
        "{role, content}: preference_conversations",
    ),
    (
        "grounded",
        {"question": "q", "documents": ["d"], "answer": "a"},
        "column 'question' holds text, 'documents' holds a list of text, 'answer' holds text: "
        "grounded",
    ),
]


@pytest.mark.parametrize(("task", "row", "reason"), FOUND)
def test_format_and_its_reason(task: Task, row: dict[str, Any], reason: str) -> None:
    found, why = detect(task, [row], {})
    assert (found.task, why) == (task, reason)
    assert found.name == reason.rpartition(": ")[2]


def test_columns_decide_between_two_formats() -> None:
    assert (
        detect("chat", [{"talk": TURNS["conversations"]}], {"conversations": "talk"})[0]
        == (ROW_FORMATS["sharegpt"])
    )
    both = MESSAGES | ALPACA
    assert detect("chat", [both], {"instruction": "instruction", "group": "author"})[0].name == (
        "alpaca"
    )


def test_the_shape_decides_where_the_columns_do_not() -> None:
    rows = [MESSAGES | {"conversations": None}, {"conversations": "see messages"}]
    assert detect("chat", rows, {})[0].name == "messages"


def test_unreadable_rows_of_the_only_format_are_left_to_the_quarantine() -> None:
    found, why = detect("classification", [{"text": "t", "label": 3}] * 2, {})
    assert found.name == "classification"
    assert why.endswith("though none of the first 2 records can be read")


def test_a_file_without_readable_records() -> None:
    assert detect("chat", [], {}) == (
        ROW_FORMATS["messages"],
        "no readable record: taken for messages",
    )


REFUSED: list[tuple[Task, dict[str, Any], dict[str, str], list[str]]] = [
    ("chat", MESSAGES | ALPACA, {}, ["fit messages and alpaca", "Set format: messages or"]),
    ("chat", {"x": 1}, {}, ["'x' (a number)", "sharegpt (conversations)", "Set columns: {name"]),
    (
        "chat",
        {"dialogue": [USER, REPLY]},
        {},
        [
            "no format of task: chat fits",
            "Column 'dialogue' holds a list of {role, content}, as messages does.",
            "Set columns: {messages: dialogue}.",
        ],
    ),
    (
        "chat",
        {"messages": TURNS["conversations"]},
        {},
        ["no row reads as messages, but", "Set columns: {conversations: messages}."],
    ),
    ("classification", {"texts": "t", "label": "x"}, {}, ["Did you mean 'texts' for 'text'?"]),
    ("extraction", {"text": "t", "label": "x"}, {}, ["use task: classification."]),
    (
        "chat",
        {"prompt": "p", "chosen": "c", "rejected": "r"},
        {},
        ["These rows have 'prompt', 'chosen' and 'rejected': use preferences: with task: pref"],
    ),
    ("preference", KTO, {}, ["unpaired preferences (KTO)", "Pair a good and a bad"]),
    ("completion", KTO, {}, ["unpaired preferences (KTO)", "drop the column 'label'"]),
    (
        "completion",
        {"ask": "p", "completion": "c", "good": False},
        {"prompt": "ask", "label": "good"},
        ["'ask', 'completion' and 'good' are unpaired"],
    ),
]


@pytest.mark.parametrize(("task", "row", "columns", "parts"), REFUSED)
def test_refused_with_what_to_set(
    task: Task, row: dict[str, Any], columns: dict[str, str], parts: list[str]
) -> None:
    with pytest.raises(DataError) as raised:
        detect(task, [row] * 3, columns)
    for part in parts:
        assert part in str(raised.value)


def test_a_named_format() -> None:
    found, why = named_format("completion", "prompt_completion", [KTO], {})
    assert (found.name, why) == ("prompt_completion", "format: prompt_completion in the config")
    assert named_format("chat", "alpaca", [], {})[0].name == "alpaca"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("sharegtp", r"is not one of task: chat \(messages, .*Did you mean sharegpt\?"),
        ("grounded", r"It is a format of task: grounded\."),
        ("sharegpt", r"needs the columns 'conversations'; the first records have 'messages'"),
    ],
)
def test_a_named_format_that_does_not_fit(name: str, part: str) -> None:
    with pytest.raises(DataError, match=part):
        named_format("chat", name, [MESSAGES], {})


NAMES = st.sampled_from([*sorted({name for one in ROW_FORMATS.values() for name in one.columns})])
VALUES = st.sampled_from(
    [None, "t", True, 1, [], {}, [USER, REPLY], TURNS["conversations"], ["d"]]
)


@settings(max_examples=150, deadline=None)
@given(
    task=st.sampled_from(get_args(Task)),
    rows=st.lists(st.dictionaries(NAMES | st.text(max_size=3), VALUES, max_size=5), max_size=4),
    columns=st.dictionaries(NAMES, NAMES, max_size=2),
)
def test_any_rows_have_a_format_of_the_task_or_are_refused(
    task: Task, rows: list[dict[str, Any]], columns: dict[str, str]
) -> None:
    try:
        found, why = detect(task, rows, columns)
    except DataError:
        return
    assert found.task == task
    assert found.name in why
