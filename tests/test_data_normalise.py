"""Text rules: what each changes, what none may touch, and that a second time changes nothing."""

import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.normalise import Normaliser, NormaliseSection, normalise
from luthier.data.rows import Document, Parsed, RowError, message

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # three people, zero width joiners between
HEBREW = "\u05e9\u05dc\u05d5\u05dd \u200f(abc)\u200f"  # right-to-left marks
NFC = NormaliseSection(unicode="nfc")
REMOVE = NormaliseSection(control_characters="remove")
STRIP = NormaliseSection(whitespace="strip")
COLLAPSE = NormaliseSection(whitespace="collapse")
ALL = NormaliseSection(unicode="nfc", control_characters="remove", whitespace="collapse")


def row(*texts: str, **fields: Any) -> Parsed:
    roles = ("user", "assistant")
    return Parsed([message(roles[i % 2], text) for i, text in enumerate(texts)], **fields)


def contents(parsed: Parsed) -> list[str]:
    return [one["content"] for one in parsed.messages]


@pytest.mark.parametrize(
    ("section", "before", "after"),
    [
        (NFC, "Cafe\u0301", "Caf\u00e9"),
        (NFC, "\u1100\u1161", "\uac00"),  # Hangul from its parts
        (NFC, "\u212b", "\u00c5"),  # Angstrom sign
        (NFC, "\ufb01 \u00b2 \u2460 \uff21", "\ufb01 \u00b2 \u2460 \uff21"),  # NFKC would not
        (NFC, "a\u0323\u0307", "\u1ea1\u0307"),
        (REMOVE, "a\x00b\x1b[0m\x7fc\x9fd", "ab[0mcd"),
        (REMOVE, "one\x0ctwo\x0bthree\x85four", "one\ntwo\nthree\nfour"),
        (REMOVE, "a\tb\r\nc", "a\tb\r\nc"),
        (STRIP, "\u3000\n a  b \t\n", "a  b"),
        (COLLAPSE, "a  b\u00a0\u2003c", "a b c"),
        (COLLAPSE, "a\u00a0b\tc", "a\u00a0b\tc"),
        (COLLAPSE, "a  \n\n\n\n b\r\nc\rd", "a\n\n b\nc\nd"),
        (COLLAPSE, "def f():\n    return  1", "def f():\n    return 1"),
        (COLLAPSE, "a\n   \n   \nb", "a\n\nb"),
        (ALL, "e\x00\u0301  x", "\u00e9 x"),
    ],
)
def test_rule_changes_a_text(section: NormaliseSection, before: str, after: str) -> None:
    assert normalise(before, section) == after


@pytest.mark.parametrize(
    "text", [FAMILY, HEBREW, "\u0915\u094d\u200d\u0937", "\U0001f1e9\U0001f1ea"]
)
def test_joiners_marks_and_flags_survive_every_rule(text: str) -> None:
    assert normalise(text, ALL) == text


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from([NFC, REMOVE, COLLAPSE, ALL]),
)
@settings(deadline=None)
def test_second_time_changes_nothing(text: str, section: NormaliseSection) -> None:
    once = normalise(text, section)
    assert normalise(once, section) == once


@given(st.text(st.sampled_from("a \t\n\r\x0b\x0c\x85\x00\u0301\u00a0\u2028e"), max_size=30))
@settings(deadline=None, max_examples=500)
def test_second_time_changes_nothing_of_blanks_and_controls(text: str) -> None:
    once = normalise(text, ALL)
    assert normalise(once, ALL) == once
    assert "\x00" not in once
    assert unicodedata.is_normalized("NFC", once)


def test_nothing_is_changed_unless_asked_for() -> None:
    parsed = row(" e\u0301\x00 ", "\x1b  b\n\n\n")
    assert Normaliser(NormaliseSection()).apply(parsed) == ()
    assert contents(parsed) == [" e\u0301\x00 ", "\x1b  b\n\n\n"]


def test_rules_that_changed_the_row_are_named() -> None:
    parsed = row("Cafe\u0301", "plain")
    assert Normaliser(ALL).apply(parsed) == ("unicode-nfc",)
    assert contents(parsed) == ["Caf\u00e9", "plain"]
    assert Normaliser(ALL).apply(parsed) == ()
    every = row("\x00e\u0301  x", "b")
    assert Normaliser(ALL).apply(every) == ("control-characters", "unicode-nfc", "whitespace")


def test_every_free_text_of_a_row_is_changed() -> None:
    parsed = row(
        " q ",
        chosen=[message("assistant", " c ")],
        rejected=[message("assistant", " r ")],
        documents=[Document(" text ", " title ", is_gold=False), Document("same")],
    )
    assert Normaliser(STRIP).apply(parsed) == ("whitespace",)
    assert contents(parsed) == ["q"]
    assert [parsed.chosen, parsed.rejected] == [
        [message("assistant", "c")],
        [message("assistant", "r")],
    ]
    assert parsed.documents == [Document("text", "title", is_gold=False), Document("same")]


@pytest.mark.parametrize("fixed", [{"label": " a "}, {"output": ' {"a": 1} '}])
def test_label_and_json_reply_stay(fixed: dict[str, str]) -> None:
    reply = next(iter(fixed.values()))
    parsed = row(" text ", reply, **fixed)
    assert Normaliser(STRIP).apply(parsed) == ("whitespace",)
    assert contents(parsed) == ["text", reply]


def test_tool_calls_and_other_fields_of_a_message_stay() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": '{"a": " x "}'}}
    messages = [
        message("user", " q "),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": " r ", "tool_call_id": "1"},
        message("assistant", "done"),
    ]
    parsed = Parsed(list(messages))
    assert Normaliser(STRIP).apply(parsed) == ("whitespace",)
    assert parsed.messages == [
        message("user", "q"),
        messages[1],
        {"role": "tool", "content": "r", "tool_call_id": "1"},
        message("assistant", "done"),
    ]
    assert messages[0]["content"] == " q "  # what the reader gave is not written to


@pytest.mark.parametrize("bad", ["\x00", "\x1b", "\x7f", "\x9f", "\x0c"])
def test_control_character_is_rejected_when_asked(bad: str) -> None:
    normaliser = Normaliser(NormaliseSection(control_characters="reject"))
    with pytest.raises(RowError, match=rf"^control-character: U\+{ord(bad):04X} in ") as caught:
        normaliser.apply(row("fine", f"a{bad}b"))
    assert caught.value.kind == "control-character"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("good", [FAMILY, HEBREW, "a\tb\nc\r\n", "\ufeffx", "\u00ad"])
def test_no_control_character_is_rejected_for_nothing(good: str) -> None:
    normaliser = Normaliser(NormaliseSection(control_characters="reject"))
    assert normaliser.apply(row(good, good)) == ()


def test_row_of_which_nothing_is_left_is_rejected() -> None:
    with pytest.raises(RowError, match="nothing is left of") as caught:
        Normaliser(REMOVE).apply(row("q", "\x00\x01"))
    assert caught.value.kind == "content-empty"
