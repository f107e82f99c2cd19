"""The rules of shipping on made-up answers, and what a class' change is."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from luthier.evaluation.acceptance import Served, accept_served
from luthier.evaluation.answers import Answer
from luthier.evaluation.class_changes import class_changes
from luthier.evaluation.metrics import Answered, measure
from luthier.evaluation.power import two_digits
from luthier.evaluation.shipping import (
    Measured,
    Rule,
    ShipSection,
    against,
    judge_rules,
    read_verdict,
    ship_gate,
    weigh,
)
from luthier.evaluation.speed import Percentiles, Speed
from luthier.evaluation.statistics import compare, paired_interval, rows_to_rule_out
from luthier.gates import check

LABELS = ("ant", "bee", "cat")


def answers(predicted: list[str | None], expected: list[str], **changes: Any) -> list[Answer]:
    fields = {
        "system": "x/generation",
        "stop_reason": "stop",
        "label_log_probability": None,
        "reference_log_probability": None,
        "reference_tokens": None,
    } | changes
    return [
        Answer(
            id=f"row{n}",
            expected=wanted,
            answer=said or "",
            predicted=said,
            correct=said == wanted,
            **fields,
        )
        for n, (said, wanted) in enumerate(zip(predicted, expected, strict=True))
    ]


def judged(
    found: list[Answer], section: ShipSection | None = None, **more: Any
) -> dict[str, Rule]:
    measured = Measured(
        answers=found,
        system=measure(Answered(found, LABELS, 7), "classification"),
        labels=LABELS,
        alpha=0.05,
        seed=7,
        **more,
    )
    return {rule.id: rule for rule in judge_rules(section or ShipSection(), measured)}


EXPECTED = [LABELS[n % 3] for n in range(120)]
NOBODY_BEE = ["ant" if one == "bee" else one for one in EXPECTED]


def test_f1_of_each_class_is_scikit_learns() -> None:
    draw = np.random.default_rng(3)
    old = [str(one) for one in draw.choice(LABELS, 120)]
    changes = class_changes(
        answers(old, EXPECTED), answers(NOBODY_BEE, EXPECTED), LABELS, alpha=0.05, seed=7
    )
    wanted_old = f1_score(EXPECTED, old, labels=LABELS, average=None)
    wanted_new = f1_score(EXPECTED, NOBODY_BEE, labels=LABELS, average=None, zero_division=0)
    assert [one.label for one in changes] == list(LABELS)
    assert [one.old_f1 for one in changes] == pytest.approx(wanted_old.tolist())
    assert [one.new_f1 for one in changes] == pytest.approx(wanted_new.tolist())
    for one in changes:
        assert one.low <= one.new_f1 - one.old_f1 <= one.high
        assert one.rows == 40


def test_a_class_that_no_row_expects_is_no_class() -> None:
    only = [one for one in EXPECTED if one != "cat"]
    changes = class_changes(answers(only, only), answers(only, only), LABELS, alpha=0.05, seed=7)
    assert [one.label for one in changes] == ["ant", "bee"]


def test_the_level_allows_for_many_classes() -> None:
    """Two equally good systems, 14 classes, 60 tries: false alarms are rare."""
    draw, alarms = np.random.default_rng(5), 0
    labels = [f"class {n}" for n in range(14)]
    for _ in range(60):
        expected = [str(one) for one in draw.choice(labels, 280)]
        systems = [
            answers(
                [
                    one if draw.random() < 0.7 else str(other)
                    for one, other in zip(expected, draw.choice(labels, 280), strict=True)
                ],
                expected,
            )
            for _ in range(2)
        ]
        changes = class_changes(*systems, labels, alpha=0.05, seed=7)
        alarms += any(one.high < 0 for one in changes)
    assert alarms <= 8


def test_a_destroyed_class_breaks_two_rules() -> None:
    rules = judged(answers(NOBODY_BEE, EXPECTED), old=answers(EXPECTED, EXPECTED))
    assert rules["classes-kept"].held == "broken"
    assert rules["classes-kept"].said == "least recall 20 %; below it: bee 0 of 40"
    assert rules["classes-not-worse"].held == "broken"
    assert "bee 1.00 to 0.00" in rules["classes-not-worse"].said


def test_a_class_with_few_rows_cannot_be_told() -> None:
    expected = [*EXPECTED[:60], "cat"]
    few = [one for one in expected if one != "bee"] + ["bee"] * 3
    rules = judged(answers([one if one != "bee" else "ant" for one in few], few))
    assert rules["classes-kept"].held == "cannot tell"
    assert "bee 0 of 3" in rules["classes-kept"].said


def test_refusals_and_cut_off_answers_are_counted() -> None:
    found = answers(["ant"] * 100, ["ant"] * 100)
    found[3:8] = answers(["I'm sorry, but I can't help with that."] * 5, ["ant"] * 5)
    rules = judged(found)
    assert rules["refusals"].held == "broken"
    assert rules["refusals"].said == "5 of 100 answers refused, at most 2.0 %"
    cut = answers(["ant"] * 2, ["ant"] * 2, stop_reason="length")
    assert judged([*cut, *found])["answers-end"].said == "2 of 102 answers cut off, at most 1.0 %"


def test_a_rule_that_is_null_is_none() -> None:
    section = ShipSection(
        min_class_recall=None, max_class_drop=None, max_cut_off=None, max_refused=None
    )
    assert judged(answers(EXPECTED, EXPECTED), section) == {}


def test_what_the_rules_come_to() -> None:
    holds, unsure = Rule("a", "holds", "fine"), Rule("b", "cannot tell", "who knows")
    broken = Rule("c", "broken", "bad")
    assert weigh([holds]).word == "ship"
    assert weigh([holds, unsure]).word == "cannot tell"
    verdict = weigh([unsure, broken, holds])
    assert verdict.word == "do not ship"
    assert verdict.reasons == ["c: bad", "b: who knows"]
    assert read_verdict(verdict.as_json()) == verdict
    assert ship_gate(verdict).status == "fail"
    assert ship_gate(weigh([holds])).status == "pass"


def test_a_gate_of_retention_is_a_rule() -> None:
    gate = check("retention", 0.2, "<=", 0.05, "nats")
    assert judged(answers(EXPECTED, EXPECTED), general=[gate])["retention"].held == "broken"


SPEED = Speed(8, Percentiles(0.1, 0.2), Percentiles(0.3, 0.9), 10.0, None, None, 20.0, 3.0)


def accepted(found: list[Answer], **limits: Any) -> list[Rule]:
    served = [Served("q8_0/generation", found, SPEED)]
    options = {"max_drop": 0.02, "max_p95_seconds": None, "alpha": 0.05} | limits
    return accept_served(served, answers(EXPECTED, EXPECTED), **options).rules


def test_what_cannot_be_told_says_how_many_rows_would_show_it() -> None:
    """One row gained and one lost of 200: the interval is 2.3 points wide at either side."""
    test = compare([True, False] + [True] * 198, [False, True] + [True] * 198, alpha=0.05)
    rule = against("as-tuned", "the tuned model", test, 0.02)
    assert rule.held == "cannot tell"
    needed = rows_to_rule_out(test, 0.02)
    assert needed is not None
    assert f"which about {two_digits(needed)} rows would show" in rule.said
    low, _ = paired_interval(3, 3, 600)
    assert low > -0.02
    assert 200 < needed < 600
    wide = compare([True, False] * 100, [False, True] * 100, alpha=0.05)
    assert rows_to_rule_out(wide, 0.02) == pytest.approx(1.96**2 / 0.02**2, rel=0.02)
    worse = compare([False] * 10 + [True] * 190, [True] * 200, alpha=0.05)
    assert rows_to_rule_out(worse, 0.02) is None


def test_what_is_served_may_not_be_worse() -> None:
    assert accepted(answers(EXPECTED, EXPECTED))[0].held == "holds"
    assert accepted(answers(NOBODY_BEE, EXPECTED))[0].held == "broken"
    one_wrong = ["bee", *EXPECTED[1:]]
    assert accepted(answers(one_wrong, EXPECTED))[0].held == "cannot tell"
    assert accepted(answers(one_wrong, EXPECTED), max_drop=0.1)[0].held == "holds"


def test_what_is_served_may_not_be_slow() -> None:
    same = answers(EXPECTED, EXPECTED)
    assert accepted(same, max_p95_seconds=1.0)[1].held == "holds"
    slow = accepted(same, max_p95_seconds=0.5)[1]
    assert (slow.id, slow.held) == ("fast-enough", "broken")
    assert "within 0.900 s, limit 0.5" in slow.said
