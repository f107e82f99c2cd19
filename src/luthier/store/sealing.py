"""From a workspace to a sealed artifact, so that a crash at any instant leaves one or the other.

Order: hash and fsync the outputs, take the version number, write the manifest, make files
read-only, delete the scratch folder, rename, fsync the parent. Once the manifest stands in the
workspace, everything it lists is on the disk: whoever opens the workspace next ends the seal.
"""

import math
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from luthier.store.artifact import SCRATCH_NAME
from luthier.store.checking import damages
from luthier.store.environment import collect_environment
from luthier.store.files import (
    entries_below,
    fsync_file,
    fsync_folder,
    make_read_only,
    remove_temporaries,
    sha256_files,
    write_atomically,
)
from luthier.store.keys import compute_key, identity_of, outputs_digest
from luthier.store.manifest import MANIFEST_NAME, Manifest, ManifestDraft, OutputFile

_RESUMED_NAME = "resumed"
_PICKLE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt"}
# Pickles of protocol 2 to 5, and the zip archives of torch.save. Looked for in .bin files only:
# a safetensors file begins with a length that can have the same bytes.
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


def open_workspace(partial: Path, sealed: Path) -> None:
    """Make the workspace, or go on with an earlier one; end a seal that was cut off.

    Afterwards either `sealed` or `partial` exists. The caller holds the lock of the key.
    """
    if sealed.exists():
        return
    if _seal_was_cut_off(partial):
        _finish(partial, sealed)
        return
    resuming = partial.exists()
    partial.mkdir(exist_ok=True)
    remove_temporaries(partial)
    (partial / MANIFEST_NAME).unlink(missing_ok=True)
    scratch = partial / SCRATCH_NAME
    scratch.mkdir(exist_ok=True)
    write_atomically(scratch / _RESUMED_NAME, str(_resumed(partial) + 1 if resuming else 0))


def seal_workspace(
    partial: Path, sealed: Path, draft: ManifestDraft, number: Callable[[], int]
) -> None:
    """Seal what a stage left in its workspace.

    Args:
        partial: the workspace.
        sealed: the folder it becomes.
        draft: what the run knows of it.
        number: takes the artifact's version; called when nothing but the disk can go wrong.

    Raises:
        AssertionError: the stage left something that cannot be sealed, or the draft is wrong.
        OSError: the disk refused; the workspace stays.
    """
    _demand(not sealed.exists(), f"{sealed} is already sealed; find() comes before run()")
    _demand(draft.key == compute_key(identity_of(draft)), "the key is not that of the draft")
    slots = [ref.slot for ref in draft.inputs]
    _demand(len(set(slots)) == len(slots), f"a slot is filled twice: {slots}")
    outputs = _seal_outputs(partial)
    manifest = _complete(draft, outputs, number(), _resumed(partial))
    write_atomically(partial / MANIFEST_NAME, manifest.render())
    _finish(partial, sealed)


def _seal_was_cut_off(partial: Path) -> bool:
    return (partial / MANIFEST_NAME).exists() and not damages(partial, ignored=[SCRATCH_NAME])


def _finish(partial: Path, sealed: Path) -> None:
    for path in entries_below(partial):
        if path.relative_to(partial).parts[0] != SCRATCH_NAME:
            make_read_only(path)
    if (partial / SCRATCH_NAME).exists():
        shutil.rmtree(partial / SCRATCH_NAME)
    partial.rename(sealed)
    fsync_folder(sealed)
    fsync_folder(sealed.parent)
    fsync_folder(sealed.parent.parent)


def _seal_outputs(partial: Path) -> list[OutputFile]:
    paths = []
    for path in entries_below(partial):
        relative = path.relative_to(partial)
        if relative.parts[0] != SCRATCH_NAME:
            _refuse_unfit(path, relative.as_posix())
            paths.append(path)
    _demand(bool(paths), f"{partial} has no outputs")
    for path in paths:
        fsync_file(path)
    for folder in sorted({parent for path in paths for parent in path.parents}):
        if folder.is_relative_to(partial):
            fsync_folder(folder)
    return [
        OutputFile(
            path=path.relative_to(partial).as_posix(),
            size_bytes=path.stat().st_size,
            sha256=digest,
        )
        for path, digest in zip(paths, sha256_files(paths), strict=True)
    ]


def _refuse_unfit(path: Path, name: str) -> None:
    _demand(path.is_file() and not path.is_symlink(), f"{name} is not a regular file")
    _demand(name != MANIFEST_NAME, f"{name} is the store's to write")
    pickled = path.suffix in _PICKLE_SUFFIXES or path.name == "training_args.bin"
    if path.suffix == ".bin":
        with path.open("rb") as stream:
            pickled = pickled or stream.read(4).startswith(_PICKLE_STARTS)
    _demand(not pickled, f"{name} is a pickle, and those can run code when they are read")


def _complete(
    draft: ManifestDraft, outputs: list[OutputFile], version: int, resumed: int
) -> Manifest:
    values = _without_nan(draft.model_dump())
    manifest = Manifest(
        **values,
        version=version,
        digest=outputs_digest(outputs),
        outputs=outputs,
        resumed=resumed,
        environment=collect_environment(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        status="failed" if any(gate.status == "fail" for gate in draft.gates) else "complete",
    )
    manifest = manifest.model_copy(update={"manifest_digest": manifest.own_digest()})
    text = manifest.render()
    read_back = Manifest.model_validate_json(text)
    _demand(read_back.render() == text, "metrics or facts hold something other than JSON")
    return manifest


def _without_nan(value: Any) -> Any:
    """JSON has no NaN or infinity; a failed artifact keeps them as the texts "nan" and "inf"."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _resumed(partial: Path) -> int:
    try:
        return int((partial / SCRATCH_NAME / _RESUMED_NAME).read_text())
    except (
        OSError,
        ValueError,
    ):  # the run was killed before it could count, or the stage cleared it
        return 0


def _demand(holds: bool, message: str) -> None:
    """Like `assert`, also under `python -O`: what fails is a bug of a stage, not of a user."""
    if not holds:
        raise AssertionError(message)
