"""Strict JSON: the fast decoder and the exact one agree, on records and on texts in columns."""

import json
from collections.abc import Callable
from functools import partial
from typing import AnyStr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.rows import RowError
from luthier.data.strict_json import (
    NESTING_LIMIT,
    JsonSyntaxError,
    exact_json_object,
    exact_json_value,
    is_plain,
    json_object,
    json_value,
)

JSON_TEXTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
).map(lambda value: json.dumps(value, ensure_ascii=False))
PAIRS = st.lists(
    st.tuples(st.sampled_from(['"a"', '"b"', '"a:"', '"a\\u003A"', '"\\u0061"']), JSON_TEXTS),
    max_size=4,
)
NUMBERS = st.from_regex(
    r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,30})?([eE][-+]?[0-9]{1,3})?", fullmatch=True
)
OBJECTS = st.one_of(
    PAIRS.map(lambda pairs: "{" + ", ".join(f"{key}:{value}" for key, value in pairs) + "}"),
    NUMBERS.map(lambda number: f'{{"n": {number}, "m": [{number}]}}'),
    st.integers(NESTING_LIMIT - 3, NESTING_LIMIT + 3).map(
        lambda depth: '{"a":' + "[" * (depth - 1) + "]" * (depth - 1) + "}"
    ),
    st.integers(NESTING_LIMIT - 3, NESTING_LIMIT + 3).map(
        lambda depth: '{"a":' * (depth - 1) + "{}" + "}" * (depth - 1)
    ),
).map(str.encode)
BROKEN = st.tuples(OBJECTS, st.integers(0, 80), st.binary(max_size=2)).map(
    lambda made: made[0][: made[1]] + made[2] + made[0][made[1] + 1 :]
)


def outcome(decoder: Callable[[AnyStr], object], record: AnyStr) -> str:
    try:
        return repr(decoder(record))
    except RowError as error:
        return str(error)


@given(OBJECTS | BROKEN)
@settings(deadline=None, max_examples=400)
def test_the_fast_decoder_is_the_exact_one(record: bytes) -> None:
    """repr tells 1 from 1.0 and 0.0 from -0.0, and shows every digit of a float."""
    expected = outcome(exact_json_object, record)
    assert outcome(json_object, record) == expected
    assert outcome(partial(json_object, plain=is_plain(record)), record) == expected
    assert outcome(json_value, record) == outcome(exact_json_value, record)


@given(JSON_TEXTS | NUMBERS | st.text(max_size=5) | OBJECTS.map(bytes.decode))
@settings(deadline=None, max_examples=400)
def test_text_is_read_as_bytes_are(text: str) -> None:
    expected = outcome(exact_json_value, text.encode())
    assert outcome(json_value, text.encode()) == expected
    if not text.startswith("\ufeff"):
        assert outcome(json_value, text) == outcome(exact_json_value, text) == expected


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "not-json"),
        ("\ufeff1", "not-json"),
        (b"\xef\xbb\xbf1", "byte-order-mark"),
        (b'"\xe9"', "invalid-utf8"),
        ('"\ud800"', "invalid-unicode"),
        ('"\\ud800"', "invalid-unicode"),
        ("-Infinity", "not-a-number"),
        ("1e999", "not-a-number"),
        ("9" * 5000, "not-json"),
        ('[{"a": 1, "a": 1}]', "duplicate-key"),
        ("[" * 100_000, "nested-too-deep"),
    ],
)
def test_faulty_json_value(text: str | bytes, kind: str) -> None:
    with pytest.raises(RowError) as raised:
        json_value(text)
    assert raised.value.kind == kind
    assert isinstance(raised.value, JsonSyntaxError) == (text in ("", "\ufeff1"))
