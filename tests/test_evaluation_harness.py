"""Tasks of the real lm-evaluation-harness on a tiny model: scores, gate, resume, refusals."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation_cases import make_teachable, run_stage, train_adapter
from harness_cases import QUESTIONS, ROOT, TASK, MakeTasks, section, task_maker
from luthier.errors import DataError, InterruptedRunError
from luthier.evaluation import harness
from luthier.evaluation.engine import Asked
from luthier.evaluation.harness import Harness, Metric, TaskScores
from luthier.evaluation.harness_section import HarnessSection
from luthier.evaluation.harness_verdict import compare_harness, harness_gates
from luthier.evaluation.journal import collect
from luthier.evaluation.retention import RetentionSection, load_material
from luthier.evaluation.systems import LocalSystem
from luthier.models.loading import load_model, load_tokenizer
from luthier.progress import Reporter, Task
from luthier.stages.evaluate import STAGE, EvaluateSection
from luthier.store.artifact import Artifact, Workspace


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
def tasks(tmp_path: Path) -> MakeTasks:
    return task_maker(tmp_path / "tasks")


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
    tasks: MakeTasks,
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
    asking = EvaluateSection(harness=section(folder), speed_rows=0)
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
    asking = EvaluateSection(harness=section(limit=12, num_fewshot=1), speed_rows=0)
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


class Stopping(Reporter):
    """Asks for a stop when the second task begins."""

    def __init__(self, workspace: Workspace) -> None:
        self.labels: list[str] = []
        self._workspace = workspace

    @contextmanager
    def task(
        self, label: str, total: int, unit: str = "", seconds: float | None = None
    ) -> Iterator[Task]:
        self.labels.append(label)
        self._workspace.stop.requested = len(self.labels) == 2
        with super().task(label, total, unit, seconds) as shown:
            yield shown


def test_a_stopped_run_keeps_the_tasks_that_were_finished(
    tasks: MakeTasks, made: dict[str, Artifact], workspace: Workspace
) -> None:
    folder = tasks()
    for name in ("a", "b"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**TASK, "task": name}))
    wanted = HarnessSection(tasks=["a", "b"], include_path=folder, limit=3)
    model, tokenizer = load_model(made["base"].path), load_tokenizer(made["base"].path)
    workspace.reporter = stopping = Stopping(workspace)
    with pytest.raises(InterruptedRunError):
        Harness(wanted, 7, workspace).ask("base", model, tokenizer)
    workspace.stop.requested = False
    found = Harness(wanted, 7, workspace).ask("base", model, tokenizer)
    assert stopping.labels == ["base: a", "base: b", "base: b"]
    assert [one.documents for one in found] == [3, 3]


def scores(task: str, **values: list[float]) -> TaskScores:
    metrics = [Metric(name, sum(v) / len(v), True, v) for name, v in values.items()]
    return TaskScores(task, 40, 0, "same", metrics)


def test_many_tasks_are_corrected_for() -> None:
    """Six of forty lost (p 0.03) is a find alone; among two tasks with chance it is none."""
    old, lost = [1.0] * 40, [0.0] * 6 + [1.0] * 34
    alone = compare_harness([scores("a", acc=old)], [scores("a", acc=lost)], alpha=0.05)
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
    )
    test = both["tasks"]["a"]["metrics"]["acc"]["test"]
    assert test["verdict"] == "cannot tell"
    assert test["p_adjusted"] == pytest.approx(2 * test["p_value"])
    [gate] = harness_gates(both, section())
    assert (gate.status, gate.measured) == ("pass", 0.0)


def test_numbers_that_are_no_shares_are_measured_and_do_not_fail() -> None:
    before = [scores("a", bleu=[30.0, 40.0, 50.0])]
    after = [scores("a", bleu=[10.0, 21.0, 29.0])]
    found = compare_harness(before, after, alpha=0.05)
    one = found["tasks"]["a"]["metrics"]["bleu"]
    assert one["test"]["difference"] == -20
    assert one["test"]["verdict"] == "worse"
    assert [gate.status for gate in harness_gates(found, section())] == ["pass"]


def test_code_that_is_trusted_runs(
    tasks: MakeTasks, made: dict[str, Artifact], workspace: Workspace
) -> None:
    folder = tasks("process_docs: !function mine.first_three\n")
    (folder / "mine.py").write_text("def first_three(docs):\n    return docs.select(range(3))\n")
    model, tokenizer = load_model(made["base"].path), load_tokenizer(made["base"].path)
    trusted = section(folder, trust_task_code=True)
    [found] = Harness(trusted, 7, workspace).ask("base", model, tokenizer)
    assert found.documents == 3


def test_a_template_cannot_reach_python(tasks: MakeTasks, workspace: Workspace) -> None:
    folder = tasks(doc_to_text="{{ question.__class__.__mro__ }}")
    with pytest.raises(DataError, match=r"the task general_questions: SecurityError: .*unsafe"):
        Harness(section(folder), 7, workspace)


def test_a_task_that_does_not_fit_its_data_is_named(
    tasks: MakeTasks, workspace: Workspace
) -> None:
    folder = tasks(doc_to_text="{{ qestion }}")
    with pytest.raises(DataError, match="the task general_questions: UndefinedError: 'qestion'"):
        Harness(section(folder), 7, workspace)


def test_data_that_cannot_be_read_is_said(
    tasks: MakeTasks,
    tmp_path: Path,
    workspace: Workspace,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text('{"question": 1\n')
    folder = tasks(dataset_kwargs={"data_files": {"test": str(data)}})
    with pytest.raises(DataError, match=r"task general_questions: .*JSON parse error"):
        Harness(section(folder), 7, workspace)
    assert capfd.readouterr() == ("", "")


def test_free_answers_rolling_likelihoods_and_groups(
    tasks: MakeTasks, made: dict[str, Artifact], workspace: Workspace
) -> None:
    folder = tasks()
    free = {
        **TASK,
        "task": "free",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}, {"metric": "bleu"}],
    }
    rolling = {
        **TASK,
        "task": "rolling",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    for one in (free, rolling):
        (folder / f"{one['task']}.yaml").write_text(
            yaml.safe_dump({k: v for k, v in one.items() if k != "doc_to_choice"})
        )
    (folder / "group.yaml").write_text("group: both\ntask: [free, rolling]\n")
    base = made["base"].path
    wanted = HarnessSection(tasks=["both"], include_path=folder, limit=3)
    found = Harness(wanted, 7, workspace).ask("base", load_model(base), load_tokenizer(base))
    metrics = {metric.name: metric for one in found for metric in one.metrics}
    assert {one.task: one.documents for one in found} == {"free": 3, "rolling": 3}
    assert metrics["exact_match"].values is not None
    assert metrics["bleu"].values is metrics["word_perplexity"].values is None
    assert not metrics["word_perplexity"].higher_is_better
    compared = compare_harness(found, found, alpha=0.05)["tasks"]
    assert compared["rolling"]["metrics"]["word_perplexity"]["test"] is None
