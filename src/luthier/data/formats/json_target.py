"""What extracted JSON must be like: a JSON Schema, and one spelling of every value.

The order of keys and the spelling are made equal, for a model cannot learn what the data leaves
to chance. `format` stays an annotation, as draft 2020-12 has it, in older drafts too. Numbers are
compared exactly, at any size: 1 and 1.0 are equal, 2**53 and 2**53 + 1 are not.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from luthier.data.formats.values import decode_json, kind_of
from luthier.data.rows import RowError
from luthier.data.strict_json import json_value
from luthier.errors import DataError

if TYPE_CHECKING:
    from jsonschema_rs import ValidationError, Validator

_DRAFTS = {
    "https://json-schema.org/draft/2020-12/schema": "Draft202012Validator",
    "https://json-schema.org/draft/2019-09/schema": "Draft201909Validator",
    "http://json-schema.org/draft-07/schema": "Draft7Validator",
}

_VALUES = ("const", "default", "enum", "examples")  # hold values: a $ref in there is none
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_COMBINED = ("allOf", "anyOf", "oneOf")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_ANCHORS = ("$anchor", "$dynamicAnchor")
_ANYTHING: dict[str, Any] = {}
_MESSAGE_LIMIT_CHARACTERS = 200  # a message quotes the whole value, what is wrong comes after it
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def read_schema(path: Path) -> str:
    """The text of a JSON Schema file, checked: a schema for objects or lists, complete in itself.

    Raises:
        DataError: it cannot be read, is no schema, or refers to another file or address.
    """
    try:
        spelled = path.read_bytes()
        check_schema(json_value(spelled))
    except (OSError, ValueError, RowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: not a usable JSON Schema: {reason}. Mend it.") from error
    return spelled.decode()


def check_schema(schema: Any) -> None:
    """Make sure that outputs can be validated against this.

    Raises:
        ValueError: they cannot; says where and why.
    """
    from jsonschema_rs import ValidationError

    if not isinstance(schema, dict):
        raise ValueError(f"it is {kind_of(schema)}, not an object")
    try:
        _check_references(schema)
        _validator(schema)
    except ValidationError as error:
        raise ValueError(_described(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


class JsonTarget:
    """Checks and spells outputs. Without a schema any object will do, its keys as they come."""

    def __init__(self, schema: dict[str, Any] | None) -> None:
        self._schema = schema
        self._validator = None if schema is None else _validator(schema)
        self._shapes: dict[int, _Shape] = {}  # by id() of a part of the schema

    def spell(self, found: object) -> str:
        """The one spelling of an output, which is JSON text or the value itself.

        Raises:
            RowError: `output-not-json`, `output-not-object` or `schema-violation`.
        """
        value = decode_json(found, "output-not-json") if isinstance(found, str) else found
        if not isinstance(value, dict if self._schema is None else dict | list):
            wanted = "an object" if self._schema is None else "an object or a list"
            raise RowError("output-not-object", f"'output' is {kind_of(value)}, not {wanted}")
        try:
            if self._schema is not None:
                value = self._ordered(value, self._schema)
            spelled = _ENCODER.encode(value)  # refuses what the validator takes: NaN, as null
            spelled.encode()
            if self._validator is not None and not self._validator.is_valid(value):
                worst = _most_telling(self._validator.iter_errors(value))
                raise RowError("schema-violation", _described(worst))
        except (TypeError, ValueError, ArithmeticError) as error:
            raise RowError("output-not-json", str(error)) from error
        return spelled

    def _ordered(self, value: Any, schema: Any) -> Any:
        """The value with its keys in the order of the schema's, unknown ones after them."""
        if not isinstance(value, dict | list):
            return value
        shape = self._shape(schema)
        if isinstance(value, list):
            return [self._ordered(one, shape.items) for one in value]
        known = shape.properties
        keys = [key for key in known if key in value]
        keys += [key for key in value if key not in known]
        return {key: self._ordered(value[key], known.get(key, shape.others)) for key in keys}

    def _shape(self, schema: Any) -> "_Shape":
        made = self._shapes.get(id(schema))
        if made is None:
            made = self._shapes[id(schema)] = _Shape()
            self._gather(schema, made, [])
        return made

    def _gather(self, schema: Any, shape: "_Shape", seen: list[int]) -> None:
        """Collect what a schema, what it refers to and what it combines say of one value."""
        if not isinstance(schema, dict) or id(schema) in seen:
            return
        seen.append(id(schema))
        for key, part in schema.get("properties", _ANYTHING).items():
            shape.properties.setdefault(key, part)
        shape.items = shape.items or schema.get("items")
        shape.others = shape.others or schema.get("additionalProperties")
        if "$ref" in schema:
            self._gather(_referred(self._schema, schema["$ref"]), shape, seen)
        for keyword in _COMBINED:
            for part in schema.get(keyword, ()):
                self._gather(part, shape, seen)


@dataclass
class _Shape:
    """The schemas of what is inside a value: by key, of list items, of all other keys."""

    properties: dict[str, Any] = field(default_factory=dict)
    items: Any = None
    others: Any = None


def _most_telling(errors: "Iterable[ValidationError]") -> "ValidationError":
    """The outermost error, the first by its place, as the validator's own order is not defined.

    Where no alternative of `anyOf` or `oneOf` fits, what is wrong in the one that fits deepest.
    """
    worst = min(
        errors,
        key=lambda error: (
            len(error.instance_path),
            error.instance_path,
            error.schema_path,
            error.message,
        ),
    )
    branches: list[list[ValidationError]] = getattr(worst.kind, "context", [])
    inner = [error for branch in branches for error in branch]
    deepest = max((len(error.instance_path) for error in inner), default=0)
    meant = [error for error in inner if len(error.instance_path) == deepest]
    return _most_telling(meant) if len(meant) == 1 else worst


def _described(error: "ValidationError") -> str:
    """Where an error is, as a JSON path, and what it is; of a long message its two ends."""
    message, half = error.message, _MESSAGE_LIMIT_CHARACTERS // 2
    if len(message) > _MESSAGE_LIMIT_CHARACTERS:
        message = f"{message[:half]}…{message[-half:]}"
    return f"{_path('$', *error.instance_path)}: {message}"


def _path(start: str, *steps: str | int) -> str:
    return start + "".join(
        f".{step}" if isinstance(step, str) and step.lstrip("$").isidentifier() else f"[{step!r}]"
        for step in steps
    )


def _check_references(schema: dict[str, Any]) -> None:
    for where, part in _parts(schema, "$"):
        if "$id" in part and part is not schema:
            raise ValueError(f"{where}: has an $id of its own: {part['$id']!r}")
        for keyword in _REFERENCES:
            reference = part.get(keyword)
            if isinstance(reference, str):  # what it is otherwise, the validator refuses
                try:
                    _follow(schema, reference)
                except ValueError as error:
                    raise ValueError(f"{where}: {keyword} '{reference}' {error}") from error


def _follow(schema: dict[str, Any], reference: str) -> None:
    """Go from one `$ref` to the next, which must stay in the file and come to an end."""
    seen: list[object] = []
    following: Any = reference
    while isinstance(following, str):
        if not following.startswith("#"):
            raise ValueError("leads out of the file; nothing is fetched")
        if following in seen:
            raise ValueError("leads to itself")
        seen.append(following)
        part = _referred(schema, following)
        following = part.get("$ref") if isinstance(part, dict) else None


def _referred(schema: Any, reference: str) -> Any:
    """The part that `#`, `#/a/pointer` or `#an-anchor` names, itself and not a copy of it.

    Raises:
        ValueError: there is none.
    """
    pointer = unquote(reference[1:])
    if pointer and not pointer.startswith("/"):
        for _, part in _parts(schema, "$"):
            if pointer in [part.get(keyword) for keyword in _ANCHORS]:
                return part
        raise ValueError("is the anchor of nothing in it")
    for step in pointer.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        try:
            schema = schema[int(key)] if isinstance(schema, list) else schema[key]
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError("names nothing in it") from error
    return schema


def _parts(schema: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schema and all schemas inside it, each with its JSON path."""
    if isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from _parts(part, _path(where, number))
    if not isinstance(schema, dict):
        return
    yield where, schema
    for keyword, value in schema.items():
        inside = _path(where, keyword)
        if keyword in _NAMED and isinstance(value, dict):
            for name, part in value.items():
                yield from _parts(part, _path(inside, name))
        elif keyword not in _VALUES:
            yield from _parts(value, inside)


def _validator(schema: dict[str, Any]) -> "Validator":
    """Of the draft that a schema names, else of 2020-12; it fetches nothing.

    Raises:
        ValueError: no draft that is known here, or no schema (a ValidationError).
    """
    import jsonschema_rs

    named = schema.get("$schema", next(iter(_DRAFTS)))
    if not isinstance(named, str) or named.rstrip("#") not in _DRAFTS:
        raise ValueError(f"its $schema is {named!r}, not one of {', '.join(_DRAFTS)}")
    draft: type[Validator] = getattr(jsonschema_rs, _DRAFTS[named.rstrip("#")])
    return draft(schema, validate_formats=False, offline=True)


@lru_cache(maxsize=8)
def target_of(schema: str | None) -> JsonTarget:
    """The target of a schema's text, built once a process."""
    return JsonTarget(None if schema is None else json.loads(schema))
