"""Several adapters as one: what PEFT's add_weighted_adapter makes of them on a loaded model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from luthier.errors import ModelError
from luthier.models.adapter_updates import adapter_updates
from luthier.models.combining import combine_adapters
from luthier.models.loading import load_model
from luthier.models.lora import LoraSection, attach, save_adapter
from luthier.models.merging import merge
from luthier.models.parity import max_logit_difference, probe_logits
from tiny_llama import tiny_llama

ROWS = [[1, 9, 98, 68, 33], [1, 20, 31, 98, 28, 7]]
WEIGHTS = (0.7, -0.4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_llama(3, vocab_size=128, tie_word_embeddings=False).save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, seed: int, **options: Any) -> Path:
    folder.mkdir()
    model = attach(load_model(base), LoraSection(**{"r": 4, "alpha": 8, **options}), seed)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    save_adapter(model, folder, "tiny")
    return folder


def pair(base: Path, folder: Path, *options: dict[str, Any]) -> list[tuple[Path, float]]:
    paths = [adapter(base, folder / f"{i}", i, **one) for i, one in enumerate(options)]
    return list(zip(paths, WEIGHTS, strict=True))


def by_peft(base: Path, weighted: list[tuple[Path, float]], **options: Any) -> Any:
    model: Any = PeftModel.from_pretrained(load_model(base), str(weighted[0][0]), "0")
    model.load_adapter(str(weighted[1][0]), "1")
    model.add_weighted_adapter(["0", "1"], list(WEIGHTS), "both", **options)
    model.set_adapter("both")
    return probe_logits(model.eval(), ROWS)


ALL: dict[str, Any] = {"target_modules": ["q_proj", "down_proj", "embed_tokens", "lm_head"]}
SOME: dict[str, Any] = {"target_modules": ["q_proj", "up_proj"]}
ONE: dict[str, Any] = {"target_modules": ["q_proj"], "layers_to_transform": [1]}


@pytest.mark.parametrize(
    ("method", "first", "second"),
    [
        ("linear", ALL, SOME),
        ("cat", ALL, SOME | {"r": 6}),
        ("ties", ALL, ALL),
        ("dare_linear", ONE, ONE),
        ("dare_ties", ONE, ONE),
    ],
)
def test_it_is_what_peft_makes_of_them(
    method: Any, first: dict[str, Any], second: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    weighted = pair(base, tmp_path, first, second)
    combine_adapters(weighted, tmp_path, method=method, density=0.6, seed=5)
    merged = tmp_path / "merged"
    merged.mkdir()
    merge(base, tmp_path, merged)
    found = probe_logits(load_model(merged), ROWS)
    assert max_logit_difference(probe_logits(load_model(base), ROWS), found) > 1e-3
    adapted = probe_logits(load_model(base, adapter=tmp_path), ROWS)
    assert max_logit_difference(adapted, found) < 1e-4
    if not method.startswith("dare"):
        wanted = by_peft(base, weighted, combination_type=method, density=0.6)
        assert max_logit_difference(wanted, found) < 1e-4


def test_cat_is_the_sum_whatever_the_scales(base: Path, tmp_path: Path) -> None:
    """PEFT itself would scale a sum of rank-stabilised adapters once more."""
    options = {"use_rslora": True, "rank_pattern": {"layers.0.*q_proj": 2}}
    weighted = pair(base, tmp_path, options, {"alpha": 32})
    combine_adapters(weighted, tmp_path, method="cat")
    parts = [adapter_updates(path) for path, _ in weighted]
    for name, update in adapter_updates(tmp_path).items():
        zeros = torch.zeros(update.shape)
        wanted = sum(
            weight * part[name].delta(0, zeros, None)  # type: ignore[union-attr]
            for part, weight in zip(parts, WEIGHTS, strict=True)
        )
        assert torch.allclose(update.delta(0, zeros, None), wanted, atol=1e-6)  # type: ignore[union-attr, arg-type]
    load_model(base, adapter=tmp_path)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_drops_by_its_seed(method: Any, base: Path, tmp_path: Path) -> None:
    weighted = pair(base, tmp_path, ALL, ALL)
    found = []
    for name, seed in (("x", 1), ("y", 1), ("z", 2)):
        (tmp_path / name).mkdir()
        combine_adapters(weighted, tmp_path / name, method=method, density=0.25, seed=seed)
        found.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]
    tensors = load_file(tmp_path / "x" / "adapter_model.safetensors")
    zeros = sum(int((tensor == 0).sum()) for tensor in tensors.values())
    # Of two values, each kept with 0.25, none is left with 0.75 squared.
    share = zeros / sum(tensor.numel() for tensor in tensors.values())
    assert share == pytest.approx(0.5625, abs=0.05)


def test_what_cannot_be_combined(base: Path, tmp_path: Path) -> None:
    weighted = pair(base, tmp_path, ALL, ALL | {"r": 6})
    with pytest.raises(ModelError, match="method cat only"):
        combine_adapters(weighted, tmp_path, method="ties")
    with pytest.raises(ModelError, match="between 0 and 1"):
        combine_adapters(weighted, tmp_path, method="ties", density=1.0)
    dora = adapter(base, tmp_path / "dora", 3, use_dora=True)
    with pytest.raises(ModelError, match="not changed by a plain LoRA"):
        combine_adapters([weighted[0], (dora, 1.0)], tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
