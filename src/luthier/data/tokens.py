"""Token ids and labels, made once, here: what is inspected is what is trained on.

The loss is on a reply and on the stop token that ends it. What the template writes after that
token (a newline) is cut off the end of the row, since no server ever asks for it.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from luthier.data.rows import Ledger, Row, RowError, Task
from luthier.errors import DataError, ModelError
from luthier.models.chat import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100  # what PyTorch's cross-entropy skips

LossOn = Literal["all_assistant_turns", "last_turn"]
OnOverlong = Literal["fail", "drop", "truncate"]

_EXAMPLES = 3
_PROBE = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "!"})


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One row as the model will see it.

    `text` is what `input_ids` encode (before its end is cut off). `prompts` holds, for every
    trained turn, the ids of all that stands before it, tokenised alone as a server would.
    `full_length` counts tokens before any length limit.
    """

    row: Row
    text: str
    prompts: tuple[Sequence[int], ...]
    input_ids: Sequence[int]
    labels: Sequence[int]
    full_length: int

    @property
    def prompt_length(self) -> int:
        """Tokens before the last reply."""
        return len(self.prompts[-1])

    @property
    def supervised(self) -> int:
        """Tokens with a loss."""
        return sum(label != IGNORE_INDEX for label in self.labels)


@dataclass(frozen=True)
class Encoding:
    """How rows become tokens: the base's tokenizer and stop tokens, the task, trained turns."""

    tokenizer: "PreTrainedTokenizerBase"
    stop_token_ids: Sequence[int]
    task: Task
    loss_on: LossOn

    @cached_property
    def structure(self) -> re.Pattern[str]:
        """Matches the tokens that only the template may write: BOS, stop tokens, turn marks."""
        tokenizer = self.tokenizer
        marks = set(tokenizer.all_special_tokens)
        marks |= {str(tokenizer.convert_ids_to_tokens(stop)) for stop in self.stop_token_ids}
        if self.task != "completion":
            rendered = render(tokenizer, _PROBE, add_generation_prompt=False)
            added = tokenizer.added_tokens_decoder.values()
            marks |= {token.content for token in added if token.content in rendered}
        return re.compile("|".join(re.escape(mark) for mark in sorted(marks)) or r"(?!)")


@dataclass(frozen=True, slots=True)
class _Texts:
    """For each trained turn, the text before the reply and the text to the turn's end."""

    row: Row
    before: list[str]
    through: list[str]


def tokenize(rows: Sequence[Row], encoding: Encoding, ledger: Ledger) -> list[TokenizedRow]:
    """Tokenise one batch. Rows that cannot be rendered faithfully are quarantined.

    Raises:
        ModelError: the base has no chat template, or no stop token for completions.
    """
    texts = []
    for row in rows:
        try:
            _refuse_special_tokens(row, encoding.structure)
            texts.append(_texts(row, encoding))
        except RowError as error:
            ledger.quarantine_row(row, error)
    flat = [text for item in texts for text in (*item.before, *item.through)]
    if not flat:
        return []
    encoded = encoding.tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"]
    ids = iter(encoded)
    return [_label(item, ids, frozenset(encoding.stop_token_ids)) for item in texts]


def _texts(row: Row, encoding: Encoding) -> _Texts:
    if encoding.task == "completion":
        return _plain_texts(row, encoding)
    return _chat_texts(row, encoding)


def _chat_texts(row: Row, encoding: Encoding) -> _Texts:
    tokenizer, messages = encoding.tokenizer, row.messages
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if encoding.loss_on == "last_turn":
        turns = turns[-1:]
    try:
        return _Texts(
            row,
            [render(tokenizer, messages[:i], add_generation_prompt=True) for i in turns],
            [render(tokenizer, messages[: i + 1], add_generation_prompt=False) for i in turns],
        )
    except ModelError as error:
        if not tokenizer.chat_template:
            raise
        raise RowError("template-refused", str(error)) from error


def _plain_texts(row: Row, encoding: Encoding) -> _Texts:
    tokenizer = encoding.tokenizer
    prompt, completion = (message["content"] for message in row.messages)
    before = f"{tokenizer.bos_token}{prompt}" if _adds_bos(tokenizer) else prompt
    return _Texts(row, [before], [f"{before}{completion}{_stop_text(encoding)}"])


def _adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer, left to itself, begins a text with its BOS token."""
    bos = tokenizer.bos_token_id
    return bos is not None and bos in tokenizer("a")["input_ids"][:1]


def _stop_text(encoding: Encoding) -> str:
    eos, stops = encoding.tokenizer.eos_token_id, encoding.stop_token_ids
    if not stops:
        raise ModelError(
            "The base model has no stop token. Set eos_token_id in its generation_config."
        )
    stop = eos if eos in stops else stops[0]
    return str(encoding.tokenizer.convert_ids_to_tokens(stop))


def _label(item: _Texts, ids: Iterator[Sequence[int]], stops: Collection[int]) -> TokenizedRow:
    prompts = tuple(next(ids) for _ in item.before)
    throughs = [next(ids) for _ in item.through]
    whole = throughs[-1]
    labels, end = [IGNORE_INDEX] * len(whole), len(whole)
    for prompt, through in zip(prompts, throughs, strict=True):
        start = len(prompt)
        # The reply itself spells no special token, so the first stop token is the turn's end.
        turn_end = min(len(through), len(whole))
        end = next((i + 1 for i in range(start, turn_end) if whole[i] in stops), turn_end)
        labels[start:end] = whole[start:end]
    return TokenizedRow(item.row, item.through[-1], prompts, whole[:end], labels[:end], end)


def _refuse_special_tokens(row: Row, structure: re.Pattern[str]) -> None:
    for message in row.messages:
        found = structure.search(message["content"])
        if found:
            raise RowError(
                "special-token-in-text",
                f"the {message['role']}'s text spells {found[0]}, which would become that token",
            )


def fit(
    rows: Sequence[TokenizedRow], max_length_tokens: int, on_overlong: OnOverlong, ledger: Ledger
) -> list[TokenizedRow]:
    """Apply the length limit.

    Raises:
        DataError: a row is longer and `on_overlong` is `fail`.
    """
    overlong = [row for row in rows if len(row.input_ids) > max_length_tokens]
    if not overlong:
        return list(rows)
    match on_overlong:
        case "fail":
            raise DataError(_overlong_message(overlong, len(rows), max_length_tokens))
        case "drop":
            ledger.drop("overlong", len(overlong))
            return [row for row in rows if len(row.input_ids) <= max_length_tokens]
        case "truncate":
            return [_truncated(row, max_length_tokens) for row in rows]


def _truncated(row: TokenizedRow, length: int) -> TokenizedRow:
    return replace(row, input_ids=row.input_ids[:length], labels=row.labels[:length])


def _overlong_message(overlong: Sequence[TokenizedRow], total: int, limit: int) -> str:
    longest = max(len(row.input_ids) for row in overlong)
    where = ", ".join(f"{row.row.where} ({len(row.input_ids)})" for row in overlong[:_EXAMPLES])
    return (
        f"{len(overlong)} of {total} rows are longer than prepare.max_length_tokens = {limit}: "
        f"{where}{', ...' if len(overlong) > _EXAMPLES else ''}. Raise it to {longest}, shorten "
        "these rows, or set prepare.on_overlong: drop (leaves them out, counted)."
    )
