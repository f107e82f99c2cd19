"""The folder that vLLM serves, and the check of it."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.gates import Gate, check
from luthier.models.loading import load_tokenizer
from luthier.models.sources import TOKENIZER_FILES
from luthier.models.weights import INDEX_NAME, describe_weights
from luthier.store.files import (
    fsync_file,
    fsync_folder,
    sha256_file,
    temporary_path,
    write_atomically,
)

SERVE_CONFIG = "serve.yaml"
GENERATION_CONFIG = "generation_config.json"
_REQUIRED = ("config.json", GENERATION_CONFIG, SERVE_CONFIG)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
REFUSED_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.py")
_REFUSED_KEYS = ("auto_map", "quantization_config")
_MACHINE_KEYS = ("_name_or_path",)  # where the weights lay on the machine that merged them
_DTYPE_KEYS = ("torch_dtype", "dtype")  # before and since transformers 5
# vllm/config/model.py of vLLM 0.32.0, _FLOAT16_NOT_SUPPORTED_MODELS.
_NO_FLOAT16 = ("gemma2", "gemma3", "gemma3_text", "glm4")
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

    Weights and config are the merged model's; tokenizer and template are those of
    `tokenizer_folder`, byte for byte. Replies end at the run's stop ids and are greedy unless a
    request says otherwise.

    Args:
        name: the model's name for clients.
        context_tokens: prompt and reply together, at most.
    """
    folder.mkdir(exist_ok=True)
    for source in [*sorted(model.glob("*.safetensors")), *_existing(model, [INDEX_NAME])]:
        copy_atomically(source, folder / source.name)
    for source in _existing(tokenizer_folder(model, base), TOKENIZER_FILES):
        copy_atomically(source, folder / source.name)
    dtype = describe_weights(model)["dtype"]
    config = read_json(model / "config.json")
    for key in (*_MACHINE_KEYS, *_DTYPE_KEYS):
        config.pop(key, None)
    write_json(folder / "config.json", config | {"dtype": dtype})
    write_generation_config(folder, config, stop_token_ids)
    options = {
        "served-model-name": name,
        "generation-config": "auto",  # the folder's own
        **as_measured(dtype, context_tokens),
    }
    command = f"vllm serve ./{folder.name} --config {folder.name}/{SERVE_CONFIG}"
    write_serve_config(folder, command, options)


def as_measured(dtype: str, context_tokens: int) -> dict[str, Any]:
    """Options of `vllm serve` without which it may compute otherwise than was measured.

    Names and defaults of vLLM 0.32.0. Left to itself it computes float32 weights in 16 bits
    (vllm/config/model.py, _resolve_auto_dtype), takes Mistral's own tokenizer and config where a
    repository also has them (vllm/tokenizers/registry.py, tokenizer mode auto), and hands some
    templates a message's text as a list of parts (vllm/renderers/hf.py,
    resolve_chat_template_content_format), which is not how rows were rendered.
    """
    return {
        "dtype": dtype,
        "max-model-len": context_tokens,
        "tokenizer-mode": "hf",
        "config-format": "hf",
        "load-format": "safetensors",
        "chat-template-content-format": "string",
    }


def write_generation_config(
    folder: Path, config: Mapping[str, Any], stop_token_ids: Sequence[int]
) -> None:
    """generation_config.json: the run's stop ids, greedy; `config` is the model's config.json."""
    tokens = {
        key: config[key] for key in ("bos_token_id", "pad_token_id") if config.get(key) is not None
    }
    decoding = {"do_sample": False, "eos_token_id": list(stop_token_ids), "temperature": 0.0}
    write_json(folder / GENERATION_CONFIG, tokens | decoding)


def write_serve_config(folder: Path, command: str, options: Mapping[str, Any]) -> None:
    """The file that `vllm serve --config` reads; `command` is how to run it."""
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in options.items()]
    write_atomically(folder / SERVE_CONFIG, "\n".join([f"# {command}", *lines, ""]))


def read_serve_config(folder: Path) -> dict[str, Any]:
    """What `write_serve_config` wrote."""
    lines = (folder / SERVE_CONFIG).read_text("utf-8").splitlines()
    pairs = (line.partition(": ") for line in lines if not line.startswith("#"))
    return {key: json.loads(value) for key, _, value in pairs}


def tokenizer_folder(model: Path, base: Path) -> Path:
    """Whose tokenizer is served: the base's, or the model's own where tokens were added to it.

    A merged model's folder may hold the base's tokenizer written anew by another library, or one
    that is not of this model at all; only one that has every token of the base under its id, and
    more, is a reason to leave the base's.
    """
    ours, theirs = (_existing(folder, _TOKENIZERS) for folder in (model, base))
    if not ours or [sha256_file(path) for path in ours] == [sha256_file(path) for path in theirs]:
        return base
    grown = load_tokenizer(model).get_vocab().items()
    return model if grown > load_tokenizer(base).get_vocab().items() else base


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all; a target that stands is kept."""
    if target.exists():
        return
    partial = temporary_path(target)
    shutil.copyfile(source, partial)
    fsync_file(partial)
    partial.replace(target)
    fsync_folder(target.parent)


def folder_gate(folder: Path, base: Path, model: Path) -> Gate:
    """vllm-folder: what vLLM demands is there, and nothing that it refuses."""
    problems = list(_problems(folder, tokenizer_folder(model, base)))
    return problems_gate("vllm-folder", problems)


def problems_gate(gate_id: str, problems: Sequence[str]) -> Gate:
    """No problem may be there; the detail shows the first."""
    shown = "; ".join(problems[:_SHOWN_PROBLEMS])
    return check(gate_id, len(problems), "==", 0, shown or "complete, nothing refused")


def _problems(folder: Path, tokenizer: Path) -> Iterator[str]:
    yield from (f"{name} is missing" for name in _REQUIRED if not (folder / name).exists())
    if not _existing(folder, _TOKENIZERS):
        yield f"no tokenizer ({', '.join(_TOKENIZERS)})"
    for pattern in ("adapter_*", *REFUSED_PATTERNS):
        yield from (f"{path.name} must not be here" for path in sorted(folder.glob(pattern)))
    for path in sorted(folder.glob("*config.json")):
        content = read_json(path)
        yield from (f"{path.name} has {key}" for key in _REFUSED_KEYS if key in content)
    yield from _config_problems(folder)
    yield from stop_problems(folder)
    yield from _tokenizer_problems(folder, tokenizer)
    yield from _weight_problems(folder)


def _config_problems(folder: Path) -> Iterator[str]:
    if not (folder / "config.json").exists():
        return
    config = read_json(folder / "config.json")
    if not config.get("architectures"):
        yield "config.json has no architectures"
    if config.get("dtype") == "float16" and config.get("model_type") in _NO_FLOAT16:
        yield f"vLLM refuses float16 for {config['model_type']}; set merge.dtype: bfloat16"


def stop_problems(folder: Path) -> Iterator[str]:
    """Whether generation_config.json names what ends a reply."""
    path = folder / GENERATION_CONFIG
    if path.exists() and not read_json(path).get("eos_token_id"):
        yield f"{GENERATION_CONFIG} has no eos_token_id"


def _tokenizer_problems(folder: Path, tokenizer: Path) -> Iterator[str]:
    for name in TOKENIZER_FILES:
        ours, theirs = folder / name, tokenizer / name
        if ours.exists() != theirs.exists():
            where = "only here" if ours.exists() else "missing"
            yield f"{name} is {where}, unlike where the tokenizer comes from"
        elif ours.exists() and sha256_file(ours) != sha256_file(theirs):
            yield f"{name} is not what was trained with, byte for byte"


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
    if (folder / INDEX_NAME).exists():
        yield from _index_problems(folder, tensors)
    elif len(tensors) > 1:
        yield f"several weight files but no {INDEX_NAME}"


def _index_problems(
    folder: Path, tensors: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> Iterator[str]:
    for tensor, name in read_json(folder / INDEX_NAME).get("weight_map", {}).items():
        if tensor not in tensors.get(name, {}):
            yield f"{INDEX_NAME}: {tensor} is not in {name}"


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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object whole or not at all, the same bytes for the same content."""
    write_atomically(
        path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    )
