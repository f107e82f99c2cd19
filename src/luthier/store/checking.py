"""Whether a sealed folder is what its manifest says."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path

from pydantic import ValidationError

from luthier.errors import StoreError
from luthier.store.artifact import Artifact
from luthier.store.files import entries_below, sha256_files
from luthier.store.keys import compute_key, identity_of, outputs_digest
from luthier.store.manifest import MANIFEST_NAME, SCHEMA_VERSION, Manifest, OutputFile


def load(folder: Path) -> Artifact:
    """Read an artifact after a quick look: the manifest parses, every file is there in its size.

    Raises:
        StoreError: it is not an artifact, or it is damaged.
    """
    manifest = _read_manifest(folder)
    problems = [text for file in manifest.outputs if (text := _misshapen(folder, file))]
    if problems:
        raise StoreError(spell_damage(folder, problems))
    return Artifact(path=folder, manifest=manifest)


def damages(folder: Path, ignored: Collection[str] = ()) -> list[str]:
    """Every difference between a folder and its manifest, one a line; every byte is read.

    Args:
        folder: a sealed artifact.
        ignored: names directly below the folder that are not looked at.
    """
    try:
        manifest = _read_manifest(folder)
    except StoreError as error:
        return [str(error)]
    listed = {file.path for file in manifest.outputs}
    found = [path.relative_to(folder) for path in entries_below(folder)]
    extra = [
        f"{path.as_posix()}: is extra"
        for path in found
        if path.as_posix() not in {*listed, MANIFEST_NAME} and path.parts[0] not in ignored
    ]
    return [*_manifest_damages(folder, manifest), *file_damages(folder, manifest.outputs), *extra]


def file_damages(folder: Path, files: Iterable[OutputFile]) -> list[str]:
    """Every listed file that is missing, has another size or another content; bytes are read."""
    problems = []
    whole = []
    for file in files:
        text = _misshapen(folder, file)
        if text is None:
            whole.append(file)
        else:
            problems.append(text)
    try:
        digests = sha256_files([folder / file.path for file in whole])
    except OSError as error:
        return [*problems, f"{error.filename}: cannot be read: {error.strerror}"]
    for file, digest in zip(whole, digests, strict=True):
        if digest != file.sha256:
            problems.append(f"{file.path}: its content changed")
    return problems


def spell_damage(folder: Path, problems: list[str]) -> str:
    """The message for a folder that differs from its manifest."""
    lines = "".join(f"\n  {problem}" for problem in problems)
    return (
        f"{folder} is damaged:{lines}\n"
        "Restore it from a copy, or delete the folder and run its stage again."
    )


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    try:
        values = json.loads(path.read_bytes())
        schema_version = values.get("schema_version") if isinstance(values, dict) else None
        if isinstance(schema_version, int) and schema_version > SCHEMA_VERSION:
            raise StoreError(
                f"{path} has schema version {schema_version}, and this Luthier reads "
                f"{SCHEMA_VERSION}. Update Luthier."
            )
        return Manifest.model_validate(values)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{folder} is not an artifact: it has no {MANIFEST_NAME}.") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{path} is damaged: {place}: {first['msg']}.") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise StoreError(f"{path} is damaged: {error}.") from error


def _manifest_damages(folder: Path, manifest: Manifest) -> list[str]:
    problems = []
    try:
        whole = manifest.manifest_digest == manifest.own_digest()
        whole = whole and manifest.render().encode() == (folder / MANIFEST_NAME).read_bytes()
        key = compute_key(identity_of(manifest))
    except ValueError:  # NaN, infinity or half a character, which no sealed manifest holds
        return [f"{MANIFEST_NAME}: was edited after the seal"]
    if manifest.digest != outputs_digest(manifest.outputs):
        problems.append(f"{MANIFEST_NAME}: the digest does not follow from the list of outputs")
    if manifest.key != key:
        problems.append(f"{MANIFEST_NAME}: the key does not follow from config, inputs and files")
    if not whole:
        problems.append(f"{MANIFEST_NAME}: was edited after the seal")
    return problems


def _misshapen(folder: Path, file: OutputFile) -> str | None:
    path = folder / file.path
    try:
        if path.is_symlink() or not path.is_file():
            return f"{file.path}: is {'not a regular file' if path.exists() else 'missing'}"
        size = path.stat().st_size
    except OSError as error:
        return f"{file.path}: cannot be read: {error.strerror}"
    if size != file.size_bytes:
        return f"{file.path}: has {size} bytes instead of {file.size_bytes}"
    return None
