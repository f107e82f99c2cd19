"""Filters: which rows they leave out, why, and what a pattern may not do."""

import time
from typing import Any

import pytest
from pydantic import ValidationError

from luthier.data.filters import LANGUAGES, Filters, FilterSection
from luthier.data.rows import Document, Parsed, message
from luthier.errors import DataError


def row(*texts: str, **fields: Any) -> Parsed:
    roles = ("user", "assistant")
    return Parsed([message(roles[i % 2], text) for i, text in enumerate(texts)], **fields)


def reason(parsed: Parsed, **fields: Any) -> str | None:
    return Filters(FilterSection(**fields)).reason(parsed)


PREFERENCE = Parsed(
    [message("user", "ask")],
    chosen=[message("assistant", "a long reply")],
    rejected=[message("assistant", "no")],
)


def test_nothing_is_left_out_by_default() -> None:
    assert reason(row("", "")) is None


@pytest.mark.parametrize(
    ("parsed", "fields", "expected"),
    [
        (row("abc", "de"), {"min_characters": 5}, None),
        (row("abc", "de"), {"min_characters": 6}, "filter-length"),
        (row("abc", "de"), {"max_characters": 5}, None),
        (row("abc", "de"), {"max_characters": 4}, "filter-length"),
        (row("abc", "de"), {"min_reply_characters": 2}, None),
        (row("abc", "de"), {"min_reply_characters": 3}, "filter-length"),
        (row("abc", "de", label="de"), {"min_reply_characters": 3}, None),
        (row("abc", "{}", output="{}"), {"min_reply_characters": 3}, None),
        (PREFERENCE, {"min_reply_characters": 2}, None),
        (PREFERENCE, {"min_reply_characters": 3}, "filter-length"),
        (PREFERENCE, {"max_characters": 17}, None),
        (PREFERENCE, {"max_characters": 16}, "filter-length"),
        (row("q", "a", documents=[Document("1234", "t")]), {"max_characters": 6}, "filter-length"),
        (row("q", "a", "q", "a"), {"max_turns": 2}, None),
        (row("q", "a", "q", "a"), {"max_turns": 1}, "filter-turns"),
        (row("q", "As an AI, I"), {"reject_pattern": "(?i)as an ai"}, "filter-pattern"),
        (row("q", "As, an AI"), {"reject_pattern": "(?i)as an ai"}, None),
        (row("q", "The end."), {"require_pattern": r"\.\Z"}, None),
        (row("q.", "The end"), {"require_pattern": r"end\."}, "filter-pattern"),
        (row("text", "spam", label="spam"), {"reject_pattern": "spam"}, None),
        (row("\u0434\u0430", "x"), {"reject_pattern": r"\p{Cyrillic}"}, "filter-pattern"),
        (PREFERENCE, {"reject_pattern": "^no$"}, "filter-pattern"),
        (row("abc", "spam"), {"min_characters": 99, "reject_pattern": "spam"}, "filter-length"),
    ],
)
def test_row_is_left_out_with_its_reason(
    parsed: Parsed, fields: dict[str, Any], expected: str | None
) -> None:
    assert reason(parsed, **fields) == expected


ENGLISH = "The meeting was moved to Thursday because the room was double booked."
FRENCH = "Comment réinitialiser mon mot de passe ? Merci."
UKRAINIAN = "Зустріч перенесено на четвер."  # could be Russian, could not be English
CHINESE = "如何重置我的密码？"  # noqa: RUF001
GERMAN = "Die Besprechung wurde auf Donnerstag verschoben, weil der Raum doppelt belegt war."


@pytest.mark.parametrize(
    ("parsed", "wanted", "expected"),
    [
        (row(ENGLISH, "Thanks for telling me."), ["en"], None),
        (row(GERMAN, "Vielen Dank, das wusste ich noch nicht."), ["en"], "filter-language"),
        (row(GERMAN, "Vielen Dank, das wusste ich noch nicht."), ["en", "de"], None),
        (row(ENGLISH, "Thanks for telling me."), ["de"], "filter-language"),
        (row(FRENCH, "x"), ["en"], "filter-language"),
        (row(UKRAINIAN, "x"), ["en"], "filter-language"),
        (row(CHINESE, "x"), ["en"], "filter-language"),
        (row("Ja!", "ok"), ["en"], None),  # too short to be sure
        (row("1 + 2 = 3", "{}"), ["en"], None),  # no language at all
        (row("", ""), ["en"], None),
        (row(ENGLISH, "Spracherkennung", label="Spracherkennung"), ["en"], None),
        (Parsed([message("system", ENGLISH), *row(GERMAN, GERMAN).messages]), ["de"], None),
    ],
)
def test_rows_surely_in_another_language_are_left_out(
    parsed: Parsed, wanted: list[str], expected: str | None
) -> None:
    assert reason(parsed, languages=wanted) == expected


def test_confidence_decides_about_doubtful_rows() -> None:
    doubtful = row("Encender luces cocina", "ok")
    assert reason(doubtful, languages=["en"], language_confidence=0.999) is None
    assert reason(doubtful, languages=["en"], language_confidence=0.01) == "filter-language"


def test_language_codes_are_those_of_the_library() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    known = LanguageIdentifier.from_model_file(MODEL_FILE).labels
    assert sorted(LANGUAGES) == sorted(set(known) - {"zxx"})


@pytest.mark.parametrize(
    ("fields", "message_part"),
    [
        ({"reject_pattern": "a(b"}, r"'a\(b' is no regular expression: missing \) at position 3"),
        ({"require_pattern": "x[z-a]"}, r"is no regular expression: bad character range"),
        ({"reject_pattern": "(?P<n>a)(?P<n"}, "is no regular expression"),
        ({"reject_pattern": "a{99999999999}"}, "is no regular expression"),
        ({"reject_pattern": ""}, "at least 1 character"),
        ({"languages": ["english"]}, "'english' is no language code.*Did you mean en"),
        ({"languages": ["DE"]}, "Did you mean de"),
        ({"languages": []}, "at least 1 item"),
        (
            {"min_characters": 9, "max_characters": 8},
            "min_characters 9 is more than max_characters 8",
        ),
        ({"max_turns": 0}, "greater than or equal to 1"),
    ],
)
def test_config_mistake_is_told(fields: dict[str, Any], message_part: str) -> None:
    with pytest.raises(ValidationError, match=message_part):
        FilterSection(**fields)


def test_pattern_of_a_set_in_a_set_warns_nobody() -> None:
    assert reason(row("[", "x"), reject_pattern="[[a]") == "filter-pattern"


def test_pattern_without_end_stops_the_stage_soon() -> None:
    section = FilterSection(reject_pattern=r"(a|aa)+\Z")
    filters = Filters(section, pattern_seconds=0.2)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"prepare\.filters\.reject_pattern: .* more than 0\.2 s"):
        filters.reason(row("a" * 40 + "!", "x"))
    assert time.monotonic() - start < 5
