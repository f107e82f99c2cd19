"""The export stage on a tiny tuned model: a whole bundle, the same bytes again, failing gates."""

import hashlib
import json
import platform
import re
import shlex
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from luthier.config import Section
from luthier.stages.contract import StageInputs, StageResult
from luthier.stages.export import STAGE, ExportSection
from luthier.store.artifact import Artifact, Workspace
from luthier.store.manifest import ArtifactKind, Environment, Manifest
from serving_cases import SYSTEM_PROMPT

pytest_plugins = "serving_fixtures"

SECTION = ExportSection(probe_rows=8)


def artifact(folder: Path, kind: ArtifactKind) -> Artifact:
    environment = Environment(
        luthier="0",
        git_commit=None,
        git_dirty=None,
        python=platform.python_version(),
        packages={},
        platform="test",
        cpu_threads=1,
    )
    digest = hashlib.sha256(kind.encode()).hexdigest()
    manifest = Manifest(
        stage=kind,
        stage_version=1,
        kind=kind,
        key=digest,
        name="package-router",
        version=1,
        digest=digest,
        outputs=[],
        inputs=[],
        external_files=[],
        config={},
        key_fields={},
        seed=None,
        key_packages={},
        metrics={},
        facts={},
        timings_seconds={},
        gates=[],
        environment=environment,
        created_at="2026-11-23T00:00:00+00:00",
        status="complete",
    )
    return Artifact(folder, manifest)


def run_stage(
    workspace: Workspace, base: Path, dataset: Path, model: Path, section: Section = SECTION
) -> StageResult:
    artifacts = {
        "base": artifact(base, "base"),
        "dataset": artifact(dataset, "dataset"),
        "model": artifact(model, "model"),
    }
    return STAGE.run(section, StageInputs("package-router", 7, artifacts), workspace)


def contents(folder: Path) -> dict[str, bytes]:
    shutil.rmtree(folder / "_scratch", ignore_errors=True)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_bundle_and_the_same_bundle_again(
    workspace: Workspace, tiny_base: Path, dataset_dir: Path, tuned_dir: Path, tmp_path: Path
) -> None:
    result = run_stage(workspace, tiny_base, dataset_dir, tuned_dir)
    assert {gate.id: gate.status for gate in result.gates} == {
        "vllm-folder": "pass",
        "gguf-ids": "pass",
        "gguf-answers": "pass",
        "gguf-score": "pass",
        "served-is-tuned": "pass",
        "stop-at-serve": "pass",
    }
    assert result.metrics["q8_0"]["served_score"] == 1.0
    json.dumps([result.metrics, result.facts])
    bundle = contents(workspace.path)
    _check_documents(bundle)
    assert not any(str(tmp_path).encode() in content for content in bundle.values())

    # A run that was killed after converting: the GGUF is kept, all else is written again.
    other = Workspace(tmp_path / "again")
    (other.path / "ollama").mkdir(parents=True)
    shutil.copy(workspace.path / "ollama" / "model-q8_0.gguf", other.path / "ollama")
    run_stage(other, tiny_base, dataset_dir, tuned_dir)
    assert contents(other.path) == bundle


def _check_documents(bundle: dict[str, bytes]) -> None:
    assert {"README.md", "SHA256SUMS", "ollama/Modelfile", "ollama/model-q8_0.gguf"} <= set(bundle)
    assert f'SYSTEM "{SYSTEM_PROMPT}"\n' in bundle["ollama/Modelfile"].decode()
    sums = dict(line.split("  ")[::-1] for line in bundle["SHA256SUMS"].decode().splitlines())
    assert set(sums) == set(bundle) - {"SHA256SUMS", "measured/RUN.md"}
    for name, digest in sums.items():
        assert hashlib.sha256(bundle[name]).hexdigest() == digest
    readme = bundle["README.md"].decode()
    assert "ollama create package-router:q8_0 -f ollama/Modelfile" in readme
    assert re.search(r"\| q8_0 \| +0 of ", readme)
    assert SYSTEM_PROMPT in readme
    requests = [line for line in readme.splitlines() if line.lstrip().startswith("-d ")]
    assert len(requests) == 2
    for line in requests:
        first = json.loads(shlex.split(line)[1])["messages"][0]
        assert first == {"role": "system", "content": SYSTEM_PROMPT}


def test_the_base_in_place_of_the_merged_model_fails(
    workspace: Workspace, tiny_base: Path, dataset_dir: Path, tuned_gguf: Path, tuned_dir: Path
) -> None:
    # The GGUF that stands already is of other weights than the model artifact.
    (workspace.path / "ollama").mkdir()
    shutil.copy(tuned_gguf, workspace.path / "ollama" / "model-q8_0.gguf")
    section = ExportSection(targets=["ollama"], probe_rows=4)
    result = run_stage(workspace, tuned_dir, dataset_dir, tiny_base, section)
    statuses = {gate.id: gate.status for gate in result.gates}
    assert statuses["gguf-ids"] == "pass"
    assert statuses["gguf-answers"] == statuses["served-is-tuned"] == "fail"
    assert not (workspace.path / "vllm").exists()


def test_vllm_alone_needs_no_converter(
    workspace: Workspace,
    tiny_base: Path,
    dataset_dir: Path,
    tuned_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("LUTHIER_GGUF_CONVERTER", str(tmp_path / "nowhere"))
    section = ExportSection(targets=["vllm"])
    result = run_stage(workspace, tiny_base, dataset_dir, tuned_dir, section)
    assert [(gate.id, gate.status) for gate in result.gates] == [("vllm-folder", "pass")]
    assert "ollama create" not in (workspace.path / "README.md").read_text()


@pytest.mark.parametrize(
    "fields", [{"targets": []}, {"targets": ["tgi"]}, {"gguf_quantization": ["q5"]}, {"n_ctx": 1}]
)
def test_sections_that_are_refused(fields: dict) -> None:
    with pytest.raises(ValidationError):
        ExportSection(**fields)


@pytest.mark.slow
def test_smollm2_itself(
    workspace: Workspace, smol_dir: Path, dataset_dir: Path, tmp_path: Path
) -> None:
    """Real weights: ids and answers agree; a model that was not tuned is told so."""
    model = tmp_path / "model"
    shutil.copytree(smol_dir, model)
    section = ExportSection(probe_rows=4, min_greedy_agreement=0.5)
    result = run_stage(workspace, smol_dir, dataset_dir, model, section)
    statuses = {gate.id: gate.status for gate in result.gates}
    assert statuses["vllm-folder"] == statuses["gguf-ids"] == statuses["gguf-answers"] == "pass"
    assert statuses["served-is-tuned"] == "fail"
