"""Tasks of the real lm-evaluation-harness on a tiny model: scores, gate, resume, refusals."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation_cases import make_teachable, run_stage, train_adapter
from luthier.errors import ConfigError, DataError, LuthierError
from luthier.evaluation import harness
from luthier.evaluation.engine import Asked
from luthier.evaluation.general import GeneralLimits
from luthier.evaluation.harness import Harness, Metric, TaskScores
from luthier.evaluation.harness_section import HarnessSection
from luthier.evaluation.harness_verdict import compare_harness, harness_gates
from luthier.evaluation.journal import collect
from luthier.evaluation.retention import RetentionSection, load_material
from luthier.evaluation.systems import LocalSystem
from luthier.models.loading import load_model, load_tokenizer
from luthier.stages.evaluate import STAGE, EvaluateSection
from luthier.store.artifact import Artifact, Workspace
from luthier.store.keys import hash_files

pytest.importorskip("lm_eval", reason="the extra harness is not installed")

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "data" / "harness"
QUESTIONS = ROOT / "data" / "retention" / "questions.jsonl"
TASK: dict[str, Any] = yaml.safe_load((SHIPPED / "general_questions.yaml").read_text())


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # paths in task YAMLs are relative to the working directory


@pytest.fixture(scope="module")
def made(
    smol_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Artifact]:
    base, dataset = make_teachable(tmp_path_factory.mktemp("harness"), smol_tokenizer_dir, test=10)
    return {"base": base, "dataset": dataset}


@pytest.fixture(scope="module")
def trained(
    made: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Artifact]:
    def call(**options: Any) -> Artifact:
        folder = tmp_path_factory.mktemp("trained") / "adapter"
        return train_adapter(made["base"].path, made["dataset"].path, folder, **options)

    return call


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    found = Workspace(tmp_path / "workspace")
    found.path.mkdir()
    return found


@pytest.fixture
def tasks(tmp_path: Path) -> Callable[..., Path]:
    """A folder with a task YAML, the shipped one changed."""

    def call(text: str = "", **changes: Any) -> Path:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        content = yaml.safe_dump({**TASK, **changes}, sort_keys=False)
        (folder / "mine.yaml").write_text(content + text)
        return folder

    return call


def section(folder: Path = SHIPPED, **options: Any) -> HarnessSection:
    return HarnessSection(tasks=["general_questions"], include_path=folder, **options)


def evaluated(workspace: Workspace) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace.path / "evaluation.json").read_bytes())
    return found


def test_scores_are_those_of_our_own_questions(
    made: dict[str, Artifact], workspace: Workspace
) -> None:
    """The same prompts, the same choices, summed likelihoods: the same questions are right."""
    base = made["base"].path
    model, tokenizer = load_model(base), load_tokenizer(base)
    [found] = Harness(section(), 7, workspace).ask("base", model, tokenizer)
    texts = ROOT / "data" / "retention" / "texts.jsonl"
    material = load_material(RetentionSection(texts=texts, questions=QUESTIONS), tokenizer)
    system = LocalSystem("own", model, tokenizer, Asked(stop_token_ids=()))
    replies = iter(collect(system, material.prompts, workspace).replies)
    right = []
    for question in material.questions:
        sums = [next(replies).reference_log_p for _ in question.choices]
        right.append(float(sums.index(max(sums, key=lambda one: one or 0.0)) == question.answer))
    acc, acc_norm = found.metrics
    assert (found.documents, acc.name, acc_norm.name) == (150, "acc", "acc_norm")
    assert acc.values == right
    assert acc.value == pytest.approx(sum(right) / 150)


def test_forgetting_breaks_the_gate_and_the_rule(
    made: dict[str, Artifact],
    trained: Callable[..., Artifact],
    tasks: Callable[..., Path],
    tmp_path: Path,
    workspace: Workspace,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What the base would answer is the right answer: an absurd learning rate loses it."""
    base = made["base"].path
    known = tmp_path / "known.jsonl"
    known.write_text("".join(f"{json.dumps(row)}\n" for row in known_questions(base, workspace)))
    folder = tasks(dataset_kwargs={"data_files": {"test": str(known)}})
    adapter = trained(steps=30, learning_rate=0.1)
    capfd.readouterr()
    asking = EvaluateSection(harness=section(folder))
    result = run_stage(STAGE, asking, {**made, "adapter": adapter}, workspace)
    assert capfd.readouterr() == ("", "")
    task = evaluated(workspace)["harness"]["tasks"]["general_questions"]
    acc = task["metrics"]["acc"]
    assert (acc["base"], task["documents"]) == (1.0, 40)
    assert acc["tuned"] < 0.7
    assert acc["test"]["verdict"] == "worse"
    assert acc["test"]["p_adjusted"] == pytest.approx(2 * acc["test"]["p_value"])
    [gate] = [gate for gate in result.gates if gate.id == "harness-kept"]
    assert gate.status == "fail"
    assert gate.measured == pytest.approx(1 - acc["tuned"])
    [rule] = [r for r in evaluated(workspace)["ship"]["rules"] if r["id"] == "harness-kept"]
    assert rule["held"] == "broken"


def known_questions(base: Path, workspace: Workspace) -> Iterator[dict[str, Any]]:
    """Forty questions, whose answer is what the base finds likeliest."""
    rows = [json.loads(line) for line in QUESTIONS.read_text().splitlines()[:40]]
    tokenizer = load_tokenizer(base)
    texts = ROOT / "data" / "retention" / "texts.jsonl"
    material = load_material(RetentionSection(texts=texts, questions=QUESTIONS), tokenizer)
    system = LocalSystem("known", load_model(base), tokenizer, Asked(stop_token_ids=()))
    prompts = material.prompts[: sum(len(row["choices"]) for row in rows)]
    replies = iter(collect(system, prompts, workspace).replies)
    for row in rows:
        sums = [next(replies).reference_log_p or 0.0 for _ in row["choices"]]
        yield {**row, "answer": sums.index(max(sums))}


def test_an_adapter_that_changes_nothing_passes_and_resuming_asks_nothing(
    made: dict[str, Artifact],
    trained: Callable[..., Artifact],
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = {**made, "adapter": trained(steps=0)}
    asking = EvaluateSection(harness=section(limit=12, num_fewshot=1))
    result = run_stage(STAGE, asking, inputs, workspace)
    first = evaluated(workspace)["harness"]
    task = first["tasks"]["general_questions"]
    assert (task["documents"], task["num_fewshot"]) == (12, 1)
    assert {one["test"]["difference"] for one in task["metrics"].values()} == {0.0}
    assert [gate.status for gate in result.gates if gate.id == "harness-kept"] == ["pass"]

    def never(*_args: Any) -> TaskScores:
        raise AssertionError("asked again")

    monkeypatch.setattr(harness.Harness, "_ask_task", never)
    run_stage(STAGE, asking, inputs, workspace)
    assert evaluated(workspace)["harness"] == first


def scores(task: str, **values: list[float]) -> TaskScores:
    metrics = [Metric(name, sum(v) / len(v), True, v) for name, v in values.items()]
    return TaskScores(task, 40, 0, "same", metrics)


def test_many_tasks_are_corrected_for() -> None:
    """Six of forty lost (p 0.03) is a find alone; among two tasks with chance it is none."""
    old, lost = [1.0] * 40, [0.0] * 6 + [1.0] * 34
    alone = compare_harness([scores("a", acc=old)], [scores("a", acc=lost)], alpha=0.05, seed=1)
    test = alone["tasks"]["a"]["metrics"]["acc"]["test"]
    assert (test["verdict"], test["p_adjusted"]) == ("worse", test["p_value"])
    [gate] = harness_gates(alone, section())
    assert (gate.status, gate.measured) == ("fail", 0.15)
    [gate] = harness_gates(alone, section(max_drop=0.2))
    assert gate.status == "pass"
    both = compare_harness(
        [scores("a", acc=old), scores("b", acc=old)],
        [scores("a", acc=lost), scores("b", acc=old)],
        alpha=0.05,
        seed=1,
    )
    test = both["tasks"]["a"]["metrics"]["acc"]["test"]
    assert test["verdict"] == "cannot tell"
    assert test["p_adjusted"] == pytest.approx(2 * test["p_value"])
    [gate] = harness_gates(both, section())
    assert (gate.status, gate.measured) == ("pass", 0.0)


def test_numbers_that_are_no_shares_are_measured_and_do_not_fail() -> None:
    before = [scores("a", bleu=[30.0, 40.0, 50.0])]
    after = [scores("a", bleu=[10.0, 21.0, 29.0])]
    found = compare_harness(before, after, alpha=0.05, seed=1)
    one = found["tasks"]["a"]["metrics"]["bleu"]
    assert one["test"]["difference"] == -20
    assert one["test"]["verdict"] == "worse"
    assert [gate.status for gate in harness_gates(found, section())] == ["pass"]


HOSTILE = [
    ("process_docs: !function utils.steal\n", "!function would run code"),
    ("x: !!python/object/apply:os.system [id]\n", "would run code"),
    ("class: Evil\n", "class is refused"),
    ("unsafe_code: true\n", "unsafe_code is refused"),
    ("use_prompt: /tmp/x.yaml:all\n", "use_prompt is refused"),
    ("generation_kwargs: {custom_generate: evil}\n", "custom_generate is refused"),
    ("generation_kwargs: {assistant_model: evil}\n", "assistant_model is not known"),
    ("fewshot_config: {a: [{hf_evaluate: true}]}\n", "hf_evaluate is refused"),
    ("x: {metric: ./evil}\n", "metric ./evil is none of lm-eval's own"),
    ("x: {dataset_path: evil.py}\n", "dataset_path 'evil.py' is refused"),
    ("x: {dataset_path: data/retention}\n", "dataset_path 'data/retention' is refused"),
    ("x: {dataset_path: sql}\n", "dataset_path 'sql' is refused"),
    ("x: {trust_remote_code: true}\n", "trust_remote_code is refused"),
    ("include: ../outside.yaml\n", "include ../outside.yaml is no file of tasks"),
    ("x: {data_files: 'https://example.com/a.json'}\n", "data_files is not on this machine"),
]


@pytest.mark.parametrize(("line", "problem"), HOSTILE, ids=[problem for _, problem in HOSTILE])
def test_a_task_that_would_run_code_is_refused(
    tasks: Callable[..., Path], tmp_path: Path, line: str, problem: str
) -> None:
    (tmp_path / "outside.yaml").write_text("a: 1\n")
    folder = tasks(line)
    place = len((folder / "mine.yaml").read_text().splitlines())
    with pytest.raises(DataError) as caught:
        section(folder).check()
    [*problems, trust] = str(caught.value).splitlines()
    assert all(one.startswith(f"{folder / 'mine.yaml'}:{place}: ") for one in problems)
    assert any(problem in one for one in problems)
    assert "trust_task_code: true" in trust


def test_code_that_is_trusted_runs(
    tasks: Callable[..., Path], made: dict[str, Artifact], workspace: Workspace
) -> None:
    folder = tasks("process_docs: !function mine.first_three\n")
    (folder / "mine.py").write_text("def first_three(docs):\n    return docs.select(range(3))\n")
    model, tokenizer = load_model(made["base"].path), load_tokenizer(made["base"].path)
    trusted = section(folder, trust_task_code=True)
    [found] = Harness(trusted, 7, workspace).ask("base", model, tokenizer)
    assert found.documents == 3


def test_a_template_cannot_reach_python(tasks: Callable[..., Path], workspace: Workspace) -> None:
    folder = tasks(doc_to_text="{{ question.__class__.__mro__ }}")
    with pytest.raises(DataError, match=r"the task general_questions: SecurityError: .*unsafe"):
        Harness(section(folder), 7, workspace)


def test_a_task_that_does_not_fit_its_data_is_named(
    tasks: Callable[..., Path], workspace: Workspace
) -> None:
    folder = tasks(doc_to_text="{{ qestion }}")
    with pytest.raises(DataError, match="the task general_questions: UndefinedError: 'qestion'"):
        Harness(section(folder), 7, workspace)


def test_what_is_wrong_is_said_before_a_model_is_loaded(
    tasks: Callable[..., Path], tmp_path: Path
) -> None:
    missing = HarnessSection(tasks=["general_question"], include_path=SHIPPED)
    with pytest.raises(ConfigError, match=r"no task general_question .*general_questions\?"):
        GeneralLimits(None, missing).check()
    with pytest.raises(DataError, match="not a folder"):
        section(tmp_path / "none").check()
    bad = tasks("a: [\n")
    with pytest.raises(DataError, match=r"mine\.yaml:\d+: "):
        section(bad).files()
    gone = tasks(dataset_kwargs={"data_files": {"test": "data/gone.jsonl"}})
    with pytest.raises(DataError, match=r"mine\.yaml:\d+: data file data/gone\.jsonl does not"):
        section(gone).files()


def test_without_lm_eval_the_command_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(LuthierError, match=r"pip install 'luthier\[harness\]'"):
        GeneralLimits(None, section()).check()


def test_the_key_has_the_tasks_their_data_and_lm_evals_version(
    tasks: Callable[..., Path], tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(QUESTIONS.read_text())
    folder = tasks(dataset_kwargs={"data_files": {"test": str(data)}})

    def digests() -> list[str]:
        files = hash_files(STAGE.files(EvaluateSection(harness=section(folder))))
        return [file.sha256 for file in files]

    found = [digests()]
    (folder / "helper.txt").write_text("any file of the folder")
    found.append(digests())
    data.write_text(QUESTIONS.read_text().replace("France", "Spain"))
    found.append(digests())
    assert found[0] != found[1] != found[2]
    assert STAGE.optional_packages(EvaluateSection(harness=section(folder))) == ("lm-eval",)
    assert STAGE.optional_packages(EvaluateSection()) == ()
    assert STAGE.files(EvaluateSection()) == []
