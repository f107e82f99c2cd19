"""The baseline stage on a tiny random model: systems, examples, resuming after SIGKILL."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from endpoint_cases import FaultyProxy, answer
from evaluation_cases import SEED, artifact, base_artifact, make_dataset, run_stage
from luthier.data.dataset import load_split, read_info
from luthier.evaluation.endpoint_section import Endpoint
from luthier.evaluation.nearest import NearestExamples
from luthier.evaluation.prompts import (
    PromptForm,
    choose_examples,
    label_instruction,
    label_tokens,
    make_prompts,
)
from luthier.evaluation.rows import load_rows
from luthier.evaluation.versus import LINEAR
from luthier.models.loading import load_tokenizer
from luthier.progress import Reporter, Task
from luthier.stages.baseline import STAGE, BaselineSection, Target
from luthier.store.artifact import Workspace
from warm_children import child_process

SECTION = BaselineSection(few_shot=4, target=Target(value=0.9))
OUTPUTS = ("answers.parquet", "evaluation.json")


class Killer(Reporter):
    """Kills its process at the third step, of whatever task, in which anything was done."""

    def __init__(self) -> None:
        self.chunks = 0

    @contextmanager
    def task(self, label: str, total: int, unit: str = "") -> Iterator[Task]:
        with super().task(label, total, unit) as task:
            yield _Counted(task, self)


class _Counted:
    def __init__(self, task: Task, killer: Killer) -> None:
        self._task, self._killer = task, killer

    def resize(self, total: int, done: int = 0) -> None:
        self._task.resize(total, done)

    def advance(self, count: int = 1, **facts: object) -> None:
        self._task.advance(count, **facts)
        self._killer.chunks += count > 0
        if self._killer.chunks == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_run(base: Path, dataset: Path, folder: Path) -> None:
    """Runs in a process of its own, which it ends."""
    artifacts = {"base": base_artifact(base), "dataset": artifact(dataset, "dataset")}
    run_stage(STAGE, SECTION, artifacts, Workspace(folder, Killer()))


@pytest.fixture(scope="module")
def dataset(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baseline") / "data"
    return make_dataset(folder, tiny_base, task="classification", train=40, test=100)


def run(section: BaselineSection, base: Path, dataset: Path, folder: Path) -> Workspace:
    folder.mkdir(exist_ok=True)
    workspace = Workspace(folder)
    artifacts = {"base": base_artifact(base), "dataset": artifact(dataset, "dataset")}
    result = run_stage(STAGE, section, artifacts, workspace)
    assert not result.gates
    return workspace


def evaluation(workspace: Workspace) -> dict[str, object]:
    found: dict[str, object] = json.loads((workspace.path / "evaluation.json").read_bytes())
    return found


@pytest.fixture(scope="module")
def whole(tiny_base: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run of SECTION that nothing interrupted."""
    return run(SECTION, tiny_base, dataset, tmp_path_factory.mktemp("whole"))


def test_four_systems_and_the_best(dataset: Path, whole: Workspace) -> None:
    found = json.loads((whole.path / "evaluation.json").read_bytes())
    names = [f"{form}/{way}" for form in ("zero-shot", "few-shot") for way in SECTION.scoring]
    assert list(found["systems"]) == [*names, LINEAR]
    scores = {name: found["systems"][name]["metrics"]["accuracy"] for name in names}
    assert scores[found["best_system"]] == max(scores.values())
    assert found["systems"][LINEAR]["metrics"]["accuracy"] > max(scores.values())
    assert found["target"]["verdict"] == "fine-tune"
    table = pq.read_table(whole.path / "answers.parquet").to_pylist()
    ids = load_split(dataset, "test")["id"]
    assert [row["id"] for row in table] == list(ids) * 5
    for row in table:
        scored = row["system"].endswith("likelihood")
        assert (row["label_log_probability"] is not None) == scored
        assert row["correct"] == (row["predicted"] == row["expected"])
    for name in names:
        correct = [row["correct"] for row in table if row["system"] == name]
        assert scores[name] == pytest.approx(sum(correct) / len(correct))


def test_examples_are_balanced_seeded_and_never_from_test(dataset: Path) -> None:
    train, test = load_rows(dataset, "train"), load_rows(dataset, "test")
    chosen = choose_examples(train, 6, 7)
    assert sorted(row.label or "" for row in chosen) == ["animal"] * 3 + ["tool"] * 3
    assert {row.id for row in chosen} <= {row.id for row in train}
    assert not {row.id for row in chosen} & {row.id for row in test}
    assert choose_examples(train, 6, 7) == chosen
    assert choose_examples(train, 6, 8) != chosen


def test_prompts_hold_the_examples_and_not_the_answer(tiny_base: Path, dataset: Path) -> None:
    tokenizer, info = load_tokenizer(tiny_base), read_info(dataset)
    rows = load_rows(dataset, "test")[:2]
    examples = choose_examples(load_rows(dataset, "train"), 2, 7)
    form = PromptForm(info.task, label_instruction(info), examples)
    for row, prompt in zip(rows, make_prompts(form, tokenizer, rows), strict=True):
        text = tokenizer.decode(list(prompt.token_ids))
        assert text.startswith("<|im_start|>system\nSay what it is.\nAnswer with exactly one of: ")
        assert text.endswith(
            f"user\n{row.asked[-1]['content']}<|im_end|>\n<|im_start|>assistant\n"
        )
        for example in examples:
            assert f"{example.asked[0]['content']}<|im_end|>" in text
    labels = label_tokens(tokenizer, info, rows[0])
    assert [tokenizer.decode(list(tokens)) for tokens in labels] == ["animal", "tool"]


def test_killed_run_resumes_to_the_same_bytes(
    tiny_base: Path, dataset: Path, whole: Workspace, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    killed = child_process(killed_run, tiny_base, dataset, folder)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    journal = folder / "_scratch" / "replies-zero-shot.jsonl"
    assert 0 < len(journal.read_bytes().splitlines()) < 4
    with journal.open("ab") as stream:
        stream.write(b'[{"id": "torn')
    assert not (folder / "evaluation.json").exists()
    resumed = run(SECTION, tiny_base, dataset, folder)
    for name in OUTPUTS:
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_limited_rows_are_a_seeded_sample(tiny_base: Path, dataset: Path, tmp_path: Path) -> None:
    section = BaselineSection(few_shot=0, limit_rows=7, scoring=["likelihood"], linear=False)
    found = evaluation(run(section, tiny_base, dataset, tmp_path / "w"))
    assert found["rows"] == 7
    assert found["systems"].keys() == {"zero-shot/likelihood"}  # type: ignore[attr-defined]
    sample = load_rows(dataset, "test", 7, 7)
    order = [row.id for row in load_rows(dataset, "test")]
    places = [order.index(row.id) for row in sample]
    assert places == sorted(places)
    assert places != list(range(7))


@pytest.mark.parametrize("task", ["chat", "completion"])
def test_free_text_tasks(tiny_base: Path, tmp_path: Path, task: str) -> None:
    dataset = make_dataset(tmp_path / "data", tiny_base, task=task, train=12, test=9)
    workspace = run(BaselineSection(few_shot=2, speed_rows=2), tiny_base, dataset, tmp_path / "w")
    found = json.loads((workspace.path / "evaluation.json").read_bytes())
    assert list(found["systems"]) == ["zero-shot/generation", "few-shot/generation"]
    assert found["primary_metric"] == "exact_match"
    for system in found["systems"].values():
        assert system["metrics"]["reference_nats_per_token"] > 0


@pytest.mark.parametrize("bad", [{"scoring": []}, {"few_shot": -1}, {"target": {"value": 80}}])
def test_sections_that_make_no_sense(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BaselineSection.model_validate(bad)


def test_nearest_examples_are_those_most_alike(
    tiny_base: Path, dataset: Path, tmp_path: Path
) -> None:
    train = load_rows(dataset, "train")
    nearest = NearestExamples(train, 3)
    for row in load_rows(dataset, "test")[:8]:
        examples = nearest.examples_for(row)
        assert len(examples) == 3
        last_word = row.messages[-2]["content"].split()[-1]
        assert all(one.messages[-2]["content"].endswith(last_word) for one in examples)
    section = BaselineSection(few_shot=3, few_shot_by=["nearest"], limit_rows=12, speed_rows=0)
    found = evaluation(run(section, tiny_base, dataset, tmp_path / "run"))
    assert list(found["systems"]) == [
        "zero-shot/generation", "zero-shot/likelihood", "nearest/generation", "nearest/likelihood",
        LINEAR,
    ]  # fmt: skip
    assert found["few_shot"] == 3


def test_the_nearest_example_stands_just_before_the_question(dataset: Path) -> None:
    train = load_rows(dataset, "train")
    row = load_rows(dataset, "train")[5]
    messages = PromptForm("classification", "Say.", nearest=NearestExamples(train, 4)).messages(
        row
    )
    assert messages[-1] == row.messages[-2]
    assert messages[-3] == row.messages[-2], "itself"
    assert len(messages) == 1 + 2 * 4 + 1


def test_a_target_that_prompting_reaches_stops_the_run(
    tiny_base: Path, dataset: Path, tmp_path: Path
) -> None:
    """The gate of `require`: with a target this low there is nothing to fine-tune for."""
    section = BaselineSection(few_shot=0, target=Target(value=0.01), require=True, speed_rows=0)
    artifacts = {"base": base_artifact(tiny_base), "dataset": artifact(dataset, "dataset")}
    [gate] = run_stage(STAGE, section, artifacts, Workspace(tmp_path)).gates
    assert (gate.id, gate.status) == ("worth-tuning", "fail")
    assert gate.measured != "fine-tune"


def test_require_without_a_target_is_refused() -> None:
    with pytest.raises(ValidationError, match="Set target"):
        BaselineSection(require=True)


def test_a_larger_models_server_is_asked_the_same_way(
    tiny_base: Path, dataset: Path, tmp_path: Path
) -> None:
    """It gets the instruction and the examples as messages, and counts as a system."""
    says = json.dumps(answer("It is an animal."))
    with FaultyProxy("http://unused", lambda _question, _time: says) as proxy:
        endpoint = Endpoint(name="frontier", url=proxy.url, model="large")
        section = BaselineSection(
            few_shot=2,
            endpoints=[endpoint],
            limit_rows=10,
            speed_rows=0,
            scoring=["generation"],
            linear=False,
        )
        found = evaluation(run(section, tiny_base, dataset, tmp_path / "run"))
    assert list(found["systems"])[-2:] == [
        "frontier-zero-shot/generation", "frontier-few-shot/generation",
    ]  # fmt: skip
    expected = [row.label for row in load_rows(dataset, "test", 10, SEED)]
    accuracy = found["systems"]["frontier-few-shot/generation"]["metrics"]["accuracy"]
    assert accuracy == expected.count("animal") / 10
    assert found["best_system"].startswith("frontier")
    assert proxy.asked.total() == 20
