"""How a base model is spoken to: what rendering and tokenising need of it, as plain values."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "!"})


@dataclass(frozen=True)
class Tongue:
    """All that rendering and tokenising need of a base, as plain values that processes share.

    `marks` are the tokens that only the template may write: BOS, stop tokens, turn marks.
    """

    tokenizer_json: str
    chat_template: str | None
    tool_template: str | None
    special_tokens: Mapping[str, str]
    marks: Mapping[str, int]
    stop_token_ids: tuple[int, ...]
    bos_token: str | None
    adds_bos: bool
    stop_text: str | None

    @property
    def any_mark(self) -> str:
        """A regular expression for a mark, the longest that stands there."""
        by_length = sorted(self.marks, key=lambda mark: (-len(mark), mark))
        return "|".join(map(re.escape, by_length)) or "(?!)"


def tongue_of(tokenizer: "PreTrainedTokenizerBase", stop_token_ids: Sequence[int]) -> Tongue:
    """What workers need of a tokenizer.

    Raises:
        ModelError: it is not one of the `tokenizers` library, which alone is fast enough.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"The base's tokenizer is a {type(tokenizer).__name__} without a tokenizer.json. "
            "Convert it: AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(...)."
        )
    bos = tokenizer.bos_token_id
    return Tongue(
        tokenizer_json=backend.to_str(),
        chat_template=_template(tokenizer, None),
        tool_template=_template(tokenizer, [{"type": "function", "function": {"name": "f"}}]),
        special_tokens={k: str(v) for k, v in tokenizer.special_tokens_map.items()},
        marks=_marks(tokenizer, stop_token_ids),
        stop_token_ids=tuple(stop_token_ids),
        bos_token=tokenizer.bos_token,
        adds_bos=bos is not None and bos in tokenizer("a")["input_ids"][:1],
        stop_text=_stop_text(tokenizer, stop_token_ids),
    )


def _template(tokenizer: "PreTrainedTokenizerBase", tools: Any) -> str | None:
    if not tokenizer.chat_template:
        return None
    template: str = tokenizer.get_chat_template(tools=tools)
    return template


def _marks(tokenizer: "PreTrainedTokenizerBase", stops: Sequence[int]) -> dict[str, int]:
    marks = set(tokenizer.all_special_tokens)
    marks |= {str(tokenizer.convert_ids_to_tokens(stop)) for stop in stops}
    if tokenizer.chat_template:
        rendered = tokenizer.apply_chat_template([dict(m) for m in _PROBE], tokenize=False)
        added = tokenizer.added_tokens_decoder.values()
        marks |= {token.content for token in added if token.content in rendered}
    return {mark: int(tokenizer.convert_tokens_to_ids(mark)) for mark in sorted(marks)}


def _stop_text(tokenizer: "PreTrainedTokenizerBase", stops: Sequence[int]) -> str | None:
    """The token that ends a completion: EOS where it is a stop token."""
    if not stops:
        return None
    stop = tokenizer.eos_token_id if tokenizer.eos_token_id in stops else stops[0]
    return str(tokenizer.convert_ids_to_tokens(stop))
