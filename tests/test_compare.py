"""Evaluated versions side by side: many looks, seeds, what differs; pure and through the CLI."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from scipy.stats import ttest_ind
from statsmodels.stats.multitest import multipletests

from luthier.cli import call
from luthier.errors import DataError
from luthier.evaluation.answers import Answer
from luthier.evaluation.several import Contestant, compare_several, group_seeds
from luthier.evaluation.statistics import compare
from project import write_project

ROWS = 200


def answers(right: Sequence[bool], first: int = 0, expected: str = "a") -> list[Answer]:
    return [
        Answer(
            system="tuned/generation",
            id=f"row {first + place}",
            expected=expected,
            answer=expected if hit else "b",
            predicted=expected if hit else "b",
            correct=hit,
            stop_reason="stop",
            label_log_probability=None,
            reference_log_probability=None,
            reference_tokens=None,
        )
        for place, hit in enumerate(right)
    ]


def contestant(
    name: str, right: Sequence[bool], seed: int | None = 7, made_by: str = "x"
) -> Contestant:
    return Contestant(name, answers(right), seed, made_by, sum(right) / len(right))


def hits(wrong: int, shift: int = 0) -> list[bool]:
    """All right but `wrong` rows in a row, from `shift` on."""
    return [not shift <= place < shift + wrong for place in range(ROWS)]


def test_each_is_tested_against_the_first_and_many_looks_are_allowed_for() -> None:
    systems = [hits(60), hits(48), hits(40, 5), hits(61, 1)]
    found = compare_several(
        [contestant(f"v{n}", right) for n, right in enumerate(systems)], alpha=0.05
    )
    single = [compare(right, systems[0], alpha=0.05) for right in systems[1:]]
    wanted = multipletests([test.p_value for test in single], method="holm")[1]
    tests = [one.test for one in found.placed[1:]]
    assert found.placed[0].test is None
    assert [test.p_value for test in tests if test] == pytest.approx(list(wanted))
    assert [test.verdict for test in tests if test] == ["better", "better", "cannot tell"]
    assert (found.rows, found.left_out) == (ROWS, 0)


def test_one_look_finds_what_many_looks_cannot_tell() -> None:
    first, lucky = hits(60), hits(54)
    assert compare(lucky, first, alpha=0.05).verdict == "better"
    others = [hits(60, shift) for shift in range(1, 5)]
    found = compare_several(
        [contestant(f"v{n}", one) for n, one in enumerate([first, lucky, *others])], alpha=0.05
    )
    test = found.placed[1].test
    assert test is not None
    assert test.verdict == "cannot tell"
    assert test.p_value == pytest.approx(5 * compare(lucky, first, alpha=0.05).p_value)


def test_rows_that_not_all_answered_are_left_out() -> None:
    long = Contestant("long", answers(hits(10)), 7, "x", 0.95)
    short = Contestant("short", answers(hits(10)[:50]), 7, "y", 0.8)
    found = compare_several([long, short], alpha=0.05)
    assert (found.rows, found.left_out) == (50, 150)
    assert [one.correct for one in found.placed] == [40, 40]
    other = Contestant("other", answers([True] * 5, first=1000), 7, "z", 1.0)
    with pytest.raises(DataError, match="long and other have no row in common"):
        compare_several([long, other], alpha=0.05)


def test_datasets_that_expect_other_answers_are_refused() -> None:
    one = Contestant("one", answers([True] * 5), 7, "x", 1.0)
    relabelled = Contestant("two", answers([True] * 5, expected="c"), 7, "y", 1.0)
    with pytest.raises(DataError, match="two and one expect different answers to 5 rows"):
        compare_several([one, relabelled], alpha=0.05)


def test_seeds_are_grouped_and_groups_compared() -> None:
    wrong = {"x": (60, 64, 62), "y": (30, 31, 29), "z": (10,)}
    found = group_seeds(
        [
            contestant(f"{made_by}{seed}", hits(count), seed, made_by)
            for made_by, counts in wrong.items()
            for seed, count in enumerate(counts)
        ]
    )
    assert [(group.names, group.seeds) for group in found] == [
        (["x0", "x1", "x2"], [0, 1, 2]),
        (["y0", "y1", "y2"], [0, 1, 2]),
    ]
    assert found[0].change is None
    shares = [[1 - count / ROWS for count in wrong[name]] for name in "yx"]
    welch = ttest_ind(*shares, equal_var=False)
    assert found[1].change_interval == pytest.approx(tuple(welch.confidence_interval(0.95)))
    assert found[1].verdict == "better"


def test_two_seeds_that_vary_cannot_tell_a_small_change() -> None:
    found = group_seeds(
        [
            contestant(f"{made_by}{seed}", hits(count), seed, made_by)
            for made_by, counts in {"x": (60, 40), "y": (50, 38)}.items()
            for seed, count in enumerate(counts)
        ]
    )
    assert found[1].verdict == "cannot tell"


def test_the_same_seed_twice_is_one_seed() -> None:
    assert group_seeds([contestant("a", hits(3), 7), contestant("b", hits(4), 7)]) == []


@pytest.fixture(scope="module")
def project(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that was trained and evaluated with two seeds, and with another learning rate."""
    folder = tmp_path_factory.mktemp("compared")
    path = write_project(folder, tiny_base, train=24)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name in ("baseline", "merge", "export", "accept"):
        del config[name]
    config["sft"]["epochs"] = 1
    config["evaluate"] = {"speed_rows": 0}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for change in ("seed=7", "seed=8", "sft.learning_rate=0.001"):
            assert call(["run", "run.yaml", "--set", change, "--json"]) == 0
    return folder


@pytest.fixture
def said(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    monkeypatch.chdir(project)
    capsys.readouterr()
    return project


@pytest.mark.usefixtures("said")
def test_a_run_is_compared_with_its_other_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["compare", "tiny-router", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["placed"]] == [
        "tiny-router/evaluation@v1", "tiny-router/evaluation@v2", "tiny-router/evaluation@v3",
    ]  # fmt: skip
    [group] = found["groups"]
    assert group["seeds"] == [7, 8]
    assert group["names"] == ["tiny-router/evaluation@v1", "tiny-router/evaluation@v2"]
    assert found["differences"] == {
        "tiny-router/evaluation@v2": ["seed: 7 -> 8"],
        "tiny-router/evaluation@v3": ["sft.learning_rate: 0.02 -> 0.001"],
    }


@pytest.mark.usefixtures("said")
def test_the_table_fits_80_columns_and_adapters_may_be_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(["compare", "tiny-router/adapter@v1", "tiny-router/adapter@v3"]) == 0
    text = capsys.readouterr().out
    assert "that all answered; each against the first, exact McNemar." in " ".join(text.split())
    assert "tiny-router/evaluation: 16 test rows" in text
    assert re.search(r"^  @v3 .* cannot tell$", text, re.MULTILINE)
    assert "sft.learning_rate: 0.02 -> 0.001" in text
    assert "seeds" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert call(["compare", "tiny-router"]) == 0
    text = capsys.readouterr().out
    assert "p-values allow for 2 comparisons (Holm)" in " ".join(text.split())
    assert "on average over seeds 7, 8" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.usefixtures("said")
def test_a_run_says_what_its_other_seeds_came_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["run", "run.yaml", "--set", "seed=8"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "on average over seeds 7, 8, standard deviation" in text
    assert call(["run", "run.yaml", "--set", "sft.learning_rate=0.001"]) == 0
    assert "over seeds" not in capsys.readouterr().out


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["tiny-router/evaluation@v1"], "is one evaluation only, tiny-router/evaluation@v1"),
        (["tiny-router/evaluation@v1", "tiny-router/evaluatoin@v2"], "Did you mean"),
        (
            ["tiny-router/evaluation", "tiny-router/dataset"],
            "is of kind dataset, and no evaluation",
        ),
        (["tiny-router", "--system", "tuned/likelyhood"], "has no system tuned/likelyhood"),
    ],
)
def test_mistakes(named: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["compare", *named]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
