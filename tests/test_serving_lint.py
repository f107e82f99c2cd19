"""F32: what an export target refuses is said before training."""

import subprocess
import sys
from typing import Any, get_args

import pytest

from luthier.models.lora import LoraSection
from luthier.serving.lint import MERGED_TARGETS, refusals, saved_rank
from luthier.stages.export import ExportSection

EVERYTHING: dict[str, Any] = {
    "r": 1024,
    "use_dora": True,
    "modules_to_save": ["lm_head"],
    "alpha_pattern": {"q_proj": 3},
}


def test_every_export_target_is_known() -> None:
    (annotation,) = get_args(ExportSection.model_fields["targets"].annotation)
    assert set(get_args(annotation)) - {"vllm-adapter"} == set(MERGED_TARGETS)
    with pytest.raises(ValueError, match="tgi is no export target"):
        refusals("lora", LoraSection(), ["tgi"])


def test_merged_models_are_never_refused() -> None:
    assert refusals("lora", LoraSection(**EVERYTHING), ["vllm", "ollama"]) == []
    assert refusals("full", None, ["vllm", "ollama"]) == []


@pytest.mark.parametrize(
    "fine",
    [
        {},
        {"r": 512},
        {"use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "pissa", "r": 256},
        {"init_lora_weights": "olora", "rank_pattern": {"q_proj": 3}},
        {"init_lora_weights": "eva"},
        {"r": 16, "alpha": 32, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 16}},
    ],
)
def test_a_plain_adapter_is_served_as_it_is(fine: dict[str, Any]) -> None:
    assert refusals("qlora", LoraSection(**fine), ["vllm-adapter"]) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dora": True}, "refuses DoRA; set lora.use_dora: false"),
        ({"modules_to_save": ["norm"]}, "leave out lora.modules_to_save"),
        ({"train_embeddings": True}, "leave out lora.train_embeddings"),
        ({"trainable_token_indices": [2]}, "leave out lora.trainable_token_indices"),
        ({"r": 513}, "ranks up to 512; set a smaller lora.r"),
        ({"rank_pattern": {"q": 513}, "alpha_pattern": {"q": 1026}}, "ranks up to 512"),
        ({"r": 257, "init_lora_weights": "pissa"}, "saved at rank 514"),
        ({"r": 257, "init_lora_weights": "eva"}, "saved at rank 514"),
        ({"rank_pattern": {"q_proj": 8}}, "ignores rank_pattern and alpha_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "ignores rank_pattern and alpha_pattern"),
        (
            {
                "use_rslora": True,
                "rank_pattern": {"q_proj": 8},
                "alpha_pattern": {"q_proj": 16},
            },
            "ignores rank_pattern and alpha_pattern",
        ),
        ({"init_lora_weights": "loftq"}, "wrong on the 16-bit base"),
    ],
)
def test_what_vllm_refuses_of_an_adapter(options: dict[str, Any], said: str) -> None:
    (found,) = refusals("lora", LoraSection(**options), ["vllm", "vllm-adapter"])
    assert said in found
    assert found.startswith("vllm-adapter: ")


def test_all_refusals_are_said_at_once() -> None:
    assert len(refusals("lora", LoraSection(**EVERYTHING), ["vllm-adapter"])) == 4


def test_full_fine_tuning_has_no_adapter_to_serve() -> None:
    (found,) = refusals("full", None, ["vllm-adapter"])
    assert "makes no adapter; export vllm" in found


def test_rank_of_the_saved_adapter() -> None:
    assert saved_rank(LoraSection(r=8, rank_pattern={"q_proj": 12})) == 12
    assert saved_rank(LoraSection(r=8, init_lora_weights="pissa")) == 16


def test_lint_needs_no_torch() -> None:
    script = "import sys, luthier.serving.lint; assert not {'torch', 'peft'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
