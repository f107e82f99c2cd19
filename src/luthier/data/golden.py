"""F07: a sample of rows, rendered and tokenised again by transformers itself."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.data.checks import template_parity
from luthier.data.index import RowIndex
from luthier.data.rows import Task
from luthier.data.spool import message_from
from luthier.data.spooled import Places
from luthier.gates import Gate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIRST = 100  # rows, and as many more spread evenly over all others
_COLUMNS = ("messages", "chosen", "tools", "input_ids", "prompt_length")


def parity(
    task: Task, index: RowIndex, places: Places, tokenizer: "PreTrainedTokenizerBase"
) -> Gate:
    """The gate; plain text has no template, and nothing to compare."""
    if task in ("completion", "text"):
        return template_parity(0, [])
    return template_parity(*_compare(index, places, tokenizer))


def _compare(
    index: RowIndex, places: Places, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[int, list[str]]:
    """Kept rows compared, and `file:line` of those whose tokens `apply_chat_template` differs on.

    A row ends with its stop token, where the template may go on; so it must be what the template's
    ids begin with, and its prompt must equal the ids of the prompt with its generation prompt.
    """
    import numpy as np

    kept = np.flatnonzero(index.kept)
    spread = np.linspace(0, len(kept) - 1, min(_FIRST, len(kept))).astype(np.int64)
    rows = np.unique(np.concatenate([kept[:_FIRST], kept[spread]])).tolist()
    different: list[int] = []
    for part, found in places.of(rows).items():
        table = places.spool.read(part, _COLUMNS).take(found)
        for place, stored in zip(found, table.to_pylist(), strict=True):
            if not _agrees(stored, tokenizer):
                different.append(places.starts[part] + place)
    return len(rows), places.where(different)


def _agrees(stored: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> bool:
    messages = [message_from(message) for message in stored["messages"]]
    replies = [message_from(message) for message in stored["chosen"] or ()]
    whole = [*messages, *replies]
    tools = json.loads(stored["tools"]) if stored["tools"] else None
    ids, length = stored["input_ids"], stored["prompt_length"]
    prompt = _ids(tokenizer, whole[:-1], tools, generate=True)
    row = _ids(tokenizer, whole, tools, generate=False)
    same: bool = row[: len(ids)] == ids and prompt[: len(ids)] == ids[:length]
    return same


def _ids(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Any], tools: Any, *, generate: bool
) -> list[int]:
    found = tokenizer.apply_chat_template(
        list(messages),
        tools=tools,
        tokenize=True,
        add_generation_prompt=generate,
        return_dict=False,
    )
    return [int(token_id) for token_id in found]
