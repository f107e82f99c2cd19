"""Stage `export`: the merged model as servers want it, and proof that it is what they serve."""

import json
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ConfigError
from luthier.gates import Gate
from luthier.models.loading import load_tokenizer
from luthier.serving.answers import ProbeSet, read_probes
from luthier.serving.bundle import HUB_FOLDER, BundleFacts, write_documents
from luthier.serving.chat_families import ollama_template
from luthier.serving.converter import Extras, GGUFType, converter_folder
from luthier.serving.export_section import ExportSection
from luthier.serving.gguf_export import GGUFExport, convert_all, gguf_name, measure_all
from luthier.serving.gguf_file import tensor_types
from luthier.serving.gguf_metadata import provenance_fields, stop_fields
from luthier.serving.gguf_parity import Measured
from luthier.serving.golden import added_bos, template_renderer
from luthier.serving.hub import write_hub_folder
from luthier.serving.importance import dataset_importance
from luthier.serving.lint import VLLM_ADAPTER
from luthier.serving.llama_server import require_llama_cpp
from luthier.serving.ollama import base_licence, modelfile
from luthier.serving.reference import Reference, make_reference
from luthier.serving.serve_probes import Served, build_probes, write_probes
from luthier.serving.vllm import folder_gate, problems_gate, tokenizer_folder, write_folder
from luthier.serving.vllm_adapter import (
    ServedBase,
    base_note,
    serve_command,
    served_base,
    write_adapter_folder,
)
from luthier.serving.vllm_adapter_check import adapter_gate, unlike_the_merged
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.stages.training import refuse_other_base
from luthier.store.artifact import Workspace
from luthier.store.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARITY_TEXTS = 100  # rows whose texts stand beside the nasty corpus
_NOTE_CHARACTERS = 90
_LINEAGE = ("base", "dataset", "adapter", "model")


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


def run(section: ExportSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Write the folders, convert, answer probes through llama.cpp, measure, document."""
    export = _begin(section, inputs, workspace)
    # The converter takes the folder's name into the GGUF: it is `vllm` wherever it stands.
    folder = (workspace.path if "vllm" in section.targets else workspace.scratch) / "vllm"
    _write_model_folder(export, folder)
    gates: list[Gate] = []
    if "vllm" in section.targets:
        gates.append(folder_gate(folder, inputs["base"].path, inputs["model"].path))
    if "vllm-adapter" in section.targets:
        gates.append(_write_adapters(export))
    if "hub" in section.targets:
        write_hub_folder(workspace.path / HUB_FOLDER, folder)
    ggufs = _begin_ggufs(export, folder) if section.makes_gguf else None
    reference = _reference(export)
    measured = _measure_ggufs(export, ggufs, reference) if ggufs else []
    gates += [gate for one in measured for gate in one.gates]
    _document(export, reference, measured)
    return StageResult(
        metrics={one.parity.quantization: asdict(one.parity) for one in measured},
        gates=gates,
        facts=_facts(export, measured),
        timings_seconds=export.timings_seconds,
    )


def _begin(section: ExportSection, inputs: StageInputs, workspace: Workspace) -> _Export:
    tokenizer = load_tokenizer(tokenizer_folder(inputs["model"].path, inputs["base"].path))
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


def _served_base(inputs: StageInputs) -> ServedBase:
    base = inputs["base"]
    return served_base(base.path, base.manifest.facts["source"])


def _write_adapters(export: _Export) -> Gate:
    inputs, folder = export.inputs, export.workspace.path / VLLM_ADAPTER
    adapters = {inputs.name: inputs["adapter"].path}
    for name, other in inputs.several("others").items():
        refuse_other_base(other, inputs["base"], "export.adapters")
        adapters[name] = other.path
    with export.timed("vllm_adapter"):
        write_adapter_folder(
            folder,
            adapters=adapters,
            base=_served_base(inputs),
            stop_token_ids=export.probes.stop_token_ids,
            context_tokens=export.context_tokens,
        )
    differs = unlike_the_merged(inputs["model"].manifest.facts)
    if differs is not None:
        return problems_gate(VLLM_ADAPTER, [differs])
    return adapter_gate(folder, adapters, inputs["base"].path)


def _begin_ggufs(export: _Export, source: Path) -> GGUFExport:
    """Convert to every type asked for; a Modelfile beside each, where Ollama is a target."""
    section, inputs, workspace = export.section, export.inputs, export.workspace
    ggufs = GGUFExport(
        source=source,
        target=workspace.path / ("ollama" if "ollama" in section.targets else "gguf"),
        types=list(dict.fromkeys(section.gguf_quantization)),
        name=inputs.name,
        extras=Extras(_importance(export), _fields(export)),
        limits=section.limits,
    )
    ggufs.target.mkdir(exist_ok=True)
    if "ollama" in section.targets:
        # Before minutes of converting: a system prompt that no Modelfile can hold fails here.
        for quantization in ggufs.types:
            text = _modelfile(export, gguf_name(quantization))
            name = _modelfile_name(quantization, ggufs.types[0])
            write_atomically(ggufs.target / name, text)
    convert_all(ggufs, workspace, export.timed)
    return ggufs


def _modelfile_name(quantization: GGUFType, first: GGUFType) -> str:
    return "Modelfile" if quantization == first else f"Modelfile-{quantization}"


def _modelfile(export: _Export, name: str) -> str:
    base, template = export.inputs["base"], None
    if export.section.ollama_template:
        bos_token = added_bos(export.tokenizer)
        template = ollama_template(template_renderer(export.tokenizer), bos_token)
    return modelfile(
        name,
        stop_tokens=export.stop_tokens,
        context_tokens=export.context_tokens,
        system_prompt=export.probes.system_prompt,
        licence=base_licence(base.path, base.manifest.facts.get("licence")),
        template=template,
    )


def _fields(export: _Export) -> dict[str, Any]:
    inputs, probes = export.inputs, export.probes
    lineage = {slot: one.key for slot, one in inputs.artifacts.items() if slot in _LINEAGE}
    licence = inputs["base"].manifest.facts.get("licence") or None
    about = provenance_fields(
        inputs.name, lineage, licence=licence, context_tokens=export.context_tokens
    )
    return {**stop_fields(export.tokenizer.eos_token_id, probes.stop_token_ids), **about}


def _importance(export: _Export) -> Path | None:
    if not export.section.importance_matrix:
        return None
    inputs = export.inputs
    with export.timed("importance_matrix"):
        return dataset_importance(inputs["model"].path, inputs["dataset"].path, export.workspace)


def _reference(export: _Export) -> Reference:
    with export.timed("transformers_answers"):
        return make_reference(
            export.tokenizer,
            export.probes,
            export.inputs["base"].path,
            export.inputs["model"].path,
            export.workspace,
        )


def _measure_ggufs(export: _Export, ggufs: GGUFExport, reference: Reference) -> list[Measured]:
    """Each GGUF's measures, with where its files are in the bundle."""
    found = measure_all(ggufs, reference, export.workspace, export.timed)
    has_modelfiles, folder = "ollama" in export.section.targets, ggufs.target.name
    placed = []
    for quantization, one in zip(ggufs.types, found, strict=True):
        name = _modelfile_name(quantization, ggufs.types[0])
        parity = replace(
            one.parity,
            file=f"{folder}/{gguf_name(quantization)}",
            modelfile=f"{folder}/{name}" if has_modelfiles else None,
        )
        placed.append(Measured(parity, one.gates))
    return placed


def _document(export: _Export, reference: Reference, measured: Sequence[Measured]) -> None:
    inputs, bundle = export.inputs, export.workspace.path
    command = []
    if VLLM_ADAPTER in export.section.targets:
        base = _served_base(inputs)
        note = [f"# {line}" for line in textwrap.wrap(base_note(base), _NOTE_CHARACTERS)]
        command = [*note, serve_command(VLLM_ADAPTER, base)]
    with export.timed("documents"):
        served = Served(inputs.name, export.context_tokens)
        write_probes(bundle, build_probes(reference, served))
        write_documents(
            bundle,
            BundleFacts(
                name=inputs.name,
                artifacts=inputs.artifacts,
                parity=[one.parity for one in measured],
                stop_tokens=export.stop_tokens,
                context_tokens=export.context_tokens,
                system_prompt=export.probes.system_prompt,
                adapter_command=command,
            ),
        )


def _facts(export: _Export, measured: Sequence[Measured]) -> Mapping[str, Any]:
    return {
        "served_name": export.inputs.name,
        "stop_token_ids": list(export.probes.stop_token_ids),
        "stop_tokens": export.stop_tokens,
        "context_length_tokens": export.context_tokens,
        "system_prompt": export.probes.system_prompt,
        "gguf": {one.parity.quantization: one.parity.file for one in measured},
        "gguf_tensor_types": {
            one.parity.quantization: dict(tensor_types(export.workspace.path / one.parity.file))
            for one in measured
        },
    }


def _check(section: ExportSection, filled: frozenset[str]) -> None:
    """Before any training: the programs that only the end needs."""
    if section.makes_gguf:
        converter_folder()
        require_llama_cpp()
    if VLLM_ADAPTER in section.targets and "adapter" not in filled:
        raise ConfigError(
            "export: vllm-adapter exports what sft trained, and the config has no section sft."
        )


STAGE = Stage(
    name="export",
    order=80,
    summary="export for the targets, and ask the real server",
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
        Slot("others", "adapter", optional=True, field="adapters"),
    ),
    uses_name=True,
    packages=("torch", "transformers", "xllamacpp"),
    check=_check,
)
