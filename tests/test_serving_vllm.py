"""The vLLM folder and its gate: a healthy folder, and each thing that must not pass."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from luthier.serving.vllm import (
    TOKENIZER_FILES,
    copy_atomically,
    folder_gate,
    read_serve_config,
    write_folder,
)
from luthier.store.files import remove_temporaries
from serving_cases import edit_json


def write(folder: Path, base: Path, model: Path | None = None) -> Path:
    write_folder(
        folder,
        model=model or base,
        base=base,
        name="a: model",
        stop_token_ids=[2, 0],
        context_tokens=512,
    )
    return folder


@pytest.fixture
def vllm_folder(tiny_base: Path, tmp_path: Path) -> Path:
    return write(tmp_path / "vllm", tiny_base)


def test_a_healthy_folder_passes(tiny_base: Path, vllm_folder: Path) -> None:
    gate = folder_gate(vllm_folder, tiny_base, tiny_base)
    assert gate.status == "pass", gate.detail
    assert json.loads((vllm_folder / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "do_sample": False,
        "eos_token_id": [2, 0],
        "pad_token_id": 2,
        "temperature": 0.0,
    }
    serve = yaml.safe_load((vllm_folder / "serve.yaml").read_text())
    assert serve == {
        "served-model-name": "a: model",
        "generation-config": "auto",
        "dtype": "float32",
        "max-model-len": 512,
        "tokenizer-mode": "hf",
        "config-format": "hf",
        "load-format": "safetensors",
        "chat-template-content-format": "string",
    }
    assert read_serve_config(vllm_folder) == serve


def test_the_folder_loads_in_transformers(vllm_folder: Path) -> None:
    from luthier.models.loading import load_model, load_tokenizer

    assert load_model(vllm_folder).generation_config.eos_token_id == [2, 0]
    assert load_tokenizer(vllm_folder).chat_template


def test_the_tokenizer_is_the_bases_even_if_the_merge_wrote_another(
    tiny_base: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_base, model)
    edit_json(model / "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    edit_json(model / "config.json", _name_or_path="/home/somebody/merged")
    folder = write(tmp_path / "vllm", tiny_base, model)
    assert folder_gate(folder, tiny_base, model).status == "pass"
    assert "somebody" not in (folder / "config.json").read_text()
    for name in TOKENIZER_FILES:
        if (tiny_base / name).exists():
            assert (folder / name).read_bytes() == (tiny_base / name).read_bytes()


def copy_of(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    return folder


def test_the_dtype_is_that_of_the_weights_whatever_the_config_says(
    tiny_base: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = copy_of(tiny_base, tmp_path / "model")
    weights = model / "model.safetensors"
    save_file({name: one.bfloat16() for name, one in load_file(weights).items()}, weights)
    edit_json(model / "config.json", torch_dtype="float32", dtype="float32")
    folder = write(tmp_path / "vllm", tiny_base, model)
    assert read_serve_config(folder)["dtype"] == "bfloat16"
    config = json.loads((folder / "config.json").read_text())
    assert (config["dtype"], "torch_dtype" in config) == ("bfloat16", False)


def test_with_added_tokens_the_tokenizer_is_the_models_own(
    tiny_base: Path, tmp_path: Path
) -> None:
    from luthier.models.loading import load_tokenizer

    model = copy_of(tiny_base, tmp_path / "model")
    grown = load_tokenizer(tiny_base)
    assert grown.add_tokens(["<|routed|>"], special_tokens=True) == 1
    grown.save_pretrained(model)
    folder = write(tmp_path / "vllm", tiny_base, model)
    assert load_tokenizer(folder).convert_tokens_to_ids("<|routed|>") == 49152
    assert (folder / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    gate = folder_gate(folder, tiny_base, model)
    assert gate.status == "pass", gate.detail
    shutil.copy(tiny_base / "tokenizer.json", folder)
    assert "tokenizer.json is not what was" in folder_gate(folder, tiny_base, model).detail


def test_a_tokenizer_of_another_model_in_the_merged_folder_is_not_taken(
    tiny_base: Path, tmp_path: Path
) -> None:
    model = copy_of(tiny_base, tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["hello"], vocabulary["Ġthe"] = vocabulary["Ġthe"], vocabulary["hello"]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    folder = write(tmp_path / "vllm", tiny_base, model)
    assert (folder / "tokenizer.json").read_bytes() == (tiny_base / "tokenizer.json").read_bytes()
    assert folder_gate(folder, tiny_base, model).status == "pass"


def test_writing_again_changes_nothing(tiny_base: Path, vllm_folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in vllm_folder.iterdir()}
    write(vllm_folder, tiny_base)
    assert {path.name: path.read_bytes() for path in vllm_folder.iterdir()} == before


def shard(folder: Path, *, missing: bool) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    half = len(names) // 2
    files = {"model-00001-of-00002.safetensors": names[:half]}
    files["model-00002-of-00002.safetensors"] = names[half + missing :]
    for name, part in files.items():
        save_file({tensor: tensors[tensor] for tensor in part}, folder / name)
    weight_map = {tensor: list(files)[tensor not in names[:half]] for tensor in names}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_with_their_index_pass(tiny_base: Path, vllm_folder: Path) -> None:
    shard(vllm_folder, missing=False)
    assert folder_gate(vllm_folder, tiny_base, tiny_base).status == "pass"


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter_config.json must not"),
        (
            lambda f: (f / "adapter_model.safetensors").touch(),
            "adapter_model.safetensors must not",
        ),
        (lambda f: (f / "training_args.bin").touch(), "training_args.bin must not"),
        (lambda f: (f / "modeling_x.py").touch(), "modeling_x.py must not"),
        (lambda f: edit_json(f / "config.json", auto_map={}), "config.json has auto_map"),
        (
            lambda f: edit_json(f / "config.json", quantization_config={}),
            "has quantization_config",
        ),
        (lambda f: edit_json(f / "config.json", architectures=None), "no architectures"),
        (lambda f: edit_json(f / "generation_config.json", eos_token_id=None), "no eos_token_id"),
        (
            lambda f: edit_json(f / "config.json", dtype="float16", model_type="gemma3_text"),
            "vLLM refuses float16 for gemma3_text; set merge.dtype: bfloat16",
        ),
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "serve.yaml").unlink(), "serve.yaml is missing"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda f: (f / "chat_template.jinja").write_text("x"), "not what was trained with, byte"),
        (
            lambda f: (f / "special_tokens_map.json").write_text("{}"),
            "only here, unlike where the tokenizer",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (cut_weights, "model.safetensors cannot be read"),
        (lambda f: shard(f, missing=True), "is not in model-00002-of-00002.safetensors"),
        (
            lambda f: shutil.copy(f / "model.safetensors", f / "model-2.safetensors"),
            "several weight files but no",
        ),
    ],
)
def test_what_must_not_pass(
    tiny_base: Path, vllm_folder: Path, spoil: Callable[[Path], object], told: str
) -> None:
    spoil(vllm_folder)
    gate = folder_gate(vllm_folder, tiny_base, tiny_base)
    assert gate.status == "fail"
    assert told in gate.detail


def test_a_copy_that_was_killed_leaves_nothing_in_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left has a name that the store sweeps; it was sealed into the bundle once."""

    def killed(_source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    (tmp_path / "weights").write_bytes(b"whole")
    folder = tmp_path / "vllm"
    folder.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", killed)
        with pytest.raises(KeyboardInterrupt):
            copy_atomically(tmp_path / "weights", folder / "weights")
    assert len(list(folder.iterdir())) == 1
    remove_temporaries(folder)
    assert list(folder.iterdir()) == []
    copy_atomically(tmp_path / "weights", folder / "weights")
    assert (folder / "weights").read_bytes() == b"whole"
