"""Greedy answers, label likelihoods and reference likelihoods of packed prompts.

All three grow the same token trees in lockstep, so a prompt goes through the model once and a
token that two of them want goes through it once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.evaluation.labels import LabelTrie
from luthier.evaluation.packing import Node, PackedRows, SharedPrefix

StopReason = Literal["stop", "length"]
TokenPath = tuple[Node, Sequence[int]]


@dataclass(frozen=True)
class Asked:
    """What to do with each prompt.

    `max_new_tokens` counts the stop token, 0 generates nothing; `labels` are scored when given.
    """

    stop_token_ids: tuple[int, ...]
    max_new_tokens: int = 0
    labels: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class _Part:
    """The known beginning of some labels: `token` after `node`, and `trie` below it."""

    log_p: float
    node: Node
    token: int
    trie: LabelTrie


@dataclass(frozen=True)
class RowResult:
    """What the model said to one prompt.

    `label_log_p` has, for each label, log p(its tokens and a stop token | prompt) in nats, None
    where the label was ruled out because its first tokens alone are less likely than the best
    label. `reference_log_p` is that of the reference reply's tokens as given.
    """

    tokens: tuple[int, ...]
    stop_reason: StopReason
    label_log_p: tuple[float | None, ...] | None
    reference_log_p: float | None


def answer_chunk(
    prefix: SharedPrefix,
    prompts: Sequence[Sequence[int]],
    asked: Asked,
    references: Sequence[Sequence[int]] | None = None,
) -> list[RowResult]:
    """Run one chunk of prompts (their tokens after the prefix) through the model.

    Args:
        references: one reply a row, whose log-probability is wanted.
    """
    trie = LabelTrie.of(asked.labels)
    candidates = {*trie.tokens(), *asked.stop_token_ids}
    candidates.update(token for reply in references or () for token in reply)
    rows = PackedRows(prefix, prompts, candidates)
    greedy = [_Greedy(root, asked) for root in rows.roots]
    best = [_BestLabel(root, trie, asked, rows.column) for root in rows.roots if asked.labels]
    if references:
        rows.grow((root, reply[:-1]) for root, reply in zip(rows.roots, references, strict=True))
    searches: list[_Greedy | _BestLabel] = [*greedy, *best]
    while wanted := [path for search in searches for path in search.wants()]:
        rows.grow(wanted)
    return [
        RowResult(
            tokens=tuple(greedy[row].tokens),
            stop_reason=greedy[row].stop_reason,
            label_log_p=tuple(best[row].scores) if asked.labels else None,
            reference_log_p=_chain_log_p(root, references[row], rows.column)
            if references
            else None,
        )
        for row, root in enumerate(rows.roots)
    ]


class _Greedy:
    """Free generation: the likeliest token, again and again."""

    def __init__(self, root: Node, asked: Asked) -> None:
        self.tokens: list[int] = []
        self.stop_reason: StopReason = "length"
        self._node, self._asked = root, asked
        self._awaited: int | None = None
        self._done = asked.max_new_tokens == 0

    def wants(self) -> Iterator[TokenPath]:
        """The next token to try, until the reply has ended."""
        while not self._done:
            if self._awaited is not None:
                child = self._node.children.get(self._awaited)
                if child is None:
                    yield self._node, (self._awaited,)
                    return
                self._node = child
            self._awaited = self._node.greedy
            if self._awaited in self._asked.stop_token_ids:
                self.stop_reason, self._done = "stop", True
                return
            self.tokens.append(self._awaited)
            self._done = len(self.tokens) == self._asked.max_new_tokens


class _BestLabel:
    """The likeliest label, exactly, without trying what cannot win.

    A label's first tokens alone are at least as likely as the whole label, so a label whose known
    part is less likely than a complete one is out. The likeliest parts are tried first, twice as
    many each round.
    """

    def __init__(
        self, root: Node, trie: LabelTrie, asked: Asked, column: Mapping[int, int]
    ) -> None:
        self.scores: list[float | None] = [None] * len(asked.labels)
        self._column = column
        self._stop_columns = [column[token] for token in asked.stop_token_ids]
        self._open: list[_Part] = []
        self._best = -math.inf
        self._width = 1
        self._visit(root, trie, 0.0)

    def wants(self) -> Iterator[TokenPath]:
        """The most promising tokens to try, until every other label is ruled out."""
        while grown := [part for part in self._open if part.token in part.node.children]:
            self._open = [part for part in self._open if part not in grown]
            for part in grown:
                self._visit(part.node.children[part.token], part.trie, part.log_p)
        self._open = sorted(
            (part for part in self._open if part.log_p >= self._best), key=lambda part: -part.log_p
        )
        yield from ((part.node, (part.token,)) for part in self._open[: self._width])
        self._width *= 2

    def _visit(self, node: Node, trie: LabelTrie, log_p: float) -> None:
        import numpy as np

        if trie.label is not None:
            score = log_p + float(np.logaddexp.reduce(node.log_p[self._stop_columns]))
            self.scores[trie.label] = score
            self._best = max(self._best, score)
        for token, child in trie.children.items():
            part_log_p = log_p + float(node.log_p[self._column[token]])
            self._open.append(_Part(part_log_p, node, token, child))


def _chain_log_p(root: Node, tokens: Sequence[int], column: Mapping[int, int]) -> float:
    total, node = 0.0, root
    for token in tokens:
        total += float(node.log_p[column[token]])
        node = node.children.get(token, node)
    return total
