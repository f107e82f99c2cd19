"""A sealed artifact, and the workspace in which one is being made."""

from dataclasses import dataclass, field
from pathlib import Path

from luthier.interrupts import StopFlag
from luthier.progress import Reporter
from luthier.store.manifest import ArtifactKind, Manifest
from luthier.watching import Watch

SCRATCH_NAME = "_scratch"
SHARED_NAME = ".shared"  # stages' names do not begin with a dot


@dataclass(frozen=True)
class Artifact:
    """A sealed folder. Read it, never write it."""

    path: Path
    manifest: Manifest

    @property
    def kind(self) -> ArtifactKind:
        """What sort of thing this is."""
        return self.manifest.kind

    @property
    def key(self) -> str:
        """What it was made from."""
        return self.manifest.key

    @property
    def digest(self) -> str:
        """What it holds."""
        return self.manifest.digest

    @property
    def ref(self) -> str:
        """`name/kind@vN`."""
        return self.manifest.ref


@dataclass
class Workspace:
    """Where a stage works. All it leaves in `path`, apart from `scratch`, is sealed."""

    path: Path
    reporter: Reporter = field(default_factory=Reporter)
    stop: StopFlag = field(default_factory=StopFlag)
    watch: Watch = field(default_factory=Watch)

    @property
    def scratch(self) -> Path:
        """Checkpoints and partial answers: kept while the stage is unfinished, never sealed."""
        folder = self.path / SCRATCH_NAME
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def shared(self) -> Path:
        """What runs of other keys can use too; outlives this workspace, and is in no artifact."""
        return self.path.parent.parent / SHARED_NAME

    def raise_if_stopped(self) -> None:
        """Call between steps of long work.

        Raises:
            InterruptedRunError: a stop was requested.
        """
        self.stop.raise_if_requested()
