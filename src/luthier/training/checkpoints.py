"""Sealed checkpoints: written beside, hashed, renamed; only one that verifies is resumed from.

transformers' Trainer writes checkpoints in place and takes the newest folder whatever it holds.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from luthier.store.files import fsync_file, fsync_folder, sha256_file, write_atomically

SEAL_NAME = "seal.json"
_SEALED = re.compile(r"sealed-(\d+)")


def seal_checkpoint(unsealed: Path, root: Path, step: int, keep: int) -> Path:
    """Move a finished checkpoint to `root/sealed-<step>`, with hashes; drop all but `keep`."""
    files = sorted(path for path in unsealed.rglob("*") if path.is_file())
    for path in files:
        fsync_file(path)
    hashes = {path.relative_to(unsealed).as_posix(): sha256_file(path) for path in files}
    write_atomically(unsealed / SEAL_NAME, json.dumps(hashes, indent=1))
    sealed = root / f"sealed-{step:08d}"
    if sealed.exists():
        shutil.rmtree(sealed)
    unsealed.rename(sealed)
    fsync_folder(root)
    for old in _sealed(root)[keep:]:
        shutil.rmtree(old)
    return sealed


def newest_intact(root: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint below `root` that is byte for byte as sealed; None without one."""
    for folder in _sealed(root):
        damage = _damage(folder)
        if damage is None:
            return folder
        say(f"{folder}: {damage}; trying the checkpoint before it.")
    return None


def checkpoint_step(folder: Path) -> int:
    """The optimizer step after which a sealed checkpoint was taken."""
    match = _SEALED.fullmatch(folder.name)
    assert match is not None
    return int(match.group(1))


def _sealed(root: Path) -> list[Path]:
    if not root.exists():
        return []
    found = [path for path in root.iterdir() if _SEALED.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step, reverse=True)


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None when it is whole."""
    try:
        hashes = json.loads((folder / SEAL_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"its seal cannot be read ({error})"
    for name, digest in hashes.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if sha256_file(path) != digest:
            return f"{name} is damaged"
    return None
