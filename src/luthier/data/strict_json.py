"""JSON from text or bytes, strictly: nothing that JSON does not know, nothing lost or rounded.

orjson is three times as fast as the standard library, but keeps the last of two equal keys and
makes a float of an integer beyond 64 bits. Its result is taken where a cheap test proves that
neither happened; else the standard library decodes again.

The test for keys: orjson writes the value back and the colons of both texts are counted. Without
an escaped colon in the source, text and value have the same colons in strings; every pair of a
key and a value adds one; so a pair that was dropped leaves the written text with fewer.
"""

import json
import math
import re
from typing import Any

import orjson

from luthier.data.records import BYTE_ORDER_MARK, decode
from luthier.data.rows import RowError

NESTING_LIMIT = 200  # levels; Python's recursion ends near 1,000, orjson's writer at 254

_ESCAPED_COLON = b"\\u003"  # the beginning of it, in either case of the last digit
_DIGITS_AS_ZERO = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER = b"0" * 19  # integers of 18 digits fit in 64 bits
_NESTING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


class JsonSyntaxError(RowError):
    """Text that is no JSON; at the end of a file it may be cut short."""

    def __init__(self, detail: str) -> None:
        super().__init__("not-json", detail)
        self.detail = detail


def is_plain(data: bytes) -> bool:
    """Whether no record in these bytes has an escaped colon or a number of 19 digits."""
    return (
        b"\\" not in data or _ESCAPED_COLON not in data
    ) and _LONG_NUMBER not in data.translate(_DIGITS_AS_ZERO)


def json_object(record: bytes, plain: bool = False) -> dict[str, object]:
    """The object that a record is; `plain` where `is_plain` is known of it.

    Raises:
        JsonSyntaxError: it is not JSON.
        RowError: it is JSON that cannot be kept exactly, or no object.
    """
    value = _proven(record, plain)
    return value if type(value) is dict else exact_json_object(record)


def json_value(text: str | bytes) -> Any:
    """The value that a whole text is, of any type.

    Raises:
        JsonSyntaxError: it is not JSON.
        RowError: it is JSON that cannot be kept exactly.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    value = _proven(data, plain=False)
    return exact_json_value(text) if value is None else value


def _proven(data: bytes, plain: bool) -> Any:
    """What orjson makes of this, None where it may be wrong or where it knows no reason."""
    try:
        value = orjson.loads(data)
        if plain or is_plain(data):
            written = orjson.dumps(value)
            colons = data.count(b":")
            # Every level but the innermost costs a bracket or the colon of a key.
            is_flat = colons + data.count(b"[") < NESTING_LIMIT
            if is_flat and colons == written.count(b":"):
                return value
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        pass  # the slow way knows why
    return None


def exact_json_object(record: bytes) -> dict[str, object]:
    """As `json_object`, by the standard library alone."""
    text = _decoded(record)
    if not text.strip():
        raise RowError("empty-line", "nothing on this line")
    value = exact_json_value(text)
    if not isinstance(value, dict):
        raise RowError("not-an-object", f"a JSON {_json_name(value)}, where an object is needed")
    return value


def exact_json_value(text: str | bytes) -> Any:
    """As `json_value`, by the standard library alone."""
    if isinstance(text, bytes):
        text = _decoded(text)
    _refuse_deep_nesting(text)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise JsonSyntaxError(f"{error.msg} at character {error.pos + 1}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise RowError("not-json", f"{error}") from error
    if "\\u" in text or not text.isascii():  # a str may hold half a character unescaped
        _refuse_lone_surrogates(value)
    return value


def _decoded(data: bytes) -> str:
    if data.startswith(BYTE_ORDER_MARK):
        raise RowError("byte-order-mark", "begins with U+FEFF; save as UTF-8 without it")
    return decode(data)


def _refuse_deep_nesting(text: str) -> None:
    if text.count("[") + text.count("{") <= NESTING_LIMIT:
        return
    depth = 0
    for token in _NESTING.finditer(text):
        first = token[0][0]
        depth += (first in "[{") - (first in "]}")
        if depth > NESTING_LIMIT:
            raise RowError("nested-too-deep", f"more than {NESTING_LIMIT} levels of nesting")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowError("duplicate-key", f"'{twice}' stands twice in one object")
    return values


def _refuse_constant(constant: str) -> Any:
    raise RowError("not-a-number", f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RowError("not-a-number", f"{text} is beyond what a double can hold")
    return value


def _refuse_lone_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RowError(
            "invalid-unicode", "half of a surrogate pair, which is no character"
        ) from error


def _json_name(value: object) -> str:
    if value is None:
        return "null"
    return {bool: "boolean", list: "array", str: "string"}.get(type(value), "number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite
)
