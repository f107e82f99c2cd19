"""How many train labels are wrong, estimated before training.

Where a cheap model disagrees with a label, out of fold, the text is hard or the label is wrong.
The two are told apart by how sure the model is: hard texts lie where it is least sure, labels
wrong by chance lie everywhere. Over the surer half of the rows, the share of disagreement is
fitted as

    noise + (1 - noise) * slope * rank ** power,    power 1.5, 2 or 3

with `rank` from 0 (the surest) to 0.5. What is left at rank 0 is the noise; its lower bound is the
95 % one-sided one of the profile likelihood. This is the idea of confident learning (Northcutt et
al., arXiv 1911.00068), whose own count takes hard texts for wrong labels: it says 7 % of clean
package_sections, and 9 % with 2 % of the labels flipped.

Calibration (2026-11-23): labels flipped to another one at random, 5 draws of rows each; the range
of `at_least`. `hard` are package_sections (14 labels), `easy` 23 intents of a smart home.

    flipped           0            2 %          5 %          10 %         20 %         40 %
    hard, 4,175 rows  0.003-0.005  0.018-0.033  0.033-0.060  0.088-0.110  0.170-0.220  0.380-0.420
    hard, 1,500 rows  0.000-0.022  0.020-0.048  0.025-0.080  0.070-0.140  0.150-0.240  0.410-0.500
    easy, 2,465 rows  0.000-0.003  0.010-0.022  0.037-0.048  0.072-0.110  0.180-0.200  0.380-0.400
    easy, 1,500 rows  0.000        0.015-0.020  0.020-0.040  0.060-0.100  0.180-0.220  0.360-0.410

So the limit of 0.05 passes every clean set and catches 10 % of flips in every draw, from 1,500
rows on; 5 % in some, 2 % in none. What it cannot see: a class called by another's name everywhere
(that is what the data says then). Where it can be wrong: texts that do not tell their label to a
linear model, such as stars of a review. Their noise is judged too high, and the gate says so.
"""

from typing import TYPE_CHECKING

from luthier.data.cross_fit import SURER, CrossFit, ranked
from luthier.data.summary import Record
from luthier.gates import Gate, check

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Places = NDArray[np.int64]
    Mask = NDArray[np.bool_]

MAX_LABEL_NOISE = 0.05

_BINS = 10
_POWERS = (1.5, 2.0, 3.0)
_ONE_SIDED_95 = 1.353  # half of the 0.9 quantile of chi squared with one degree of freedom
_WEAK_KAPPA = 0.4
_SUSPECTS = 50
_PAIRS = 5
_TEMPERATURE_ROWS = 2_000


class Suspect(Record):
    """A row whose label is likely wrong. `row` is its position in the texts given."""

    row: int
    given: str
    likelier: str
    probability: float


class Pair(Record):
    """Rows labelled `given` that surely look like another label; among the surer half."""

    given: str
    likelier: str
    rows: int


class LabelNoise(Record):
    """The share of train labels that are wrong, and the rows to look at first.

    `agreement` of labels and out-of-fold answers; `kappa` is what is left of it beyond chance
    (Cohen 1960).
    """

    rows: int
    estimate: float
    at_least: float
    agreement: float
    kappa: float
    pairs: list[Pair]
    suspects: list[Suspect]


def estimate(fit: CrossFit) -> LabelNoise:
    """The share of wrong labels, and the 50 worst rows; the module's docstring has the method."""
    import numpy as np

    answers, ranks = ranked(fit.scores)
    wrong = answers != fit.given
    agreement = 1 - float(wrong.mean())
    said, labelled = (np.bincount(x, minlength=len(fit.labels)) for x in (answers, fit.given))
    by_chance = float(said @ labelled) / len(answers) ** 2
    likeliest, lowest = _noise(wrong, ranks)
    return LabelNoise(
        rows=len(answers),
        estimate=likeliest,
        at_least=lowest,
        agreement=agreement,
        kappa=(agreement - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0,
        pairs=_pairs(fit, answers, wrong & (ranks < SURER)),
        suspects=_suspects(fit, answers, wrong),
    )


def label_noise_gate(found: LabelNoise, max_share: float) -> Gate:
    """Fails when surely more than `max_share` of the train labels are wrong."""
    detail = (
        f"about {found.estimate:.1%} of {found.rows} train labels look wrong, surely "
        f"{found.at_least:.1%}; correct the suspects, or raise max_label_noise"
    )
    if found.kappa < _WEAK_KAPPA:
        detail += (
            f". A simple model agrees with only {found.agreement:.0%} of the labels: they are "
            "mixed up, or these texts do not tell them, and then this gate cannot judge"
        )
    return check("label-noise", found.at_least, "<=", max_share, detail)


def _noise(wrong: "Mask", ranks: "Numbers") -> tuple[float, float]:
    """The likeliest noise and its lower bound, by the likelihood over a grid of curves."""
    import numpy as np

    place = (ranks[ranks < SURER] / SURER * _BINS).astype(np.int64)
    rows = np.bincount(place, minlength=_BINS)
    bad = np.bincount(place, weights=wrong[ranks < SURER], minlength=_BINS)
    middle = (np.arange(_BINS) + 0.5) / _BINS * SURER
    noises = np.concatenate([np.arange(0, 0.1, 0.0025), np.arange(0.1, 0.96, 0.01)])
    slopes = np.concatenate([[0.0], np.geomspace(0.01, 4, 40)])
    hardness = slopes[:, None, None] * middle ** np.array(_POWERS)[:, None]
    curves = np.minimum(hardness, 1).reshape(-1, _BINS)
    expected = noises[:, None, None] + (1 - noises[:, None, None]) * curves
    expected = expected.clip(1e-4, 1 - 1e-4)
    fits = bad * np.log(expected) + (rows - bad) * np.log1p(-expected)
    likelihood = fits.sum(axis=2).max(axis=1)
    best = int(likelihood.argmax())
    possible = likelihood >= likelihood[best] - _ONE_SIDED_95
    return float(noises[best]), float(noises[possible].min())


def _pairs(fit: CrossFit, answers: "Places", rows: "Mask") -> list[Pair]:
    """What is most often called by another's name."""
    import numpy as np

    size = len(fit.labels)
    counts = np.bincount(fit.given[rows] * size + answers[rows], minlength=size * size)
    most = np.argsort(-counts, kind="stable")[:_PAIRS]
    return [
        Pair(
            given=fit.labels[place // size],
            likelier=fit.labels[place % size],
            rows=int(counts[place]),
        )
        for place in most
        if counts[place]
    ]


def _suspects(fit: CrossFit, answers: "Places", wrong: "Mask") -> list[Suspect]:
    """The rows whose label is furthest from the answer, by the ratio of the two probabilities."""
    import numpy as np

    places = np.flatnonzero(wrong)
    probabilities = _log_probabilities(fit)[places]
    each = np.arange(len(places))
    likelier = probabilities[each, answers[places]]
    order = np.argsort(probabilities[each, fit.given[places]] - likelier, kind="stable")
    return [
        Suspect(
            row=int(fit.positions[places[found]]),
            given=fit.labels[fit.given[places[found]]],
            likelier=fit.labels[answers[places[found]]],
            probability=round(float(np.exp(likelier[found])), 4),
        )
        for found in order[:_SUSPECTS]
    ]


def _log_probabilities(fit: CrossFit) -> "Numbers":
    """Scores (N, K) as log-probabilities, at the temperature that suits the labels best.

    Naive Bayes is far too sure of itself; one temperature is Guo et al.'s remedy (arXiv
    1706.04599), here chosen of 25 on at most 2,000 rows spread over all.
    """
    import numpy as np
    from scipy.special import log_softmax

    step = -(-len(fit.given) // _TEMPERATURE_ROWS)
    scores, given = fit.scores[::step], fit.given[::step]
    each = np.arange(len(given))
    temperatures = np.geomspace(0.02, 5, 25)
    losses = [
        -log_softmax(scores / temperature, axis=1)[each, given].mean()
        for temperature in temperatures
    ]
    best = temperatures[int(np.argmin(losses))]
    scaled: Numbers = log_softmax(fit.scores / best, axis=1)
    return scaled
