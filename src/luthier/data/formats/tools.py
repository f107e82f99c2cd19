"""Tools and tool calls as OpenAI writes them, in conversations of any format."""

import json
from typing import Any

from luthier.data.formats.values import decode_json, is_blank, kind_of
from luthier.data.rows import RowError


def tools_of(found: object) -> list[dict[str, Any]] | None:
    """The tools of a conversation: [{type: function, function: {name, ...}}], or JSON text of it.

    Null, an empty list and empty text are no tools.

    Raises:
        RowError: `tools-fields`.
    """
    if isinstance(found, str) and found:
        found = decode_json(found, "tools-fields")
    if found is None or found in ([], ""):
        return None
    if not isinstance(found, list):
        raise RowError("tools-fields", f"'tools' is {kind_of(found)}, not a list")
    names = [_tool_name(number, tool) for number, tool in enumerate(found, start=1)]
    if len(set(names)) != len(names):
        raise RowError("tools-fields", "two tools have one name")
    _check_is_json(found, "tools-fields")
    return found


def _tool_name(number: int, tool: object) -> str:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise RowError("tools-fields", f"tool {number} is not {{type: function, function: ...}}")
    if not isinstance(function, dict):
        raise RowError("tools-fields", f"the function of tool {number} is {kind_of(function)}")
    if not isinstance(function.get("parameters"), dict | None):
        raise RowError("tools-fields", f"the parameters of tool {number} are not an object")
    return _name(function.get("name"), "tools-fields", f"tool {number}")


def tool_calls_of(number: int, found: object) -> list[dict[str, Any]]:
    """The calls in message `number`, their arguments as objects, which is what templates read.

    Raises:
        RowError: `tool-call-fields`, `tool-call-id` or `tool-arguments`.
    """
    if not isinstance(found, list):
        raise RowError("tool-call-fields", f"'tool_calls' of message {number} is {kind_of(found)}")
    return [_tool_call(f"a tool call of message {number}", call) for call in found]


def _tool_call(what: str, call: object) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise RowError("tool-call-fields", f"{what} is {kind_of(call)}")
    fields = {key: value for key, value in call.items() if value is not None}
    call_id, function = fields.get("id"), fields.get("function")
    if not isinstance(call_id, str) or is_blank(call_id):
        raise RowError("tool-call-id", f"{what} has no id")
    if set(fields) != {"id", "type", "function"} or fields["type"] != "function":
        raise RowError("tool-call-fields", f"{what} must be {{id, type: function, function}}")
    if not isinstance(function, dict) or set(function) != {"name", "arguments"}:
        raise RowError("tool-call-fields", f"the function of {what} must have name and arguments")
    name = _name(function["name"], "tool-call-fields", what)
    arguments = _arguments(what, function["arguments"])
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _arguments(what: str, found: object) -> dict[str, Any]:
    if isinstance(found, str):
        found = decode_json(found, "tool-arguments")
    if not isinstance(found, dict):
        raise RowError("tool-arguments", f"the arguments of {what} are {kind_of(found)}")
    _check_is_json(found, "tool-arguments")
    return found


def _check_is_json(found: object, kind: str) -> None:
    """Templates write these as JSON; Parquet can hold dates and NaN, which JSON cannot."""
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RowError(kind, str(error)) from error


def _name(found: object, kind: str, what: str) -> str:
    if not isinstance(found, str) or is_blank(found):
        raise RowError(kind, f"{what} has no name")
    return found
