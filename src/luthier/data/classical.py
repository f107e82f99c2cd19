"""What a cheap classical model reaches: TF-IDF and a linear model, before anybody rents a GPU."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.data.rows import Split
from luthier.data.summary import Classical

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Positions = NDArray[np.int64]

# Bounds on the work of one core, whatever the size of the data (measured 2026-11-23).
# Counting words, pairs of words and character n-grams takes 1.5 to 2 us a character.
LEARNED_CHARACTERS = 1_500_000
JUDGED_CHARACTERS = 400_000
_ROWS = 50_000
_TEXT_CHARACTERS = 1_000  # of each text: a class shows early
_TERMS_BY_LABELS = 2_000_000  # half of the numbers in a model's dense table of 32 MB
_LINEAR_ROWS_BY_LABELS = 250_000  # beyond, the support vector machine takes over 5 s
_SMOOTHING = 0.3  # of naive Bayes: 0.83 on package_sections, as the support vector machine

Texts = Sequence[str]


def measure(
    train: tuple[Texts, Sequence[str]],
    test: tuple[Texts, Sequence[str]],
    *,
    target: float | None,
    seed: int,
    split: Split,
) -> Classical:
    """Train on (texts, labels) and judge on the others; the same seed gives the same figures.

    Train rows beyond 50,000 or 1.5 million characters and test rows beyond 400,000 characters
    are sampled, so that it takes some 5 s of one core at most. On data/package_sections: accuracy
    0.83, macro F1 0.80 in 1.2 s (2026-11-23; naive Bayes on words 0.77, always saying the largest
    class of train 0.17).

    Raises:
        ValueError: train or test is empty (a bug of the caller).
    """
    from sklearn.metrics import accuracy_score, f1_score

    if not train[0] or not test[0]:
        raise ValueError("a classical model needs rows to learn from and rows to be judged on")
    test = _picked(test, within_budget(test[0], seed, JUDGED_CHARACTERS))
    answers = predict(*train, test[0], seed)
    truth = list(test[1])
    largest = _largest(train[1])
    accuracy = float(accuracy_score(truth, answers))
    return Classical(
        split=split,
        rows=len(truth),
        accuracy=accuracy,
        macro_f1=float(f1_score(truth, answers, average="macro", zero_division=0)),
        majority=truth.count(largest) / len(truth),
        reaches_target=None if target is None else accuracy >= target,
    )


def predict(texts: Texts, labels: Sequence[str], asked: Texts, seed: int) -> list[str]:
    """A label for each text that is asked, by a model that learned from these texts, or from a
    sample of them; the largest class where there is nothing to learn from."""
    from sklearn.exceptions import ConvergenceWarning

    known, of = _picked((texts, labels), within_budget(texts, seed))
    kinds = set(of)
    if len(kinds) == 1 or not any(text.strip() for text in known):
        return [_largest(of)] * len(asked)
    found = vectoriser(len(kinds))
    features = found.fit_transform(known)
    model = _model(len(known) * len(kinds), seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 20 rounds are as good as 1,000
        model.fit(features, of)
    return [str(answer) for answer in model.predict(found.transform(asked))]


def within_budget(texts: Texts, seed: int, characters: int = LEARNED_CHARACTERS) -> "Positions":
    """Positions, in order, of the rows to look at: all, or a sample of so many characters."""
    import numpy as np

    lengths = np.fromiter((min(len(text), _TEXT_CHARACTERS) for text in texts), np.int64)
    if len(texts) <= _ROWS and lengths.sum() <= characters:
        return np.arange(len(texts))
    order = np.random.default_rng(seed).permutation(len(texts))[:_ROWS]
    fitting = np.searchsorted(np.cumsum(lengths[order]), characters, side="right")
    return np.sort(order[:fitting])


def vectoriser(label_count: int) -> Any:
    """Sparse TF-IDF of words, pairs of words and 3 and 4 characters within words.

    The characters give 0.83 instead of 0.80 on package_sections. A symbol is a word, so every
    text that is not blank has one.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    most = _TERMS_BY_LABELS // max(label_count, 1)
    return make_union(
        TfidfVectorizer(
            ngram_range=(1, 2),
            token_pattern=r"\w+|[^\w\s]",
            sublinear_tf=True,
            max_features=most,
            preprocessor=_beginning,
        ),
        TfidfVectorizer(
            analyzer="char_wb",
            ngram_range=(3, 4),
            sublinear_tf=True,
            max_features=most,
            preprocessor=_beginning,
        ),
    )


def naive_bayes() -> Any:
    """Complement naive Bayes (Rennie et al. 2003): one pass, for any number of labels."""
    from sklearn.naive_bayes import ComplementNB

    return ComplementNB(alpha=_SMOOTHING)


def _model(rows_by_labels: int, seed: int) -> Any:
    """The better of two; the support vector machine's time grows with rows times labels."""
    from sklearn.svm import LinearSVC

    if rows_by_labels > _LINEAR_ROWS_BY_LABELS:
        return naive_bayes()
    return LinearSVC(C=0.5, max_iter=20, random_state=seed)


def _picked(
    rows: tuple[Texts, Sequence[str]], positions: "Positions"
) -> tuple[list[str], list[str]]:
    texts, labels = rows
    return [texts[place] for place in positions], [labels[place] for place in positions]


def _largest(labels: Sequence[str]) -> str:
    """The most frequent label, of several the first by name."""
    counts: dict[str, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    return min(counts, key=lambda label: (-counts[label], label))


def _beginning(text: str) -> str:
    return text[:_TEXT_CHARACTERS].lower()
