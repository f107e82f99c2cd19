"""The model that costs nothing to serve: TF-IDF and a linear classifier on the same train rows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from luthier.data.classical import predict
from luthier.evaluation.answers import Answer, labelled
from luthier.evaluation.rows import AskedRow
from luthier.evaluation.shipping import Held, Rule, said_difference
from luthier.evaluation.statistics import PairedTest
from luthier.evaluation.versus import LINEAR, compare_rows

Wanted = Literal["not-worse", "better"]


def linear_answers(train: Sequence[AskedRow], rows: Sequence[AskedRow], seed: int) -> list[Answer]:
    """A label for each row, as `prepare` judges a classical model; the same seed, the same
    answers."""
    labels = predict(
        [row.question for row in train],
        [row.expected for row in train],
        [row.question for row in rows],
        seed,
    )
    return [labelled(LINEAR, row, label) for row, label in zip(rows, labels, strict=True)]


def compare_linear(
    new: Sequence[Answer], linear: Sequence[Answer], *, wanted: Wanted, alpha: float
) -> tuple[dict[str, Any], Rule]:
    """The part `linear` of evaluation.json, and the rule.

    `not-worse` is broken only where the paired test says that the linear model is better.
    """
    test = compare_rows(new, linear, old_name="The linear model", alpha=alpha)
    held: Mapping[str, Held] = {
        "better": "holds",
        "worse": "broken",
        "cannot tell": "holds" if wanted == "not-worse" else "cannot tell",
    }
    rule = f"{wanted}-than-linear"
    return asdict(test), Rule(rule, held[test.verdict], _said(test))


def _said(test: PairedTest) -> str:
    unsure = "; these rows cannot tell which is better" if test.verdict == "cannot tell" else ""
    return f"{said_difference(test, 'TF-IDF and a linear model')}{unsure}"
