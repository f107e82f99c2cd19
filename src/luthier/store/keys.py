"""What an artifact is made from, and the key that stands for it: same key, same result."""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from luthier.errors import DataError
from luthier.store.canonical import sha256_json
from luthier.store.files import sha256_files
from luthier.store.manifest import ExternalFile, ManifestDraft, OutputFile, Recipe

MEASURED_FOLDER = "measured"


@dataclass(frozen=True)
class Identity:
    """The ingredients of a key.

    `fields` are the section's fields that change the result (JSON values with text keys),
    `inputs` the digests of the input artifacts by slot, `files` what is read from outside the
    store, `seed` None for a stage that uses none, `packages` versions by distribution.
    """

    stage: str
    stage_version: int
    fields: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: Sequence[ExternalFile]
    seed: int | None
    packages: Mapping[str, str]


def compute_key(identity: Identity) -> str:
    """SHA-256 over the ingredients, 64 hex digits.

    Of external files the content counts, in the order given, and not the path: a data set that
    was moved is the same data set.

    Raises:
        ValueError: a field is NaN or infinite, which a section must not let through.
    """
    return sha256_json(
        {
            "stage": identity.stage,
            "stage_version": identity.stage_version,
            "fields": dict(identity.fields),
            "inputs": dict(identity.inputs),
            "files": [file.sha256 for file in identity.files],
            "seed": identity.seed,
            "packages": dict(identity.packages),
        }
    )


def identity_of(draft: ManifestDraft | Recipe) -> Identity:
    """The ingredients as a manifest, its draft or a workspace keeps them."""
    return Identity(
        stage=draft.stage,
        stage_version=draft.stage_version,
        fields=draft.key_fields,
        inputs={ref.slot: ref.digest for ref in draft.inputs},
        files=draft.external_files,
        seed=draft.seed,
        packages=draft.key_packages,
    )


def outputs_digest(outputs: Iterable[OutputFile]) -> str:
    """SHA-256 over (path, size, SHA-256) of every file, sorted by path.

    What lies below `MEASURED_FOLDER` is sealed like the rest and left out here: rates and memory
    differ between runs that make the same, and what follows from the result must not.
    """
    return sha256_json(
        sorted(
            [file.path, file.size_bytes, file.sha256]
            for file in outputs
            if PurePosixPath(file.path).parts[0] != MEASURED_FOLDER
        )
    )


def hash_files(paths: Iterable[Path]) -> list[ExternalFile]:
    """Hash what a section reads from outside the store, in the order given.

    A folder stands for all files below it, sorted; names that begin with a dot are passed over
    (caches, version control). Paths are kept as they were written: relative ones stay relative.

    Raises:
        DataError: a file is missing or cannot be read, or a folder has no files.
    """
    files = [file for path in paths for file in _expand(path)]
    try:
        digests = sha256_files(files)
        sizes = [file.stat().st_size for file in files]
    except OSError as error:
        raise DataError(
            f"{error.filename}: {error.strerror}. Make it a file that this account can read."
        ) from error
    return [
        ExternalFile(path=file.as_posix(), size_bytes=size, sha256=digest)
        for file, size, digest in zip(files, sizes, digests, strict=True)
    ]


def _expand(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        problem = "is not a regular file" if path.exists() else "does not exist"
        raise DataError(f"{path} {problem}.{_did_you_mean(path)} Correct the path in the config.")
    files: list[Path] = []
    for parent, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent) / name for name in names if not name.startswith(".")]
    if not files:
        raise DataError(f"{path} is a folder without files. Put the files there.")
    return sorted(files, key=lambda file: file.relative_to(path).parts)


def _did_you_mean(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" Its folder {folder} does not exist either."
    close = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1)
    return f" Did you mean {folder / close[0]}?" if close else ""
