"""The export stage on a tiny tuned model: a whole bundle, the same bytes again, failing gates."""

import hashlib
import json
import platform
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from luthier.errors import ConfigError
from luthier.serving.converter import convert
from luthier.serving.export_section import ExportSection
from luthier.serving.gguf_limits import finer
from luthier.serving.serve_probes import read_serve_probes
from luthier.stages.contract import StageInputs, StageResult
from luthier.stages.export import STAGE
from luthier.store.artifact import Artifact, Workspace
from luthier.store.manifest import ArtifactKind, Environment, InputRef, Manifest
from serving_cases import SYSTEM_PROMPT, make_adapter

pytest_plugins = "serving_fixtures"

SECTION = ExportSection(probe_rows=8, ollama_template=True)
PASSING = (
    *("gguf-ids", "gguf-chats", "gguf-kl", "gguf-tokens", "gguf-answers", "gguf-score"),
    *("served-is-tuned", "stop-at-serve"),
)


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
        facts={"source": {"name": "a folder", "kind": "folder"}},
        timings_seconds={},
        gates=[],
        environment=environment,
        created_at="2026-11-23T00:00:00+00:00",
        status="complete",
    )
    return Artifact(folder, manifest)


def run_stage(
    workspace: Workspace,
    folders: dict[ArtifactKind, Path],
    section: ExportSection = SECTION,
    model_facts: dict[str, Any] | None = None,
) -> StageResult:
    artifacts = {str(kind): artifact(folder, kind) for kind, folder in folders.items()}
    artifacts["model"].manifest.facts.update(model_facts or {})
    if "adapter" in artifacts:
        base = artifacts["base"]
        ref = InputRef(slot="base", kind="base", key=base.key, digest=base.digest, ref=base.ref)
        manifest = artifacts["adapter"].manifest.model_copy(update={"inputs": [ref]})
        artifacts["others-second"] = Artifact(folders["adapter"], manifest)
    return STAGE.run(section, StageInputs("package-router", 7, artifacts), workspace)


@pytest.fixture
def folders(tiny_base: Path, dataset_dir: Path, tuned_dir: Path) -> dict[ArtifactKind, Path]:
    return {"base": tiny_base, "dataset": dataset_dir, "model": tuned_dir}


def converting(monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], Path]) -> None:
    """Have the stage convert another folder than it wrote."""

    def planted(folder: Path, *arguments: Any, **options: Any) -> Any:
        return convert(change(folder), *arguments, **options)

    monkeypatch.setattr("luthier.serving.gguf_export.convert", planted)


def contents(folder: Path) -> dict[str, bytes]:
    shutil.rmtree(folder / "_scratch", ignore_errors=True)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_bundle_and_the_same_bundle_again(
    workspace: Workspace, folders: dict[ArtifactKind, Path], tmp_path: Path
) -> None:
    result = run_stage(workspace, folders)
    assert {gate.id: gate.status for gate in result.gates} == {
        "vllm-folder": "pass",
        **dict.fromkeys(PASSING, "pass"),
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
    run_stage(other, folders)
    assert contents(other.path) == bundle


def test_every_target_and_a_type_that_is_too_lossy(
    workspace: Workspace, folders: dict[ArtifactKind, Path], tmp_path: Path
) -> None:
    adapter = make_adapter(folders["base"], tmp_path / "adapter")
    section = ExportSection(
        targets=["vllm", "vllm-adapter", "gguf", "hub"],
        gguf_quantization=["q4_0", "f16"],
        importance_matrix=True,
        adapters={"second": "package-router/adapter@v1"},
        max_mean_kl_nats=1e-6,
        probe_rows=4,
    )
    result = run_stage(workspace, folders | {"adapter": adapter}, section)
    gates = {(gate.id, gate.detail.partition(":")[0]): gate for gate in result.gates}
    assert gates["vllm-adapter", "complete, nothing refused"].status == "pass"
    (lossy,) = (gate for gate in result.gates if gate.id == "gguf-kl" and gate.status == "fail")
    would_pass = result.metrics["q4_0"]["would_pass"]
    assert would_pass in finer("q4_0")
    assert lossy.detail.startswith(f"too lossy: {would_pass} would pass (measured); q4_0: ")
    assert result.metrics["f16"]["failed_gates"] == ()
    assert result.facts["gguf_tensor_types"]["f16"]["f16"] > 10
    assert result.facts["gguf"] == {
        "q4_0": "gguf/model-q4_0.gguf",
        "f16": "gguf/model-f16.gguf",
    }
    bundle = set(contents(workspace.path))
    assert {name for name in bundle if name.endswith(".gguf")} == set(
        result.facts["gguf"].values()
    )
    assert {"hub/README.md", "hub/model.safetensors", "probes.json"} <= bundle
    assert "vllm-adapter/package-router/adapter_model.safetensors" in bundle
    assert "vllm-adapter/second/adapter_config.json" in bundle
    assert not any(name.startswith("ollama") for name in bundle)
    assert f"too lossy: {would_pass} would pass" in (workspace.path / "README.md").read_text(
        "utf-8"
    )
    assert read_serve_probes(workspace.path).served_name == "package-router"


def _check_documents(bundle: dict[str, bytes]) -> None:
    assert {"README.md", "SHA256SUMS", "ollama/Modelfile", "ollama/model-q8_0.gguf"} <= set(bundle)
    modelfile = bundle["ollama/Modelfile"].decode()
    assert f'SYSTEM "{SYSTEM_PROMPT}"\n' in modelfile
    assert "TEMPLATE" in modelfile
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


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"base_weights": "dequantized"}, "as its 4-bit form decodes"),
        ({"base_weights": "original", "combined": True}, "several adapters"),
    ],
)
def test_an_adapter_that_is_another_model_than_the_merged_is_told(
    facts: dict[str, Any], told: str, workspace: Workspace, folders: dict[ArtifactKind, Path]
) -> None:
    """F28: what vLLM serves of it was not measured."""
    adapter = make_adapter(folders["base"], workspace.scratch / "adapter")
    section = ExportSection(targets=["vllm-adapter"], probe_rows=2)
    result = run_stage(workspace, folders | {"adapter": adapter}, section, facts)
    (gate,) = result.gates
    assert (gate.id, gate.status) == ("vllm-adapter", "fail")
    assert told in gate.detail


def test_an_adapter_of_another_base_is_refused(
    workspace: Workspace, folders: dict[ArtifactKind, Path]
) -> None:
    made = {str(kind): artifact(folder, kind) for kind, folder in folders.items()}
    made["others-second"] = artifact(folders["model"], "adapter")
    made["adapter"] = made["others-second"]
    section = ExportSection(
        targets=["vllm-adapter"], adapters={"second": "other/adapter@v1"}, probe_rows=2
    )
    with pytest.raises(ConfigError, match=r"export.adapters: .* not the base of this run"):
        STAGE.run(section, StageInputs("package-router", 7, made), workspace)


def test_the_base_in_place_of_the_merged_model_fails(
    workspace: Workspace,
    folders: dict[ArtifactKind, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def base_weights(folder: Path) -> Path:
        planted = tmp_path / "planted"
        shutil.copytree(folder, planted, dirs_exist_ok=True)
        shutil.copy(folders["base"] / "model.safetensors", planted)
        return planted

    converting(monkeypatch, base_weights)
    section = ExportSection(targets=["ollama"], probe_rows=4)
    result = run_stage(workspace, folders, section)
    statuses = {gate.id: gate.status for gate in result.gates}
    assert statuses["gguf-ids"] == statuses["gguf-chats"] == "pass"
    failed = {gate for gate, status in statuses.items() if status == "fail"}
    assert failed >= {"gguf-kl", "gguf-tokens", "gguf-answers", "served-is-tuned"}
    assert not any("too lossy" in gate.detail for gate in result.gates)
    assert not (workspace.path / "vllm").exists()


def test_another_template_in_the_gguf_fails(
    workspace: Workspace,
    folders: dict[ArtifactKind, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def other_template(folder: Path) -> Path:
        planted = tmp_path / "planted"
        shutil.copytree(folder, planted, dirs_exist_ok=True)
        path = planted / "chat_template.jinja"
        path.write_text(path.read_text("utf-8").replace("<|im_end|>", "<|im_end|> "), "utf-8")
        return planted

    converting(monkeypatch, other_template)
    result = run_stage(workspace, folders, ExportSection(targets=["gguf"], probe_rows=4))
    failed = {gate.id: gate.detail for gate in result.gates if gate.status == "fail"}
    assert "golden conversation" in failed["gguf-chats"] or "rendered" in failed["gguf-chats"]
    assert result.metrics["q8_0"]["chat_mismatches"] > 20


def test_vllm_alone_needs_no_converter(
    workspace: Workspace,
    folders: dict[ArtifactKind, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("LUTHIER_GGUF_CONVERTER", str(tmp_path / "nowhere"))
    result = run_stage(workspace, folders, ExportSection(targets=["vllm"], probe_rows=2))
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
    folders: dict[ArtifactKind, Path] = {
        "base": smol_dir,
        "dataset": dataset_dir,
        "model": model,
    }
    result = run_stage(workspace, folders, section)
    statuses = {gate.id: gate.status for gate in result.gates}
    assert statuses["vllm-folder"] == statuses["gguf-ids"] == statuses["gguf-answers"] == "pass"
    assert statuses["served-is-tuned"] == "fail"
