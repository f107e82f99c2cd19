"""The importance matrix: what it measures, and that quantising by it loses less."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from luthier.errors import ServingError
from luthier.models.loading import load_model, load_tokenizer
from luthier.serving.converter import Extras, convert
from luthier.serving.gguf_logits import gguf_logits
from luthier.serving.importance import importance_matrix, read_importance
from luthier.store.artifact import Workspace
from serving_cases import edit_json

pytest_plugins = "serving_fixtures"


DOCUMENTS = Path(__file__).parent.parent / "docs"


def rows_of(dataset: Path) -> list[list[int]]:
    import pyarrow.parquet as parquet

    return parquet.read_table(dataset / "test-00000.parquet")["input_ids"].to_pylist()


def test_mean_squares_of_the_inputs_by_column(
    tuned_dir: Path, dataset_dir: Path, workspace: Workspace
) -> None:
    rows = rows_of(dataset_dir)[:2]
    path = importance_matrix(tuned_dir, rows, workspace.path / "importance.gguf", workspace)
    importance = read_importance(path)
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert set(importance.columns) == {f"blk.{i}.{p}.weight" for i in (0, 1) for p in parts}
    model = load_model(tuned_dir)
    inputs = []
    layer = model.model.layers[0]
    layer.input_layernorm.register_forward_hook(lambda _m, _i, output: inputs.append(output[0]))
    with torch.inference_mode():
        for row in rows:
            model(input_ids=torch.tensor([row]))
    expected = torch.cat(inputs).square().mean(0).numpy()
    for part in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(importance.columns[f"blk.0.{part}.weight"], expected, rtol=1e-4)
    assert importance.metadata == {
        "quantize.imatrix.file": "importance.gguf",
        "quantize.imatrix.entries_count": 14,
        "quantize.imatrix.chunks_count": 2,
    }


def test_the_file_is_as_llama_imatrix_lays_it_out(
    tuned_dir: Path, dataset_dir: Path, workspace: Workspace
) -> None:
    rows = rows_of(dataset_dir)
    path = importance_matrix(tuned_dir, rows, workspace.path / "i.gguf", workspace)
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["validation"]
    assert reader.fields["imatrix.chunk_count"].contents() == len(rows)
    assert "general.architecture" not in reader.fields
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    assert shapes["blk.1.ffn_down.weight.in_sum2"] == [128, 1]
    assert shapes["blk.1.ffn_down.weight.counts"] == [1, 1]
    first = path.read_bytes()
    path.unlink()
    importance_matrix(tuned_dir, rows, path, workspace)
    assert path.read_bytes() == first


def test_the_weighted_error_is_less_with_the_matrix(
    tuned_dir: Path, dataset_dir: Path, workspace: Workspace
) -> None:
    rows = rows_of(dataset_dir)
    path = importance_matrix(tuned_dir, rows, workspace.path / "i.gguf", workspace)
    columns = read_importance(path).columns
    errors: dict[str, dict[str, float]] = {}
    for name, extras in (("plain", Extras()), ("weighted", Extras(importance=path))):
        target = workspace.path / f"{name}.gguf"
        header = convert(
            tuned_dir, target, quantization="q4_0", name="t", workspace=workspace, extras=extras
        )
        assert ("quantize.imatrix.file" in header.metadata) == (name == "weighted")
        errors[name] = _weighted_errors(workspace, target, columns)
    assert all(errors["weighted"][tensor] < errors["plain"][tensor] for tensor in columns)
    whole = [p.name for p in workspace.scratch.iterdir()]
    assert len(whole) == 1  # converted once for both
    assert whole[0].startswith("whole-f32-")


def _weighted_errors(
    workspace: Workspace, path: Path, columns: Mapping[str, np.ndarray]
) -> dict[str, float]:
    (whole,) = workspace.scratch.glob("whole-*.gguf")
    exact = {t.name: t.data for t in gguf.GGUFReader(whole).tensors}
    made = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    return {n: float((np.square(made[n] - exact[n]) * columns[n]).sum()) for n in columns}


@pytest.mark.slow
def test_smollm2_is_nearer_to_itself_with_the_matrix(smol_dir: Path, workspace: Workspace) -> None:
    """Measured on other text than the matrix: mean KL to the model itself, nats a token."""
    tokenizer = load_tokenizer(smol_dir)
    text = " ".join(path.read_text("utf-8") for path in sorted(DOCUMENTS.glob("*.md")))
    ids = tokenizer(text)["input_ids"]
    pieces = [ids[start : start + 128] for start in range(0, len(ids) - 128, 128)]
    seen, unseen = pieces[::10], pieces[5::40]
    importance = importance_matrix(smol_dir, seen, workspace.path / "i.gguf", workspace)
    model, found = load_model(smol_dir), {}
    for name, extras in (("plain", Extras()), ("weighted", Extras(importance=importance))):
        path = workspace.path / f"{name}.gguf"
        convert(smol_dir, path, quantization="q4_0", name="t", workspace=workspace, extras=extras)
        found[name] = _divergence(model, path, unseen)
    assert found["weighted"] < 0.8 * found["plain"]


def _divergence(model: Any, path: Path, rows: list[list[int]]) -> float:
    sums = []
    for row, served_TV in zip(rows, gguf_logits(path, rows), strict=True):
        with torch.inference_mode():
            scores_TV = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
        served = torch.tensor(served_TV).log_softmax(-1)
        sums.append((scores_TV.exp() * (scores_TV - served)).sum(-1))
    return float(torch.cat(sums).mean())


def test_what_cannot_be_measured_is_refused(
    tuned_dir: Path, tmp_path: Path, workspace: Workspace
) -> None:
    target = tmp_path / "i.gguf"
    with pytest.raises(ServingError, match="No rows"):
        importance_matrix(tuned_dir, [], target, workspace)
    folder = tmp_path / "odd"
    shutil.copytree(tuned_dir, folder)
    edit_json(folder / "config.json", model_type="helium", head_dim=16)
    with pytest.raises(ServingError, match="no names for the layers of 'helium'"):
        importance_matrix(folder, [[1, 2]], target, workspace)
    assert not target.exists()
