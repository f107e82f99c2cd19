"""Several adapters in one, against PEFT's add_weighted_adapter on the whole model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from luthier.errors import ModelError
from luthier.models.combining import Recipe, Weighted, combine
from luthier.models.loading import load_model
from luthier.models.merging import merge
from luthier.models.parity import max_logit_difference, probe_logits
from merge_cases import change_json, change_tensors, copy_of, make_adapter

ROWS = [[1, 9690, 198, 2683, 2], [1, 520, 9531, 198, 28, 7018, 2]]
SEED = 5
WEIGHTS = (0.7, -0.4)
OTHER = {"target_modules": ["q_proj", "down_proj"], "alpha_pattern": {"down_proj": 3}}


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of one rank that change different modules and have different scales."""
    folder = tmp_path_factory.mktemp("adapters")
    return [
        make_adapter(folder / "one", tiny_base, seed=1).path,
        make_adapter(folder / "two", tiny_base, seed=2, alpha=6, **OTHER).path,
    ]


def weighted(folders: list[Path], weights: tuple[float, ...] = WEIGHTS) -> list[Weighted]:
    return [
        Weighted(folder, folder.name, weight)
        for folder, weight in zip(folders, weights, strict=True)
    ]


def combined(base: Path, parts: list[Weighted], recipe: Recipe, folder: Path) -> Path:
    folder.mkdir(parents=True)
    combine(base, parts, recipe, folder)
    return folder


def by_peft(base: Path, folders: list[Path], recipe: Recipe) -> list[torch.Tensor]:
    """Logits of the base with PEFT's sum."""
    model: Any = PeftModel.from_pretrained(
        load_model(base), str(folders[0]), adapter_name="a", autocast_adapter_dtype=False
    )
    model.load_adapter(str(folders[1]), adapter_name="b")
    torch.manual_seed(recipe.seed)
    model.add_weighted_adapter(
        ["a", "b"],
        list(WEIGHTS),
        "sum",
        combination_type=recipe.combination,
        density=recipe.density,
    )
    model.set_adapter("sum")
    return probe_logits(model.eval(), ROWS)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("cat"),
        Recipe("linear"),
        Recipe("ties", 0.6),
        Recipe("dare_linear", 0.6, SEED),
        Recipe("dare_ties", 0.6, SEED),
        Recipe("magnitude_prune", 0.6),
    ],
    ids=lambda recipe: recipe.combination,
)
def test_it_is_pefts_sum(
    recipe: Recipe, adapters: list[Path], tiny_base: Path, tmp_path: Path
) -> None:
    found = combined(tiny_base, weighted(adapters), recipe, tmp_path / "sum")
    expected = by_peft(tiny_base, adapters, recipe)
    logits = probe_logits(load_model(tiny_base, adapter=found), ROWS)
    assert max_logit_difference(logits, expected) <= 1e-4
    merged = tmp_path / "merged"
    merged.mkdir()
    merge(tiny_base, found, merged)
    assert max_logit_difference(probe_logits(load_model(merged), ROWS), expected) <= 1e-4
    alone = probe_logits(load_model(tiny_base, adapter=adapters[0]), ROWS)
    assert max_logit_difference(expected, alone) > 0.01


def changes(base: Path, adapter: Path, folder: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight."""
    folder.mkdir()
    merge(base, adapter, folder)
    before = load_file(base / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    return {name: after[name] - before[name] for name in after}


def test_cat_is_the_weighted_sum_of_the_updates_whatever_their_form(
    adapters: list[Path], tiny_base: Path, tmp_path: Path
) -> None:
    """Other ranks, rank-stabilised scales (which PEFT's own sum makes too large), embeddings."""
    odd = make_adapter(
        tmp_path / "odd",
        tiny_base,
        seed=3,
        r=2,
        use_rslora=True,
        alpha_pattern={"v_proj": 5},
    ).path
    parts = weighted([odd, *adapters], (0.5, 1.0, -2.0))
    whole = combined(tiny_base, parts, Recipe(), tmp_path / "sum")
    found = changes(tiny_base, whole, tmp_path / "merged")
    each = [changes(tiny_base, part.folder, tmp_path / f"merged {part.name}") for part in parts]
    for name, change in found.items():
        expected = sum(part.weight * one[name] for part, one in zip(parts, each, strict=True))
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)


def test_the_same_recipe_gives_the_same_bytes_and_leaves_the_generator_alone(
    adapters: list[Path], tiny_base: Path, tmp_path: Path
) -> None:
    names = ("adapter_model.safetensors", "adapter_config.json")
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    parts = weighted(adapters)
    folders = [
        combined(tiny_base, parts, Recipe("dare_linear", 0.5, seed), tmp_path / f"{n}")
        for n, seed in enumerate((SEED, SEED, SEED + 1))
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    one, same, other = ([(folder / name).read_bytes() for name in names] for folder in folders)
    assert one == same
    assert one[0] != other[0]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, r"odd: it has use_dora; only plain LoRA"),
    "whole": ({"modules_to_save": ["norm"]}, "odd: it has modules_to_save"),
    "tokens": ({"trainable_token_indices": [2, 5]}, "odd: it has trainable_token_indices"),
    "patterns": ({"rank_pattern": {"v_proj": 2}}, "odd: it has rank_pattern"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_weighted_sum_is_refused(
    options: dict[str, Any], message: str, adapters: list[Path], tiny_base: Path, tmp_path: Path
) -> None:
    odd = make_adapter(tmp_path / "odd", tiny_base, **options).path
    with pytest.raises(ModelError, match=message):
        combined(tiny_base, weighted([adapters[0], odd]), Recipe(), tmp_path / "sum")


def test_a_whole_model_is_refused(adapters: list[Path], tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a whole model .* and no adapter"):
        combined(tiny_base, weighted([adapters[0], tiny_base]), Recipe(), tmp_path / "sum")


def test_other_ranks_are_refused_where_matrices_are_added(
    adapters: list[Path], tiny_base: Path, tmp_path: Path
) -> None:
    odd = make_adapter(tmp_path / "odd", tiny_base, r=2).path
    message = r"linear adds matrices of one rank, and these have one 4, odd 2\. Take .* cat"
    with pytest.raises(ModelError, match=message):
        combined(tiny_base, weighted([adapters[0], odd]), Recipe("linear"), tmp_path / "sum")


def test_an_adapter_that_does_not_fit_is_named(
    adapters: list[Path], tiny_base: Path, tmp_path: Path
) -> None:
    odd = copy_of(adapters[1], tmp_path / "odd")
    change_json(odd / "adapter_config.json", target_modules=["no_such_module"])
    with pytest.raises(ModelError, match=r"odd: it does not fit the base: .*no_such_module"):
        combined(tiny_base, weighted([adapters[0], odd]), Recipe(), tmp_path / "sum")


@pytest.mark.parametrize("place", [0, 1])
def test_an_adapter_that_lacks_a_matrix_is_named(
    place: int, adapters: list[Path], tiny_base: Path, tmp_path: Path
) -> None:
    odd = copy_of(adapters[place], tmp_path / "odd")
    change_tensors(
        odd / "adapter_model.safetensors",
        lambda tensors: {name: t for name, t in tensors.items() if "1.self_attn.q" not in name},
    )
    folders = [odd, adapters[1]] if place == 0 else [adapters[0], odd]
    with pytest.raises(ModelError, match=r"odd: it lacks .*layers\.1\.self_attn\.q_proj"):
        combined(tiny_base, weighted(folders), Recipe(), tmp_path / "sum")
