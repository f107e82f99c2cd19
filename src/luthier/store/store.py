"""The artifact store: find, make, seal, verify and name artifacts.

Layout below the root: `<stage>/<key16>/` sealed, `<stage>/<key16>.partial/` being made,
`<stage>/<key16>.lock` and `.owner` who makes it, `refs/<name>/<kind>/v<N>` versions, `.shared/`
what stages keep for other runs, sealed by themselves.
`<key16>` are the first 16 hex digits of the key.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.errors import StoreError
from luthier.interrupts import StopFlag
from luthier.progress import Reporter
from luthier.store.artifact import SCRATCH_NAME, Artifact, Workspace
from luthier.store.checking import damages, load, spell_damage
from luthier.store.history import Lineage, differences, trace
from luthier.store.keys import Identity
from luthier.store.locking import locked
from luthier.store.manifest import ManifestDraft
from luthier.store.problems import storage_errors
from luthier.store.refs import REFS_FOLDER, Version, assign_version, read_versions
from luthier.store.resolving import Contents, resolve_text
from luthier.store.sealing import open_workspace, seal_workspace
from luthier.store.tags import TAGGED_PATTERN, Tagged, current_tags, read_tag, set_tag, tags_of
from luthier.store.unfinished import Unfinished, discard_unfinished, read_unfinished
from luthier.watching import UNWATCHED, Watch

STORE_VARIABLE = "LUTHIER_STORE"
DEFAULT_ROOT = Path("artifacts")
_PARTIAL_SUFFIX = ".partial"
_LOCK_SUFFIX = ".lock"


class Store:
    """A folder of artifacts. Only the store writes there, and only through a workspace."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def default(cls) -> "Store":
        """`$LUTHIER_STORE`, or `artifacts/` in the current directory."""
        return cls(Path(os.environ.get(STORE_VARIABLE) or DEFAULT_ROOT))

    def find(self, key: str) -> Artifact | None:
        """The sealed artifact of a key, complete or failed, after a quick look at its files.

        Raises:
            StoreError: it is there and damaged.
        """
        for stage in self._stages():
            folder = self._sealed(stage, key)
            if not folder.exists():
                continue
            artifact = load(folder)
            if artifact.key != key:
                raise StoreError(
                    f"{folder} says that its key is {artifact.key}, not {key}. "
                    "Delete the folder and run its stage again."
                )
            return artifact
        return None

    def verify(self, artifact: Artifact) -> None:
        """Read every byte.

        Raises:
            StoreError: names every damaged, missing or extra file, and an edited manifest.
        """
        problems = damages(artifact.path)
        if problems:
            raise StoreError(spell_damage(artifact.path, problems))

    def verified(self, text: str | None = None) -> list[Artifact]:
        """Read every byte of the artifact that a user means, or of all; gives what was read.

        Raises:
            StoreError: names all that is wrong anywhere.
        """
        contents = self.contents() if text is None else Contents([self.resolve(text)], [], [])
        problems = list(contents.problems)
        for artifact in contents.artifacts:
            try:
                self.verify(artifact)
            except StoreError as error:
                problems.append(str(error))
        if problems:
            raise StoreError("\n".join(problems))
        return contents.artifacts

    def has_workspace(self, stage: str, key: str) -> bool:
        """Whether an interrupted run, or one that goes on now, left work for this key."""
        return self._partial(stage, key).is_dir()

    def scratch(self, stage: str, key: str) -> Path:
        """Where an unfinished run of this key, or its first 16 digits, keeps its checkpoints."""
        return self._partial(stage, key) / SCRATCH_NAME

    def unfinished(self) -> list[Unfinished]:
        """The workspaces of all stages that say what they are for, by stage and key."""
        found = (
            read_unfinished(partial, partial.with_suffix(_LOCK_SUFFIX))
            for stage in self._stages()
            for partial in sorted((self.root / stage).glob(f"*{_PARTIAL_SUFFIX}"))
        )
        return [workspace for workspace in found if workspace is not None]

    def discard(self, stage: str, key: str) -> bool:
        """Delete what an unfinished run of this key left; False while a process works there.

        Raises:
            StoreError: the disk refused.
        """
        partial = self._partial(stage, key)
        with storage_errors(self.root):
            return discard_unfinished(partial, partial.with_suffix(_LOCK_SUFFIX))

    @contextmanager
    def workspace(
        self, stage: str, key: str, reporter: Reporter, stop: StopFlag, watch: Watch = UNWATCHED
    ) -> Iterator[Workspace]:
        """Hold the key's lock and its workspace, new or left by an interrupted run.

        Look with `find` again inside the block: another run may have sealed the artifact while
        this one waited, or a seal that was cut off was ended; then there is no folder to work in.

        Raises:
            StoreError: the disk refused, here or inside the block; what is done stays.
            InterruptedRunError: a stop was requested while another run had the lock.
        """
        sealed, partial = self._sealed(stage, key), self._partial(stage, key)
        with storage_errors(self.root):
            sealed.parent.mkdir(parents=True, exist_ok=True)
            with locked(sealed.with_suffix(_LOCK_SUFFIX), reporter, stop):
                open_workspace(partial, sealed)
                yield Workspace(path=partial, reporter=reporter, stop=stop, watch=watch)

    def seal(self, workspace: Workspace, draft: ManifestDraft) -> Artifact:
        """Turn the workspace into an artifact and give it its version.

        Raises:
            StoreError: the disk refused; the workspace stays.
            AssertionError: a pickle, a link, nothing at all, or a draft that is not of this key.
        """
        partial = self._partial(draft.stage, draft.key)
        assert workspace.path == partial, f"{workspace.path} is not the workspace of this draft"
        sealed = self._sealed(draft.stage, draft.key)
        with storage_errors(self.root):
            seal_workspace(
                partial,
                sealed,
                draft,
                lambda: assign_version(self.root, draft.name, draft.kind, draft.key),
            )
        return load(sealed)

    def name(self, artifact: Artifact, name: str) -> str:
        """Make sure that `name` has a version which is this artifact; returns `name/kind@vN`.

        Call it when a run reuses what another made: both names then refer to one artifact.
        """
        with storage_errors(self.root):
            number = assign_version(self.root, name, artifact.kind, artifact.key)
        return f"{name}/{artifact.kind}@v{number}"

    def contents(self) -> Contents:
        """Everything, with what is damaged or foreign reported instead of raised."""
        artifacts: list[Artifact] = []
        versions, problems = read_versions(self.root)
        for stage in self._stages():
            for folder in sorted((self.root / stage).iterdir()):
                if not folder.is_dir() or folder.suffix == _PARTIAL_SUFFIX:
                    continue
                try:
                    artifact = load(folder)
                except StoreError as error:
                    problems.append(str(error))
                    continue
                if folder != self._sealed(artifact.manifest.stage, artifact.key):
                    problems.append(f"{folder} is not in the place of its key. Delete it.")
                    continue
                artifacts.append(artifact)
        newest_first = sorted(artifacts, key=_age, reverse=True)
        return Contents(newest_first, versions, problems, current_tags(self.root))

    def artifacts(self) -> list[Artifact]:
        """Every artifact that is in order, newest first."""
        return self.contents().artifacts

    def versions(self) -> list[Version]:
        """Every version of every name, sorted; its artifact can be missing."""
        return read_versions(self.root)[0]

    def resolve(self, text: str) -> Artifact:
        """The artifact that a user means.

        Args:
            text: `name/kind@vN`, `name/kind@latest` or `name/kind` (the newest version),
                `name/kind@production` or another tag, the first six or more hex digits of a key,
                or the path of an artifact's folder.

        Raises:
            StoreError: nothing is called so (with what comes near and what there is), or several.
        """
        match = TAGGED_PATTERN.fullmatch(text)
        if match is not None:
            found = self.tagged(match["name"], match["kind"], match["tag"])
            if found is not None:
                return found
        return resolve_text(text, self.find, self.contents)

    def tag(self, text: str, tag: str, why: str) -> Tagged:
        """Let a tag name the version that a user means, from now on; keeps what it named before.

        Raises:
            StoreError: nothing is called so, or the tag cannot be one.
        """
        artifact = self.resolve(text)
        name = text.partition("/")[0] if "/" in text and "@" in text else artifact.manifest.name
        setting = Tagged.now(self.name(artifact, name), artifact.key, why)
        with storage_errors(self.root):
            set_tag(self.root, name, artifact.kind, tag, setting)
        return setting

    def tagged(self, name: str, kind: str, tag: str) -> Artifact | None:
        """What a tag names; None where it was never set.

        Raises:
            StoreError: what it names is no longer there, or is damaged.
        """
        history = read_tag(self.root, name, kind, tag)
        if not history:
            return None
        found = self.find(history[-1].key)
        if found is None:
            raise StoreError(
                f"{name}/{kind}@{tag} is {history[-1].ref}, which is no longer in the store. Make "
                f"it again with its config, or tag another version: luthier tag REF {tag}"
            )
        return found

    def tags(self, name: str, kind: str) -> dict[str, list[Tagged]]:
        """Every tag of a name's versions, with all that it was set to, the newest last."""
        return tags_of(self.root, name, kind)

    def lineage(self, artifact: Artifact) -> Lineage:
        """What it was made from, down to what has no inputs; missing artifacts are marked."""
        return trace(artifact, self.find)

    def nearest(self, identity: Identity) -> tuple[Artifact, list[str]] | None:
        """The artifact of the same stage whose ingredients differ least, and the differences.

        None when the stage has made nothing yet. Of several equally near, the newest.
        """
        near: tuple[Artifact, list[str]] | None = None
        for artifact in self.artifacts():
            if artifact.manifest.stage != identity.stage:
                continue
            changes = differences(artifact.manifest, identity, self.find)
            if near is None or len(changes) < len(near[1]):
                near = artifact, changes
        return near

    def _stages(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(
            folder.name
            for folder in self.root.iterdir()
            if folder.is_dir() and folder.name != REFS_FOLDER and not folder.name.startswith(".")
        )

    def _sealed(self, stage: str, key: str) -> Path:
        return self.root / stage / key[:16]

    def _partial(self, stage: str, key: str) -> Path:
        return self._sealed(stage, key).with_suffix(_PARTIAL_SUFFIX)


def _age(artifact: Artifact) -> tuple[str, float]:
    return artifact.manifest.created_at, artifact.path.stat().st_mtime
