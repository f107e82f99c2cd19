"""`luthier sweep --suggest`: ranges by method and size, and the section that comes of them."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from luthier.advice.ranges import (
    Method,
    ModelShape,
    Range,
    render_section,
    suggested_ranges,
    suggested_trials,
)
from luthier.config import RunConfig, load_config
from luthier.config.document import Mark, plain
from luthier.config.yaml_reader import parse_yaml
from luthier.errors import ConfigError
from luthier.pipeline import all_sections
from luthier.sweeping.suggesting import model_shape, suggest
from luthier.training.dpo_section import DPOSection
from luthier.training.sft_section import SFTSection

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "tests" / "model_configs"
METHODS: tuple[Method, ...] = ("lora", "qlora", "full")
BY_SIZE = {
    "llama": [
        "SmolLM2-135M-Instruct", "SmolLM2-360M-Instruct", "Llama-3.2-1B-Instruct",
        "Llama-3.2-3B-Instruct", "Llama-3.1-8B-Instruct", "Llama-3.3-70B-Instruct",
    ],
    "qwen2": [
        "Qwen2.5-0.5B-Instruct", "Qwen2.5-1.5B-Instruct", "Qwen2.5-3B-Instruct",
        "Qwen2.5-7B-Instruct", "Qwen2.5-14B-Instruct", "Qwen2.5-32B-Instruct",
    ],
    "gemma2": ["gemma-2-2b-it", "gemma-2-9b-it"],
}  # fmt: skip


def config_json(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MODELS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def rate(name: str, method: Method, stage: str = "sft") -> tuple[float, float]:
    """Bounds of a stage's learning rate."""
    shape = model_shape(config_json(name))
    ranges = suggested_ranges(method, shape, has_dpo=True, train_rows=1500)
    found = next(one for one in ranges if one.path == f"{stage}.learning_rate")
    low, high = found.spec["log_uniform"]
    return low, high


def parsed(text: str) -> dict[str, Any]:
    """The section as the strict reader of run configs has it."""
    node, problems = parse_yaml(text, lambda line, column: Mark(0, line, column, "sweep.yaml"))
    assert problems == []
    assert node is not None
    section: dict[str, Any] = plain(node)["sweep"]
    return section


def run_config(tmp_path: Path, *sections: str) -> RunConfig:
    text = "name: x\n" + "\n".join(sections) + "\n"
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    return load_config(tmp_path / "run.yaml", all_sections())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", BY_SIZE)
def test_larger_models_get_no_higher_rates(family: str, method: Method) -> None:
    for bounds in zip(*(rate(name, method) for name in BY_SIZE[family]), strict=True):
        assert list(bounds) == sorted(bounds, reverse=True), family
    smallest, largest = BY_SIZE[family][0], BY_SIZE[family][-1]
    assert rate(largest, method)[1] <= rate(smallest, method)[1]


def test_the_largest_llama_gets_lower_rates_than_the_smallest() -> None:
    smallest, largest = BY_SIZE["llama"][0], BY_SIZE["llama"][-1]
    for method in METHODS:
        assert rate(largest, method)[1] < rate(smallest, method)[1]
    assert rate(largest, "lora", "dpo") < rate(smallest, "lora", "dpo")


@pytest.mark.parametrize("name", [name for names in BY_SIZE.values() for name in names])
def test_full_fine_tuning_gets_a_tenth_of_loras_rates(name: str) -> None:
    for lora, full in zip(rate(name, "lora"), rate(name, "full"), strict=True):
        assert full == pytest.approx(lora / 10, rel=1e-6)


def test_qlora_follows_its_paper_from_7b_on() -> None:
    assert rate("Qwen2.5-7B-Instruct", "qlora") == rate("Llama-3.1-8B-Instruct", "qlora")
    low, high = rate("Qwen2.5-14B-Instruct", "qlora")
    assert low < 2e-4 < high
    low, high = rate("Qwen2.5-32B-Instruct", "qlora")
    assert low < 1e-4 < high < rate("Qwen2.5-14B-Instruct", "qlora")[1]
    assert rate("Qwen2.5-0.5B-Instruct", "qlora") == rate("Qwen2.5-0.5B-Instruct", "lora")


def test_what_was_measured_lies_inside() -> None:
    """docs/evaluation.md (SFT) and docs/preferences.md (DPO: 4e-5 passes its gates, not 1e-4)."""
    low, high = rate("SmolLM2-135M-Instruct", "lora")
    assert low < 5e-4 < 2e-3 < high
    low, high = rate("SmolLM2-135M-Instruct", "lora", "dpo")
    assert low < 4e-5 < high < 1e-4


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("Llama-3.2-1B-Instruct", 1e-3), ("Llama-3.1-8B-Instruct", 3e-4),
        ("Qwen3-4B", 1e-3), ("Qwen3-8B", 1e-3), ("Qwen3-32B", 3e-4),
    ],
)  # fmt: skip
def test_rates_of_a_published_sweep_lie_inside_and_what_diverged_outside(
    name: str, best: float
) -> None:
    """tinker-cookbook, recipes/chat_sl/results/sft_sweep.md: nearly all runs at 3e-3 diverged."""
    low, high = rate(name, "lora")
    assert low <= best <= high < 3e-3


def test_ranks_and_epochs_follow_the_rows() -> None:
    def specs(rows: int | None) -> dict[str, Mapping[str, Any]]:
        found = suggested_ranges("lora", ModelShape(), has_dpo=False, train_rows=rows)
        return {one.path: one.spec for one in found}

    few, many, very_many = (specs(rows) for rows in (1_500, 50_000, 500_000))
    assert few["sft.lora.r"] == {"choice": [4, 8, 16, 32]}
    assert max(few["sft.lora.r"]["choice"]) < max(many["sft.lora.r"]["choice"])
    assert max(many["sft.lora.r"]["choice"]) < max(very_many["sft.lora.r"]["choice"])
    assert few["sft.epochs"] == {"int_uniform": [1, 3]}
    assert very_many["sft.epochs"] == {"int_uniform": [1, 2]}
    assert specs(None)["sft.lora.r"] == many["sft.lora.r"]


def test_full_fine_tuning_has_no_rank() -> None:
    found = suggested_ranges("full", ModelShape(), has_dpo=False, train_rows=None)
    assert [one.path for one in found] == ["sft.learning_rate", "sft.epochs"]


def values(one: Range) -> list[Any]:
    """The values of a choice, the bounds of a range."""
    (found,) = one.spec.values()
    return list(found)


def base_values(section: type[BaseModel]) -> dict[str, Any]:
    return {"per_device_batch_size": 1} | ({"method": "lora"} if section is SFTSection else {})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [None, 100, 50_000, 500_000])
@pytest.mark.parametrize("name", [None, "SmolLM2-135M-Instruct", "Llama-3.3-70B-Instruct"])
def test_every_path_is_a_field_that_allows_its_values(
    method: Method, rows: int | None, name: str | None
) -> None:
    shape = model_shape(config_json(name)) if name else ModelShape()
    ranges = suggested_ranges(method, shape, has_dpo=True, train_rows=rows)
    sections: dict[str, type[BaseModel]] = {"sft": SFTSection, "dpo": DPOSection}
    for one in ranges:
        stage, *path, field = one.path.split(".")
        for value in values(one):
            given: dict[str, Any] = {field: value}
            for part in reversed(path):
                given = {part: given}
            read: Any = sections[stage].model_validate(base_values(sections[stage]) | given)
            for part in (*path, field):
                read = getattr(read, part)
            assert read == value


@pytest.mark.parametrize("method", METHODS)
def test_the_section_is_read_as_it_was_meant(method: Method) -> None:
    ranges = suggested_ranges(method, ModelShape("llama", 576), has_dpo=True, train_rows=1500)
    section = parsed(render_section(ranges, metric="evaluate.accuracy", prunes=True))
    assert section["objective"] == {"metric": "evaluate.accuracy"}
    assert section["parameters"] == {one.path: dict(one.spec) for one in ranges}
    assert section["trials"] == suggested_trials(ranges) == 4 * len(ranges)
    assert section["sampler"] == "tpe"
    assert section["pruning"] == {"kind": "median", "startup_trials": 3}
    assert section["finalists"] == {"candidates": 3, "seeds": 3}


def test_every_range_says_why_within_the_line() -> None:
    ranges = suggested_ranges("qlora", ModelShape(), has_dpo=True, train_rows=None)
    text = render_section(ranges, metric="evaluate.accuracy", prunes=False, notes=["word " * 60])
    assert max(len(line) for line in text.splitlines()) <= 99
    before = {below: line for line, below in itertools.pairwise(text.splitlines())}
    for one in ranges:
        assert one.why
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{one.path}:"))
        assert before[line].strip().startswith("# ")


def test_a_config_of_the_project_gets_its_section() -> None:
    config = load_config(ROOT / "configs" / "quickstart.yaml", all_sections())
    text = suggest(config, config_json("SmolLM2-135M-Instruct"))
    section = parsed(text)
    assert section["objective"] == {"metric": "evaluate.accuracy"}
    assert list(section["parameters"]) == ["sft.learning_rate", "sft.lora.r", "sft.epochs"]
    assert section["parameters"]["sft.lora.r"] == {"choice": [4, 8, 16, 32]}, "limit: 1500 rows"
    assert section["pruning"] is None
    assert "sft.evaluate_every_fraction" in text
    assert "not here yet" not in text
    assert "not here yet" in suggest(config, None)


def test_dpo_adds_its_rate_and_beta() -> None:
    config = load_config(ROOT / "configs" / "sections_dpo.yaml", all_sections())
    found = parsed(suggest(config, config_json("SmolLM2-135M-Instruct")))["parameters"]
    assert list(found)[3:] == ["dpo.learning_rate", "dpo.beta"]


SFT = "sft: {per_device_batch_size: 4%s}"
PREPARE = "prepare: {task: %s, sources: [{path: x.jsonl, split: train}]}"


def test_what_the_config_fixes_is_not_searched(tmp_path: Path) -> None:
    config = run_config(tmp_path, SFT % ", max_steps: 10, start_from: other/adapter@v1")
    section = parsed(suggest(config, None))
    assert list(section["parameters"]) == ["sft.learning_rate"]
    assert section["objective"] == {"metric": "sft.validation_loss"}


def test_replies_in_ones_own_words_are_said_to_need_another_metric(tmp_path: Path) -> None:
    config = run_config(tmp_path, PREPARE % "chat", SFT % "", "evaluate: {}")
    assert "evaluate.chrf" in suggest(config, None)
    config = run_config(tmp_path, PREPARE % "extraction", SFT % "", "evaluate: {}")
    assert "evaluate.chrf" not in suggest(config, None)


def test_experts_are_sized_by_their_width_alone() -> None:
    config = {"model_type": "qwen3_moe", "hidden_size": 2048, "num_experts": 128}
    assert model_shape(config) == ModelShape("qwen3_moe", 2048, None)


def test_a_config_without_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the section sft"):
        suggest(run_config(tmp_path, PREPARE % "chat"), None)


def test_dpo_without_a_score_is_refused(tmp_path: Path) -> None:
    config = run_config(tmp_path, SFT % "", "dpo: {per_device_batch_size: 4}")
    with pytest.raises(ConfigError, match=r"Add evaluate: \{\}"):
        suggest(config, None)
