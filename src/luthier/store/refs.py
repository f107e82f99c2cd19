"""Versions: `refs/<name>/<kind>/v<N>`, each a small file that holds the key of an artifact."""

import re
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from luthier.errors import StoreError
from luthier.store.files import fsync_folder, remove_temporaries, write_atomically

REFS_FOLDER = "refs"
KEY_PATTERN = re.compile(r"[0-9a-f]{64}")
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NUMBER_PATTERN = re.compile(r"v([1-9][0-9]*)")


@dataclass(frozen=True)
class Version:
    """One version of a name. The key's artifact can be missing: removed, or never finished."""

    name: str
    kind: str
    number: int
    key: str

    @property
    def ref(self) -> str:
        """`name/kind@vN`."""
        return f"{self.name}/{self.kind}@v{self.number}"


def read_versions(root: Path) -> tuple[list[Version], list[str]]:
    """All versions in the store, sorted by name, kind and number, and what could not be read."""
    versions: list[Version] = []
    problems: list[str] = []
    for path in (root / REFS_FOLDER).glob("*/*/v*"):
        number, key = _number(path), _read_key(path)
        if number is None or key is None:
            problems.append(f"{path} does not hold an artifact's key. Delete it.")
            continue
        versions.append(Version(path.parent.parent.name, path.parent.name, number, key))
    return sorted(versions, key=lambda v: (v.name, v.kind, v.number)), sorted(problems)


def assign_version(root: Path, name: str, kind: str, key: str) -> int:
    """The version of `name/kind` that holds this key; the next free number when none does.

    Raises:
        StoreError: the name cannot be a folder's name.
        OSError: the store cannot be written.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise StoreError(f"{name!r} cannot name a run. Use letters, digits, '.', '_' and '-'.")
    folder = root / REFS_FOLDER / name / kind
    number = _held_version(folder, key)
    if number is not None:
        return number
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        remove_temporaries(folder)
        number = _held_version(folder, key)
        if number is None:
            number = 1 + max((_number(path) or 0 for path in folder.iterdir()), default=0)
            write_atomically(folder / f"v{number}", f"{key}\n")
            for made in (folder.parent, folder.parent.parent, root):
                fsync_folder(made)
    return number


def _held_version(folder: Path, key: str) -> int | None:
    numbers = (_number(path) for path in folder.glob("v*") if _read_key(path) == key)
    return min((number for number in numbers if number is not None), default=None)


def _number(path: Path) -> int | None:
    match = _NUMBER_PATTERN.fullmatch(path.name)
    return int(match[1]) if match else None


def _read_key(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return text if KEY_PATTERN.fullmatch(text) else None
