"""The folder from which vLLM serves adapters on one base.

Each adapter has a folder of its own in it. The base is not in it: vLLM is told which one it is.
vLLM stops at the ids of the generation_config.json that `generation-config` names, and at the
tokenizer's EOS; eos_token_id in `override-generation-config` does not reach its requests (vLLM
0.32.0, vllm/v1/engine/input_processor.py and vllm/config/model.py, try_get_generation_config). So
the folder has one, with the run's stop ids, and serve.yaml names the folder.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ServingError
from luthier.models.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFT_PREFIX
from luthier.models.adapter_targets import lora_scale
from luthier.models.weights import describe_weights
from luthier.serving.lint import VLLM_LORA_RANKS
from luthier.serving.vllm import (
    SERVE_CONFIG,
    as_measured,
    copy_atomically,
    read_json,
    tensor_shapes,
    write_generation_config,
    write_json,
    write_serve_config,
)
from luthier.store.files import fsync_file, fsync_folder, temporary_path

if TYPE_CHECKING:
    from torch import Tensor

A_MATRICES = (".lora_A.weight", ".lora_embedding_A")
B_MATRICES = (".lora_B.weight", ".lora_embedding_B")


@dataclass(frozen=True)
class ServedBase:
    """The base that the adapters need.

    `name` is what clients call it by; with `revision`, a hub commit, it is also what vLLM fetches.
    """

    folder: Path
    name: str
    revision: str | None = None


def served_base(folder: Path, source: Mapping[str, Any]) -> ServedBase:
    """The base in `folder`, by what its manifest says of its source (name, kind, revision)."""
    if source["kind"] == "hub":
        return ServedBase(folder, source["name"], source["revision"])
    return ServedBase(folder, Path(source["name"]).name)


def write_adapter_folder(
    folder: Path,
    *,
    adapters: Mapping[str, Path],
    base: ServedBase,
    stop_token_ids: Sequence[int],
    context_tokens: int,
) -> None:
    """Write what vLLM needs beside the base; weights that stand already are kept.

    `vllm serve` is to be run in the folder above: the paths in serve.yaml start there.

    Args:
        folder: its last part is in serve.yaml's paths.
        adapters: PEFT folders by the name that clients ask for.
        base: what they were trained on.
        stop_token_ids: the run's; replies end there, and are greedy unless a request says
            otherwise.
        context_tokens: prompt and reply together, at most.

    Raises:
        ServingError: an adapter has the base's name (vLLM would answer as the base), or one that
            is no folder's.
    """
    folder.mkdir(exist_ok=True)
    for name, adapter in adapters.items():
        _check_name(name, base)
        _write_adapter(folder / name, adapter, base)
    write_generation_config(folder, read_json(base.folder / "config.json"), stop_token_ids)
    dtype = describe_weights(base.folder)["dtype"]
    options = _options(folder, list(adapters), base) | as_measured(dtype, context_tokens)
    write_serve_config(folder, serve_command(folder.name, base), options)


def serve_command(folder_name: str, base: ServedBase) -> str:
    """What to run in the bundle's folder; a base that is no hub model is named by its folder."""
    model = "" if base.revision else " FOLDER_OF_THE_BASE"
    return f"vllm serve{model} --config {folder_name}/{SERVE_CONFIG}"


def base_note(base: ServedBase) -> str:
    """Which base the adapters need, for the README: one paragraph."""
    if base.revision:
        return (
            f"The base is not here: it is {base.name} at commit {base.revision}, which serve.yaml "
            "names.\n"
        )
    return (
        f"The base is not here: it is {base.name}, as this run's artifact of kind `base` holds it "
        "(weights, config and tokenizer). Copy that artifact's folder to the server and give it "
        "to vLLM.\n"
    )


def _check_name(name: str, base: ServedBase) -> None:
    if name == base.name:
        raise ServingError(
            f"vllm-adapter: base and adapter are both called {name}, and vLLM would answer as the "
            "base. Give the run another name."
        )
    if not name or Path(name).name != name:
        raise ServingError(f"vllm-adapter: {name!r} cannot be the name of an adapter's folder.")


def _options(folder: Path, names: Sequence[str], base: ServedBase) -> dict[str, Any]:
    fetched = {"model": base.name, "revision": base.revision} if base.revision else {}
    modules = [
        # A list's entries must be text for vLLM (vllm/utils/argparse_utils.py, load_config_file).
        json.dumps({"name": name, "path": f"{folder.name}/{name}", "base_model_name": base.name})
        for name in names
    ]
    return {
        **fetched,
        "served-model-name": base.name,
        "enable-lora": True,
        "max-lora-rank": lora_rank_limit([folder / name for name in names]),
        "max-loras": len(names),
        "lora-modules": modules,
        "generation-config": folder.name,
    }


def lora_rank_limit(adapters: Sequence[Path]) -> int:
    """The smallest `--max-lora-rank` that vLLM knows and that holds every adapter; its largest
    where none does."""
    largest = max(largest_rank(adapter) for adapter in adapters)
    return next((rank for rank in VLLM_LORA_RANKS if rank >= largest), VLLM_LORA_RANKS[-1])


def largest_rank(adapter: Path) -> int:
    """The largest rank that the config states or a matrix has; vLLM looks at both."""
    config = read_json(adapter / ADAPTER_CONFIG)
    shapes = tensor_shapes(adapter / ADAPTER_WEIGHTS)
    stored = [shape[0] for name, shape in shapes.items() if name.endswith(A_MATRICES) and shape]
    stated: list[int] = [config["r"], *(config.get("rank_pattern") or {}).values()]
    return max(stated + stored)


def _write_adapter(folder: Path, adapter: Path, base: ServedBase) -> None:
    folder.mkdir(exist_ok=True)
    config = read_json(adapter / ADAPTER_CONFIG)
    shapes = tensor_shapes(adapter / ADAPTER_WEIGHTS)
    scales = scales_of_b(config, shapes)
    if set(scales.values()) <= {lora_scale(config | {"alpha_pattern": {}}, "", config["r"])}:
        copy_atomically(adapter / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    else:
        _copy_scaled(adapter / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS, scales)
        config |= _scale_one(config)
    named = {"base_model_name_or_path": base.name, "revision": base.revision}
    write_json(folder / ADAPTER_CONFIG, config | named)


def scales_of_b(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, float]:
    """How each B matrix counts, by the name of its tensor."""
    found = {}
    for name, shape in shapes.items():
        if name.endswith(B_MATRICES):
            module = name.removeprefix(PEFT_PREFIX).partition(".lora_")[0]
            found[name] = lora_scale(config, module, shape[-1])
    return found


def _copy_scaled(source: Path, target: Path, scales: Mapping[str, float]) -> None:
    """Copy with the scales taken into B: vLLM before 0.32 scales all modules alike, by alpha / r
    (vllm/lora/peft_helper.py at 0.27.1; from 0.32.0 on it reads both patterns)."""
    from safetensors.torch import load_file, save_file

    if target.exists():
        return
    tensors: dict[str, Tensor] = load_file(source)
    for name, scale in scales.items():
        tensors[name] = (tensors[name].float() * scale).to(tensors[name].dtype)
    partial = temporary_path(target)
    save_file(tensors, partial, metadata={"format": "pt"})
    fsync_file(partial)
    partial.replace(target)
    fsync_folder(target.parent)


def _scale_one(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by which every module's scale is 1, for vLLM of any version and for PEFT."""
    ranks = dict(config.get("rank_pattern") or {})
    return {"lora_alpha": config["r"], "alpha_pattern": ranks, "use_rslora": False}
