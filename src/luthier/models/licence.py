"""The licence of a base model: what its files say of it, and the files. Nothing is guessed."""

import shutil
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from luthier.models.sources import CARD_NAME, LICENCE_PATTERNS, PACKAGE_PREFIX, Source

_LICENCE_FIELDS = ("license", "license_name", "license_link")


def licence_facts(source: Source, folder: Path | None, stated: str = "") -> dict[str, str]:
    """What is known of the licence: `licence` ("" when nothing says it), `licence_from` (what says
    it) and, where a model card has them, `licence_name` and `licence_link`.

    Args:
        source: the base as the config names it.
        folder: the model's folder outside the store, where it is one.
        stated: `general.license` of a GGUF.
    """
    if stated:
        return {"licence": stated, "licence_from": "general.license of the GGUF"}
    if folder is not None:
        return _of_card(folder)
    package = _package(source)
    said = _of_package(package) if package else ""
    return {"licence": said} | ({"licence_from": "metadata of the package"} if said else {})


def copy_licences(source: Source, folder: Path, stated: str) -> None:
    """Copy the licence files of the package that a GGUF comes in, if it has the GGUF's licence.

    Those of a model folder are among the files that every base has copied.
    """
    package = _package(source)
    if package is None or (stated and _of_package(package).casefold() != stated.casefold()):
        return
    for path in package_licences(source):
        shutil.copyfile(path, folder / path.name)


def package_licences(source: Source) -> list[Path]:
    """The licence files of the package that a base comes in; none for other bases."""
    package = _package(source)
    if package is None:
        return []
    return sorted(
        Path(str(package.locate_file(file)))
        for file in package.files or []
        if any(file.match(pattern) for pattern in LICENCE_PATTERNS)
    )


def licence_files(folder: Path) -> list[Path]:
    """The licence and notice files of a folder, sorted."""
    found = {path for pattern in LICENCE_PATTERNS for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file())


def _of_card(folder: Path) -> dict[str, str]:
    """From the front matter of the model's own README.md."""
    import yaml
    from huggingface_hub import ModelCard

    try:
        text = (folder / CARD_NAME).read_text("utf-8")
        fields = ModelCard(text, ignore_metadata_errors=True).data
    except (OSError, ValueError, yaml.YAMLError):
        return {"licence": ""}
    found = {
        name.replace("license", "licence"): said
        for name in _LICENCE_FIELDS
        if isinstance(said := fields.get(name), str)
    }
    return {"licence": "", **found} | ({"licence_from": CARD_NAME} if found else {})


def _package(source: Source) -> Distribution | None:
    if not source.name.startswith(PACKAGE_PREFIX):
        return None
    name = source.name.removeprefix(PACKAGE_PREFIX).partition("/")[0]
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _of_package(package: Distribution) -> str:
    said = package.metadata.json
    return str(said.get("license_expression") or said.get("license") or "")
