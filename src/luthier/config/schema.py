"""JSON Schema (draft 2020-12) of a config file, for `luthier schema` and for editors."""

from collections.abc import Mapping
from typing import Any

from luthier.config.run_config import file_model
from luthier.config.section import Section

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_EXTENDS = {
    "type": "string",
    "minLength": 1,
    "description": "A config that this one changes; the path is relative to this file. Mappings "
    "are merged, lists replaced, and a section that is null here is removed",
}
_VALUES = {"default", "enum", "const", "examples"}  # hold values, not schemas
_DEMANDS = {"required", "discriminator"}


def json_schema(sections: Mapping[str, type[Section]]) -> dict[str, Any]:
    """The schema of a whole file: complete by itself, or, with `extends`, any part of one."""
    whole = file_model(sections).model_json_schema(mode="validation")
    definitions = whole.pop("$defs", {})
    for name in sections:
        whole["properties"][name].pop("default")
    part = _relaxed(whole)
    for name in (*sections, "gates"):
        part["properties"][name] = {"anyOf": [part["properties"][name], {"type": "null"}]}
    part["properties"] = {"extends": _EXTENDS} | part["properties"]
    return {
        "$schema": _DIALECT,
        "title": "Luthier run config",
        "type": "object",
        "if": {"required": ["extends"]},
        "then": {"$ref": "#/$defs/partial-config"},
        "else": {"$ref": "#/$defs/config"},
        "$defs": {
            "config": whole,
            "partial-config": part,
            **definitions,
            **{f"partial-{name}": _relaxed(one) for name, one in definitions.items()},
        },
    }


def _relaxed(schema: Any) -> Any:
    """The same schema where nothing is required: what is missing may be inherited."""
    if isinstance(schema, list):
        return [_relaxed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        "anyOf" if key == "oneOf" else key: _relaxed_value(key, value)
        for key, value in schema.items()
        if key not in _DEMANDS
    }


def _relaxed_value(key: str, value: Any) -> Any:
    if key in _VALUES:
        return value
    if key == "properties":
        return {name: _relaxed(one) for name, one in value.items()}
    if key == "$ref":
        return value.replace("#/$defs/", "#/$defs/partial-")
    return _relaxed(value)
