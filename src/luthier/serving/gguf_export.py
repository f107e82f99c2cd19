"""The GGUF files of a bundle: converted, measured against the merged model, judged."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.serving.converter import Extras, GGUFType, convert
from luthier.serving.gguf_limits import advise, finer, is_too_lossy, limits_for
from luthier.serving.gguf_parity import Measured, measure_gguf
from luthier.serving.reference import Reference

if TYPE_CHECKING:
    from luthier.gates import Gate
    from luthier.store.artifact import Workspace

Timer = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class GGUFExport:
    """What is converted: a merged model's folder, to a file of each type in `target`.

    `name` is `general.name`, `extras` what else the files are given.
    `limits` are those that the config sets in place of the types' own.
    """

    source: Path
    target: Path
    types: Sequence[GGUFType]
    name: str
    extras: Extras
    limits: Mapping[str, float | None]

    def path(self, quantization: GGUFType) -> Path:
        """Where the file of one type is."""
        return self.target / gguf_name(quantization)


def gguf_name(quantization: GGUFType) -> str:
    """The file name of one type."""
    return f"model-{quantization}.gguf"


def convert_all(export: GGUFExport, workspace: "Workspace", timed: Timer) -> None:
    """Write every file, whole or not at all; finished ones are kept.

    Raises:
        ServingError: as `convert`.
        InterruptedRunError: stopped on request.
    """
    export.target.mkdir(exist_ok=True)
    for quantization in export.types:
        with timed(f"convert_{quantization}"):
            _convert(export, quantization, export.path(quantization), workspace)


def _convert(
    export: GGUFExport, quantization: GGUFType, target: Path, workspace: "Workspace"
) -> None:
    convert(
        export.source,
        target,
        quantization=quantization,
        name=export.name,
        workspace=workspace,
        extras=export.extras,
    )


def measure_all(
    export: GGUFExport, reference: Reference, workspace: "Workspace", timed: Timer
) -> list[Measured]:
    """Each file against the merged model; of one that is too lossy, which type would pass.

    Raises:
        ServingError: llama.cpp cannot serve a file.
        InterruptedRunError: stopped on request.
    """
    found: dict[GGUFType, Measured] = {}
    for quantization in export.types:
        with timed(f"llama_cpp_{quantization}"):
            found[quantization] = _measure(
                export, quantization, export.path(quantization), reference, workspace
            )
    return [_judged(export, one, found, reference, workspace) for one in export.types]


def _measure(
    export: GGUFExport,
    quantization: GGUFType,
    path: Path,
    reference: Reference,
    workspace: "Workspace",
) -> Measured:
    limits = limits_for(quantization, **export.limits)
    return measure_gguf(path, quantization, reference, limits, workspace)


def _judged(
    export: GGUFExport,
    quantization: GGUFType,
    found: dict[GGUFType, Measured],
    reference: Reference,
    workspace: "Workspace",
) -> Measured:
    measured = found[quantization]
    failed = tuple(gate.id for gate in measured.gates if gate.status == "fail")
    parity = replace(measured.parity, failed_gates=failed)
    if not is_too_lossy(measured.gates):
        return Measured(parity, measured.gates)
    would_pass = _first_that_passes(export, finer(quantization), found, reference, workspace)
    parity = replace(parity, is_too_lossy=True, would_pass=would_pass)
    return Measured(parity, advise(measured.gates, would_pass))


def _first_that_passes(
    export: GGUFExport,
    types: Sequence[GGUFType],
    found: dict[GGUFType, Measured],
    reference: Reference,
    workspace: "Workspace",
) -> GGUFType | None:
    """The coarsest type that passes; those that were not asked for are tried and thrown away."""
    for quantization in types:
        if quantization not in found:
            trial = workspace.scratch / gguf_name(quantization)
            _convert(export, quantization, trial, workspace)
            found[quantization] = _measure(export, quantization, trial, reference, workspace)
            trial.unlink()
        if _passes(found[quantization].gates):
            return quantization
    return None


def _passes(gates: "Sequence[Gate]") -> bool:
    return all(gate.status != "fail" for gate in gates)
