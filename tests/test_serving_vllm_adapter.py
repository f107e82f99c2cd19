"""The folder of adapters for vLLM and its gate: what is written, and each thing that must not
pass. That a real vLLM serves it: docs/serving.md."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from luthier.errors import ServingError
from luthier.models.loading import load_model
from luthier.models.parity import max_logit_difference, probe_logits
from luthier.serving.vllm import read_serve_config
from luthier.serving.vllm_adapter import (
    ServedBase,
    base_note,
    largest_rank,
    lora_rank_limit,
    serve_command,
    served_base,
    write_adapter_folder,
)
from luthier.serving.vllm_adapter_check import adapter_gate
from serving_cases import edit_json, make_adapter

PROBES = [list(range(5, 40)), [9, 8, 7]]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MIXED = {
    "r": 4,
    "alpha": 12,
    "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 12},
    "alpha_pattern": {"q_proj": 5, "v_proj": 7},
    "use_rslora": True,
}


def write(folder: Path, base: Path, adapters: dict[str, Path], **changes: Any) -> Path:
    write_adapter_folder(
        folder,
        adapters=adapters,
        base=ServedBase(base, **({"name": "smol"} | changes)),
        stop_token_ids=[2, 0],
        context_tokens=512,
    )
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_base, tmp_path_factory.mktemp("adapters") / "plain")


def test_one_adapter_as_it_was_trained(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "vllm-adapter", tiny_base, {"router": adapter})
    gate = adapter_gate(folder, {"router": adapter}, tiny_base)
    assert gate.status == "pass", gate.detail
    assert (folder / "router" / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()
    serve = yaml.safe_load((folder / "serve.yaml").read_text())
    (module,) = serve.pop("lora-modules")
    assert json.loads(module) == {
        "name": "router",
        "path": "vllm-adapter/router",
        "base_model_name": "smol",
    }
    assert serve == {
        "served-model-name": "smol",
        "enable-lora": True,
        "max-lora-rank": 8,
        "max-loras": 1,
        "generation-config": "vllm-adapter",
        "dtype": "float32",
        "max-model-len": 512,
        "tokenizer-mode": "hf",
        "config-format": "hf",
        "load-format": "safetensors",
        "chat-template-content-format": "string",
    }
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


def test_a_hub_base_is_named_with_its_commit(
    tiny_base: Path, adapter: Path, tmp_path: Path
) -> None:
    revision = "a" * 40
    folder = write(
        tmp_path / "v", tiny_base, {"router": adapter}, name="some/model", revision=revision
    )
    serve, config = read_serve_config(folder), json.loads((folder / "router" / CONFIG).read_text())
    assert (serve["model"], serve["revision"]) == ("some/model", revision)
    assert (config["base_model_name_or_path"], config["revision"]) == ("some/model", revision)
    base = served_base(tiny_base, {"kind": "hub", "name": "some/model", "revision": revision})
    assert serve_command("v", base) == "vllm serve --config v/serve.yaml"
    assert f"some/model at commit {revision}" in base_note(base)
    local = served_base(tiny_base, {"kind": "gguf", "name": "package:models/smol"})
    assert local == ServedBase(tiny_base, "smol")
    assert serve_command("v", local) == "vllm serve FOLDER_OF_THE_BASE --config v/serve.yaml"
    assert "it is smol" in base_note(local)


def test_several_adapters_of_other_ranks(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    wide = make_adapter(tiny_base, tmp_path / "wide", r=20, alpha=40)
    adapters = {"router": adapter, "wide": wide}
    folder = write(tmp_path / "v", tiny_base, adapters)
    serve = read_serve_config(folder)
    assert (serve["max-lora-rank"], serve["max-loras"]) == (32, 2)
    assert [json.loads(one)["name"] for one in serve["lora-modules"]] == ["router", "wide"]
    gate = adapter_gate(folder, adapters, tiny_base)
    assert gate.status == "pass", gate.detail
    assert "other" in adapter_gate(folder, adapters | {"other": wide}, tiny_base).detail


def test_scales_by_module_are_taken_into_the_matrices(tiny_base: Path, tmp_path: Path) -> None:
    """For a server that reads neither pattern, and the same function for one that does."""
    mixed = make_adapter(tiny_base, tmp_path / "mixed", **MIXED)
    folder = write(tmp_path / "v", tiny_base, {"mixed": mixed})
    gate = adapter_gate(folder, {"mixed": mixed}, tiny_base)
    assert gate.status == "pass", gate.detail
    assert read_serve_config(folder)["max-lora-rank"] == 16
    trained = probe_logits(load_model(tiny_base, adapter=mixed), PROBES)
    as_peft = probe_logits(load_model(tiny_base, adapter=folder / "mixed"), PROBES)
    assert max_logit_difference(trained, as_peft) < 1e-5
    assert max_logit_difference(trained, probe_logits(load_model(tiny_base), PROBES)) > 0.1
    # What vLLM before 0.32 computes: x @ A.T @ B.T, times alpha / r for all modules.
    config = json.loads((folder / "mixed" / CONFIG).read_text())
    assert config["lora_alpha"] / config["r"] == 1
    weights = {name: one.clone() for name, one in load_model(tiny_base).state_dict().items()}
    tensors = load_file(folder / "mixed" / WEIGHTS)
    for name, b in tensors.items():
        if ".lora_B." in name:
            target = name.removeprefix("base_model.model.").replace(".lora_B", "")
            weights[target] += b @ tensors[name.replace("lora_B", "lora_A")]
    model = load_model(tiny_base)
    model.load_state_dict(weights)
    assert max_logit_difference(trained, probe_logits(model, PROBES)) < 1e-4


def test_writing_again_changes_nothing(tiny_base: Path, tmp_path: Path) -> None:
    mixed = make_adapter(tiny_base, tmp_path / "mixed", **MIXED)
    folder = write(tmp_path / "v", tiny_base, {"mixed": mixed})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    write(folder, tiny_base, {"mixed": mixed})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("name", "said"), [("smol", "both called smol"), ("a/b", "'a/b' cannot")])
def test_names_that_cannot_be_served(
    name: str, said: str, tiny_base: Path, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(ServingError, match=said):
        write(tmp_path / "v", tiny_base, {name: adapter})


@pytest.mark.parametrize(("rank", "limit"), [(1, 8), (9, 16), (257, 320), (512, 512), (513, 512)])
def test_the_smallest_rank_that_vllm_knows(
    rank: int, limit: int, adapter: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapter, tmp_path / "a")
    edit_json(tmp_path / "a" / CONFIG, r=1, rank_pattern={"q_proj": rank})
    assert largest_rank(tmp_path / "a") == max(rank, 4)
    assert lora_rank_limit([tmp_path / "a"]) == limit


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


Q = "base_model.model.model.layers.0.self_attn.q_proj"


def tensors_of(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder / "router" / WEIGHTS, change)


def config_of(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "router" / CONFIG, **changes)


def serve_of(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "serve.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f / "generation_config.json").unlink(), "generation_config.json is missing"),
        (lambda f: (f / "serve.yaml").unlink(), "serve.yaml is missing"),
        (lambda f: edit_json(f / "generation_config.json", eos_token_id=[]), "no eos_token_id"),
        (serve_of("max-lora-rank: 8", "max-lora-rank: 1"), "rank 4 is more than max-lora-rank"),
        (serve_of("enable-lora: true", "enable-lora: false"), "enable-lora is not true"),
        (serve_of('generation-config: "v"', 'generation-config: "auto"'), "would not end"),
        (serve_of("v/router", "v/other"), "lora-modules are"),
        (lambda f: (f / "router" / WEIGHTS).unlink(), f"router: {WEIGHTS} is missing"),
        (lambda f: (f / "router" / CONFIG).unlink(), f"router: {CONFIG} is missing"),
        (lambda f: (f / "router" / "adapter_model.bin").touch(), "adapter_model.bin must not"),
        (lambda f: (f / "router" / WEIGHTS).write_bytes(b"x" * 99), "cannot be read"),
        (config_of(use_dora=True), "vLLM refuses use_dora"),
        (config_of(modules_to_save=["norm"]), "vLLM refuses modules_to_save"),
        (config_of(bias="all"), "vLLM refuses bias"),
        (config_of(init_lora_weights="pissa"), "init_lora_weights: pissa"),
        (config_of(trainable_token_indices=[1]), "vLLM leaves out trainable_token_indices"),
        (config_of(lora_alpha=16), "is not what was trained"),
        (config_of(alpha_pattern={"q_proj": 99}), f"{Q}.lora_B.weight is not what was trained"),
        (tensors_of(lambda t: t.clear()), "it holds no tensor"),
        (tensors_of(lambda t: t.pop(f"{Q}.lora_A.weight")), "has one of its two matrices"),
        (
            tensors_of(lambda t: [t.pop(f"{Q}.lora_{which}.weight") for which in "AB"]),
            "only in one of trained and exported",
        ),
        (
            tensors_of(lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(4)})),
            "lora_magnitude_vector is no LoRA matrix",
        ),
        (
            tensors_of(lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(64, 4)})),
            "do not fit the base's (64, 64)",
        ),
        (
            tensors_of(lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(0, 64)})),
            "q_proj is empty",
        ),
        (
            tensors_of(
                lambda t: t.update({f"{Q}x.lora_{w}.weight": torch.ones(4, 4) for w in "AB"})
            ),
            "the base has no model.layers.0.self_attn.q_projx",
        ),
        (tensors_of(lambda t: t[f"{Q}.lora_B.weight"].fill_(float("nan"))), "has NaN or inf"),
        (
            tensors_of(lambda t: [one.zero_() for name, one in t.items() if "lora_B" in name]),
            "it changes nothing",
        ),
        (tensors_of(lambda t: t[f"{Q}.lora_B.weight"].mul_(2)), "is not what was trained"),
    ],
)
def test_what_must_not_pass(
    spoil: Callable[[Path], object], told: str, tiny_base: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = write(tmp_path / "v", tiny_base, {"router": adapter})
    spoil(folder)
    gate = adapter_gate(folder, {"router": adapter}, tiny_base)
    assert gate.status == "fail"
    assert told in gate.detail


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"use_dora": True}, "vLLM refuses use_dora"),
        ({"modules_to_save": ["lm_head"]}, "vLLM refuses modules_to_save"),
        ({"trainable_token_indices": [5]}, "vLLM leaves out trainable_token_indices"),
    ],
)
def test_adapters_that_were_trained_so(
    options: dict[str, Any], told: str, untied_base: Path, tmp_path: Path
) -> None:
    trained = make_adapter(untied_base, tmp_path / "trained", **options)
    folder = write(tmp_path / "v", untied_base, {"router": trained})
    assert told in adapter_gate(folder, {"router": trained}, untied_base).detail


@pytest.fixture(scope="module")
def untied_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_llama import tiny_llama

    folder = tmp_path_factory.mktemp("untied") / "base"
    shutil.copytree(tiny_base, folder)
    tiny_llama(5, tie_word_embeddings=False, vocab_size=128).save_pretrained(folder)
    return folder


def test_the_architecture_counts(untied_base: Path, tmp_path: Path) -> None:
    trained = make_adapter(
        untied_base, tmp_path / "trained", target_modules=["q_proj", "embed_tokens", "lm_head"]
    )
    base = tmp_path / "base"
    shutil.copytree(untied_base, base)
    folder = write(tmp_path / "v", base, {"router": trained})
    gate = adapter_gate(folder, {"router": trained}, base)
    assert gate.status == "pass", gate.detail
    edit_json(base / "config.json", architectures=["Qwen2ForCausalLM"])
    found = adapter_gate(folder, {"router": trained}, base).detail
    assert "takes no adapter of embed_tokens" in found
    assert "takes no adapter of lm_head" in found
    edit_json(base / "config.json", architectures=["GPT2LMHeadModel"])
    assert (
        "vLLM has no adapters for GPT2" in adapter_gate(folder, {"router": trained}, base).detail
    )
