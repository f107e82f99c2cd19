"""Tags: a name such as `production` for one version, moved on purpose, with its history.

`refs/<name>/<kind>/tags/<tag>.jsonl` has a line for each setting of the tag; the last one holds.
"""

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from luthier.errors import StoreError
from luthier.store.files import write_atomically
from luthier.store.refs import REFS_FOLDER

TAG_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,30}")
_TAGS_FOLDER = "tags"
TAGGED_PATTERN = re.compile(
    r"(?P<name>[^/@\s]+)/(?P<kind>[a-z]+)@(?!latest$|v\d+$)(?P<tag>[a-z][a-z0-9-]*)"
)
_RESERVED = re.compile(r"latest|v[0-9]+")


@dataclass(frozen=True)
class Tagged:
    """One setting of a tag: what it was set to, when (ISO 8601, UTC), and why."""

    ref: str
    key: str
    at: str
    why: str

    @classmethod
    def now(cls, ref: str, key: str, why: str) -> "Tagged":
        """A setting of this moment."""
        return cls(ref, key, datetime.now(UTC).isoformat(timespec="seconds"), why)


def read_tag(root: Path, name: str, kind: str, tag: str) -> list[Tagged]:
    """Every setting of a tag, the first one first; empty where it was never set.

    Raises:
        StoreError: the file is damaged.
    """
    path = _path(root, name, kind, tag)
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Tagged(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(
            f"{path} does not hold a tag ({error}). Delete it, and tag again."
        ) from error


def set_tag(root: Path, name: str, kind: str, tag: str, setting: Tagged) -> None:
    """Let a tag name this version from now on.

    Raises:
        StoreError: the tag cannot be one.
        OSError: the store cannot be written.
    """
    if not TAG_PATTERN.fullmatch(tag) or _RESERVED.fullmatch(tag):
        raise StoreError(
            f"{tag!r} cannot be a tag. Use a word of small letters, digits and '-', such as "
            "production, and not latest or v1."
        )
    path = _path(root, name, kind, tag)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        settings = [*read_tag(root, name, kind, tag), setting]
        write_atomically(path, "".join(f"{json.dumps(asdict(one))}\n" for one in settings))


def tags_of(root: Path, name: str, kind: str) -> dict[str, list[Tagged]]:
    """The history of every tag of a name's versions."""
    folder = root / REFS_FOLDER / name / kind / _TAGS_FOLDER
    return {
        path.stem: read_tag(root, name, kind, path.stem) for path in sorted(folder.glob("*.jsonl"))
    }


def _path(root: Path, name: str, kind: str, tag: str) -> Path:
    return root / REFS_FOLDER / name / kind / _TAGS_FOLDER / f"{tag}.jsonl"


def current_tags(root: Path) -> dict[str, list[str]]:
    """What every tag of the store names now: `name/kind@tag` by key."""
    found: dict[str, list[str]] = {}
    for path in sorted((root / REFS_FOLDER).glob(f"*/*/{_TAGS_FOLDER}/*.jsonl")):
        kind = path.parent.parent
        history = read_tag(root, kind.parent.name, kind.name, path.stem)
        if history:
            ref = f"{kind.parent.name}/{kind.name}@{path.stem}"
            found.setdefault(history[-1].key, []).append(ref)
    return found
