"""What a cheap model says of every train row without having seen it, and how sure it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.data import classical

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Places = NDArray[np.int64]

SURER = 0.5  # share of the rows, the surest of each answer, in which label errors are looked for

_FOLDS = 5
_FEWEST_ROWS = 200
_FEWEST_ROWS_A_LABEL = 40  # with 20, clean data looks 8 % wrong: the model knows too little
_UNKNOWN = -1e9  # score of a label that a fold has no row of


@dataclass(frozen=True)
class CrossFit:
    """Answers to train rows by models that never saw them, and one model of all rows.

    N rows, K labels: `positions` (N) in the texts given, `given` (N) numbers of `labels`,
    `scores` (N, K) log-probabilities up to a factor.
    """

    labels: list[str]
    positions: "Places"
    given: "Places"
    scores: "Numbers"
    vectoriser: Any
    model: Any

    def ask(self, texts: Sequence[str]) -> "Numbers":
        """Scores (M, K) of texts that are not among the train rows."""
        import numpy as np

        if not texts:
            return np.empty((0, len(self.labels)))  # scikit-learn refuses no rows
        return _scores(self.model, self.vectoriser.transform(texts), len(self.labels))


def why_not(texts: Sequence[str], labels: Sequence[str], seed: int) -> str | None:
    """Why nothing can be said about these labels, for the report; None when something can."""
    kinds = len(set(labels))
    if kinds < 2:
        return "there are no two labels"
    positions = classical.within_budget(texts, seed)
    needed = max(_FEWEST_ROWS, _FEWEST_ROWS_A_LABEL * kinds)
    if len(positions) < needed:
        return f"{len(positions)} rows are too few to judge {kinds} labels; it takes {needed}"
    if not any(texts[place].strip() for place in positions):
        return "every text is blank"
    return None


def cross_fit(texts: Sequence[str], labels: Sequence[str], seed: int) -> CrossFit:
    """Answer every train row (a sample, beyond `classical.within_budget`) out of fold.

    The features are counted once over all rows; that looks at no label.

    Raises:
        ValueError: `why_not` has a reason (a bug of the caller).
    """
    import numpy as np

    reason = why_not(texts, labels, seed)
    if reason is not None:
        raise ValueError(reason)
    positions = classical.within_budget(texts, seed)
    names = sorted(set(labels))
    number = {name: place for place, name in enumerate(names)}
    given = np.array([number[labels[place]] for place in positions], dtype=np.int64)
    vectoriser = classical.vectoriser(len(names))
    features = vectoriser.fit_transform([texts[place] for place in positions]).tocsr()
    scores = np.zeros((len(given), len(names)))
    fold = _folds(given, seed)
    for number_of_fold in range(_FOLDS):
        held_out = fold == number_of_fold
        model = classical.naive_bayes().fit(features[~held_out], given[~held_out])
        scores[held_out] = _scores(model, features[held_out], len(names))
    model = classical.naive_bayes().fit(features, given)
    return CrossFit(names, positions, given, scores, vectoriser, model)


def ranked(scores: "Numbers") -> tuple["Places", "Numbers"]:
    """The answers to N rows, and each one's rank among the rows given the same answer.

    Ranks go from 0, the surest, to 1. Within one answer, as classes differ in how sure it is.
    """
    import numpy as np

    rows = len(scores)
    answers = scores.argmax(axis=1)
    best = np.partition(scores, -2, axis=1)
    margin = best[:, -1] - best[:, -2]
    order = np.lexsort((np.arange(rows), -margin, answers))
    in_order = answers[order]
    first = np.searchsorted(in_order, in_order)
    ranks = np.empty(rows)
    ranks[order] = (np.arange(rows) - first + 0.5) / np.bincount(answers)[in_order]
    return answers, ranks


def _folds(given: "Places", seed: int) -> "Places":
    """A fold for each row, every label spread evenly; not an error where a label has one row."""
    import numpy as np

    order = np.lexsort((np.random.default_rng(seed).random(len(given)), given))
    fold = np.empty(len(given), dtype=np.int64)
    fold[order] = np.arange(len(given)) % _FOLDS
    return fold


def _scores(model: Any, features: Any, labels: int) -> "Numbers":
    """Scores of all labels; a fold may lack one."""
    import numpy as np

    scores = np.full((features.shape[0], labels), _UNKNOWN)
    scores[:, model.classes_] = model.predict_joint_log_proba(features)
    return scores
