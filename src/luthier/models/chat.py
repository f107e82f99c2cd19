"""Chat templates and stop tokens: what training, evaluation and serving must agree on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]

_PROBE_REPLY = "LUTHIERPROBE"


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
) -> str:
    """The chat template's text for `messages`, rendered in transformers' Jinja sandbox.

    Raises:
        ModelError: there is no template, or it refuses these messages.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ModelError(
            "The base model has no chat template. Use an instruction-tuned base, "
            "or task: completion."
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except (TemplateError, TypeError, ValueError, AttributeError) as error:
        # What a template does with values that it did not expect, such as a loop over no tools.
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(f"The chat template refuses the roles {roles}: {error}") from error
    assert isinstance(text, str)
    return text


def encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of `text` as it stands: special tokens are those it spells, none is added."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [int(token_id) for token_id in ids]


def stop_token_ids(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids that end a reply, sorted: generation_config's, the tokenizer's EOS, the template's
    end of turn (the first special token after an assistant's message)."""
    stops: set[int] = set()
    generation_config = folder / "generation_config.json"
    if generation_config.exists():
        eos = json.loads(generation_config.read_text(encoding="utf-8")).get("eos_token_id")
        stops.update([eos] if isinstance(eos, int) else eos or [])
    if tokenizer.eos_token_id is not None:
        stops.add(int(tokenizer.eos_token_id))
    if tokenizer.chat_template:
        turn_end = _end_of_turn(tokenizer)
        if turn_end is not None:
            stops.add(turn_end)
    return sorted(stops)


def _end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The first special token after an assistant's text, None when the template writes none."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE_REPLY}]
    rendered = render(tokenizer, messages, add_generation_prompt=False)
    after_reply = rendered.rpartition(_PROBE_REPLY)[2]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return next((i for i in encode(tokenizer, after_reply) if i in special), None)
