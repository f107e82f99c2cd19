"""What merging writes: types, shards, the same bytes; Conv1D; what it refuses."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.errors import ModelError
from luthier.models.full_tuning import prepare_full, save_full
from luthier.models.loading import load_model
from luthier.models.merging import dequantised_weights, merge
from luthier.models.parity import max_logit_difference, probe_logits
from luthier.models.weights import describe_weights
from tiny_llama import tiny_llama

ROWS = [[1, 9, 98, 68, 33], [1, 20, 31, 98, 28, 7]]
MAX_DIFFERENCE = 1e-4
VOCABULARY = 128


@pytest.fixture(scope="module")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bfloat16, in several shards."""
    folder = tmp_path_factory.mktemp("small")
    model = tiny_llama(3, vocab_size=VOCABULARY).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=60_000)
    return folder


def saved_adapter(base: Path, folder: Path, spread: float = 0.1, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Conv1D, of tied heads
        model: Any = get_peft_model(
            load_model(base), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **options)
        )
        torch.manual_seed(7)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += spread * torch.randn_like(parameter)
        model.eval()
        model.save_pretrained(folder, save_embedding_layers=False)
    return model


def merged(base: Path, adapter: Path, folder: Path, **options: Any) -> Any:
    folder.mkdir(exist_ok=True)
    return merge(base, adapter, folder, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        n: t for path in sorted(folder.glob("*.safetensors")) for n, t in load_file(path).items()
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_written_types_and_what_the_cast_costs(small_base: Path, tmp_path: Path) -> None:
    saved_adapter(small_base, tmp_path / "a", spread=0.003, target_modules="all-linear")
    kept = merged(small_base, tmp_path / "a", tmp_path / "kept")
    cast = merged(small_base, tmp_path / "a", tmp_path / "bf16", dtype="bfloat16")
    exact = merged(small_base, tmp_path / "a", tmp_path / "fp32", dtype="float32")
    assert contents(tmp_path / "kept") == contents(tmp_path / "bf16")
    assert kept == cast
    assert (cast.dtype, exact.dtype) == ("bfloat16", "float32")
    # A small update: bfloat16 keeps 8 bits of the weight, float32 24.
    assert 0 < exact.relative_delta_error < 1e-3
    assert cast.relative_delta_error > 0.01
    found, wanted = weights(tmp_path / "bf16"), weights(tmp_path / "fp32")
    assert all(torch.equal(found[name], wanted[name].to(torch.bfloat16)) for name in wanted)
    base = {name: tensor.float() for name, tensor in weights(small_base).items()}
    lost = sum(float((found[n].float() - wanted[n]).square().sum()) for n in base)
    moved = sum(float((wanted[n] - base[n]).square().sum()) for n in base)
    assert cast.relative_delta_error == pytest.approx((lost / moved) ** 0.5, rel=1e-2)
    for folder, dtype in (("kept", "bfloat16"), ("fp32", "float32")):
        assert describe_weights(tmp_path / folder)["dtypes"].keys() == {dtype}
        config = json.loads((tmp_path / folder / "config.json").read_text(encoding="utf-8"))
        assert config["dtype"] == dtype
    index = (small_base / "model.safetensors.index.json").read_bytes()
    assert contents(tmp_path / "kept")["model.safetensors.index.json"] == index
    size = json.loads(contents(tmp_path / "fp32")["model.safetensors.index.json"])["metadata"]
    assert size["total_size"] == 2 * json.loads(index)["metadata"]["total_size"]


def test_the_same_inputs_give_the_same_bytes(small_base: Path, tmp_path: Path) -> None:
    saved_adapter(small_base, tmp_path / "a", target_modules="all-linear", use_dora=True)
    threads = torch.get_num_threads()
    try:
        for name, count in (("one", 1), ("two", 1), ("three", 3)):
            torch.set_num_threads(count)
            merged(small_base, tmp_path / "a", tmp_path / name, dtype="float16")
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two") == contents(tmp_path / "three")


def test_weights_that_float16_cannot_hold(small_base: Path, tmp_path: Path) -> None:
    saved_adapter(
        small_base, tmp_path / "a", spread=1e3, target_modules=["q_proj"], init_lora_weights=True
    )
    with pytest.raises(ModelError, match=r"q_proj.* above 65504.* merge\.dtype: bfloat16"):
        merged(small_base, tmp_path / "a", tmp_path / "out", dtype="float16")
    assert not list((tmp_path / "out").glob(".*"))


def test_a_quantised_base_is_refused(small_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    saved_adapter(small_base, tmp_path / "a", target_modules=["q_proj"])
    with pytest.raises(ModelError, match="Name the 16-bit base that it was made from"):
        merged(base, tmp_path / "a", tmp_path / "out")
    with pytest.raises(ModelError, match="stored quantised"):
        dequantised_weights(base)


def test_a_head_stored_beside_the_table_it_is_tied_to_changes_with_it(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_llama(3, vocab_size=VOCABULARY).save_pretrained(base)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    model = saved_adapter(
        base, tmp_path / "a", target_modules=["q_proj"], trainable_token_indices=[9, 98]
    )
    merged(base, tmp_path / "a", tmp_path / "out")
    found = weights(tmp_path / "out")
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    wanted = probe_logits(model, ROWS)
    assert max_logit_difference(wanted, probe_logits(load_model(tmp_path / "out"), ROWS)) < 1e-4


def test_a_whole_model_is_cast_as_it_is_written(small_base: Path, tmp_path: Path) -> None:
    model = prepare_full(load_model(small_base))
    torch.manual_seed(1)
    model.model.layers[0].mlp.up_proj.weight.data += 1e-4 * torch.randn(128, 64)
    trained = tmp_path / "trained"
    trained.mkdir()
    save_full(model, small_base, trained)
    report = merged(small_base, trained, tmp_path / "out", dtype="bfloat16")
    assert report.changed_tensors == 1
    assert 0.05 < report.relative_delta_error < 2
    assert describe_weights(tmp_path / "out")["dtypes"].keys() == {"bfloat16"}
    exact = merged(small_base, trained, tmp_path / "out")
    assert (exact.dtype, exact.relative_delta_error) == ("float32", 0.0)
    assert all(torch.equal(t, weights(trained)[n]) for n, t in weights(tmp_path / "out").items())
    assert (
        max_logit_difference(
            probe_logits(model, ROWS), probe_logits(load_model(tmp_path / "out"), ROWS)
        )
        == 0
    )


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its linear layers are Conv1D, stored as (in, out); one of them is square."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


CONV1D: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora, a square one alone": {"target_modules": r".*attn\.c_proj", "use_rslora": True},
    "dora": {"use_dora": True},
    "biases": {"lora_bias": True},
    # PEFT leaves the flag of the module that it came to last in the config.
    "conv and linear": {"target_modules": ["attn.c_proj", "lm_head"]},
    "a table's dora": {"target_modules": ["c_fc", "wte"], "use_dora": True},
}


@pytest.mark.parametrize("options", CONV1D.values(), ids=CONV1D)
@pytest.mark.parametrize("has_prefix", [True, False])
def test_conv1d(options: dict[str, Any], has_prefix: bool, gpt2: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(gpt2, base)
    if not has_prefix:  # as on the hub
        tensors = load_file(base / "model.safetensors")
        save_file(
            {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()},
            base / "model.safetensors",
            metadata={"format": "pt"},
        )
    targets = {"target_modules": ["c_attn", "c_proj", "c_fc"]}
    model = saved_adapter(base, tmp_path / "a", **targets | options)
    report = merged(base, tmp_path / "a", tmp_path / "out")
    found = probe_logits(load_model(tmp_path / "out"), ROWS)
    assert report.changed_tensors > 0
    assert max_logit_difference(probe_logits(model, ROWS), found) <= MAX_DIFFERENCE
    assert max_logit_difference(probe_logits(load_model(base), ROWS), found) > 0.01


def test_a_bias_that_the_base_has_not(small_base: Path, tmp_path: Path) -> None:
    saved_adapter(small_base, tmp_path / "a", target_modules=["q_proj"], lora_bias=True)
    with pytest.raises(ModelError, match=r"q_proj\.bias, which the base does not have"):
        merged(small_base, tmp_path / "a", tmp_path / "out")
