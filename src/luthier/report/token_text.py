"""Tokens as text that shows what is trained: stretches of a row, and rows ready to be shown.

Stretches are decoded whole, never token by token, since one character can be several tokens.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from luthier.data.tokens import IGNORE_INDEX
from luthier.errors import StoreError
from luthier.models.loading import load_tokenizer
from luthier.report import spelling
from luthier.store import Artifact, Store

STOP_MARK = "■"
NEWLINE_MARK, TAB_MARK = "↵", "⇥"


@dataclass(frozen=True)
class Stretch:
    """Text of neighbouring tokens of one sort.

    `supervised`: they have a loss. `special`: they are not text (turn marks). `stop`: the model
    learns to end its reply with them.
    """

    text: str
    supervised: bool = False
    special: bool = False
    stop: bool = False

    @property
    def visible(self) -> str:
        """The text with newlines, tabs and a stop marked, other control characters spelled."""
        text = spelling.printable(self.text)
        text = text.replace("\n", f"{NEWLINE_MARK}\n").replace("\t", TAB_MARK)
        return f"{text}{STOP_MARK}" if self.stop else text


@dataclass(frozen=True)
class Part:
    """A named piece of a row (prompt, chosen, rejected, a role), or with no name the whole."""

    name: str
    stretches: Sequence[Stretch]

    @property
    def is_rejected(self) -> bool:
        """Whether training makes this text less likely."""
        return self.name == "rejected"


@dataclass(frozen=True)
class ShownRow:
    """One row of a dataset as people see it; `row` counts from 0 in its split."""

    split: str
    row: int
    id: str
    source: str
    origin: str
    group: str | None
    label: str | None
    tokens: int
    supervised_tokens: int
    parts: Sequence[Part]

    @property
    def head(self) -> str:
        """The line above the row."""
        facts = [
            f"{self.split} row {self.row}",
            f"id {self.id}",
            self.source if self.origin == "data" else f"{self.source} ({self.origin})",
            f"{self.tokens} tokens, {self.supervised_tokens} supervised",
        ]
        facts += [f"label {self.label}"] if self.label is not None else []
        facts += [f"group {self.group}"] if self.group is not None else []
        return spelling.printable(" · ".join(facts)).replace("\n", NEWLINE_MARK)


@dataclass(frozen=True)
class Decoder:
    """A tokenizer of the `tokenizers` library, and the ids that end a reply."""

    tokenizer: Any
    stop_token_ids: Collection[int]

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_added_tokens_decoder())

    def stretches(self, ids: Sequence[int], supervised: Sequence[bool]) -> list[Stretch]:
        """The row's text, cut where tokens begin or end to be supervised, special or a stop."""

        def sort(place: int) -> tuple[bool, bool, bool]:
            token_id, is_supervised = ids[place], supervised[place]
            stop = is_supervised and token_id in self.stop_token_ids
            return is_supervised, token_id in self._special, stop

        found = []
        for (is_supervised, special, stop), places in groupby(range(len(ids)), key=sort):
            inside = list(places)
            text = self._text(ids, inside[0], inside[-1] + 1)
            found.append(Stretch(text, is_supervised, special, stop))
        return found

    def _text(self, ids: Sequence[int], start: int, end: int) -> str:
        """SentencePiece drops the blank that begins a text, so the token before goes along."""
        if start == 0:
            return self._decode(ids[:end])
        before, through = self._decode(ids[start - 1 : start]), self._decode(ids[start - 1 : end])
        if through.startswith(before):
            return through[len(before) :]
        return self._decode(ids[start:end])  # a character is cut in two here

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))


def decoder_of(dataset: Artifact, store: Store, stop_token_ids: Collection[int]) -> Decoder:
    """The tokenizer that made a dataset's tokens: that of its base.

    Raises:
        StoreError: the base is not in the store, or is not what the dataset was made with.
        ModelError: its tokenizer does not load.
    """
    ref = next((ref for ref in dataset.manifest.inputs if ref.slot == "base"), None)
    base = store.find(ref.key) if ref else None
    if ref is None or base is None or base.digest != ref.digest:
        what = ref.ref if ref else "its base"
        raise StoreError(
            f"The tokens of {dataset.ref} are those of {what}, which is no longer in the store "
            f"{store.root} as it was. Make both again with the config: luthier run CONFIG"
        )
    return Decoder(_tokenizer(base), frozenset(stop_token_ids))


def _tokenizer(base: Artifact) -> Any:
    """The base's tokenizer without transformers, which takes seconds to load, where it is whole.

    tokenizer.json alone lacks what tokenizer_config.json adds in some old models.
    """
    from tokenizers import Tokenizer

    file = base.path / "tokenizer.json"
    if file.exists():
        tokenizer = Tokenizer.from_file(str(file))
        if tokenizer.get_vocab_size() == base.manifest.facts.get("vocabulary_size"):
            return tokenizer
    return load_tokenizer(base.path).backend_tokenizer


def shown_row(
    record: Mapping[str, Any], split: str, row: int, decoder: Decoder | None
) -> ShownRow:
    """A row of the Parquet files; without a decoder its messages stand for its tokens."""
    tokens, supervised = token_counts(record)
    parts = _messages(record) if decoder is None else _tokens(record, decoder)
    return ShownRow(
        split=split,
        row=row,
        id=record["id"],
        source=f"{record['source_path']}:{record['source_line']}",
        origin=record["origin"],
        group=record["group"],
        label=record.get("label"),  # preferences have none
        tokens=tokens,
        supervised_tokens=supervised,
        parts=list(parts),
    )


def token_counts(record: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens and supervised tokens; of a preference both replies count."""
    if "prompt_ids" in record:
        replies = len(record["chosen_ids"]) + len(record["rejected_ids"])
        return len(record["prompt_ids"]) + replies, replies
    return len(record["input_ids"]), sum(label != IGNORE_INDEX for label in record["labels"])


def _tokens(record: Mapping[str, Any], decoder: Decoder) -> Iterator[Part]:
    if "prompt_ids" not in record:
        supervised = [label != IGNORE_INDEX for label in record["labels"]]
        yield Part("", decoder.stretches(record["input_ids"], supervised))
        return
    prompt = record["prompt_ids"]
    yield Part("prompt", decoder.stretches(prompt, [False] * len(prompt)))
    for name in ("chosen", "rejected"):
        ids = record[f"{name}_ids"]
        yield Part(name, decoder.stretches(ids, [True] * len(ids)))


def _messages(record: Mapping[str, Any]) -> Iterator[Part]:
    for message in record["messages"]:
        yield Part(message["role"], [Stretch(message_text(message))])
    for name in ("chosen", "rejected"):
        text = "\n".join(message_text(message) for message in record.get(name) or ())
        if text:
            yield Part(name, [Stretch(text)])


def message_text(message: Mapping[str, Any]) -> str:
    """Content and tool calls of a message."""
    texts = (message.get("content"), message.get("tool_calls"))
    return "\n".join(text for text in texts if text)
