"""Pairs of replies, of which one is better."""

from collections.abc import Mapping, Sequence

from luthier.data.formats.chat import check_order, messages_of
from luthier.data.formats.options import FormatOptions
from luthier.data.formats.registry import row_format
from luthier.data.formats.tools import tools_of
from luthier.data.formats.values import kind_of, text
from luthier.data.rows import Message, Parsed, RowError, message


@row_format(
    "preference", task="preference", needs=("prompt", "chosen", "rejected"), may=("tools",)
)
def explicit_prompt(values: Mapping[str, object], _options: FormatOptions) -> Parsed:
    """`prompt`, and the replies `chosen` and `rejected`: each text or messages.

    Replies that begin with the prompt are taken for whole conversations, and the prompt must be
    theirs.
    """
    asked = _messages(values, "prompt", "user")
    chosen, rejected = (_messages(values, side, "assistant") for side in ("chosen", "rejected"))
    if chosen[0]["role"] in ("system", "user") or rejected[0]["role"] in ("system", "user"):
        prompt, chosen, rejected = _without_prompt(chosen, rejected)
        if prompt != asked:
            raise RowError("prompt-mismatch", "'chosen' and 'rejected' go on from another prompt")
    return _pair(asked, chosen, rejected, values)


@row_format(
    "preference_conversations", task="preference", needs=("chosen", "rejected"), may=("tools",)
)
def implicit_prompt(values: Mapping[str, object], _options: FormatOptions) -> Parsed:
    """`chosen` and `rejected`, whole conversations; what both begin with is the prompt."""
    for side in ("chosen", "rejected"):
        if isinstance(values[side], str):
            raise RowError(
                "prompt-missing",
                f"'{side}' is text and there is no 'prompt'; give one, or messages",
            )
    chosen, rejected = (messages_of(values[side], side) for side in ("chosen", "rejected"))
    return _pair(*_without_prompt(chosen, rejected), values)


def _messages(values: Mapping[str, object], column: str, role: str) -> list[Message]:
    found = values[column]
    if isinstance(found, list):
        return messages_of(found, column)
    if not isinstance(found, str):
        raise RowError(
            f"{column}-not-text", f"'{column}' is {kind_of(found)}, not text or messages"
        )
    return [message(role, text(values, column))]


def _without_prompt(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        shared += 1
    if shared == len(chosen) == len(rejected):
        raise RowError("chosen-is-rejected", "'chosen' and 'rejected' are the same")
    if shared == 0 or chosen[shared - 1]["role"] not in ("user", "tool"):
        raise RowError(
            "prompt-mismatch",
            f"'chosen' and 'rejected' share {shared} messages, which end with no question",
        )
    return list(chosen[:shared]), list(chosen[shared:]), list(rejected[shared:])


def _pair(
    asked: list[Message],
    chosen: list[Message],
    rejected: list[Message],
    values: Mapping[str, object],
) -> Parsed:
    if chosen == rejected:
        raise RowError("chosen-is-rejected", "'chosen' and 'rejected' are the same")
    tools = tools_of(values.get("tools"))
    for side, reply in (("chosen", chosen), ("rejected", rejected)):
        for one in reply:
            if one["role"] not in ("assistant", "tool"):
                raise RowError("reply-role", f"'{side}' has a message of the {one['role']}")
        check_order([*asked, *reply], tools)
    return Parsed(asked, chosen=chosen, rejected=rejected, tools=tools)
