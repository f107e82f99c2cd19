"""One sentence in plain words for each mistake that pydantic finds in a config."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from luthier.config.document import KeyPath, Node, dotted, shortened, word
from luthier.config.scalars import ScalarError, meaning
from luthier.config.shape import Types, all_paths, known_keys

MAXIMUM_KNOWN_KEYS = 20

# pydantic's error type -> what a value must be; {braces} are filled from the error's context
_EXPECTED: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "text, the path of a file or folder",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "null",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_pattern_mismatch": "text of the form {pattern}",
}
_KIND_ERRORS = {name for name in _EXPECTED if name.endswith("_type")} | {"none_required"}
_RANGE_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
_LIST_ERRORS = {name for name, expected in _EXPECTED.items() if expected == "a list"}
_BOOLEAN_WORDS = dict.fromkeys(("true", "yes", "on"), "true") | dict.fromkeys(
    ("false", "no", "off"), "false"
)


def is_expectation(error: Mapping[str, Any]) -> bool:
    """Whether the mistake can be said as 'must be this or that, got ...'."""
    return error["type"] in _EXPECTED


def is_other_kind(error: Mapping[str, Any]) -> bool:
    """Whether the value is of another kind altogether (text for a number), not out of range."""
    return error["type"] in _KIND_ERRORS


def expectation(path: KeyPath, errors: Sequence[Mapping[str, Any]], node: Node) -> str:
    """'X must be A or B, got C' for errors that all are about the value at `path`."""
    kinds = {error["type"] for error in errors}
    phrases = [_phrase(error) for error in errors]
    if "a number" in phrases:
        phrases = [phrase for phrase in phrases if phrase != "a whole number"]
    expected = _joined(dict.fromkeys(phrases))
    text = f"{dotted(path)} must be {expected}, got {_got(node, bool(kinds & _RANGE_ERRORS))}"
    choices = [choice for phrase in phrases for choice in re.findall("'([^']*)'", phrase)]
    hint = _suggestion(str(node.raw), choices) if isinstance(node.value, str) else ""
    return text + (hint or _hint(path, kinds, node))


def _phrase(error: Mapping[str, Any]) -> str:
    bounds = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in error.get("ctx", {}).items()
    }
    return _EXPECTED[error["type"]].format_map(bounds)


def statement(path: KeyPath, error: Mapping[str, Any], node: Node, description: str | None) -> str:
    """The sentence for any other mistake."""
    name, context = dotted(path), error.get("ctx", {})
    match error["type"]:
        case "missing" | "union_tag_not_found":
            return f"{name} is missing" + (f" ({description})" if description else "")
        case "too_short" | "too_long" | "string_too_short" | "string_too_long":
            return f"{name} must have {_length(error['type'], context, node)}"
        case "value_error" | "assertion_error":
            return _validator_said(name, str(context["error"]))
    return _validator_said(name, error["msg"].replace("Input should be", "must be"))


def _length(kind: str, context: Mapping[str, Any], node: Node) -> str:
    of_text = kind.startswith("string")
    least = kind.endswith("short")
    limit = context["min_length" if least else "max_length"]
    unit = ("character" if of_text else "item") + ("" if limit == 1 else "s")
    got = _got(node, False) if of_text else context["actual_length"]
    return f"at {'least' if least else 'most'} {limit} {unit}, got {got}"


def unknown_key(path: KeyPath, places: Types, everywhere: Types) -> str:
    """The sentence for a key that `places`, the types of the mapping around it, do not have."""
    key, known = path[-1], known_keys(places)
    text = f"{dotted(path)} is unknown."
    close = close_key(path, places)
    if close:
        return f"{text} Did you mean {close}?"
    elsewhere = [found for found in all_paths(everywhere) if found[-1] == key]
    nearer = [found for found in elsewhere if found[: len(path) - 1] == path[:-1]]
    if elsewhere:
        return f"{text} Did you mean {dotted((nearer or elsewhere)[0])}?"
    if 0 < len(known) <= MAXIMUM_KNOWN_KEYS:
        return f"{text} Known here: {', '.join(known)}"
    return f"{text} Remove it; `luthier schema` lists the keys"


def close_key(path: KeyPath, places: Types) -> str | None:
    """The key of `places` that the last one of `path` was probably meant to be."""
    return closest(str(path[-1]), known_keys(places))


def unknown_gate(path: KeyPath, gates: Iterable[str]) -> str:
    """The sentence for a gate id that does not exist."""
    close = closest(str(path[-1]), gates)
    end = f" Did you mean {close}?" if close else f" Gates: {', '.join(gates)}"
    return f"{dotted(path)} is unknown.{end}"


def closest(text: str, choices: Iterable[str]) -> str | None:
    """The choice that `text` was probably meant to be."""
    by_form = {choice.lower().replace("-", "_"): choice for choice in choices}
    found = difflib.get_close_matches(text.lower().replace("-", "_"), by_form, n=1)
    return by_form[found[0]] if found else None


def _suggestion(text: str, choices: Iterable[str]) -> str:
    close = closest(text, choices)
    return f". Did you mean {close}?" if close else ""


def _validator_said(name: str, text: str) -> str:
    said = " ".join(text.split())
    return f"{name} {said}" if said.startswith("must ") else f"{name}: {said}"


def _joined(phrases: Iterable[str]) -> str:
    *most, last = phrases
    return f"{', '.join(most)} or {last}" if most else last


def _got(node: Node, bare: bool) -> str:
    match node.value:
        case None:
            return "null"
        case bool():
            return str(node.value).lower()
        case str():
            return f"the text {shortened(node.value)!r}"
        case int() | float():
            return node.raw if bare else f"the number {node.raw}"
        case list():
            return "a list"
    return "a mapping"


def _hint(path: KeyPath, kinds: set[str], node: Node) -> str:
    """What to write instead, where that is clear."""
    value, written = node.value, ""
    if kinds & {"string_type", "path_type"} and isinstance(value, bool | int | float):
        written = f"'{node.raw}'"
    elif "bool_type" in kinds and isinstance(value, str):
        written = _BOOLEAN_WORDS.get(value.lower(), "")
    elif kinds & {"int_type", "float_type"} and isinstance(value, str):
        written = _as_number(value)
    elif (
        kinds & {"int_type", "int_from_float"} and isinstance(value, float) and value.is_integer()
    ):
        written = str(int(value))
    elif kinds & _LIST_ERRORS and isinstance(value, str) and re.fullmatch(r"[\w./-]+", value):
        written = f"[{value}]"
    if not written:
        return ""
    return (
        f'. Write --set {dotted(path)}="{written}"' if node.mark.from_set else f". Write {written}"
    )


def _as_number(text: str) -> str:
    bare = text.strip().replace("_", "")
    try:
        number = meaning(bare)
    except ScalarError:
        return ""
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return bare if is_number and word(bare) else ""
