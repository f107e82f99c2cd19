"""Sealed checkpoints: written beside, hashed, renamed; only one that verifies is resumed from.

transformers' Trainer writes checkpoints in place and takes the newest folder whatever it holds
(FAILURES F19). Here a crash at any instant leaves, of every step that was sealed and not yet
superseded, a whole folder: `sealed-<step>`, or `sealed-<step>-replaced` while a new one of the
same step takes its place. What is being deleted or copied has a name that begins with a dot.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel

from luthier.errors import StoreError
from luthier.store.checking import file_damages
from luthier.store.files import (
    entries_below,
    fsync_file,
    fsync_folder,
    sha256_file,
    write_atomically,
)
from luthier.store.keys import outputs_digest
from luthier.store.manifest import OutputFile

SEAL_NAME = "seal.json"
_REPLACED = "-replaced"
_SEALED = re.compile(rf"sealed-(\d+)({_REPLACED})?")
_DELETING = ".deleting-"
_COPYING = ".copying-"
# transformers 5.23 `Trainer._save`: a pickle of the arguments, which resuming never reads.
_LEFT_OUT = "training_args.bin"


class _Seal(BaseModel):
    """The files of a checkpoint, and a digest over their list."""

    files: list[OutputFile]
    digest: str


def seal_checkpoint(
    unsealed: Path, root: Path, step: int, keep: int, best_step: int | None = None
) -> Path:
    """Move a finished checkpoint to `root/sealed-<step>`, with hashes; drop what is superseded.

    Args:
        unsealed: the folder as the trainer wrote it, on the same file system as `root`.
        root: the folder of the sealed checkpoints; it need not exist.
        step: the optimizer step after which it was taken.
        keep: how many of the newest stay, this one included; at least 1.
        best_step: the step of the best checkpoint so far, which stays whatever its age.
    """
    assert keep >= 1, "the checkpoint just made stays"
    root.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    write_seal(unsealed)
    sealed = _folder(root, step)
    if sealed.exists():
        replaced = sealed.with_name(sealed.name + _REPLACED)
        _delete(replaced)
        sealed.rename(replaced)
    unsealed.rename(sealed)
    fsync_folder(root)
    for old in list(_superseded(root, step, keep, best_step)):
        _delete(old)
    return sealed


def newest_intact(
    root: Path,
    say: Callable[[str], None],
    best_step: Callable[[Path], int | None] = lambda _: None,
) -> Path | None:
    """The newest checkpoint below `root` that is byte for byte as sealed; None without one.

    Args:
        root: the folder of the sealed checkpoints.
        say: gets a line for every newer one that is damaged: which file, and what is taken
            instead.
        best_step: of a checkpoint, the step whose weights training from there may come back to.
            Where they are damaged, training goes back to before them and makes them again.
    """
    damaged: list[str] = []
    taken = None
    for folder in _sealed(root):
        damage = checkpoint_damage(folder)
        best = best_step(folder) if damage is None else None
        if best is not None and best != checkpoint_step(folder):
            damage = _damage_of_best(checkpoint_folder(root, best), is_superseded=bool(damaged))
        if damage is None:
            taken = folder
            break
        damaged.append(f"The checkpoint of step {checkpoint_step(folder)} is damaged: {damage}")
    if taken is None:
        instead = "There is no other, so training begins anew."
    else:
        instead = f"That of step {checkpoint_step(taken)} is taken instead."
    for line in damaged:
        say(f"{line} ({root}). {instead}")
    return taken


def _damage_of_best(best: Path, *, is_superseded: bool) -> str | None:
    """What is wrong with the best weights of a checkpoint. When a newer checkpoint has better ones
    (`is_superseded`), they may be gone: training from there finds the better ones again."""
    if is_superseded and not best.exists():
        return None
    damage = checkpoint_damage(best)
    return None if damage is None else f"the best weights up to it ({best.name}): {damage}"


def sealed_steps(root: Path) -> list[int]:
    """The steps that have a checkpoint below `root`, newest first; damage is not looked for."""
    return sorted({checkpoint_step(folder) for folder in _sealed(root)}, reverse=True)


def checkpoint_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies, whether it is there or not."""
    sealed = _folder(root, step)
    there = [folder for folder in _sealed(root) if checkpoint_step(folder) == step]
    return there[0] if there else sealed


def checkpoint_step(folder: Path) -> int:
    """The optimizer step after which a sealed checkpoint was taken."""
    match = _SEALED.fullmatch(folder.name)
    assert match is not None, f"{folder} is not a sealed checkpoint"
    return int(match[1])


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 over the path, size and SHA-256 of every file of a sealed checkpoint, by its seal.

    Raises:
        StoreError: the seal is damaged; the files themselves are not read.
    """
    seal = _read_seal(folder)
    if isinstance(seal, str):
        raise StoreError(f"{folder} is damaged: {seal}. Take another checkpoint.")
    return seal.digest


def checkpoint_damage(folder: Path) -> str | None:
    """What in a sealed checkpoint differs from its seal, in words; None when it is whole."""
    seal = _read_seal(folder)
    if isinstance(seal, str):
        return seal
    listed = {SEAL_NAME, *(file.path for file in seal.files)}
    found = [path.relative_to(folder).as_posix() for path in entries_below(folder)]
    extra = [f"{name}: is extra" for name in found if name not in listed]
    return "; ".join([*file_damages(folder, seal.files), *extra]) or None


def seed_checkpoint(checkpoint: Path, root: Path) -> Path:
    """Copy a sealed checkpoint of another run to `root`, whole or not at all; the copy's folder.

    Raises:
        StoreError: the original is gone, or it, and so its copy, is not what its seal says.
    """
    if not checkpoint.is_dir():
        raise StoreError(f"{checkpoint} is no longer there. Take another checkpoint.")
    root.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    sealed = _folder(root, checkpoint_step(checkpoint))
    copy = root / f"{_COPYING}{sealed.name}"
    shutil.copytree(checkpoint, copy)
    damage = checkpoint_damage(copy)
    if damage is not None:
        raise StoreError(f"{checkpoint} is damaged: {damage}. Take another checkpoint.")
    _fsync_below(copy)
    _delete(sealed)  # an earlier copy that was damaged
    copy.rename(sealed)
    fsync_folder(root)
    return sealed


def write_seal(folder: Path) -> None:
    """Write the hashes of a folder's files into it, for `checkpoint_damage`; all is on the disk
    when this returns."""
    (folder / _LEFT_OUT).unlink(missing_ok=True)
    (folder / SEAL_NAME).unlink(missing_ok=True)
    _fsync_below(folder)
    files = [
        OutputFile(
            path=path.relative_to(folder).as_posix(),
            size_bytes=path.stat().st_size,
            sha256=sha256_file(path),
        )
        for path in entries_below(folder)
    ]
    seal = _Seal(files=files, digest=outputs_digest(files))
    write_atomically(folder / SEAL_NAME, seal.model_dump_json(indent=1))


def _read_seal(folder: Path) -> _Seal | str:
    """The seal, or what is wrong with it."""
    try:
        text = (folder / SEAL_NAME).read_bytes()
        seal = _Seal.model_validate_json(text)
    except FileNotFoundError:
        return f"{SEAL_NAME}: is missing"
    except OSError as error:
        return f"{SEAL_NAME}: cannot be read: {error.strerror}"
    except ValueError:  # not UTF-8, not JSON, or not a seal
        return f"{SEAL_NAME}: its content changed"
    whole = seal.model_dump_json(indent=1).encode() == text
    if not whole or seal.digest != outputs_digest(seal.files):
        return f"{SEAL_NAME}: its content changed"
    return seal


def _superseded(root: Path, step: int, keep: int, best_step: int | None) -> Iterator[Path]:
    """What goes once `step` is sealed. Later steps go too: the run came here again from an
    earlier checkpoint because those were damaged, and counted they would push out good ones."""
    earlier = [sealed for sealed in sealed_steps(root) if sealed <= step]
    kept = {*earlier[:keep], best_step}
    for folder in _sealed(root):
        own = checkpoint_step(folder)
        if own not in kept or (folder != _folder(root, own) and _folder(root, own).exists()):
            yield folder


def _sealed(root: Path) -> list[Path]:
    """Newest first; of the same step, what replaced another before what was replaced."""
    if not root.exists():
        return []
    found = [path for path in root.iterdir() if _SEALED.fullmatch(path.name)]
    return sorted(found, key=lambda path: (-checkpoint_step(path), path.name))


def _folder(root: Path, step: int) -> Path:
    return root / f"sealed-{step:08d}"


def _delete(folder: Path) -> None:
    """Delete a folder, if it is there, that is never seen half deleted under its own name."""
    if folder.exists():
        leaving = folder.with_name(_DELETING + folder.name)
        folder.rename(leaving)
        shutil.rmtree(leaving)


def _remove_leftovers(root: Path) -> None:
    """Delete what a killed process was deleting or copying."""
    for path in list(root.iterdir()):
        if path.name.startswith((_DELETING, _COPYING)):
            shutil.rmtree(path)


def _fsync_below(folder: Path) -> None:
    paths = entries_below(folder)
    for path in paths:
        fsync_file(path)
    inside = {parent for path in paths for parent in path.parents if parent != folder}
    for parent in sorted(parent for parent in inside if parent.is_relative_to(folder)):
        fsync_folder(parent)
    fsync_folder(folder)
