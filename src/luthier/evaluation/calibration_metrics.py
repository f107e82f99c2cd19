"""Whether a label's probability is how often it is right.

The confidence of a row is the probability of the label that is answered, as the model gives it:
that it writes this label and stops. It is not divided by the sum over the labels, for those that
cannot be the likeliest are ruled out before their probability is known. What the known labels
leave of 1 is the remainder: labels ruled out, and all that is no label.
"""

import math
from typing import Any

from luthier.evaluation.registry import Answered, metric

_BINS = 10  # of equal width


def _confidences(answered: Answered) -> list[tuple[float, bool, float]]:
    """Confidence, whether it is right, and the remainder, of rows with label probabilities."""
    found = []
    for answer in answered.answers:
        known = [one for one in answer.label_log_probability or () if one is not None]
        if known:
            rest = 1 - sum(map(math.exp, known))
            found.append((min(1.0, math.exp(max(known))), answer.correct, max(0.0, rest)))
    return found


@metric("classification", is_score=False)
def expected_calibration_error(answered: Answered) -> float | None:
    """Mean distance of confidence and accuracy over 10 bins of equal width, by their rows.

    Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3. None where the system
    gives no label probabilities.
    """
    found = reliability(answered)
    if found is None:
        return None
    gaps = [one["rows"] * abs(one["accuracy"] - one["confidence"]) for one in found["bins"]]
    return float(sum(gaps) / found["rows"])


@metric("classification", is_score=False)
def brier_score(answered: Answered) -> float | None:
    """Mean squared distance of the confidence from 1 where it is right, from 0 where not.

    Brier 1950, of the answered label alone: other labels' probabilities may not be known. None
    where the system gives no label probabilities.
    """
    rows = _confidences(answered)
    if not rows:
        return None
    return sum((confidence - right) ** 2 for confidence, right, _ in rows) / len(rows)


@metric("classification", is_score=False)
def reliability(answered: Answered) -> dict[str, Any] | None:
    """Of each bin of confidences that has rows: its ends, rows, mean confidence and accuracy.

    `mean_remainder` is the mean probability that is left when all known labels are taken off.
    """
    rows = _confidences(answered)
    if not rows:
        return None
    bins: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right, _ in rows:
        bins.setdefault(min(_BINS - 1, int(confidence * _BINS)), []).append((confidence, right))
    return {
        "rows": len(rows),
        "mean_confidence": sum(one[0] for one in rows) / len(rows),
        "mean_remainder": sum(one[2] for one in rows) / len(rows),
        "bins": [
            {
                "low": place / _BINS,
                "high": (place + 1) / _BINS,
                "rows": len(inside),
                "confidence": sum(one[0] for one in inside) / len(inside),
                "accuracy": sum(one[1] for one in inside) / len(inside),
            }
            for place, inside in sorted(bins.items())
        ],
    }
