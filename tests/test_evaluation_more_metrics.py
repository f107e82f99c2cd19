"""Calibration, extraction and text metrics against scikit-learn, sacrebleu and values by hand."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sklearn.metrics import brier_score_loss, f1_score

from luthier.errors import DataError
from luthier.evaluation.answers import Answer
from luthier.evaluation.metrics import Answered, measure, nats_change
from luthier.evaluation.statistics import mean_share_interval, ratio_interval, wilson_interval
from luthier.evaluation.target import Target, judge_target
from luthier.evaluation.text_metrics import rouge_l_f1

LABELS = ["net", "science", "web"]


def answer(expected: str, said: str, predicted: str | None = None) -> Answer:
    right = expected == said
    return Answer("s", "r", expected, said, predicted or said, right, "stop", None, None, None)


def scored(expected: str, shares: list[float | None]) -> Answer:
    """An answer by likelihood, with these probabilities of the labels."""
    logs = [None if share is None else math.log(share) for share in shares]
    best = max(range(3), key=lambda place: shares[place] or 0)
    return replace(answer(expected, LABELS[best]), label_log_probability=logs)


def measured(answers: list[Answer], task: Any, **more: Any) -> dict[str, Any]:
    found = measure(Answered(answers, LABELS if task == "classification" else [], 7, **more), task)
    json.dumps(found, allow_nan=False)
    return found


def test_micro_f1_is_scikit_learns() -> None:
    pairs = [("net", "net"), ("net", "web"), ("web", "web"), ("web", "?"), ("science", "??")] * 8
    found = measured([answer(expected, said) for expected, said in pairs], "classification")
    expected = f1_score(*zip(*pairs, strict=True), labels=LABELS, average="micro")
    assert found["metrics"]["micro_f1"] == pytest.approx(expected)
    low, high = found["intervals"]["micro_f1"]
    assert low < expected < high


def test_micro_f1_is_the_accuracy_where_every_answer_is_a_label() -> None:
    pairs = [("net", "net"), ("net", "web"), ("web", "web")] * 20
    found = measured([answer(expected, said) for expected, said in pairs], "classification")
    assert found["metrics"]["micro_f1"] == found["metrics"]["accuracy"]
    accuracy = found["intervals"]["accuracy"]
    assert found["intervals"]["micro_f1"] == pytest.approx(accuracy, abs=0.002)


CONFIDENT = [
    scored("net", [0.95, None, 0.03]),
    scored("net", [0.91, 0.05, None]),
    scored("net", [None, None, 0.97]),
    scored("web", [0.3, 0.1, 0.35]),
    scored("web", [0.32, None, 0.3]),
    scored("science", [None, 1.0, None]),
]


def test_calibration_by_hand_and_by_scikit_learn() -> None:
    metrics = measured(CONFIDENT, "classification")["metrics"]
    confidences = [0.95, 0.91, 0.97, 0.35, 0.32, 1.0]
    right = [1, 1, 0, 1, 0, 1]
    # bin 0.3 to 0.4: 2 rows, 0.335 against 0.5; bin 0.9 to 1: 4 rows, 0.9575 against 0.75
    expected = (2 * 0.165 + 4 * 0.2075) / 6
    assert metrics["expected_calibration_error"] == pytest.approx(expected)
    assert metrics["brier_score"] == pytest.approx(brier_score_loss(right, confidences))
    reliability = metrics["reliability"]
    assert [(one["low"], one["rows"]) for one in reliability["bins"]] == [(0.3, 2), (0.9, 4)]
    assert reliability["rows"] == 6
    assert reliability["mean_remainder"] == pytest.approx(
        (0.02 + 0.04 + 0.03 + 0.25 + 0.38 + 0) / 6
    )


def test_free_answers_have_no_calibration() -> None:
    metrics = measured([answer("net", "net")], "classification")["metrics"]
    assert metrics["expected_calibration_error"] is None
    assert metrics["brier_score"] is None
    assert metrics["reliability"] is None


SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"intent": {"enum": ["on", "off"]}, "slots": {"type": "object"}},
        "required": ["intent"],
        "additionalProperties": False,
    }
)
ON = '{"intent": "on", "slots": {"room": "hall", "level": 3}}'
EXTRACTED = [
    answer(ON, ON),
    answer(ON, '{"slots": {"level": 3.0, "room": "hall"}, "intent": "on"}'),  # the same
    answer(ON, '{"intent": "on", "slots": {"room": "attic"}}'),  # 1 of 2, of 3
    answer(ON, '{"intent": "dim", "slots": {"level": true}}'),  # no schema, nothing right
    answer(ON, '{"intent": "on"'),
    answer('{"intent": "off"}', '{"intent": "off", "intent": "off"}'),
    answer('{"intent": "off", "slots": {"a": [1, 2]}}', '{"intent": "off", "slots": {"a": [1]}}'),
]


def test_extraction_by_hand() -> None:
    found = measured(EXTRACTED, "extraction", json_schema=SCHEMA)
    metrics, intervals = found["metrics"], found["intervals"]
    assert metrics["valid_json"] == pytest.approx(5 / 7)
    assert intervals["valid_json"] == list(wilson_interval(5, 7))
    assert metrics["schema_valid"] == pytest.approx(4 / 7)
    assert metrics["same_json"] == pytest.approx(2 / 7)
    assert metrics["exact_match"] == pytest.approx(1 / 7)
    hits, said, wanted = 3 + 3 + 1 + 0 + 0 + 0 + 2, 3 + 3 + 2 + 2 + 0 + 0 + 2, 3 * 5 + 1 + 3
    assert metrics["field_precision"] == pytest.approx(hits / said)
    assert metrics["field_recall"] == pytest.approx(hits / wanted)
    assert metrics["field_f1"] == pytest.approx(2 * hits / (said + wanted))
    rows = [2.0 * hit for hit in (3, 3, 1, 0, 0, 0, 2)]
    expected = mean_share_interval(rows, [6, 6, 5, 5, 3, 1, 5])
    assert intervals["field_f1"] == pytest.approx(list(expected))


def test_without_a_schema_nothing_is_said_of_it() -> None:
    found = measured(EXTRACTED, "extraction")
    assert found["metrics"]["schema_valid"] is None
    assert "schema_valid" not in found["intervals"]


def test_no_json_at_all_has_no_precision() -> None:
    found = measured([answer(ON, "on")], "extraction")
    assert found["metrics"]["field_precision"] is None
    assert found["metrics"]["field_recall"] == 0


TEXTS = [
    ("the cat sat on mat", "the cat sat on the mat"),
    ("It is 5 o'clock, now!", "now it is 5 o'clock"),
    ("", "x y"),
    ("police killed the gunman in the street", "police killed the gunman in the street"),
]


def test_text_metrics_are_sacrebleus() -> None:
    found = measured([answer(expected, said) for said, expected in TEXTS], "chat")
    said, expected = map(list, zip(*TEXTS, strict=True))
    assert found["metrics"]["bleu"] == pytest.approx(
        BLEU().corpus_score(said, [expected]).score / 100
    )
    scores = [CHRF().sentence_score(a, [b]).score / 100 for a, b in TEXTS]
    assert found["metrics"]["chrf"] == pytest.approx(np.mean(scores))
    for name in ("bleu", "chrf", "rouge_l"):
        low, high = found["intervals"][name]
        assert 0 <= low < found["metrics"][name] < high <= 1


@pytest.mark.parametrize(
    ("said", "expected", "score"),  # by the package rouge-score 0.1.2
    [
        ("the cat sat on mat", "the cat sat on the mat", 0.9090909090909091),
        ("the gunman killed police", "Police killed the gunman.", 0.5),
        ("a x c y e z", "a b c d e f", 0.5),
        ("two", "one", 0.0),
        ("now it is 5 o'clock", "It is 5 o'clock, now!", 0.8333333333333334),
        ("", "one", 0.0),
    ],
)
def test_rouge_l(said: str, expected: str, score: float) -> None:
    assert rouge_l_f1(said, expected) == pytest.approx(score)
    assert rouge_l_f1("Это кот", "это кот") == 1


def likely(nats: float, tokens: int) -> Answer:
    return replace(answer("a", "a"), reference_log_probability=-nats, reference_tokens=tokens)


def test_perplexity_and_its_interval() -> None:
    rows = [likely(2.0, 4), likely(1.0, 2), likely(5.0, 4)]
    found = measured(rows, "chat")
    assert found["metrics"]["reference_nats_per_token"] == pytest.approx(0.8)
    assert found["metrics"]["perplexity"] == pytest.approx(math.exp(0.8))
    nats = ratio_interval([2, 1, 5], [4, 2, 4])
    assert nats is not None
    assert found["intervals"]["reference_nats_per_token"] == pytest.approx(list(nats))
    assert found["intervals"]["perplexity"] == pytest.approx([math.exp(end) for end in nats])
    assert measured([answer("a", "a")], "chat")["metrics"]["perplexity"] is None


def test_a_change_of_nats_is_paired() -> None:
    before = Answered([likely(2.0, 4), likely(30.0, 10), likely(5.0, 5)], [], 7)
    after = Answered([likely(1.6, 4), likely(29.0, 10), likely(4.4, 5)], [], 7)
    found = nats_change(before, after)
    assert found is not None
    assert found["difference"] == pytest.approx(-2 / 19)
    assert found["interval"][1] < 0  # though the rows themselves differ far more
    assert nats_change(before, Answered([answer("a", "a")], [], 7)) is None


def test_a_target_is_a_score_from_0_to_1() -> None:
    rows = [replace(likely(2.0, 4), id=f"{n}") for n in range(120)]
    system = measured(rows, "chat")
    summary = {"task": "chat", "rows": 120, "best_system": "s", "systems": {"s": system}}
    with pytest.raises(DataError, match="task chat has exact_match, chrf, rouge_l, bleu"):
        judge_target(summary, "perplexity", 0.8)


@pytest.mark.parametrize("name", ["exact_match", "same_json", "schema_valid", "field_f1"])
def test_a_target_of_an_extraction(name: str) -> None:
    said = '{"a": 1, "b": 2}'
    rows = [answer('{"a": 1}' if n % 2 else said, said) for n in range(200)]
    system = measure(Answered(rows, [], 7, json_schema='{"type": "object"}'), "extraction")
    summary = {"task": "extraction", "rows": 200, "best_system": "s", "systems": {"s": system}}
    target = Target.model_validate({"metric": name, "value": 0.95})
    found = judge_target(summary, target.metric, target.value)
    wanted = {"exact_match": 0.5, "same_json": 0.5, "schema_valid": 1.0, "field_f1": 6 / 7}
    assert found.value == pytest.approx(wanted[name])
    assert found.gap_interval[0] <= found.gap <= found.gap_interval[1]
