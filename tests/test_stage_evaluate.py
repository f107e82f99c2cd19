"""The evaluate stage: a trained adapter passes the gate, one that learned nothing fails it."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from evaluation_cases import (
    artifact,
    make_teachable,
    run_stage,
    train_adapter,
)
from luthier.errors import DataError
from luthier.stages import baseline
from luthier.stages.contract import StageResult
from luthier.stages.evaluate import STAGE, EvaluateSection
from luthier.store.artifact import Artifact, Workspace


@dataclass(frozen=True)
class Case:
    """A base, a dataset and the baseline made of them."""

    base: Artifact
    dataset: Artifact
    baseline: Artifact


@pytest.fixture(scope="module")
def case(smol_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("evaluate")
    base, dataset = make_teachable(folder, smol_tokenizer_dir, test=60)
    answered = folder / "baseline"
    answered.mkdir()
    section = baseline.BaselineSection(few_shot=2)
    run_stage(baseline.STAGE, section, {"base": base, "dataset": dataset}, Workspace(answered))
    return Case(base, dataset, artifact(answered, "evaluation"))


def evaluate(
    case: Case,
    adapter: Artifact,
    workspace: Workspace,
    section: EvaluateSection | None = None,
    *,
    with_baseline: bool = True,
) -> StageResult:
    artifacts = {"base": case.base, "dataset": case.dataset, "adapter": adapter}
    if with_baseline:
        artifacts["baseline"] = case.baseline
    return run_stage(STAGE, section or EvaluateSection(), artifacts, workspace)


def test_a_trained_adapter_beats_the_baseline(
    case: Case, workspace: Workspace, tmp_path: Path
) -> None:
    adapter = train_adapter(case.base.path, case.dataset.path, tmp_path / "adapter", steps=60)
    result = evaluate(case, adapter, workspace)
    (gate,) = result.gates
    assert (gate.id, gate.status, gate.measured) == ("beats-baseline", "pass", "better")
    assert "exact McNemar p" in gate.detail
    found = json.loads((workspace.path / "evaluation.json").read_bytes())
    assert found["paired_test"]["p_value"] < 0.05
    assert found["systems"]["tuned/generation"]["metrics"]["accuracy"] > 0.7
    assert found["systems"]["tuned/generation"]["truncated"] == 0
    assert found["compared"]["new"] == "tuned/generation"


def test_an_adapter_that_learned_nothing_fails_the_gate(
    case: Case, workspace: Workspace, tmp_path: Path
) -> None:
    adapter = train_adapter(case.base.path, case.dataset.path, tmp_path / "adapter", steps=0)
    (gate,) = evaluate(case, adapter, workspace).gates
    assert gate.status == "fail"
    assert gate.measured in {"cannot tell", "worse"}


def test_without_a_baseline_there_is_no_gate_and_the_bytes_repeat(
    case: Case, workspace: Workspace, tmp_path: Path
) -> None:
    adapter = train_adapter(case.base.path, case.dataset.path, tmp_path / "adapter", steps=2)
    assert not evaluate(case, adapter, workspace, with_baseline=False).gates
    again = Workspace(tmp_path / "again")
    again.path.mkdir()
    evaluate(case, adapter, again, with_baseline=False)
    for name in ("answers.parquet", "evaluation.json"):
        assert (again.path / name).read_bytes() == (workspace.path / name).read_bytes()
    assert json.loads((again.path / "evaluation.json").read_bytes())["paired_test"] is None


def test_other_rows_than_the_baselines_are_an_error(
    case: Case, workspace: Workspace, tmp_path: Path
) -> None:
    adapter = train_adapter(case.base.path, case.dataset.path, tmp_path / "adapter", steps=0)
    with pytest.raises(DataError, match="answered 60 rows, this evaluation 5"):
        evaluate(case, adapter, workspace, EvaluateSection(limit_rows=5))
