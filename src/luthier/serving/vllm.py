"""The folder that vLLM serves, and the check of it."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.gates import Gate, check
from luthier.store.files import (
    fsync_file,
    fsync_folder,
    sha256_file,
    temporary_path,
    write_atomically,
)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
WEIGHTS_INDEX = "model.safetensors.index.json"
SERVE_CONFIG = "serve.yaml"
_REQUIRED = ("config.json", "generation_config.json", SERVE_CONFIG)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_REFUSED_PATTERNS = ("adapter_*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.py")
_REFUSED_KEYS = ("auto_map", "quantization_config")
_MACHINE_KEYS = ("_name_or_path",)  # where the weights lay on the machine that merged them
_SHOWN_PROBLEMS = 5


def write_folder(
    folder: Path,
    *,
    model: Path,
    base: Path,
    name: str,
    stop_token_ids: Sequence[int],
    context_tokens: int,
) -> None:
    """Write what `vllm serve` needs; files that stand already are kept.

    Weights and config are the merged model's, tokenizer and template the base's, byte for byte.
    Replies end at the run's stop ids and are greedy unless a request says otherwise.

    Args:
        name: the model's name for clients.
        context_tokens: prompt and reply together, at most.
    """
    folder.mkdir(exist_ok=True)
    for source in [*sorted(model.glob("*.safetensors")), *_existing(model, [WEIGHTS_INDEX])]:
        copy_atomically(source, folder / source.name)
    for source in _existing(base, TOKENIZER_FILES):
        copy_atomically(source, folder / source.name)
    config = _read_json(model / "config.json")
    for key in _MACHINE_KEYS:
        config.pop(key, None)
    _write_json(folder / "config.json", config)
    tokens = {
        key: config[key] for key in ("bos_token_id", "pad_token_id") if config.get(key) is not None
    }
    decoding = {"do_sample": False, "eos_token_id": list(stop_token_ids), "temperature": 0.0}
    _write_json(folder / "generation_config.json", tokens | decoding)
    write_atomically(folder / SERVE_CONFIG, _serve_config(name, context_tokens))


def _serve_config(name: str, context_tokens: int) -> str:
    return (
        "# vllm serve <this folder> --config <this file>\n"
        f"served-model-name: {json.dumps(name)}\n"
        f"max-model-len: {context_tokens}\n"
        "generation-config: auto  # stop ids and greedy decoding from generation_config.json\n"
    )


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all; a target that stands is kept."""
    if target.exists():
        return
    partial = temporary_path(target)
    shutil.copyfile(source, partial)
    fsync_file(partial)
    partial.replace(target)
    fsync_folder(target.parent)


def folder_gate(folder: Path, base: Path) -> Gate:
    """vllm-folder: what vLLM demands is there, and nothing that it refuses."""
    problems = list(_problems(folder, base))
    shown = "; ".join(problems[:_SHOWN_PROBLEMS])
    return check("vllm-folder", len(problems), "==", 0, shown or "complete, nothing refused")


def _problems(folder: Path, base: Path) -> Iterator[str]:
    yield from (f"{name} is missing" for name in _REQUIRED if not (folder / name).exists())
    if not _existing(folder, _TOKENIZERS):
        yield f"no tokenizer ({', '.join(_TOKENIZERS)})"
    for pattern in _REFUSED_PATTERNS:
        yield from (f"{path.name} must not be here" for path in sorted(folder.glob(pattern)))
    for path in sorted(folder.glob("*config.json")):
        content = _read_json(path)
        yield from (f"{path.name} has {key}" for key in _REFUSED_KEYS if key in content)
    if (folder / "config.json").exists() and not _read_json(folder / "config.json").get(
        "architectures"
    ):
        yield "config.json has no architectures"
    yield from _stop_problems(folder)
    yield from _tokenizer_problems(folder, base)
    yield from _weight_problems(folder)


def _stop_problems(folder: Path) -> Iterator[str]:
    path = folder / "generation_config.json"
    if path.exists() and not _read_json(path).get("eos_token_id"):
        yield "generation_config.json has no eos_token_id"


def _tokenizer_problems(folder: Path, base: Path) -> Iterator[str]:
    for name in TOKENIZER_FILES:
        ours, theirs = folder / name, base / name
        if ours.exists() != theirs.exists():
            yield f"{name} is {'only here' if ours.exists() else 'missing'}, unlike in the base"
        elif ours.exists() and sha256_file(ours) != sha256_file(theirs):
            yield f"{name} is not the base's, byte for byte"


def _weight_problems(folder: Path) -> Iterator[str]:
    tensors: dict[str, Mapping[str, tuple[int, ...]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            tensors[path.name] = tensor_shapes(path)
        except ValueError as error:
            yield f"{path.name} cannot be read ({error})"
    if not tensors:
        yield "no weights (*.safetensors)"
    for name, shapes in tensors.items():
        yield from (f"{name}: {tensor} is empty" for tensor, shape in shapes.items() if 0 in shape)
    if (folder / WEIGHTS_INDEX).exists():
        yield from _index_problems(folder, tensors)
    elif len(tensors) > 1:
        yield f"several weight files but no {WEIGHTS_INDEX}"


def _index_problems(
    folder: Path, tensors: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> Iterator[str]:
    for tensor, name in _read_json(folder / WEIGHTS_INDEX).get("weight_map", {}).items():
        if tensor not in tensors.get(name, {}):
            yield f"{WEIGHTS_INDEX}: {tensor} is not in {name}"


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes from a safetensors header.

    Raises:
        ValueError: the file is malformed or shorter than its header says.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(str(error)) from error


def _existing(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).exists()]


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(
        path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    )
