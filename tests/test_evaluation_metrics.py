"""Labels read out of answers, metrics against values worked out by hand, the target rule."""

import math
from typing import Any

import pytest

from luthier.errors import DataError
from luthier.evaluation.answers import Answer
from luthier.evaluation.labels import read_exact, read_lenient
from luthier.evaluation.metrics import METRICS, Answered, macro_f1_change, measure
from luthier.evaluation.statistics import wilson_interval
from luthier.evaluation.target import judge_target

LABELS = ["net", "science", "web"]


def answered(pairs: list[tuple[str, str | None]], labels: list[str] = LABELS) -> Answered:
    return Answered([answer(expected, predicted) for expected, predicted in pairs], labels, 7)


def answer(
    expected: str, predicted: str | None, log_p: float | None = None, tokens: int | None = None
) -> Answer:
    return Answer(
        system="s",
        id=expected,
        expected=expected,
        answer=predicted or "something else",
        predicted=predicted,
        correct=expected == predicted,
        stop_reason="stop",
        label_log_probability=None,
        reference_log_probability=log_p,
        reference_tokens=tokens,
    )


@pytest.mark.parametrize(
    ("text", "exact", "lenient"),
    [
        ("web", "web", "web"),
        (" Web\n", "web", "web"),
        ("The section is: Science.", None, "science"),
        ("network tools", None, None),
        ("net or web?", None, "net"),
        ("a web of nets", None, "web"),
        ("", None, None),
    ],
)
def test_reading_a_label(text: str, exact: str | None, lenient: str | None) -> None:
    assert read_exact(text, LABELS) == exact
    assert read_lenient(text, LABELS) == lenient


def test_of_labels_at_one_place_the_longer_is_read() -> None:
    assert read_lenient("it is new york", ["new", "new york"]) == "new york"
    assert read_exact("Net", ["net", "Net"]) == "Net"


# expected net: 2 net, 1 web, 1 other; science: 1 science; web: 1 web, 1 net
PAIRS: list[tuple[str, str | None]] = [
    ("net", "net"),
    ("net", "net"),
    ("net", "web"),
    ("net", None),
    ("science", "science"),
    ("web", "web"),
    ("web", "net"),
]


def test_classification_metrics_by_hand() -> None:
    found = measure(answered(PAIRS), "classification")
    metrics: dict[str, Any] = found["metrics"]
    assert metrics["accuracy"] == pytest.approx(4 / 7)
    assert metrics["confusion"] == {
        "rows": LABELS,
        "columns": [*LABELS, "other"],
        "counts": [[2, 0, 1, 1], [0, 1, 0, 0], [1, 0, 1, 0]],
    }
    net = metrics["per_class"]["net"]
    assert net["precision"] == pytest.approx(2 / 3)
    assert net["recall"] == pytest.approx(1 / 2)
    assert net["f1"] == pytest.approx(4 / 7)
    assert net["rows"] == 4
    assert metrics["per_class"]["web"]["f1"] == pytest.approx(1 / 2)
    assert metrics["macro_f1"] == pytest.approx((4 / 7 + 1 + 1 / 2) / 3)
    assert found["intervals"]["accuracy"] == list(wilson_interval(4, 7))
    low, high = found["intervals"]["macro_f1"]
    assert low < metrics["macro_f1"] < high


def test_a_class_without_rows_is_left_out_of_macro_f1() -> None:
    metrics = measure(answered([("net", "net"), ("web", "science")]), "classification")["metrics"]
    assert metrics["macro_f1"] == pytest.approx((1 + 0) / 2)
    assert metrics["per_class"]["science"] == {"precision": 0, "recall": 0, "f1": 0, "rows": 0}


def test_intervals_are_the_same_every_time() -> None:
    assert measure(answered(PAIRS), "classification") == measure(answered(PAIRS), "classification")


def test_free_text_metrics() -> None:
    rows = [answer("4 5", "4 5", -2.0, 4), answer("6", "7", -1.0, 2)]
    found = measure(Answered(rows, [], 7), "chat")
    assert found["metrics"]["exact_match"] == 0.5
    assert found["metrics"]["reference_nats_per_token"] == pytest.approx(0.5)
    assert "accuracy" not in found["intervals"]


def test_every_metric_says_what_it_is() -> None:
    for found in METRICS.values():
        assert found.measure.__doc__, found.name
        assert found.tasks


def summary_of(successes: int, rows: int) -> dict[str, Any]:
    interval = list(wilson_interval(successes, rows))
    system = {"metrics": {"accuracy": successes / rows}, "intervals": {"accuracy": interval}}
    return {"task": "classification", "rows": rows, "best_system": "s", "systems": {"s": system}}


@pytest.mark.parametrize(
    ("successes", "rows", "verdict"),
    [
        (430, 600, "improve-prompt"),
        (200, 600, "fine-tune"),
        (390, 600, "undecided"),
        (40, 60, "too-few-rows"),
        (75, 110, "too-few-rows"),  # 68 %, but the interval of the gap is 2 to 20 points
        (560, 600, "improve-prompt"),  # beyond the target
    ],
)
def test_the_rule_of_10_and_20_points(successes: int, rows: int, verdict: str) -> None:
    found = judge_target(summary_of(successes, rows), "accuracy", 0.8)
    assert found.verdict == verdict
    assert found.gap == pytest.approx(0.8 - successes / rows)
    low, high = found.gap_interval
    assert low < found.gap < high


def test_a_target_that_the_task_does_not_measure() -> None:
    with pytest.raises(DataError, match=r"target.metric is exact_match; task classification has"):
        judge_target(summary_of(3, 6), "exact_match", 0.8)


def test_macro_f1_s_change_is_paired() -> None:
    rows: list[tuple[str, str | None]] = [("web", "web"), ("net", "web"), ("net", "net")] * 40
    better: list[tuple[str, str | None]] = [
        *rows[:-30],
        *[(label, label) for label, _ in rows[-30:]],
    ]
    same = macro_f1_change(answered(rows), answered(rows))
    assert same["difference"] == 0
    assert -0.02 < same["interval"][0] < 0 < same["interval"][1] < 0.02
    change = macro_f1_change(answered(rows), answered(better))
    assert change["difference"] == pytest.approx(change["new"] - change["old"])
    low, high = change["interval"]
    assert 0 < low < change["difference"] < high
    assert high - low < change["new_interval"][1] - change["new_interval"][0]


def test_macro_f1_interval_covers_what_a_binomial_would() -> None:
    pairs: list[tuple[str, str | None]] = [("net", "net"), ("net", "web")] * 100
    low, high = measure(answered(pairs), "classification")["intervals"]["macro_f1"]
    # one class with rows: F1 = 2 r / (1 + r) for recall r, precision 1
    recall_low, recall_high = (0.5 + sign * 1.96 * math.sqrt(0.25 / 200) for sign in (-1, 1))
    assert low == pytest.approx(2 * recall_low / (1 + recall_low), abs=0.02)
    assert high == pytest.approx(2 * recall_high / (1 + recall_high), abs=0.02)
