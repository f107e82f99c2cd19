"""Stage `base`: pin the base model. Everything later reads this copy and no other."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config import Field, Section
from luthier.errors import ModelError
from luthier.models.chat import stop_token_ids
from luthier.models.gguf_source import import_gguf
from luthier.models.licence import copy_licences, licence_facts, package_licences
from luthier.models.loading import load_tokenizer
from luthier.models.skeleton import refuse_quantised
from luthier.models.sources import (
    Source,
    download,
    find_source,
    folder_files,
    source_files,
)
from luthier.models.weights import describe_weights
from luthier.serving.llama_server import require_llama_cpp
from luthier.serving.parity import tokenizer_parity
from luthier.stages.contract import Stage, StageInputs, StageResult
from luthier.store.artifact import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.gates import Gate


class BaseSection(Section):
    """The model to start from."""

    model: str = Field(
        description="hub id (owner/name), a folder, a .gguf file, or package:<package>/<file>.gguf"
    )
    revision: str | None = Field(None, description="commit of a hub model, 40 hexadecimal digits")


def run(section: BaseSection, _inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Copy or convert the base, and check that its tokenizer is the one it was trained with."""
    source = find_source(section.model, section.revision)
    folder = workspace.path
    facts: dict[str, Any] = {"source": {"name": source.name, "kind": source.kind}}
    gates: list[Gate] = []
    with workspace.reporter.task(f"importing {source.name}", 1) as task:
        match source.kind:
            case "gguf":
                assert source.path is not None
                stated = import_gguf(source.path, folder)
                facts |= licence_facts(source, None, stated["licence"])
                copy_licences(source, folder, stated["licence"])
                gates.append(tokenizer_parity(load_tokenizer(folder), source.path))
            case "folder" | "hub":
                facts |= licence_facts(source, _copy(source, folder))
                refuse_quantised(folder)
                facts["source"]["revision"] = source.revision
        task.advance()
    facts |= _facts(folder, load_tokenizer(folder))
    return StageResult(metrics={"parameters": facts["parameters"]}, gates=gates, facts=facts)


def _copy(source: Source, folder: Path) -> Path:
    """Copy what a model needs; where it was copied from."""
    origin = download(source) if source.kind == "hub" else source.path
    assert origin is not None
    for path in folder_files(origin):
        shutil.copyfile(path, folder / path.name)
    return origin


def _facts(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """What later stages must know of the base, read from the copy."""
    stops = stop_token_ids(folder, tokenizer)
    if not stops:
        raise ModelError(
            "The base has no stop token: neither generation_config.json, the tokenizer nor the "
            "chat template names one, so a model trained on it would never stop."
        )
    template = tokenizer.chat_template or ""
    return describe_weights(folder) | {
        "vocabulary_size": len(tokenizer),
        "stop_token_ids": stops,
        "stop_tokens": [tokenizer.convert_ids_to_tokens(i) for i in stops],
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "template_sha256": hashlib.sha256(str(template).encode()).hexdigest(),
    }


def _files(section: BaseSection) -> Sequence[Path]:
    source = find_source(section.model, section.revision)
    return [*source_files(source), *package_licences(source)]


def _check(section: BaseSection, _filled: frozenset[str]) -> None:
    source = find_source(section.model, section.revision)
    if source.kind == "gguf":
        require_llama_cpp()
    elif source.path is not None and (source.path / "config.json").exists():
        refuse_quantised(source.path)


STAGE = Stage(
    name="base",
    order=10,
    summary="pin the base model",
    makes="base",
    version=2,
    section=BaseSection,
    run=run,
    packages=("transformers", "gguf"),
    files=_files,
    check=_check,
)
