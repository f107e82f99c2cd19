"""Whatever an adapter is made of: trained model == base + saved adapter == merged model."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.errors import ModelError
from luthier.models.adapter_updates import adapter_updates
from luthier.models.full_tuning import prepare_full, save_full
from luthier.models.loading import is_whole_model, load_model
from luthier.models.lora import LoraSection, attach, save_adapter
from luthier.models.merging import dequantised_weights, merge
from luthier.models.parity import max_logit_difference, probe_logits
from luthier.models.weights import describe_weights

ROWS = [[1, 9690, 198, 2683, 2], [1, 520, 9531, 198, 28, 7018, 2]]
TRAIN = datasets.Dataset.from_list([{"input_ids": list(range(i, i + 9))} for i in range(3, 60, 3)])
MAX_DIFFERENCE = 1e-4


@pytest.fixture(scope="module")
def untied_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_base with an output head of its own."""
    folder = tmp_path_factory.mktemp("untied")
    shutil.copytree(tiny_base, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(4)
    head = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = head + 0.01 * torch.randn_like(head)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def learn(model: Any) -> None:
    """Move everything that is trained, as training would but at random."""
    torch.manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            spread = float(parameter.detach().std()) if parameter.numel() > 1 else 0.0
            parameter.data += torch.randn_like(parameter) * (0.1 * spread + 0.03)
    model.eval()


PATTERNS: dict[str, Any] = {
    "rank_pattern": {"layers.0.*q_proj": 2, "down_proj": 6},
    "alpha_pattern": {"layers.1.*v_proj": 32},
}
SECTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora with patterns": PATTERNS | {"use_rslora": True},
    "dora with patterns": PATTERNS | {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa, fast": {"init_lora_weights": "pissa", "pissa_niter": 4},
    "pissa, rslora, patterns": PATTERNS | {"init_lora_weights": "pissa", "use_rslora": True},
    "pissa and dora": {"init_lora_weights": "pissa", "use_dora": True},
    "olora with dora and patterns": PATTERNS | {"init_lora_weights": "olora", "use_dora": True},
    "eva and dora": {"init_lora_weights": "eva", "use_dora": True},
    "a norm whole": {"modules_to_save": ["norm"]},
    "tied embeddings with pissa": {"train_embeddings": True, "init_lora_weights": "pissa"},
    "some tokens, tied": {"trainable_token_indices": [2, 198, 9690]},
}
UNTIED: dict[str, dict[str, Any]] = {
    "both embeddings": {"train_embeddings": True},
    "head alone": {"modules_to_save": ["lm_head"]},
    "some tokens, untied": {"trainable_token_indices": [2, 198, 9690]},
    "lora on the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "lora on the head": {"target_modules": ["q_proj", "lm_head"]},
    "dora on the embedding": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
}


def attached(base: Path, options: dict[str, Any], **more: Any) -> Any:
    section = LoraSection(**({"r": 4, "alpha": 16} | options))
    return attach(load_model(base, **more), section, 5, rows=TRAIN, base_folder=base)


def logits(model: Any) -> list[torch.Tensor]:
    return probe_logits(model, ROWS)


def saved(model: Any, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_adapter(model, folder, "tiny")
    return folder


def check_parity(base: Path, options: dict[str, Any], tmp_path: Path) -> None:
    stored = logits(load_model(base))
    model = attached(base, options)
    model.eval()
    # What PEFT starts with is the base itself, whatever it took out of it.
    assert max_logit_difference(stored, logits(model)) <= MAX_DIFFERENCE
    learn(model)
    trained = logits(model)
    assert max_logit_difference(stored, trained) > 0.05
    adapter = saved(model, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["init_lora_weights"] is True
    found = logits(load_model(base, adapter=adapter))
    assert max_logit_difference(trained, found) <= MAX_DIFFERENCE
    merged = tmp_path / "merged"
    merged.mkdir()
    report = merge(base, adapter, merged)
    assert report.changed_tensors == len(
        {n for n, t in load_file(merged / "model.safetensors").items()
         if not torch.equal(t, load_file(base / "model.safetensors")[n])}
    )  # fmt: skip
    assert report.relative_delta_error < 1e-4
    assert max_logit_difference(trained, logits(load_model(merged))) <= MAX_DIFFERENCE


@pytest.mark.parametrize("options", SECTIONS.values(), ids=SECTIONS)
def test_parity(options: dict[str, Any], tiny_base: Path, tmp_path: Path) -> None:
    check_parity(tiny_base, options, tmp_path)


@pytest.mark.parametrize("options", UNTIED.values(), ids=UNTIED)
def test_parity_of_an_untied_base(
    options: dict[str, Any], untied_base: Path, tmp_path: Path
) -> None:
    check_parity(untied_base, options, tmp_path)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_was_not_converted_is_not_merged(
    start: str, tiny_base: Path, tmp_path: Path
) -> None:
    model = attached(tiny_base, {"init_lora_weights": start})
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(ModelError, match=f"started by {start}, which changes the base"):
        adapter_updates(tmp_path)


def test_tied_embeddings_stay_tied_in_the_merged_model(tiny_base: Path, tmp_path: Path) -> None:
    model = attached(tiny_base, {"train_embeddings": True})
    learn(model)
    adapter = saved(model, tmp_path / "adapter")
    merged = tmp_path / "merged"
    merged.mkdir()
    merge(tiny_base, adapter, merged)
    assert "lm_head.weight" not in load_file(merged / "model.safetensors")
    again = load_model(merged)
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight


QUANTISED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nf4": ({"type": "nf4"}, {}),
    "fp4": ({"type": "fp4"}, {}),
    "nf4 stored in float32": ({"type": "nf4", "storage_dtype": "float32"}, {}),
    "nf4 and dora": ({"type": "nf4"}, {"use_dora": True}),
    "fp4, loftq, patterns": ({"type": "fp4"}, {"init_lora_weights": "loftq", **PATTERNS}),
    "nf4 and tied embeddings": ({"type": "nf4"}, {"train_embeddings": True}),
}


@pytest.mark.parametrize(("quantization", "options"), QUANTISED.values(), ids=QUANTISED)
def test_parity_with_a_quantised_base(
    quantization: dict[str, Any], options: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    """F28: what was trained is the quantised base, and merging takes the same one."""
    model = attached(tiny_base, options, quantization=quantization)
    learn(model)
    trained = logits(model)
    adapter = saved(model, tmp_path / "adapter")
    found = load_model(tiny_base, adapter=adapter, quantization=quantization)
    assert max_logit_difference(trained, logits(found)) <= MAX_DIFFERENCE
    merged = tmp_path / "merged"
    merged.mkdir()
    merge(tiny_base, adapter, merged, replaced=dequantised_weights(tiny_base, quantization))
    assert max_logit_difference(trained, logits(load_model(merged))) <= MAX_DIFFERENCE
    merge(tiny_base, adapter, merged)
    assert max_logit_difference(trained, logits(load_model(merged))) > 1e-2


def test_int8_base_decodes_to_the_weights_that_it_computes_with(
    tiny_base: Path, tmp_path: Path
) -> None:
    """Rounding of what goes in stays, so this is near and not equal; nearer than the original."""
    model = attached(tiny_base, {}, quantization="int8")
    learn(model)
    trained = logits(model)
    adapter = saved(model, tmp_path / "adapter")
    merged = tmp_path / "merged"
    merged.mkdir()
    merge(tiny_base, adapter, merged, replaced=dequantised_weights(tiny_base, "int8"))
    weights = load_file(merged / "model.safetensors")
    merge(tiny_base, adapter, merged)
    original = load_file(merged / "model.safetensors")
    scale = max(float(row.abs().max()) for row in trained)
    assert max_logit_difference(trained, logits(load_model(merged))) < 0.05 * scale
    name = "model.layers.0.self_attn.q_proj.weight"
    step = float(load_file(tiny_base / "model.safetensors")[name].abs().max()) / 127
    assert 0 < float((weights[name] - original[name]).abs().max()) <= step


def test_full_fine_tuning_is_a_whole_model(tiny_base: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    model = prepare_full(load_model(tiny_base))
    assert all(parameter.requires_grad for parameter in model.parameters())
    learn(model)
    trained = logits(model)
    for folder in folders:
        folder.mkdir()
        save_full(model, tiny_base, folder)
    names = sorted(path.name for path in tiny_base.iterdir())
    assert sorted(path.name for path in folders[0].iterdir()) == names
    for name in names:
        content = (folders[0] / name).read_bytes()
        assert content == (folders[1] / name).read_bytes()
        is_weights = name.endswith(".safetensors")
        assert is_weights or content == (tiny_base / name).read_bytes(), name
    assert is_whole_model(folders[0])
    found = logits(load_model(tiny_base, adapter=folders[0]))
    assert max_logit_difference(trained, found) == 0
    merged = tmp_path / "merged"
    merged.mkdir()
    report = merge(tiny_base, folders[0], merged)
    assert report.changed_tensors == len(load_file(tiny_base / "model.safetensors"))
    assert max_logit_difference(trained, logits(load_model(merged))) == 0
    with pytest.raises(ModelError, match="not quantised"):
        load_model(tiny_base, adapter=folders[0], quantization="nf4")


def test_full_fine_tuning_counts_only_what_changed(tiny_base: Path, tmp_path: Path) -> None:
    model = prepare_full(load_model(tiny_base))
    model.model.norm.weight.data += 1
    save_full(model, tiny_base, tmp_path)
    merged = tmp_path / "merged"
    merged.mkdir()
    assert merge(tiny_base, tmp_path, merged).changed_tensors == 1


def test_full_fine_tuning_of_a_16_bit_base_is_float32(tiny_base: Path, tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "trained"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}), encoding="utf-8")
    folder.mkdir()
    save_full(prepare_full(load_model(base, dtype="bfloat16")), base, folder)
    assert describe_weights(folder)["dtypes"].keys() == {"float32"}
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"] == "float32"


def test_a_quantised_base_is_not_trained_in_full(tiny_base: Path) -> None:
    with pytest.raises(ModelError, match="quantised weights cannot be trained"):
        prepare_full(load_model(tiny_base, quantization="nf4"))
