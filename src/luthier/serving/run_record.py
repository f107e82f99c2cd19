"""How a model came to be on its machine: what differs from run to run and is in no key."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from luthier.serving import markdown

if TYPE_CHECKING:
    from luthier.store.artifact import Artifact
    from luthier.store.manifest import Environment, Manifest

_COMMIT_DIGITS = 12


def run_record(artifacts: Mapping[str, "Artifact"]) -> str:
    """A section for the end of the card: versions, hardware, durations, code, by artifact.

    The times are those of the stages when they were made; one that was reused took none.
    """
    made = sorted(artifacts.values(), key=lambda one: (one.manifest.created_at, one.key))
    rows = [
        (
            one.manifest.stage,
            markdown.code(one.ref),
            one.manifest.created_at,
            _duration(one.manifest),
            markdown.plain(_hardware(one.manifest.environment)),
            _code(one.manifest.environment),
        )
        for one in made
    ]
    header = ("stage", "made", "when", "took", "on", "Luthier")
    return f"## This run\n\n{markdown.table(header, rows, 'lllr')}"


def _duration(manifest: "Manifest") -> str:
    times = manifest.timings_seconds
    if not times:
        return ""
    seconds = times.get("stage", sum(times.values()))
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"


def _hardware(environment: "Environment") -> str:
    """No host name: the manifest has none."""
    if environment.gpu:
        return f"{environment.gpu}, CUDA {environment.cuda}"
    threads = environment.cpu_threads
    return f"processor, {threads} thread{'' if threads == 1 else 's'}"


def _code(environment: "Environment") -> str:
    """The version, and the commit of the project's folder as it was run."""
    commit = environment.git_commit
    if commit is None:
        return environment.luthier
    changed = ", with changes" if environment.git_dirty else ""
    return f"{environment.luthier}, commit {commit[:_COMMIT_DIGITS]}{changed}"
