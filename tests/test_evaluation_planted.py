"""Runs that should not ship are told so: each fault is planted in a real evaluation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation_cases import artifact, make_teachable, run_stage, train_adapter
from luthier.errors import ConfigError, DataError
from luthier.evaluation.retention import RetentionSection
from luthier.evaluation.shipping import ShipSection
from luthier.evaluation.target import Target
from luthier.models.merging import merge
from luthier.stages import baseline
from luthier.stages.contract import StageResult
from luthier.stages.evaluate import STAGE, EvaluateSection
from luthier.store.artifact import Artifact, Workspace

ROWS = 60
Evaluated = tuple[StageResult, dict[str, Any]]
Evaluate = Callable[..., Evaluated]


@pytest.fixture(scope="module")
def made(
    smol_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Artifact]:
    """A base, a dataset, the baseline made of them, and general text and questions. The words
    give the classes away, so a linear model gets all rows right: it is left out of most tests."""
    folder = tmp_path_factory.mktemp("planted")
    base, dataset = make_teachable(folder, smol_tokenizer_dir, test=ROWS)
    answered = folder / "baseline"
    answered.mkdir()
    section = baseline.BaselineSection(few_shot=2, target=Target(value=0.6), linear=False)
    run_stage(baseline.STAGE, section, {"base": base, "dataset": dataset}, Workspace(answered))
    texts = [
        {"text": f"The {n}th stone lay by the river, and nobody had moved it."} for n in range(12)
    ]
    questions = [
        {"question": f"What is {n} and one?", "choices": [f"{n + 1}", f"{n + 3}"], "answer": n % 2}
        for n in range(8)
    ]
    for name, lines in (("texts", texts), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return {"base": base, "dataset": dataset, "baseline": artifact(answered, "evaluation")}


@pytest.fixture(scope="module")
def trained(
    made: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Artifact]:
    """An adapter of these options, trained once."""
    adapters: dict[str, Artifact] = {}

    def call(**options: Any) -> Artifact:
        name = str(sorted(options.items()))
        if name not in adapters:
            folder = tmp_path_factory.mktemp("trained") / "adapter"
            base, dataset = made["base"].path, made["dataset"].path
            adapters[name] = train_adapter(base, dataset, folder, **{"steps": 60, **options})
        return adapters[name]

    return call


@pytest.fixture
def evaluate(
    made: dict[str, Artifact],
    trained: Callable[..., Artifact],
    tmp_path_factory: pytest.TempPathFactory,
) -> Evaluate:
    """Evaluates such an adapter, each time in a workspace of its own; gives the stage's result and
    evaluation.json."""

    def call(section: EvaluateSection | None = None, **options: Any) -> Evaluated:
        workspace = Workspace(tmp_path_factory.mktemp("evaluated"))
        inputs = {**made, "adapter": trained(**options)}
        result = run_stage(STAGE, section or EvaluateSection(), inputs, workspace)
        return result, json.loads((workspace.path / "evaluation.json").read_bytes())

    return call


def held(found: dict[str, Any]) -> dict[str, str]:
    return {rule["id"]: rule["held"] for rule in found["ship"]["rules"]}


def said(found: dict[str, Any], rule_id: str) -> str:
    [text] = [rule["said"] for rule in found["ship"]["rules"] if rule["id"] == rule_id]
    return str(text)


def test_a_healthy_run_ships(evaluate: Evaluate) -> None:
    result, found = evaluate(EvaluateSection(ship=ShipSection(require=True)))
    assert found["ship"]["word"] == "ship"
    assert set(held(found)) == {
        "target", "better-than-baseline", "classes-kept", "classes-not-worse", "answers-end",
        "refusals",
    }  # fmt: skip
    assert result.metrics["ship"] == "ship"
    assert {gate.id: gate.status for gate in result.gates} == {
        "beats-baseline": "pass",
        "ship": "pass",
    }


def test_no_gain(evaluate: Evaluate) -> None:
    result, found = evaluate(EvaluateSection(ship=ShipSection(require=True)), steps=0)
    assert found["ship"]["word"] == "do not ship"
    assert held(found)["target"] == "broken"
    assert held(found)["better-than-baseline"] != "holds"
    gate = result.gates[-1]
    assert (gate.id, gate.status, gate.measured) == ("ship", "fail", "do not ship")
    assert "target: accuracy" in gate.detail


def test_a_gain_within_noise(evaluate: Evaluate) -> None:
    """An adapter that has hardly begun to learn is some rows ahead: chance does that too."""
    found = next(
        found
        for steps in range(14, 20)
        if 0 < (found := evaluate(steps=steps)[1])["paired_test"]["difference"] <= 0.15
    )
    test = found["paired_test"]
    assert test["p_value"] > 0.05
    assert test["rows_needed"] > ROWS
    assert held(found)["better-than-baseline"] == "cannot tell"
    assert found["ship"]["word"] != "ship"


def test_too_few_rows(
    made: dict[str, Artifact], trained: Callable[..., Artifact], tmp_path: Path
) -> None:
    """The same healthy adapter on six rows: nobody can tell, and the verdict says so (F35)."""
    base, dataset = made["base"], made["dataset"]
    few = {}
    for name, stage, section in (
        (
            "baseline",
            baseline.STAGE,
            baseline.BaselineSection(few_shot=2, limit_rows=6, linear=False),
        ),
        ("tuned", STAGE, EvaluateSection(limit_rows=6)),
    ):
        folder = tmp_path / name
        folder.mkdir()
        inputs = {"base": base, "dataset": dataset}
        if name == "tuned":
            adapter = trained()
            inputs |= {
                "adapter": adapter,
                "baseline": artifact(tmp_path / "baseline", "evaluation"),
            }
        run_stage(stage, section, inputs, Workspace(folder))
        few[name] = json.loads((folder / "evaluation.json").read_bytes())
    found = few["tuned"]
    assert found["systems"]["tuned/generation"]["metrics"]["accuracy"] > 0.5
    assert held(found)["better-than-baseline"] == "cannot tell"
    assert found["ship"]["word"] == "cannot tell"


def test_what_a_linear_model_does_better(
    made: dict[str, Artifact], trained: Callable[..., Artifact], tmp_path: Path
) -> None:
    """A gain over every prompt is none where TF-IDF and a linear model get more rows right."""
    inputs = {"base": made["base"], "dataset": made["dataset"]}
    answered, tuned = tmp_path / "baseline", tmp_path / "tuned"
    for folder in (answered, tuned):
        folder.mkdir()
    section = baseline.BaselineSection(few_shot=2, target=Target(value=0.6))
    prompted = run_stage(baseline.STAGE, section, inputs, Workspace(answered))
    assert prompted.metrics["tf-idf/linear"]["accuracy"] == 1.0
    assert prompted.metrics["best_system"] != "tf-idf/linear"
    assert prompted.metrics["target"]["value"] < 1
    inputs |= {"adapter": trained(), "baseline": artifact(answered, "evaluation")}
    run_stage(STAGE, EvaluateSection(), inputs, Workspace(tuned))
    found = json.loads((tuned / "evaluation.json").read_bytes())
    assert held(found)["better-than-baseline"] == "holds"
    assert held(found)["not-worse-than-linear"] == "broken"
    assert "points against TF-IDF and a linear model" in said(found, "not-worse-than-linear")
    assert found["ship"]["word"] == "do not ship"
    assert found["linear"]["old_accuracy"] == 1.0


def test_one_class_destroyed(evaluate: Evaluate) -> None:
    """It says `animal` whatever it is asked."""
    _, found = evaluate(only_label="animal", steps=40)
    assert found["ship"]["word"] == "do not ship"
    assert held(found)["classes-kept"] == "broken"
    assert "tool 0 of 30" in said(found, "classes-kept")


def test_forgetting(evaluate: Evaluate, made: dict[str, Artifact]) -> None:
    """An absurd learning rate: the task is learned, general text is not known any more."""
    folder = made["base"].path.parent
    section = EvaluateSection(
        retention=RetentionSection(
            texts=folder / "texts.jsonl", questions=folder / "questions.jsonl"
        )
    )
    result, found = evaluate(section, learning_rate=0.1)
    texts = found["retention"]["texts"]
    assert texts["rows"] == 12
    assert texts["increase_nats"] > 0.5
    [gate] = [gate for gate in result.gates if gate.id == "retention"]
    assert gate.status == "fail"
    assert held(found)["retention"] == "broken"
    assert found["retention"]["questions"]["rows"] == 8


def test_nothing_is_forgotten_by_an_adapter_that_changes_nothing(
    evaluate: Evaluate, made: dict[str, Artifact]
) -> None:
    section = EvaluateSection(
        retention=RetentionSection(texts=made["base"].path.parent / "texts.jsonl")
    )
    result, found = evaluate(section, steps=0)
    assert found["retention"]["texts"]["increase_nats"] == 0
    assert [gate.status for gate in result.gates if gate.id == "retention"] == ["pass"]
    assert found["retention"]["questions"] is None


def test_answers_cut_off(evaluate: Evaluate) -> None:
    _, found = evaluate(EvaluateSection(max_new_tokens=1))
    assert held(found)["answers-end"] == "broken"
    assert found["ship"]["word"] == "do not ship"


def test_a_target_that_the_interval_straddles_cannot_be_told(evaluate: Evaluate) -> None:
    _, found = evaluate(EvaluateSection(ship=ShipSection(target=Target(value=0.85))))
    low, high = found["systems"]["tuned/generation"]["intervals"]["accuracy"]
    assert low < 0.85 <= high
    assert held(found)["target"] == "cannot tell"


def test_a_target_of_another_tasks_metric_is_refused(evaluate: Evaluate) -> None:
    ship = ShipSection(target=Target(metric="exact_match", value=0.5))
    with pytest.raises(ConfigError, match="this task has accuracy, micro_f1, macro_f1"):
        evaluate(EvaluateSection(ship=ship))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ""}', 'there is no "text"'),
        ('{"text": "a"', ""),
        ("[1]", "object"),
    ],
)
def test_a_bad_line_of_general_text_is_named(
    evaluate: Evaluate, tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(DataError, match=rf"texts\.jsonl:1: .*{message}"):
        evaluate(EvaluateSection(retention=RetentionSection(texts=path)))


@pytest.mark.parametrize(
    "question",
    [
        {"question": "Which?", "choices": ["a"], "answer": 0},
        {"question": "Which?", "choices": ["a", "a"], "answer": 0},
        {"question": "Which?", "choices": ["a", "b"], "answer": 2},
        {"question": "Which?", "choices": ["a", "b"], "answer": True},
        {"question": "Which?", "choices": ["a", 1], "answer": 0},
    ],
)
def test_a_question_without_one_right_answer_is_named(
    evaluate: Evaluate, made: dict[str, Artifact], tmp_path: Path, question: dict[str, Any]
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(question) + "\n")
    texts = made["base"].path.parent / "texts.jsonl"
    with pytest.raises(DataError, match=r"questions\.jsonl:1: each line is"):
        evaluate(EvaluateSection(retention=RetentionSection(texts=texts, questions=path)))


def test_a_version_that_is_worse_than_production_does_not_ship(
    made: dict[str, Artifact], trained: Callable[..., Artifact], tmp_path: Path
) -> None:
    base = made["base"]
    merged = tmp_path / "merged"
    merged.mkdir()
    merge(base.path, trained().path, merged)
    stops = base.manifest.facts["stop_token_ids"]
    production = artifact(merged, "model", stop_token_ids=stops)
    found = {}
    for name, steps in (("same", 60), ("worse", 0)):
        workspace = Workspace(tmp_path / f"{name} evaluated")
        workspace.path.mkdir()
        inputs = {**made, "adapter": trained(steps=steps), "production": production}
        run_stage(STAGE, EvaluateSection(), inputs, workspace)
        found[name] = json.loads((workspace.path / "evaluation.json").read_bytes())
    same, worse = found["same"], found["worse"]
    assert held(same)["not-worse-than-production"] == "holds"
    assert same["production"]["gained"] == same["production"]["lost"] == []
    assert same["ship"]["word"] == "ship"
    assert held(worse)["not-worse-than-production"] == "broken"
    assert len(worse["production"]["lost"]) > len(worse["production"]["gained"])
    assert worse["best_system"] != "production/generation"
