"""The check of a folder from which vLLM serves adapters: file by file, before it is served.

vLLM refuses some adapters when it starts, and takes others as another function than was trained;
both are said here. Sources, vLLM at 0.32.0: `vllm/lora/peft_helper.py` (_validate_features,
validate_legal), `vllm/lora/lora_model.py` (from_local_checkpoint, from_lora_tensors),
`vllm/lora/utils.py` (parse_fine_tuned_lora_name, get_supported_lora_modules).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.gates import Gate
from luthier.models.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFT_PREFIX
from luthier.models.weights import weight_files
from luthier.serving.lint import VLLM_ADAPTER, VLLM_LORA_RANKS, takes_embeddings, unexportable
from luthier.serving.vllm import (
    GENERATION_CONFIG,
    REFUSED_PATTERNS,
    SERVE_CONFIG,
    problems_gate,
    read_json,
    read_serve_config,
    stop_problems,
    tensor_shapes,
)
from luthier.serving.vllm_adapter import A_MATRICES, B_MATRICES, largest_rank, scales_of_b

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]

# What vLLM refuses, and what its PEFTHelper has no field for and so leaves out without a word.
_REFUSED = (
    "alora_invocation_tokens",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
_LEFT_OUT = (
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "velora_config",
)
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte")
_FLOATS = ("F32", "F16", "BF16")
_ROUNDING = 1e-6  # of float32, relative: what taking a scale into B may move


def adapter_gate(folder: Path, adapters: Mapping[str, Path], base: Path) -> Gate:
    """vllm-adapter: vLLM takes every adapter as it was trained, and all of it.

    Args:
        folder: what `write_adapter_folder` wrote.
        adapters: the trained ones, by name.
        base: the folder of the base they were trained on.
    """
    return problems_gate("vllm-adapter", list(_problems(folder, adapters, base)))


def unlike_the_merged(facts: Mapping[str, Any]) -> str | None:
    """Why the adapter on its base is another model than the merged one, which was measured;
    `facts` are those of the merged model's manifest."""
    if facts.get("base_weights") == "dequantized":
        return (
            "the merged model is of the base as its 4-bit form decodes, and vLLM serves the "
            "16-bit base under the adapter. Set merge.base_weights: original, or export vllm"
        )
    if facts.get("combined"):
        return (
            "the merged model is of several adapters, or of this one at another weight "
            "(merge.adapters, merge.weight), and vLLM serves this one as it was trained. Export "
            "vllm"
        )
    return None


def _problems(folder: Path, adapters: Mapping[str, Path], base: Path) -> Iterator[str]:
    missing = [name for name in (GENERATION_CONFIG, SERVE_CONFIG) if not (folder / name).is_file()]
    if missing:
        yield f"{', '.join(missing)} is missing"
        return
    config = read_json(base / "config.json")
    yield from unexportable(config, [VLLM_ADAPTER])
    yield from stop_problems(folder)
    yield from _served_problems(folder, adapters)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(base):
        shapes |= tensor_shapes(path)
    for name, trained in adapters.items():
        found = _adapter_problems(folder / name, trained, shapes, config)
        yield from (f"{name}: {problem}" for problem in found)


def _served_problems(folder: Path, adapters: Mapping[str, Path]) -> Iterator[str]:
    """Whether serve.yaml loads these adapters, and these alone."""
    serve = read_serve_config(folder)
    entries = [json.loads(entry) for entry in serve.get("lora-modules", [])]
    paths = {entry["name"]: entry["path"] for entry in entries}
    if paths != {name: f"{folder.name}/{name}" for name in adapters}:
        yield f"{SERVE_CONFIG}: lora-modules are {paths}, not the adapters of this folder"
    if serve.get("enable-lora") is not True:
        yield f"{SERVE_CONFIG}: enable-lora is not true"
    if serve.get("generation-config") != folder.name:
        yield f"{SERVE_CONFIG}: generation-config is not this folder, so replies would not end"
    largest = max((largest_rank(path) for path in adapters.values()), default=0)
    if serve.get("max-lora-rank", 0) < largest:
        yield f"rank {largest} is more than max-lora-rank ({VLLM_LORA_RANKS[-1]} at most)"


def _adapter_problems(
    folder: Path, trained: Path, base: Shapes, config: Mapping[str, Any]
) -> Iterator[str]:
    missing = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).is_file()]
    if missing:
        yield f"{', '.join(missing)} is missing"
        return
    for pattern in REFUSED_PATTERNS:
        yield from (f"{path.name} must not be here" for path in sorted(folder.glob(pattern)))
    yield from _config_problems(read_json(folder / ADAPTER_CONFIG))
    try:
        shapes = tensor_shapes(folder / ADAPTER_WEIGHTS)
    except ValueError as error:
        yield f"{ADAPTER_WEIGHTS} cannot be read ({error})"
        return
    yield from _tensor_problems(shapes, base, config)
    yield from _value_problems(folder, trained)


def _config_problems(config: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"vLLM refuses {key}" for key in _REFUSED if config.get(key))
    yield from (f"vLLM leaves out {key}" for key in _LEFT_OUT if config.get(key))
    if config.get("bias", "none") != "none":
        yield "vLLM refuses bias"
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        yield f"vLLM refuses init_lora_weights: {start}, which changes the base"


def _tensor_problems(shapes: Shapes, base: Shapes, config: Mapping[str, Any]) -> Iterator[str]:
    if not shapes:
        yield "it holds no tensor"
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        which = "A" if name.endswith(A_MATRICES) else "B" if name.endswith(B_MATRICES) else None
        if which is None:
            yield f"{name} is no LoRA matrix"
        else:
            module = name.removeprefix(PEFT_PREFIX).partition(".lora_")[0]
            modules.setdefault(module, {})[which] = shape
    for module, pair in modules.items():
        yield from _module_problems(module, pair, base.get(f"{module}.weight"))
        leaf = module.rpartition(".")[2]
        if leaf in _EMBEDDINGS and not takes_embeddings(config):
            yield f"vLLM takes no adapter of {leaf} in this architecture"


def _module_problems(module: str, pair: Shapes, weight: tuple[int, ...] | None) -> Iterator[str]:
    """One module's A (r, in) and B (out, r) against the base's weight (out, in); an embedding's
    weight is (tokens, dimensions), its A (r, tokens) and B (dimensions, r)."""
    if set(pair) != {"A", "B"}:
        yield f"{module} has one of its two matrices"
    elif weight is None:
        yield f"the base has no {module}"
    elif any(0 in shape for shape in pair.values()):
        yield f"{module} is empty"
    else:
        a, b = pair["A"], pair["B"]
        around = {(b[0], a[1]), (a[1], b[0])} if module.endswith(_EMBEDDINGS) else {(b[0], a[1])}
        if a[0] != b[1] or weight not in around:
            yield f"{module}: A {a} and B {b} do not fit the base's {weight}"


def _value_problems(folder: Path, trained: Path) -> Iterator[str]:
    """Whether the matrices are numbers, change anything, and are those that were trained."""
    import torch

    ours, theirs = _updates(folder), _updates(trained)
    if ours.keys() != theirs.keys():
        apart = sorted(ours.keys() ^ theirs.keys())
        yield f"{apart[0]} is only in one of trained and exported adapter"
        return
    yield from (f"{name} has NaN or inf" for name, t in ours.items() if not t.isfinite().all())
    if not any(t.any() for name, t in ours.items() if name.endswith(B_MATRICES)):
        yield "every B matrix is zero: it changes nothing"
    for name, tensor in ours.items():
        same = tensor.shape == theirs[name].shape and torch.allclose(
            tensor, theirs[name], rtol=_ROUNDING, atol=0, equal_nan=True
        )
        if not same:
            yield f"{name} is not what was trained"


def _updates(adapter: Path) -> "dict[str, Tensor]":
    """All tensors in float32, B times its module's scale."""
    from safetensors.torch import load_file

    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    scales = scales_of_b(read_json(adapter / ADAPTER_CONFIG), shapes)
    return {name: tensor.float() * scales.get(name, 1.0) for name, tensor in tensors.items()}
