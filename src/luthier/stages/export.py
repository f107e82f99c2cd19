"""Stage `export`: the merged model as servers want it, and proof that it is what they serve."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.config import Field, Section
from luthier.gates import Gate, failures
from luthier.models.loading import load_tokenizer
from luthier.serving.answers import (
    Answer,
    ProbeSet,
    read_probes,
    served_answers,
    transformers_answers,
)
from luthier.serving.bundle import BundleFacts, write_documents
from luthier.serving.converter import GGUFType, convert, converter_folder
from luthier.serving.hub import write_hub_folder
from luthier.serving.llama_server import LlamaServer, require_llama_cpp
from luthier.serving.ollama import modelfile
from luthier.serving.parity import (
    AnswerLimits,
    AnswerParity,
    answer_gates,
    compare_prompts,
    compare_texts,
    ids_gate,
    measure_answers,
    parity_texts,
)
from luthier.serving.parity_tables import QuantizationParity
from luthier.serving.vllm import folder_gate, write_folder
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.store.artifact import Workspace
from luthier.store.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARITY_TEXTS = 100  # rows whose texts stand beside the nasty corpus


class ExportSection(Section):
    """What to export, and how far serving may differ from the merged model."""

    targets: list[Literal["vllm", "ollama", "hub"]] = Field(
        ["vllm", "ollama"], min_length=1, description="servers to export for"
    )
    gguf_quantization: list[GGUFType] = Field(
        ["q8_0"], min_length=1, description="GGUF types; the first is the Modelfile's"
    )
    context_length_tokens: int = Field(
        4096,
        ge=128,
        description="context that servers are told to keep, tokens; at most what the model has",
    )
    probe_rows: int = Field(100, ge=1, description="held-out rows answered through the server")
    min_greedy_agreement: float = Field(
        0.95, ge=0, le=1, description="least share of probes with the merged model's whole answer"
    )
    max_score_drop: float = Field(
        0.02, ge=0, le=1, description="greatest loss of accuracy by serving, 0 to 1"
    )


@dataclass(frozen=True)
class _Exported:
    """One GGUF of the bundle, and how it compared with the merged model."""

    parity: QuantizationParity
    answers: AnswerParity


@dataclass
class _Export:
    """One run of the stage: what is known before anything is converted."""

    section: ExportSection
    inputs: StageInputs
    workspace: Workspace
    tokenizer: "PreTrainedTokenizerBase"
    probes: ProbeSet
    context_tokens: int
    timings_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def stop_tokens(self) -> list[str]:
        return [str(self.tokenizer.convert_ids_to_tokens(i)) for i in self.probes.stop_token_ids]

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.timings_seconds[part] = time.perf_counter() - started


@dataclass(frozen=True)
class _Answers:
    base: list[Answer]
    merged: list[Answer]


def run(section: ExportSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Write the folders, convert, answer probes through llama.cpp, measure, document."""
    export = _begin(section, inputs, workspace)
    has_vllm, has_ollama = "vllm" in section.targets, "ollama" in section.targets
    # The converter takes the folder's name into the GGUF: it is `vllm` wherever it stands.
    folder = (workspace.path if has_vllm else workspace.scratch) / "vllm"
    _write_model_folder(export, folder)
    gates: list[Gate] = []
    if has_vllm:
        gates.append(folder_gate(folder, inputs["base"].path, inputs["model"].path))
    exported = _export_ggufs(export, folder, gates) if has_ollama else []
    if "hub" in section.targets:
        write_hub_folder(workspace.path / "hub", folder)
    _document(export, exported)
    return StageResult(
        metrics={one.parity.quantization: _metrics(one) for one in exported},
        gates=gates,
        facts=_facts(export, exported),
        timings_seconds=export.timings_seconds,
    )


def _begin(section: ExportSection, inputs: StageInputs, workspace: Workspace) -> _Export:
    tokenizer = load_tokenizer(inputs["base"].path)
    config = json.loads((inputs["model"].path / "config.json").read_text("utf-8"))
    available = config.get("max_position_embeddings") or section.context_length_tokens
    return _Export(
        section=section,
        inputs=inputs,
        workspace=workspace,
        tokenizer=tokenizer,
        probes=read_probes(inputs["dataset"].path, section.probe_rows, PARITY_TEXTS),
        context_tokens=min(section.context_length_tokens, available),
    )


def _write_model_folder(export: _Export, folder: Path) -> None:
    with export.timed("vllm_folder"):
        write_folder(
            folder,
            model=export.inputs["model"].path,
            base=export.inputs["base"].path,
            name=export.inputs.name,
            stop_token_ids=export.probes.stop_token_ids,
            context_tokens=export.context_tokens,
        )


def _export_ggufs(export: _Export, folder: Path, gates: list[Gate]) -> list[_Exported]:
    """Convert to every type asked for, and measure each; the gates found are added to `gates`."""
    (export.workspace.path / "ollama").mkdir(exist_ok=True)
    types = list(dict.fromkeys(export.section.gguf_quantization))
    for quantization in types:
        _convert(export, folder, quantization, is_first=quantization == types[0])
    with export.timed("transformers_answers"):
        answers = _Answers(
            base=_transformers_answers(export, "base"),
            merged=_transformers_answers(export, "model"),
        )
    exported = []
    for quantization in types:
        with export.timed(f"llama_cpp_{quantization}"):
            one, found = _measure(export, quantization, answers, is_first=quantization == types[0])
        exported.append(one)
        gates.extend(found)
    return exported


def _transformers_answers(export: _Export, slot: str) -> list[Answer]:
    label = f"Answers of the {'merged model' if slot == 'model' else 'base'}"
    return transformers_answers(export.inputs[slot].path, export.probes, export.workspace, label)


def _gguf_name(quantization: GGUFType) -> str:
    return f"model-{quantization}.gguf"


def _modelfile_name(quantization: GGUFType, is_first: bool) -> str:
    return "Modelfile" if is_first else f"Modelfile-{quantization}"


def _convert(export: _Export, folder: Path, quantization: GGUFType, *, is_first: bool) -> None:
    target = export.workspace.path / "ollama"
    # Before minutes of converting: a system prompt that no Modelfile can hold fails here.
    text = modelfile(
        _gguf_name(quantization),
        stop_tokens=export.stop_tokens,
        context_tokens=export.context_tokens,
        system_prompt=export.probes.system_prompt,
    )
    with export.timed(f"convert_{quantization}"):
        convert(
            folder,
            target / _gguf_name(quantization),
            quantization=quantization,
            name=export.inputs.name,
            workspace=export.workspace,
        )
    write_atomically(target / _modelfile_name(quantization, is_first), text)


def _measure(
    export: _Export, quantization: GGUFType, answers: _Answers, *, is_first: bool
) -> tuple[_Exported, list[Gate]]:
    """Serve one GGUF with llama.cpp and compare it with training and with the merged model."""
    probes, what = export.probes, f"{quantization}: "
    gguf_path = export.workspace.path / "ollama" / _gguf_name(quantization)
    with LlamaServer(gguf_path, context_tokens=probes.context_tokens) as server:
        texts = parity_texts(export.tokenizer, probes.texts)
        ids = compare_texts(export.tokenizer, server, texts) + compare_prompts(server, probes)
        served = served_answers(server, probes, export.workspace)
    parity = measure_answers(export.tokenizer, probes, answers.base, answers.merged, served)
    limits = AnswerLimits(export.section.min_greedy_agreement, export.section.max_score_drop)
    gates = [ids_gate("gguf-ids", ids, what), *answer_gates(parity, limits, what)]
    exported = QuantizationParity(
        quantization=quantization,
        file=f"ollama/{gguf_path.name}",
        size_bytes=gguf_path.stat().st_size,
        texts_compared=len(ids),
        text_mismatches=sum(not comparison.holds for comparison in ids),
        answers_compared=parity.probes,
        answer_agreement=parity.agreement,
        merged_score=parity.merged_score,
        served_score=parity.served_score,
        stopped=parity.stopped,
        told_apart=parity.told_apart,
        served_as_tuned=parity.served_as_tuned,
        modelfile=f"ollama/{_modelfile_name(quantization, is_first)}",
        failed_gates=tuple(gate.id for gate in failures(gates)),
    )
    return _Exported(exported, parity), gates


def _document(export: _Export, exported: list[_Exported]) -> None:
    facts = BundleFacts(
        name=export.inputs.name,
        artifacts=export.inputs.artifacts,
        parity=[one.parity for one in exported],
        stop_tokens=export.stop_tokens,
        context_tokens=export.context_tokens,
        system_prompt=export.probes.system_prompt,
    )
    with export.timed("documents"):
        write_documents(export.workspace.path, facts)


def _metrics(exported: _Exported) -> Mapping[str, Any]:
    return {
        "ids_compared": exported.parity.texts_compared,
        "id_mismatches": exported.parity.text_mismatches,
        **asdict(exported.answers),
        "score_drop": exported.answers.score_drop,
    }


def _facts(export: _Export, exported: list[_Exported]) -> Mapping[str, Any]:
    return {
        "served_name": export.inputs.name,
        "stop_token_ids": list(export.probes.stop_token_ids),
        "stop_tokens": export.stop_tokens,
        "context_length_tokens": export.context_tokens,
        "system_prompt": export.probes.system_prompt,
        "gguf": {one.parity.quantization: one.parity.file for one in exported},
    }


def _check(section: ExportSection, _filled: frozenset[str]) -> None:
    """Before any training: the programs that only the end needs."""
    if "ollama" in section.targets:
        converter_folder()
        require_llama_cpp()


STAGE = Stage(
    name="export",
    order=80,
    summary="export for vLLM and Ollama, and ask the real server",
    makes="bundle",
    version=2,
    section=ExportSection,
    run=run,
    slots=(
        Slot("model", "model", ("merge",)),
        Slot("dataset", "dataset", ("prepare",)),
        Slot("base", "base", ("base",)),
        Slot("adapter", "adapter", ("dpo", "sft"), optional=True),
        Slot("before", "adapter", ("sft",), optional=True, only_with="dpo"),
        Slot("evaluation", "evaluation", ("evaluate",), optional=True),
        Slot("baseline", "evaluation", ("baseline",), optional=True),
    ),
    uses_name=True,
    packages=("torch", "transformers", "xllamacpp"),
    check=_check,
)
