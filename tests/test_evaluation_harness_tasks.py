"""Task YAMLs of lm-evaluation-harness: what is refused, what is said early, what is in the key."""

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from harness_cases import QUESTIONS, ROOT, SHIPPED, MakeTasks, section, task_maker
from luthier.config import load_config
from luthier.errors import ConfigError, DataError, LuthierError
from luthier.evaluation.general import GeneralLimits
from luthier.evaluation.harness_section import HarnessSection
from luthier.pipeline import all_sections
from luthier.planning import Planner
from luthier.stages.evaluate import STAGE, EvaluateSection
from luthier.store import Store
from luthier.store.keys import hash_files


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # paths in task YAMLs are relative to the working directory


@pytest.fixture
def tasks(tmp_path: Path) -> MakeTasks:
    return task_maker(tmp_path / "tasks")


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
    tasks: MakeTasks, tmp_path: Path, line: str, problem: str
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


def test_a_task_that_runs_what_the_model_wrote_is_refused() -> None:
    with pytest.raises(DataError, match="humaneval would run what the model writes"):
        HarnessSection(tasks=["humaneval"]).check()


def test_what_is_wrong_is_said_before_a_model_is_loaded(tasks: MakeTasks, tmp_path: Path) -> None:
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
    tasks: MakeTasks, tmp_path: Path
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
    recipes = []
    for extra in (
        f"evaluate: {{harness: {{tasks: [x], include_path: {folder}}}}}",
        "evaluate: {}",
    ):
        config = tmp_path / "config.yaml"
        config.write_text(f"name: x\nbase: {{model: m}}\n{extra}\n")
        planner = Planner(load_config(config, all_sections()), Store(tmp_path / "store"))
        recipes.append(planner.ingredients(STAGE, {}).recipe)
    assert recipes[0].key_packages["lm-eval"] == version("lm-eval")
    assert "lm-eval" not in recipes[1].key_packages
    assert len(recipes[0].external_files) == 3
    assert recipes[1].external_files == []
