"""`Section`: what one part of a run config may say: types, ranges, defaults, doc lines."""

from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

__all__ = ["Field", "Section", "result_free"]

_RESULT_FREE: Final = "x-result-free"

# Field(..., json_schema_extra=result_free): the value changes how long a stage takes or what it
# prints, never the bytes it makes, so it stays out of the key.
result_free: JsonDict = {_RESULT_FREE: True}


class Section(BaseModel):
    """One mapping of a run config. Unknown keys are refused and values cannot be changed later.

    From YAML the types are strict (`load_config` sees to it); from Python a `Path` may be given as
    text and a tuple as a list.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    def key_fields(self) -> dict[str, Any]:
        """The fields that change the result, as JSON values; paths as posix text."""
        return {
            name: _json_value(getattr(self, name))
            for name, info in type(self).model_fields.items()
            if not _is_result_free(info.json_schema_extra)
        }


def _is_result_free(extra: Any) -> bool:
    return isinstance(extra, Mapping) and bool(extra.get(_RESULT_FREE))


def _json_value(value: Any) -> Any:
    match value:
        case Section():
            return value.key_fields()
        case Enum():
            return value.value
        case PurePath():
            return value.as_posix()
        case Mapping():
            return {str(key): _json_value(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_json_value(inner) for inner in value]
        case set() | frozenset():
            return sorted(_json_value(inner) for inner in value)
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"a config field holds {type(value).__name__}, which has no JSON form")
