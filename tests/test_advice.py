"""The tree of `luthier advise`: every path, what would change it, and what stands beside it."""

import itertools
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main

from luthier.advice.advice import Finding, advise, merged
from luthier.advice.leaves import LEAVES, Leaf, LeafId
from luthier.advice.next_steps import RunState
from luthier.advice.questions import QUESTIONS, AnswersSection, Question, Value, spelled
from luthier.advice.rules import METHOD_FOR, METHODS
from luthier.advice.starter import run_name, starter_config, task_of
from luthier.advice.tree import TREE, Known, changes, open_questions, walk
from luthier.cli import app
from luthier.config import load_config, load_section
from luthier.data.rows import Task
from luthier.stages import discover
from luthier.training.section import Hardware
from luthier.training.sft_section import SFTSection

VALUES: Mapping[str, tuple[Value, ...]] = {
    "needs_external_knowledge": (True, False),
    "format_beyond_prompting": (True, False),
    "narrow_task": ("classification", "extraction", "none"),
    "labelled_examples": (0, 999, 1000, 5000),
    "consistent_style": (True, False),
    "prompting_suffices": (True, False),
    "latency_under_50_ms": (True, False),
}
TREE_QUESTIONS = tuple(VALUES)


def cases() -> Iterator[dict[str, Known]]:
    """Every combination of answers; whether prompting suffices is answered, or measured."""
    for chosen in itertools.product(*VALUES.values()):
        for is_measured in (False, True):
            yield {
                name: Known(value, "", is_measured=name == "prompting_suffices" and is_measured)
                for name, value in zip(VALUES, chosen, strict=True)
            }


def expected(known: Mapping[str, Known]) -> LeafId:
    """DECISION's tree, once more and by hand."""
    said = {name: one.value for name, one in known.items()}
    near = known["prompting_suffices"].is_measured and said["prompting_suffices"]
    if said["needs_external_knowledge"]:
        return "hybrid" if said["format_beyond_prompting"] else "retrieval"
    if said["narrow_task"] != "none":
        if int(said["labelled_examples"]) < 1000:
            return "collect-labels"
        return "prompting" if near else "fine-tune-small-model"
    if said["consistent_style"]:
        return "prompting" if said["prompting_suffices"] else "fine-tune-style"
    if said["latency_under_50_ms"]:
        return "prompting" if near else "fine-tune-latency"
    return "retrieval-and-prompting"


def test_all_answers_lead_to_the_leaf_of_the_decision_tree_and_all_leaves_are_reached() -> None:
    reached = set()
    for known in cases():
        leaf = walk(known).end
        assert isinstance(leaf, Leaf)
        assert leaf.id == expected(known)
        reached.add(leaf.id)
    assert reached == set(get_args(LeafId)) == set(LEAVES)


def test_every_answer_takes_exactly_one_branch_and_every_branch_leads_somewhere() -> None:
    for node in TREE.values():
        values: list[Value | None] = list(VALUES[node.question.id])
        for value in values + [None] * node.measured_only:
            assert [branch.takes(value) for branch in node.branches].count(True) == 1
        for branch in node.branches:
            assert branch.to in TREE.keys() | LEAVES.keys()
            assert branch.takes(branch.example)
            assert branch.reason.endswith(".")


def test_what_would_change_it_does() -> None:
    """Each other way on is named, and the changed answer leads where it says."""
    for known in cases():
        for step in walk(known).steps:
            name, branches = step.node.question.id, step.node.branches
            other = {b.to for b in branches if b.to != step.branch.to and b.example is not None}
            found = changes(step, known)
            assert len(found) == len(other) > 0
            for change in found:
                measured = step.node.measured_only or known[name].is_measured
                changed = {**known, name: Known(change.example, "", is_measured=measured)}
                assert isinstance(change.end, Leaf)
                assert change.end.id == expected(changed), (name, change)


def test_a_change_into_the_unknown_names_the_next_question() -> None:
    known = {
        "needs_external_knowledge": Known(True, ""),
        "format_beyond_prompting": Known(True, ""),
    }
    first = walk(known).steps[0]
    assert [(change.answer, change.end) for change in changes(first, known)] == [
        ("no", QUESTIONS["narrow_task"])
    ]


def test_only_what_the_path_needs_is_asked_and_it_was_announced() -> None:
    for known in cases():
        answered: dict[str, Known] = {}
        while waiting := open_questions(answered):
            asked = waiting[0].id
            assert asked not in answered
            answered[asked] = known[asked]
            following = open_questions(answered)
            assert {question.id for question in following} < {q.id for q in waiting}
        assert len(answered) <= 4
        end = walk(answered).end
        assert isinstance(end, Leaf)
        unmeasured = {name: Known(one.value, "") for name, one in known.items()}
        assert end.id == expected(known if "prompting_suffices" in answered else unmeasured)


def test_what_is_known_is_not_asked() -> None:
    known = {"narrow_task": Known("none", "measured", is_measured=True)}
    asked = [question.id for question in open_questions(known)]
    assert asked[0] == "needs_external_knowledge"
    assert "narrow_task" not in asked
    assert "labelled_examples" not in asked
    assert "consistent_style" in asked


def test_a_measurement_wins_and_the_answer_stands_beside_it() -> None:
    given: dict[str, Value] = {
        "needs_external_knowledge": False, "narrow_task": "classification",
        "labelled_examples": 50_000, "prompting_suffices": True,
    }  # fmt: skip
    found = {
        "labelled_examples": Finding(1500, "x/dataset@v1"),
        "prompting_suffices": Finding(False, "x/evaluation@v1"),
    }
    known = merged(given, found)
    assert known["labelled_examples"].value == 1500
    assert known["labelled_examples"].beside == "your answer was 50,000; what was measured counts"
    assert known["narrow_task"] == Known("classification", "your answer")
    made = advise(known, RunState(), found)
    assert made.leaf.id == "fine-tune-small-model"
    assert made.reasons[-1].source == "x/evaluation@v1"
    assert made.reasons[-1].beside == "your answer was yes; what was measured counts"
    agreed = merged({"labelled_examples": 1500}, found)
    assert agreed["labelled_examples"].beside is None


def test_a_measurement_that_decides_nothing_leaves_the_question_and_is_shown() -> None:
    found = {"prompting_suffices": Finding(None, "12 points below: undecided")}
    style: dict[str, Value] = {
        "needs_external_knowledge": False, "narrow_task": "none", "consistent_style": True,
    }  # fmt: skip
    assert walk(merged(style, found)).end == QUESTIONS["prompting_suffices"]
    known = merged(style | {"prompting_suffices": False}, found)
    made = advise(known, RunState(), found)
    assert made.leaf.id == "fine-tune-style"
    assert (
        made.reasons[-1].beside == "measured, but it does not decide: 12 points below: undecided"
    )
    labels: dict[str, Value] = {
        "needs_external_knowledge": False, "narrow_task": "extraction",
        "labelled_examples": 2000, "prompting_suffices": True,
    }  # fmt: skip
    narrow = advise(merged(labels, found), RunState(), found)
    assert narrow.leaf.id == "fine-tune-small-model"
    assert narrow.reasons[-1].answer == "not decided"
    assert narrow.reasons[-1].source == "12 points below: undecided"
    assert narrow.unused == ["prompting_suffices"]


def test_json_has_all_that_is_shown() -> None:
    for known in cases():
        whole = advise(known, RunState()).as_json()
        assert whole["advice"] == expected(known)
        assert whole["path"][0]["question"] == "needs_external_knowledge"
        assert all(step["changes"] for step in whole["path"])
        assert whole["next"]
        assert bool(whole["rules_of_thumb"]["methods"]) == whole["fine_tunes"]
        if whole["fine_tunes"] or whole["advice"] == "collect-labels":
            assert whole["rules_of_thumb"]["data"]["least"] in (500, 1000, 10_000)


def test_a_file_of_answers_can_say_every_answer(tmp_path: Path) -> None:
    assert list(AnswersSection.model_fields) == list(QUESTIONS)
    assert set(QUESTIONS) - set(TREE_QUESTIONS) == {"hardware"}
    path = tmp_path / "answers.yaml"
    for question in QUESTIONS.values():
        values = [option.value for option in question.options] or [1234]
        for value in values:
            path.write_text(f"{question.id}: {spelled(value)}\n", encoding="utf-8")
            assert load_section(path, AnswersSection).given() == {question.id: value}
            assert question.options == () or spelled(value) in question.allowed
            assert question.word(value)


def test_the_hardware_is_what_plan_knows_and_its_method_is_that_of_the_table() -> None:
    names = [option.value for option in QUESTIONS["hardware"].options]
    assert set(names) == set(get_args(Hardware)) - {"auto"}
    assert METHOD_FOR.keys() == set(names)
    for name, method in METHOD_FOR.items():
        if name != "cpu":
            assert ("4090" in METHODS[method].hardware) == (name == "rtx-4090")


TRAINING = [leaf for leaf in LEAVES.values() if leaf.fine_tunes]


@pytest.mark.parametrize("hardware", list(METHOD_FOR))
@pytest.mark.parametrize("leaf", TRAINING, ids=lambda leaf: leaf.id)
@pytest.mark.parametrize("data", [None, 'my "rows", {2026}: #1 größe.jsonl'])
def test_starter_configs_load(leaf: Leaf, hardware: str, data: str | None, tmp_path: Path) -> None:
    sections = {name: stage.section for name, stage in discover().items()}
    for narrow in ("classification", "extraction"):
        task = task_of(leaf, narrow)
        text = starter_config(leaf, task, hardware, "try", data)
        path = tmp_path / "try.yaml"
        for written in (text, text.replace("# replay:", "replay:")):
            path.write_text(written, encoding="utf-8")
            config = load_config(path, sections)
        given: dict[str, Any] = config.resolved()
        assert list(given)[3:] == [
            "base", "prepare", "baseline", "sft", "evaluate", "merge", "export",
        ]  # fmt: skip
        assert given["sft"]["method"] == METHOD_FOR[hardware]
        assert given["sft"]["hardware"] == hardware
        assert given["prepare"]["task"] == task
        assert given["prepare"]["replay"]["fraction"] == 0.05
        assert [one["path"] for one in given["prepare"]["sources"]] == [data or "data/train.jsonl"]
        assert given["baseline"]["target"]["value"] == 0.8
        assert isinstance(config.sections["sft"], SFTSection)


@pytest.mark.parametrize(
    ("leaf", "narrow", "task"),
    [
        ("fine-tune-small-model", "extraction", "extraction"),
        ("fine-tune-small-model", "classification", "classification"),
        ("fine-tune-style", "none", "chat"),
        ("fine-tune-latency", "none", "chat"),
        ("hybrid", None, "grounded"),
    ],
)
def test_the_rows_are_those_of_the_task(leaf: str, narrow: str | None, task: Task) -> None:
    assert task_of(LEAVES[leaf], narrow) == task


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("configs/x.yaml", "x"),
        ("My Router.v2.yaml", "my-router.v2"),
        ("größe.yaml", "gr-e"),
        ("_.yaml", "tuned"),
        ("日本.yaml", "tuned"),
        (f"{'a' * 90}.yaml", "a" * 64),
    ],
)
def test_a_run_is_called_as_its_config(path: str, name: str) -> None:
    assert run_name(path) == name


STATES = [
    RunState(),
    RunState(answers="my answers.yaml"),
    RunState("run.yaml", frozenset({"base", "prepare"}), frozenset({"base", "prepare"})),
    RunState("run.yaml", frozenset({"base", "prepare", "baseline", "sft"})),
    RunState(
        "run.yaml",
        frozenset({"base", "prepare", "baseline", "sft", "evaluate"}),
        frozenset({"base", "prepare", "baseline", "sft", "evaluate"}),
    ),
    RunState("configs/new one.yaml", frozenset({"baseline", "sft"}), written=True),
]


@pytest.mark.parametrize("state", STATES, ids=lambda state: str(state.config))
@pytest.mark.parametrize("leaf", LEAVES)
def test_the_next_commands_are_commands_with_these_options(leaf: str, state: RunState) -> None:
    known = next(one for one in cases() if expected(one) == leaf)
    made = advise(known | {"hardware": Known("rtx-4090", "")}, state)
    assert made.next_steps
    commands = typer.main.get_command(app).commands | _stage_commands()  # type: ignore[attr-defined]
    for step in made.next_steps:
        if step.command is None:
            continue
        program, name, *rest = shlex.split(step.command)
        assert program == "luthier"
        options = {option for one in commands[name].params for option in one.opts}
        assert {word for word in rest if word.startswith("--")} <= options, step.command
        assert "None" not in rest


def _stage_commands() -> dict[str, Any]:
    """They are added when the command line is called; `run` has their options and more."""
    run = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    return dict.fromkeys(discover(), run)


def test_commands_follow_what_is_there_already() -> None:
    tuned = next(one for one in cases() if expected(one) == "fine-tune-small-model")

    def commands(state: RunState) -> list[str | None]:
        return [step.command for step in advise(tuned, state).next_steps]

    nothing, _, prepared, unmade, made, written = map(commands, STATES)
    assert nothing[0] == "luthier advise --write configs/tuned.yaml --data train.jsonl"
    assert prepared[0] is not None
    assert prepared[0].startswith("luthier advise --config run.yaml --write")
    assert unmade[0] == "luthier run run.yaml --until baseline"
    assert made == ["luthier report run.yaml"]
    assert "luthier run 'configs/new one.yaml'" in written


def test_questions_fit_a_terminal() -> None:
    for question in QUESTIONS.values():
        assert isinstance(question, Question)
        assert len(question.text) <= 77  # two columns in, on 80
        width = max((len(option.word) for option in question.options), default=0)
        for option in question.options:
            assert 3 + width + 2 + len(option.meaning) <= 80
