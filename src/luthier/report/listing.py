"""Views of the store: the plan, the list of artifacts, and one artifact."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.errors import DataError
from luthier.report import spelling
from luthier.report.dataset_rows import DATASET_KINDS, info_of
from luthier.report.dataset_terminal import show_dataset
from luthier.report.lineage import SHOWN_DIGITS
from luthier.report.plan_estimate import as_json, estimate_lines
from luthier.report.terminal import columns, facts, heading, indented, printing, styled

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.data.summary import DatasetInfo
    from luthier.pipeline import PlannedStep
    from luthier.store import Artifact, Contents, Manifest
    from luthier.training.prediction import Prediction

_SHOWN_TIME = len("2026-11-23T03:06")
_LISTED_DIGITS = 8  # enough to type


def plan_table(
    steps: "Sequence[PlannedStep]", foretold: "Mapping[str, Prediction | str] | None" = None
) -> None:
    """Print each stage, what would happen to it and why; then what training takes, by stage."""
    with printing() as console:
        table = columns(console, ("stage", "state", "why"))
        for step in steps:
            why = step.artifact.ref if step.artifact else "\n".join(step.reasons)
            table.add_row(step.stage, styled(step.state, step.state), spelling.printable(why))
        console.print(table)
        for stage, found in (foretold or {}).items():
            for line in _foretold_lines(stage, found):
                console.print(line, markup=False, highlight=False)


def _foretold_lines(stage: str, found: "Prediction | str") -> list[str]:
    if isinstance(found, str):
        return [found]
    first, *others = estimate_lines(
        found.fit, found.architecture, found.shape, found.hardware, found.time
    )
    return [f"{stage}, {first}", *others]


def plan_json(
    steps: "Sequence[PlannedStep]", foretold: "Mapping[str, Prediction | str]"
) -> list[dict[str, Any]]:
    """The plan as JSON values; what training takes stands as `estimate` with stages that train."""
    estimates: dict[str, Any] = {
        stage: None
        if isinstance(found, str)
        else as_json(found.fit, found.shape, found.hardware, found.time)
        for stage, found in foretold.items()
    }
    return [
        {
            "stage": step.stage,
            "state": step.state,
            "reasons": step.reasons,
            "ref": step.artifact.ref if step.artifact else None,
        }
        | ({"estimate": estimates[step.stage]} if step.stage in estimates else {})
        for step in steps
    ]


def artifact_rows(contents: "Contents") -> list[dict[str, Any]]:
    """Every artifact with all its versions, newest first; then versions whose artifact is gone."""
    names: dict[str, list[str]] = {}
    for version in contents.versions:
        names.setdefault(version.key, []).append(version.ref)
    for key, tagged in contents.tags.items():
        names.setdefault(key, []).extend(tagged)
    rows = [
        _row(artifact, names.pop(artifact.key, [artifact.ref])) for artifact in contents.artifacts
    ]
    return rows + [{"refs": refs, "status": "gone", "key": key} for key, refs in names.items()]


def _row(artifact: "Artifact", refs: list[str]) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "refs": refs,
        "kind": manifest.kind,
        "status": manifest.status,
        "key": manifest.key,
        "digest": manifest.digest,
        "stage": manifest.stage,
        "size_bytes": total_size_bytes(artifact),
        "created_at": manifest.created_at,
        "gates_not_passed": [gate.id for gate in manifest.gates if gate.status != "pass"],
        "path": str(artifact.path),
    }


def total_size_bytes(artifact: "Artifact") -> int:
    """All files of an artifact but its manifest."""
    return sum(file.size_bytes for file in artifact.manifest.outputs)


def artifact_table(contents: "Contents") -> None:
    """Print the artifacts, newest first."""
    rows = artifact_rows(contents)
    with printing() as console:
        if not rows:
            console.print("The store is empty. Fill it with: luthier run CONFIG")
            return
        names = ("version", "status", "size", "made (UTC)", "key")
        table = columns(console, names, right=("size",))
        for row in rows:
            is_there = row["status"] != "gone"
            table.add_row(
                "\n".join(row["refs"]),
                styled(row["status"], row["status"]),
                spelling.size(row["size_bytes"]) if is_there else spelling.NOTHING,
                _time(row["created_at"]) if is_there else spelling.NOTHING,
                row["key"][:_LISTED_DIGITS],
            )
        console.print(table)


def _time(created_at: str) -> str:
    return created_at[:_SHOWN_TIME].replace("T", " ")


def show_artifact(artifact: "Artifact") -> None:
    """Print what an artifact is, holds, was made from, and what was measured."""
    manifest = artifact.manifest
    dataset, measured = _measured(artifact)
    with printing() as console:
        _show_identity(console, artifact)
        _show_inputs(console, manifest)
        _show_outputs(console, manifest)
        for title, values in {"config": manifest.config, **measured}.items():
            if values:
                heading(console, title)
                facts(console, spelling.flat(values).items())
        if dataset is not None:
            show_dataset(console, dataset)
        _show_gates(console, manifest)
        _show_times(console, manifest)
        _show_environment(console, manifest)


def _measured(artifact: "Artifact") -> "tuple[DatasetInfo | None, Mapping[str, Any]]":
    """A dataset's own account, which has all that its manifest has; else metrics and facts."""
    manifest = artifact.manifest
    if artifact.kind in DATASET_KINDS:
        try:
            return info_of(artifact), {}
        except DataError:
            pass  # made by an older version, which can still be looked at
    return None, {"metrics": manifest.metrics, "facts": manifest.facts}


def _show_identity(console: "Console", artifact: "Artifact") -> None:
    manifest = artifact.manifest
    facts(
        console,
        [
            ("version", manifest.ref),
            ("status", styled(manifest.status, manifest.status)),
            ("stage", f"{manifest.stage}, version {manifest.stage_version}"),
            ("key", manifest.key),
            ("digest", manifest.digest),
            ("seed", spelling.value(manifest.seed)),
            ("made", f"{_time(manifest.created_at)} UTC{_resumed(manifest.resumed)}"),
            ("path", str(artifact.path)),
        ],
    )


def _resumed(times: int) -> str:
    return f", resumed {times} time{'s' if times > 1 else ''}" if times else ""


def _show_inputs(console: "Console", manifest: "Manifest") -> None:
    if manifest.inputs:
        heading(console, "inputs")
        table = columns(console, ("slot", "version", "key"))
        for ref in manifest.inputs:
            table.add_row(ref.slot, ref.ref, ref.key[:SHOWN_DIGITS])
        indented(console, table)
    if manifest.external_files:
        heading(console, "files from outside the store")
        _show_files(console, manifest.external_files)


def _show_outputs(console: "Console", manifest: "Manifest") -> None:
    heading(console, "outputs")
    _show_files(console, manifest.outputs)


def _show_files(console: "Console", files: Sequence[Any]) -> None:
    table = columns(console, ("file", "size", "SHA-256"), right=("size",))
    for file in files:
        table.add_row(
            spelling.printable(file.path),
            spelling.size(file.size_bytes),
            file.sha256[:SHOWN_DIGITS],
        )
    indented(console, table)


def _show_gates(console: "Console", manifest: "Manifest") -> None:
    if not manifest.gates:
        return
    heading(console, "gates")
    table = columns(console, ("gate", "status", "measured", "wanted", "detail"))
    for gate in manifest.gates:
        table.add_row(
            gate.id,
            styled(spelling.status_word(gate.status), gate.status),
            spelling.value(gate.measured),
            f"{gate.comparison} {spelling.value(gate.threshold)}",
            spelling.printable(gate.detail),
        )
    indented(console, table)


def _show_times(console: "Console", manifest: "Manifest") -> None:
    if manifest.timings_seconds:
        heading(console, "times")
        times = manifest.timings_seconds.items()
        facts(console, [(part, spelling.duration(seconds)) for part, seconds in times])


def _show_environment(console: "Console", manifest: "Manifest") -> None:
    heading(console, "environment")
    facts(console, environment_facts(manifest))


def environment_facts(manifest: "Manifest") -> list[tuple[str, str]]:
    """The code and the machine: label and text."""
    environment = manifest.environment
    commit = environment.git_commit or "not in a repository"
    packages = (f"{name} {version}" for name, version in environment.packages.items())
    return [
        ("luthier", environment.luthier),
        ("git commit", f"{commit}{', with changes' if environment.git_dirty else ''}"),
        ("python", environment.python),
        ("packages", ", ".join(packages)),
        ("platform", environment.platform),
        ("CPU threads", str(environment.cpu_threads)),
        ("GPU", f"{environment.gpu}, CUDA {environment.cuda}" if environment.gpu else "none"),
    ]
