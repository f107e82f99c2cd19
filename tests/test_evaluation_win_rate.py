"""The win rate by a judge, a program or a model, that is asked in both orders."""

import json
import re
import sys
from pathlib import Path

import pytest

from conftest import smol_gguf
from endpoint_cases import FaultyProxy, answer, endpoint
from luthier.errors import DataError
from luthier.evaluation.judge_model import judge_prompts, read_scores
from luthier.evaluation.judging import JudgeSection
from luthier.evaluation.pair_rules import Drawn
from luthier.evaluation.rows import AskedRow
from luthier.evaluation.win_rate import describe_win_rate, win_rate
from luthier.serving.llama_server import LlamaServer
from luthier.store.artifact import Workspace
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


def test_wins_losses_and_rows_that_need_no_judge(tmp_path: Path) -> None:
    found = win_rate(judge(LONGER), rows(11), NEW, OLD, Workspace(tmp_path))
    assert (found.won, found.lost, found.same_text, found.inconsistent) == (6, 3, 2, 0)
    assert found.difference == pytest.approx(3 / 11)
    assert found.interval[0] < 0 < found.interval[1]
    assert found.p_value == pytest.approx(0.5078, abs=1e-4)  # binomial test of 6 of 9
    assert "6 of 11 rows won, 3 lost, 0 by their order alone" in describe_win_rate(vars(found))


def test_a_judge_that_prefers_the_first_answer_decides_nothing(tmp_path: Path) -> None:
    found = win_rate(judge(FIRST), rows(11), NEW, OLD, Workspace(tmp_path))
    assert (found.won, found.lost, found.inconsistent) == (0, 0, 9)
    assert found.difference == 0


def test_the_same_answers_ask_nobody(tmp_path: Path) -> None:
    section = JudgeSection(command=[str(tmp_path / "no-such-judge")])
    assert win_rate(section, rows(11), OLD, OLD, Workspace(tmp_path)).same_text == 11
    with pytest.raises(DataError, match=r"evaluate\.judge\.command: .* cannot be started"):
        win_rate(section, rows(11), NEW, OLD, Workspace(tmp_path))


def longer_wins(question: str, _time: int) -> str:
    """A model that thinks aloud and likes length; of `no` against `longer` it says nothing."""
    lengths = [len(text) for text in re.findall(r"<answer \d>\n(.*)\n</answer", question)]
    scores = f"Between [1, 10] and [3, 3, 3]? So:\n[{min(10, lengths[0])}, {min(10, lengths[1])}]"
    return json.dumps(answer("They are alike." if 2 in lengths else scores))


def model_judge(url: str, **changes: float) -> JudgeSection:
    one = endpoint(url, name="judge", concurrency=2)
    return JudgeSection.model_validate({"endpoint": one, "max_unread_fraction": 0.5} | changes)


def test_a_model_is_the_judge_and_its_replies_are_kept(tmp_path: Path) -> None:
    with FaultyProxy("http://127.0.0.1:9", longer_wins) as proxy:
        section = model_judge(proxy.url)
        found = win_rate(section, rows(11), NEW, OLD, Workspace(tmp_path))
        again = win_rate(section, rows(11), NEW, OLD, Workspace(tmp_path))
        assert found == again
        assert proxy.asked.total() == 18, "nine rows that differ, in both orders, once"
    assert (found.won, found.lost, found.inconsistent, found.unread) == (6, 0, 0, 3)
    assert found.difference == pytest.approx(6 / 11)
    assert ", 3 not scored" in describe_win_rate(vars(found))
    assert (tmp_path / "measured/requests-judge.jsonl").exists()


def test_a_model_that_gives_no_scores_is_no_judge(tmp_path: Path) -> None:
    said = (
        r"evaluate\.judge\.endpoint: 6 of 18 replies of tiny hold no .*They are alike.*"
        r"evaluate\.judge\.max_new_tokens"
    )
    with (
        FaultyProxy("http://127.0.0.1:9", longer_wins) as proxy,
        pytest.raises(DataError, match=said),
    ):
        win_rate(
            model_judge(proxy.url, max_unread_fraction=0.3),
            rows(11), NEW, OLD, Workspace(tmp_path),
        )  # fmt: skip


def test_a_real_model_scores(tmp_path: Path) -> None:
    """SmolLM2 through llama.cpp, held to two numbers; which ones is its own affair."""
    scores = {"type": "array", "minItems": 2, "maxItems": 2}
    shape = {**scores, "items": {"type": "integer", "minimum": 1, "maximum": 10}}
    fields = {"response_format": {"type": "json_object", "schema": shape}}
    with LlamaServer(smol_gguf(), context_tokens=512, threads=1) as server:
        one = endpoint(server.url, name="judge", extra_body=fields)
        section = JudgeSection(endpoint=one, max_new_tokens=24, max_unread_fraction=0.0)
        found = win_rate(section, rows(11)[:2], NEW[:2], OLD[:2], Workspace(tmp_path))
    assert (found.rows, found.unread) == (2, 0)


def test_the_model_sees_request_expected_answer_and_answers_in_their_order() -> None:
    row = rows(1)[0]
    [prompt] = judge_prompts("Be just.", [Drawn(row, (), ("b", "a"), (1, 1))])
    system, user = prompt.messages
    assert system == {"role": "system", "content": "Be just."}
    shown = str(user["content"])
    parts = ["user: Say it.", "<expected>\nx\n", "<answer 1>\nb\n", "<answer 2>\na\n"]
    places = [shown.index(part) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("[3, 7]", [3, 7]),
        ("Answer 1 is [best].\n[ 9.5,1 ]\n", [9.5, 1]),
        ("first [1, 2], no: [2, 1]", [2, 1]),
        ("[1, 2] and then [1, 2, 3]", [1, 2]),
        ("[0, 5]", None),
        ("[5, 11]", None),
        ("[5]", None),
        ("[1.2.3, 4]", None),
        ("", None),
    ],
)
def test_which_list_holds_the_scores(text: str, scores: list[float] | None) -> None:
    assert read_scores(text, 2) == scores


@pytest.mark.parametrize("fields", [{}, {"command": ["x"], "endpoint": endpoint("http://x/v1")}])
def test_a_judge_is_one_of_two(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a judge is a command or an endpoint"):
        JudgeSection.model_validate(fields)
