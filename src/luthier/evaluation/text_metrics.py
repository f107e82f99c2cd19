"""Metrics of free text: equal to the reply, how alike it is, how likely the reply was."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from luthier.evaluation.registry import FREE, Answered, metric, share_interval
from luthier.evaluation.statistics import (
    Interval,
    mean_share_interval,
    percentile_interval,
    ratio_interval,
)

_PROSE = FREE[1:]  # all but extraction, whose replies are no prose
_RESAMPLES = 1000
_WORD = re.compile(r"\w+")
_LARGEST_EXPONENT = 700  # of a number that a float can be


@metric(*FREE, interval=share_interval)
def exact_match(answered: Answered) -> float:
    """Share of answers equal to the reply, blanks at the ends aside; with `prepare.answer_regex`
    of those in which it finds the same as in the reply. Interval: Wilson."""
    return answered.correct / len(answered.answers)


def _nats(answered: Answered) -> tuple[list[float], list[float]]:
    """Nats and tokens of the references of those rows that have them."""
    known = [
        (-answer.reference_log_probability, float(answer.reference_tokens))
        for answer in answered.answers
        if answer.reference_log_probability is not None and answer.reference_tokens
    ]
    return [nats for nats, _ in known], [tokens for _, tokens in known]


def _nats_interval(answered: Answered) -> Interval | None:
    return ratio_interval(*_nats(answered))


@metric(*FREE, interval=_nats_interval, is_score=False)
def reference_nats_per_token(answered: Answered) -> float | None:
    """Negative log-likelihood of the reference replies, their stop tokens included, per token.

    Interval: Student's t of a ratio, over rows.
    """
    nats, tokens = _nats(answered)
    return sum(nats) / sum(tokens) if tokens else None


def nats_change(before: Answered, after: Answered) -> dict[str, Any] | None:
    """Nats per token of the same references under two systems, and the change with its interval:
    paired, Student's t of a ratio, over rows. None where one system has no likelihoods.

    Raises:
        AssertionError: the references are not the same.
    """
    (old, tokens), (new, new_tokens) = _nats(before), _nats(after)
    if not old or not new:
        return None
    assert tokens == new_tokens, "two systems with other rows or another tokenizer"
    changes = [n - o for n, o in zip(new, old, strict=True)]
    interval = ratio_interval(changes, tokens)
    return {
        "old": sum(old) / sum(tokens),
        "new": sum(new) / sum(tokens),
        "difference": sum(changes) / sum(tokens),
        "interval": None if interval is None else list(interval),
    }


def _perplexity_interval(answered: Answered) -> Interval | None:
    found = _nats_interval(answered)
    return None if found is None else (_exp(found[0]), _exp(found[1]))


@metric(*FREE, interval=_perplexity_interval, is_score=False)
def perplexity(answered: Answered) -> float | None:
    """exp of reference_nats_per_token, and of the ends of its interval."""
    nats = reference_nats_per_token(answered)
    return None if nats is None else _exp(nats)


def _exp(nats: float) -> float:
    return math.exp(min(nats, _LARGEST_EXPONENT))


def _chrf(answered: Answered) -> list[float]:
    from sacrebleu.metrics.chrf import CHRF

    scorer = CHRF()
    return [
        scorer.sentence_score(answer.answer, [answer.expected]).score / 100
        for answer in answered.answers
    ]


def _chrf_interval(answered: Answered) -> Interval:
    return mean_share_interval(_chrf(answered), [1.0] * len(answered.answers))


@metric(*_PROSE, interval=_chrf_interval)
def chrf(answered: Answered) -> float:
    """Mean over rows of sacrebleu's chrF2 (Popovic 2015), 0 to 1: letter n-grams in common.

    Interval: Wilson with the effective number of rows.
    """
    return sum(_chrf(answered)) / len(answered.answers)


def _rouge_l(answered: Answered) -> list[float]:
    return [rouge_l_f1(answer.answer, answer.expected) for answer in answered.answers]


def _rouge_l_interval(answered: Answered) -> Interval:
    return mean_share_interval(_rouge_l(answered), [1.0] * len(answered.answers))


@metric(*_PROSE, interval=_rouge_l_interval)
def rouge_l(answered: Answered) -> float:
    """Mean over rows of ROUGE-L F1. Interval: Wilson with the effective number of rows."""
    return sum(_rouge_l(answered)) / len(answered.answers)


def rouge_l_f1(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), 0 to 1.

    As the package rouge-score has it without stemming; words are of any script, where that
    package leaves out all but a to z and digits.
    """
    found, wanted = (_WORD.findall(text.lower()) for text in (answer, reference))
    if not found or not wanted:
        return 0.0
    lengths = [0] * (len(wanted) + 1)
    for word in found:
        diagonal = 0
        for place, other in enumerate(wanted, 1):
            above = lengths[place]
            is_same = word == other
            lengths[place] = diagonal + 1 if is_same else max(above, lengths[place - 1])
            diagonal = above
    return 2 * lengths[-1] / (len(found) + len(wanted))


def _bleu_counts(answered: Answered) -> Iterator[list[int]]:
    """Of each row: n-grams in common, n-grams answered, words answered and expected."""
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU(effective_order=True)  # for counts it changes nothing but a warning
    for answer in answered.answers:
        found = scorer.sentence_score(answer.answer, [answer.expected])
        yield [*found.counts, *found.totals, found.sys_len, found.ref_len]


def _bleu(counts: Sequence[int]) -> float:
    from sacrebleu.metrics.bleu import BLEU

    found = BLEU.compute_bleu(
        list(counts[:4]), list(counts[4:8]), counts[8], counts[9], smooth_method="exp"
    )
    return float(found.score) / 100


def _bleu_interval(answered: Answered) -> Interval:
    import numpy as np

    counts = np.array(list(_bleu_counts(answered)))
    rows = len(counts)
    drawn = np.random.default_rng(answered.seed).multinomial(
        rows, np.full(rows, 1 / rows), size=_RESAMPLES
    )
    return percentile_interval(np.array([_bleu(one) for one in (drawn @ counts).tolist()]))


@metric(*_PROSE, interval=_bleu_interval)
def bleu(answered: Answered) -> float:
    """sacrebleu's corpus BLEU (Post 2018), 0 to 1: word n-grams in common, over all rows.

    Interval: percentile bootstrap over rows (Koehn 2004), seeded; too narrow with few rows.
    """
    return _bleu([sum(column) for column in zip(*_bleu_counts(answered), strict=True)])
