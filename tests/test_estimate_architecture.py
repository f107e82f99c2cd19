"""A model's parameters and modules from its config.json, against what is published and built."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from estimate_cases import CONFIGS, adapted, build, real, real_config, small_config
from luthier.errors import ConfigError, ModelError
from luthier.estimate.architecture import read_architecture
from luthier.estimate.shape import AdapterShape, TrainingShape, trained

# Total parameters as the model hubs show them (safetensors metadata, tied weights once).
PUBLISHED = {
    "SmolLM2-135M-Instruct": 134_515_008,
    "SmolLM2-360M-Instruct": 361_821_120,
    "SmolLM2-1.7B-Instruct": 1_711_376_384,
    "Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
    "Llama-3.2-1B-Instruct": 1_235_814_400,
    "Llama-3.2-3B-Instruct": 3_212_749_824,
    "Llama-3.1-8B-Instruct": 8_030_261_248,
    "Llama-3.3-70B-Instruct": 70_553_706_496,
    "Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "gemma-2-2b-it": 2_614_341_888,
    "gemma-2-9b-it": 9_241_705_984,
    "gemma-3-1b-it": 999_885_952,
    "gemma-3-4b-it": 4_300_079_472,
    "Phi-3-mini-4k-instruct": 3_821_079_552,
    "Phi-4-mini-instruct": 3_836_021_760,
    "phi-4": 14_659_507_200,
}
FAMILIES = [
    "Llama-3.2-1B-Instruct", "Qwen2.5-0.5B-Instruct", "Qwen3-0.6B", "gemma-2-2b-it",
    "gemma-3-1b-it", "Phi-4-mini-instruct", "Mistral-7B-Instruct-v0.3",
]  # fmt: skip


def test_every_config_has_a_published_count() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    assert real(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", [*FAMILIES, "gemma-3-4b-it", "Qwen2.5-32B-Instruct"])
def test_modules_are_those_that_transformers_builds(name: str) -> None:
    with torch.device("meta"):
        model = build(real_config(name))
    head = model.get_output_embeddings()
    built = {
        (module_name, module.in_features, module.out_features, module.bias is not None)
        for module_name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    read = {(m.name, m.inputs, m.outputs, m.bias) for m in real(name).modules}
    assert read == built


@pytest.mark.parametrize(
    "adapter",
    [
        AdapterShape(r=8),
        AdapterShape(r=8, target_modules=("q_proj", "v_proj")),
        AdapterShape(r=8, target_modules=r".*layers\.[01]\.mlp\.(up|down)_proj"),
        AdapterShape(r=8, rank_pattern={"down_proj": 2, r"layers\.3\.self_attn\.q_proj": 32}),
        AdapterShape(r=8, target_modules=("q_proj", "o_proj"), layers_to_transform=(1, 3)),
        AdapterShape(r=8, exclude_modules=("up_proj", "layers.2.mlp.down_proj")),
        AdapterShape(r=8, use_dora=True),
        AdapterShape(r=8, modules_to_save=("lm_head",)),
    ],
    ids=["all", "names", "pattern", "ranks", "layers", "excluded", "dora", "head"],
)
def test_trained_parameters_are_those_that_peft_makes(adapter: AdapterShape) -> None:
    shape, config = TrainingShape(adapter=adapter), small_config("Llama-3.2-1B-Instruct")
    config["tie_word_embeddings"] = False
    model = adapted(config, shape)
    built = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained(read_architecture(config), shape).parameters == built


@pytest.mark.parametrize("name", FAMILIES)
def test_full_training_trains_every_parameter(name: str) -> None:
    found = trained(real(name), TrainingShape(method="full", adapter=None))
    assert found.parameters == PUBLISHED[name]


def test_sliding_layers() -> None:
    assert real("gemma-3-1b-it").sliding_layers == 22
    assert real("gemma-2-2b-it").sliding_layers == 13
    assert real("Qwen2.5-7B-Instruct").sliding_layers == 0
    config = real_config("gemma-3-1b-it") | {"layer_types": ["sliding_attention"] * 26}
    assert read_architecture(config).sliding_layers == 26


def test_an_unknown_kind_with_llamas_fields_is_read_as_a_llama_and_says_so() -> None:
    config = real_config("Llama-3.2-1B-Instruct") | {"model_type": "new"}
    found = read_architecture(config)
    assert found.parameters == PUBLISHED["Llama-3.2-1B-Instruct"]
    assert "new is not known" in found.notes[0]
    assert not real("Llama-3.2-1B-Instruct").notes


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"model_type": "qwen3_moe", "num_experts": 128},
            "cannot predict for model_type qwen3_moe",
        ),
        ({"model_type": "mamba", "state_size": 16}, "cannot predict for model_type mamba"),
        ({"model_type": "new", "hidden_size": 64}, "intermediate_size, num_hidden_layers"),
        (
            real_config("Llama-3.2-1B-Instruct") | {"vision_config": {}, "n_embd": 4},
            "n_embd",
        ),
    ],
)
def test_what_cannot_be_predicted_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        read_architecture(config)


def test_an_image_tower_other_than_gemmas_is_refused() -> None:
    config = real_config("gemma-3-4b-it") | {"model_type": "llava"}
    with pytest.raises(ModelError, match="model_type llava: of models with an image tower"):
        read_architecture(config)


def test_target_modules_that_match_nothing_are_refused() -> None:
    shape = TrainingShape(adapter=AdapterShape(target_modules=("query",)))
    with pytest.raises(ConfigError, match=r"no linear module.*It has down_proj, gate_proj"):
        trained(real("Llama-3.2-1B-Instruct"), shape)


def test_nothing_heavy_is_loaded() -> None:
    script = (
        "import sys\nimport luthier.estimate.fitting, luthier.estimate.time\n"
        "import luthier.report.plan_estimate\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
