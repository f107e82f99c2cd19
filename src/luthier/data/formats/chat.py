"""Conversations: the messages of OpenAI, ShareGPT's turns, and Alpaca's instructions."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.formats.options import FormatOptions
from luthier.data.formats.registry import row_format
from luthier.data.formats.tools import tool_calls_of, tools_of
from luthier.data.formats.values import decode_json, is_blank, kind_of, optional_text, text
from luthier.data.rows import Message, Parsed, RowError, message

_PLAIN = ("user", "assistant", "system")
_FIELDS = {
    "system": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "name", "tool_calls"},
    "tool": {"role", "content", "name", "tool_call_id"},
}
_FOLLOWS = {  # a tool's message follows wherever a call has no answer yet
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "tool": ("assistant",),
}

_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}


@row_format("messages", task="chat", needs=("messages",), may=("tools",))
def openai(values: Mapping[str, object], _options: FormatOptions) -> Parsed:
    """`messages` as OpenAI writes them: system (first, optional), user, assistant (last), tool."""
    tools = tools_of(values.get("tools"))
    messages = messages_of(values["messages"], "messages")
    check_order(messages, tools)
    return Parsed(messages, tools=tools)


@row_format("sharegpt", task="chat", needs=("conversations",), may=("system", "tools"))
def sharegpt(values: Mapping[str, object], _options: FormatOptions) -> Parsed:
    """`conversations` of {from: human or gpt, value}; also function_call and observation.

    The call in a function_call is {name, arguments}, which the observation after it answers
    (LLaMA-Factory, data/README.md); calls get the ids that ShareGPT has no place for.
    """
    tools = tools_of(_wrapped(values.get("tools")))
    turns = values["conversations"]
    if not isinstance(turns, list) or not turns:
        raise RowError("messages-missing", f"'conversations' is {_not_messages(turns)}")
    found = [_from_turn(number, turn) for number, turn in enumerate(turns, start=1)]
    system = optional_text(values, "system")
    messages = [] if system is None else [message("system", system)]
    messages += messages_of(found, "conversations")
    check_order(messages, tools)
    return Parsed(messages, tools=tools)


@row_format("alpaca", task="chat", needs=("instruction", "output"), may=("input", "system"))
def alpaca(values: Mapping[str, object], _options: FormatOptions) -> Parsed:
    """`instruction`, on the next line `input` where there is one, and `output`, the reply.

    That is LLaMA-Factory's rule (data/README.md: "instruction\\ninput"). Stanford's own prompt
    adds a preamble and headings, which are the chat template's business here.
    """
    instruction, extra = text(values, "instruction"), optional_text(values, "input")
    asked = instruction if extra is None else f"{instruction}\n{extra}"
    system = optional_text(values, "system")
    messages = [] if system is None else [message("system", system)]
    messages += [message("user", asked), message("assistant", text(values, "output"))]
    return Parsed(messages)


def messages_of(found: object, column: str) -> list[Message]:
    """Messages as OpenAI writes them, each checked by itself.

    A field that is null says nothing and is left out, whatever its name: Parquet gives every
    message the fields of all others.

    Raises:
        RowError: not a list, an unknown role, content that is not text, a broken tool call.
    """
    if not isinstance(found, list) or not found:
        raise RowError("messages-missing", f"'{column}' is {_not_messages(found)}")
    return [_message(number, one) for number, one in enumerate(found, start=1)]


def check_order(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
) -> None:
    """System first or nowhere, then user and assistant in turns, the assistant last.

    Two messages of one side in a row are refused: some templates raise on them, others render a
    prompt that no server will ever be asked (F06). Every tool call is answered before the next
    turn, but for calls of the last message.

    Raises:
        RowError: `role-order`, `tool-call-unanswered`, `tool-call-unknown` or `tool-unknown`.
    """
    last, waiting = "", dict[str, None]()
    for number, one in enumerate(messages, start=1):
        role = one["role"]
        if role == "tool":
            _answer(number, one, waiting)
        elif waiting:
            raise RowError(
                "tool-call-unanswered",
                f"message {number} is the {role}'s, but the call {next(iter(waiting))!r} has "
                "no answer",
            )
        elif role not in _FOLLOWS[last]:
            raise RowError("role-order", _out_of_order(number, role, last))
        if "tool_calls" in one:
            waiting = _calls(number, one, tools)
        last = role
    if last != "assistant":
        raise RowError("role-order", f"the last message is the {last}'s, not the assistant's")


def _out_of_order(number: int, role: str, last: str) -> str:
    if role == "system":
        return "a system message after the first message"
    if last in ("", "system"):
        return "the first message after the system's must be the user's"
    return f"message {number} is the {role}'s, right after the {last}'s"


def _answer(number: int, one: Message, waiting: dict[str, None]) -> None:
    call_id = one["tool_call_id"]
    if call_id not in waiting:
        raise RowError("tool-call-unknown", f"message {number} answers {call_id!r}: no open call")
    del waiting[call_id]


def _calls(
    number: int, one: Message, tools: Sequence[Mapping[str, Any]] | None
) -> dict[str, None]:
    declared = None if tools is None else [tool["function"]["name"] for tool in tools]
    calls = one["tool_calls"]
    for call in calls:
        name = call["function"]["name"]
        if declared is not None and name not in declared:
            raise RowError("tool-unknown", f"message {number} calls {name!r}, not one of 'tools'")
    waiting = dict.fromkeys(call["id"] for call in calls)
    if len(waiting) != len(calls):
        raise RowError("tool-call-id", f"message {number} has two calls with one id")
    return waiting


def _message(number: int, found: object) -> Message:
    if not isinstance(found, dict):
        raise RowError("message-fields", f"message {number} is {kind_of(found)}")
    role, content = found.get("role"), found.get("content")
    is_text = isinstance(content, str) and not is_blank(content)
    if len(found) == 2 and is_text and role in _PLAIN:  # nearly all there are
        return found
    fields = {key: value for key, value in found.items() if value is not None}
    _check_fields(number, fields, "content" in found)
    made: dict[str, Any] = {"role": role, "content": _content(number, fields)}
    if "name" in fields:
        made["name"] = _field_text(number, fields, "name")
    if fields.get("tool_calls"):
        made["tool_calls"] = tool_calls_of(number, fields["tool_calls"])
    if role == "tool":
        made["tool_call_id"] = _field_text(number, fields, "tool_call_id")
    return made


def _check_fields(number: int, fields: Mapping[str, Any], has_content: bool) -> None:
    role = fields.get("role")
    if not isinstance(role, str) or role not in _FIELDS:
        raise RowError("role-unknown", _unknown_role(number, role, list(_FIELDS)))
    extra = sorted(set(fields) - _FIELDS[role])
    if extra:
        raise RowError("message-fields", f"message {number} ({role}) has {', '.join(extra)}")
    if not has_content and not fields.get("tool_calls"):
        raise RowError("message-fields", f"message {number} has no content")


def _content(number: int, fields: Mapping[str, Any]) -> str:
    content = fields.get("content")
    if isinstance(content, list):
        content = _only_part(number, content)
    if content is None and fields.get("tool_calls"):
        return ""
    if not isinstance(content, str):
        raise RowError(
            "content-not-text", f"the content of message {number} is {kind_of(content)}"
        )
    if is_blank(content) and fields["role"] != "tool" and not fields.get("tool_calls"):
        raise RowError("content-empty", f"message {number} has no content")
    return content


def _only_part(number: int, parts: list[Any]) -> object:
    """The text of content given as one text part.

    Several parts are refused, for they are not one text everywhere: vLLM joins them with line
    breaks (`_parse_chat_message_content_parts`), most templates with nothing.
    """
    if any(not isinstance(part, dict) or part.get("type") != "text" for part in parts):
        raise RowError("content-not-text", f"message {number} has parts that are not text")
    if len(parts) != 1:
        raise RowError("content-parts", f"message {number} has {len(parts)} parts, not one")
    return parts[0].get("text")


def _field_text(number: int, fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or is_blank(value):
        kind = "tool-call-id" if name == "tool_call_id" else "message-fields"
        raise RowError(kind, f"'{name}' of message {number} is {kind_of(value)} or empty")
    return value


def _unknown_role(number: int, role: object, known: list[str]) -> str:
    if role == "developer":
        return f"message {number} has role 'developer'; chat templates know it as 'system'"
    near = difflib.get_close_matches(role.lower(), known, n=1) if isinstance(role, str) else []
    hint = f"; did you mean '{near[0]}'?" if near else ""
    shown = repr(role) if isinstance(role, str) else kind_of(role)
    return f"message {number} has role {shown}, not {', '.join(known)}{hint}"


def _from_turn(number: int, turn: object) -> dict[str, Any]:
    """A ShareGPT turn as OpenAI's message, checked no further than that needs."""
    if not isinstance(turn, dict):
        raise RowError("message-fields", f"message {number} is {kind_of(turn)}")
    fields = {key: value for key, value in turn.items() if value is not None}
    side, value = fields.pop("from", None), fields.pop("value", None)
    if not isinstance(side, str) or side not in _SHAREGPT_ROLES:
        raise RowError("role-unknown", _unknown_role(number, side, list(_SHAREGPT_ROLES)))
    if fields:
        raise RowError("message-fields", f"message {number} ({side}) has {', '.join(fields)}")
    role = _SHAREGPT_ROLES[side]
    if role == "tool":
        return {"role": role, "content": value, "tool_call_id": f"call_{number - 1}"}
    if side != "function_call":
        return {"role": role, "content": value}
    function = decode_json(value, "tool-call-fields") if isinstance(value, str) else value
    call = {"id": f"call_{number}", "type": "function", "function": function}
    return {"role": role, "content": None, "tool_calls": [call]}


def _wrapped(tools: object) -> object:
    """ShareGPT's tools, which are often the functions alone, as OpenAI's."""
    if isinstance(tools, str) and tools:
        tools = decode_json(tools, "tools-fields")
    if not isinstance(tools, list):
        return tools
    return [
        {"type": "function", "function": tool}
        if isinstance(tool, dict) and "function" not in tool
        else tool
        for tool in tools
    ]


def _not_messages(found: object) -> str:
    return "an empty list" if found == [] else f"{kind_of(found)}, not a list of messages"
