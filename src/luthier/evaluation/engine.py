"""Greedy answers, label likelihoods and reference likelihoods of packed prompts.

All three grow the same token trees in lockstep, so a prompt goes through the model once and a
token that two of them want goes through it once.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.evaluation.labels import LabelTrie
from luthier.evaluation.packing import Node, PackedRows, SharedPrefix

StopReason = Literal["stop", "length", "missing"]  # missing: no answer could be had
TokenPath = tuple[Node, Sequence[int]]


@dataclass(frozen=True)
class Sampling:
    """Random answers to a prompt beside the greedy one: `count` of them, each token drawn from the
    `top_k` likeliest at `temperature`. What is drawn depends on `seed`, the numbers of prompt and
    answer, and on nothing else."""

    count: int
    temperature: float = 1.0
    top_k: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Asked:
    """What to do with each prompt.

    `max_new_tokens` counts the stop token, 0 generates nothing; `labels` are scored when given,
    with `all_labels` also those that cannot be the likeliest; with `sampling` random answers are
    generated too.
    """

    stop_token_ids: tuple[int, ...]
    max_new_tokens: int = 0
    labels: tuple[tuple[int, ...], ...] = ()
    all_labels: bool = False
    sampling: Sampling | None = None


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
    label. `reference_log_p` is that of the reference reply's tokens as given. `samples` are the
    random answers: tokens, and how each ended.
    """

    tokens: tuple[int, ...]
    stop_reason: StopReason
    label_log_p: tuple[float | None, ...] | None
    reference_log_p: float | None
    samples: tuple[tuple[tuple[int, ...], StopReason], ...] = ()


def answer_chunk(
    prefix: SharedPrefix,
    prompts: Sequence[Sequence[int]],
    asked: Asked,
    references: Sequence[Sequence[int]] | None = None,
    first_row: int = 0,
) -> list[RowResult]:
    """Run one chunk of prompts (their tokens after the prefix) through the model.

    Args:
        references: one reply a row, whose log-probability is wanted.
        first_row: the number of the first prompt among all, for what is drawn.
    """
    trie = LabelTrie.of(asked.labels)
    candidates = {*trie.tokens(), *asked.stop_token_ids}
    candidates.update(token for reply in references or () for token in reply)
    sampling = asked.sampling
    rows = PackedRows(prefix, prompts, candidates, likeliest=sampling.top_k if sampling else 0)
    greedy = [_Free(root, asked, _likeliest) for root in rows.roots]
    sampled = [
        [_Free(root, asked, _drawn(sampling, row, n)) for n in range(sampling.count)]
        if sampling
        else []
        for row, root in enumerate(rows.roots, first_row)
    ]
    best = [_BestLabel(root, trie, asked, rows.column) for root in rows.roots if asked.labels]
    if references:
        rows.grow((root, reply[:-1]) for root, reply in zip(rows.roots, references, strict=True))
    drawn = [one for answers in sampled for one in answers]
    searches: list[_Free | _BestLabel] = [*greedy, *drawn, *best]
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
            samples=tuple((tuple(one.tokens), one.stop_reason) for one in sampled[row]),
        )
        for row, root in enumerate(rows.roots)
    ]


def _likeliest(node: Node) -> int:
    return node.greedy


def _drawn(sampling: Sampling, row: int, answer: int) -> Callable[[Node], int]:
    """Draws the next token; the generator's stream is NumPy's PCG64, stable between versions."""
    import numpy as np

    generator = np.random.Generator(np.random.PCG64([sampling.seed, row, answer]))

    def draw(node: Node) -> int:
        logits_L = node.likeliest_logits / sampling.temperature
        shares_L = np.exp(logits_L - logits_L.max()).cumsum()
        place = int(np.searchsorted(shares_L, generator.random() * shares_L[-1], side="right"))
        return int(node.likeliest[min(place, len(shares_L) - 1)])

    return draw


class _Free:
    """Free generation: the token that `choose` takes, again and again."""

    def __init__(self, root: Node, asked: Asked, choose: Callable[[Node], int]) -> None:
        self.tokens: list[int] = []
        self.stop_reason: StopReason = "length"
        self._node, self._asked, self._choose = root, asked, choose
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
            self._awaited = self._choose(self._node)
            if self._awaited in self._asked.stop_token_ids:
                self.stop_reason, self._done = "stop", True
                return
            self.tokens.append(self._awaited)
            self._done = len(self.tokens) == self._asked.max_new_tokens


class _BestLabel:
    """The likeliest label, exactly, without trying what cannot win, unless all are asked for.

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
        self._all = asked.all_labels
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
            (part for part in self._open if self._all or part.log_p >= self._best),
            key=lambda part: -part.log_p,
        )
        now = self._open if self._all else self._open[: self._width]
        yield from ((part.node, (part.token,)) for part in now)
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
