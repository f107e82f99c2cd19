"""Examples chosen for each row: the train rows whose text is nearest by TF-IDF."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.evaluation.rows import AskedRow

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_WORDS = r"(?u)\b\w+\b"  # one-letter words too: "a", "c"


class NearestExamples:
    """`count` rows of `rows` for any question, the nearest one last, just before the question.

    Cosine of TF-IDF vectors of words and pairs of words (scikit-learn's); of equally near rows the
    first. `count` is at most the number of rows.
    """

    def __init__(self, rows: Sequence[AskedRow], count: int) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._rows, self._count = rows, count
        self._vectorizer = TfidfVectorizer(
            ngram_range=(1, 2), token_pattern=_WORDS, sublinear_tf=True
        )
        self._vectors: csr_matrix = self._vectorizer.fit_transform(row.question for row in rows)

    def examples_for(self, row: AskedRow) -> tuple[AskedRow, ...]:
        """The examples of one question."""
        import numpy as np

        nearness = (self._vectors @ self._vectorizer.transform([row.question]).T).toarray()
        order = np.argsort(-nearness[:, 0], kind="stable")[: self._count]
        return tuple(self._rows[place] for place in reversed(order.tolist()))
