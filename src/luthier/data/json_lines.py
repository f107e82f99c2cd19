"""JSON Lines, strictly: one object a line, and nothing that JSON does not know."""

import json
import math
from collections.abc import Iterator
from typing import Any, BinaryIO

from luthier.data.records import BYTE_ORDER_MARK, Record, decode, escaped, reader
from luthier.data.rows import RawRow, Rejected, RowError


@reader(".jsonl", ".ndjson")
def read_json_lines(file: BinaryIO, name: str) -> Iterator[Record]:
    """One JSON object a line (RFC 8259, UTF-8 without byte order mark)."""
    for number, line in enumerate(file, start=1):
        try:
            values = _json_object(line)
        except RowError as error:
            yield Rejected(name, number, str(error), escaped(line))
        else:
            yield RawRow(name, number, values, escaped(line))


def _json_object(line: bytes) -> dict[str, object]:
    if line.startswith(BYTE_ORDER_MARK):
        raise RowError("byte-order-mark", "the line begins with U+FEFF; save as UTF-8 without it")
    text = decode(line)
    if not text.strip():
        raise RowError("empty-line", "nothing on this line")
    try:
        value = _DECODER.decode(text)
        if "\\u" in text:
            _refuse_lone_surrogates(value)
    except json.JSONDecodeError as error:
        if not line.endswith(b"\n"):
            raise RowError(
                "truncated-line", f"the file ends inside a record ({error.msg})"
            ) from error
        raise RowError("not-json", f"{error.msg} at character {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise RowError("not-json", f"{error}") from error
    if not isinstance(value, dict):
        raise RowError("not-an-object", f"a JSON {_json_name(value)}, where an object is needed")
    return value


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
