"""The win rate by a judge that is asked in both orders."""

import sys
from pathlib import Path

import pytest

from luthier.errors import DataError
from luthier.evaluation.judging import JudgeSection
from luthier.evaluation.rows import AskedRow
from luthier.evaluation.win_rate import describe_win_rate, win_rate
from test_evaluation_shipping import answers

LONGER = "print(json.dumps([len(answer) for answer in asked['answers']]))"
FIRST = "print(json.dumps([1.0, 0.0]))"
PROGRAM = "import json, sys\nfor line in sys.stdin:\n    asked = json.loads(line)\n    "


def judge(says: str) -> JudgeSection:
    return JudgeSection(command=[sys.executable, "-c", PROGRAM + says])


def rows(count: int) -> list[AskedRow]:
    messages = ({"role": "user", "content": "Say it."}, {"role": "assistant", "content": "x"})
    return [AskedRow(f"row{n}", messages, "x", None, (), ()) for n in range(count)]


NEW = answers(["a long answer"] * 6 + ["no"] * 3 + ["same "] * 2, ["x"] * 11)
OLD = answers(["short"] * 6 + ["longer"] * 3 + ["same"] * 2, ["x"] * 11)


def test_wins_losses_and_rows_that_need_no_judge() -> None:
    found = win_rate(judge(LONGER), rows(11), NEW, OLD)
    assert (found.won, found.lost, found.same_text, found.inconsistent) == (6, 3, 2, 0)
    assert found.difference == pytest.approx(3 / 11)
    assert found.interval[0] < 0 < found.interval[1]
    assert found.p_value == pytest.approx(0.5078, abs=1e-4)  # binomial test of 6 of 9
    assert "6 of 11 rows won, 3 lost, 0 by their order alone" in describe_win_rate(vars(found))


def test_a_judge_that_prefers_the_first_answer_decides_nothing() -> None:
    found = win_rate(judge(FIRST), rows(11), NEW, OLD)
    assert (found.won, found.lost, found.inconsistent) == (0, 0, 9)
    assert found.difference == 0


def test_the_same_answers_ask_nobody(tmp_path: Path) -> None:
    section = JudgeSection(command=[str(tmp_path / "no-such-judge")])
    assert win_rate(section, rows(11), OLD, OLD).same_text == 11
    with pytest.raises(DataError, match=r"evaluate\.judge\.command: .* cannot be started"):
        win_rate(section, rows(11), NEW, OLD)
