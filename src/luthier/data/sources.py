"""Which files a path of the config means: a file, a glob, or a folder that `datasets` saved."""

import json
import unicodedata
from pathlib import Path, PurePosixPath

from luthier.data.readers import READERS, kind_of
from luthier.data.records import SourceFile
from luthier.errors import DataError

__all__ = ["HUB_PREFIX", "SourceFile", "expand", "inside"]

HUB_PREFIX = "hub:"
_WILD = "*?["
_STATE_FILE = "state.json"
_DICT_FILE = "dataset_dict.json"
# Control characters, halves of surrogate pairs, line and paragraph separators.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")


def expand(path: str) -> list[SourceFile]:
    """The data files that a path means, each looked at without reading it; sorted for a glob.

    Raises:
        DataError: nothing there, or something that no reader can take; the message says what to
            do.
    """
    _refuse_unprintable(path)
    try:
        place = Path(path)
        if place.is_dir():
            return _saved_dataset(place)
        if any(sign in path for sign in _WILD) and not place.exists():
            return _matching(path)
        return [_checked(SourceFile(place, place.as_posix()))]
    except OSError as error:
        raise DataError(f"{path}: cannot be looked at: {error.strerror}.") from error
    except ValueError as error:  # of pathlib, about a pattern
        raise DataError(f"{path}: cannot be looked for: {error}.") from error


def inside(files: list[SourceFile], root: Path) -> list[SourceFile]:
    """The files, each checked, and to lie under `root` when every link is followed.

    Raises:
        DataError: a link leads out of `root`, or a file cannot be taken.
    """
    real_root = root.resolve()
    for file in files:
        _refuse_unprintable(file.name)
        if not file.path.resolve().is_relative_to(real_root):
            raise DataError(
                f"{file.name}: a link that leads out of {root.as_posix()}. "
                "Name its target itself, if it is meant to be read."
            )
        _checked(file)
    return files


def _checked(file: SourceFile) -> SourceFile:
    path = file.path
    if path.is_dir():
        raise DataError(f"{file.name}: a folder, though it is called like a file. Rename it.")
    if not path.exists():
        raise DataError(
            f"{file.name}: no such file. Paths in prepare.sources are relative to the working "
            f"directory, which is {Path.cwd()}."
        )
    if not path.is_file():
        raise DataError(f"{file.name}: not a regular file. Save the data to one and name that.")
    kind_of(file)
    if path.stat().st_size == 0:
        raise DataError(
            f"{file.name}: the file is empty. Remove it from prepare.sources, or write it anew."
        )
    return file


def _refuse_unprintable(name: str) -> None:
    if any(unicodedata.category(character) in _UNPRINTABLE for character in name):
        shown = name.encode("unicode_escape").decode()
        raise DataError(f"{shown}: a control character in a file name. Rename the file.")


def _matching(pattern: str) -> list[SourceFile]:
    """Files that match; hidden ones only where the pattern asks for them by a dot."""
    parts = PurePosixPath(pattern).parts
    fixed = next(n for n, part in enumerate(parts) if any(sign in part for sign in _WILD))
    root, rest = Path(*parts[:fixed]), PurePosixPath(*parts[fixed:])
    asks_hidden = any(part.startswith(".") for part in rest.parts)
    found = [
        SourceFile(path, path.as_posix())
        for path in root.glob(str(rest))
        if asks_hidden or not _is_hidden(path.relative_to(root))
    ]
    # A folder that only a bare star met is passed over; one called like a data file is not.
    files = [file for file in found if not file.path.is_dir() or file.path.suffix in READERS]
    if not files:
        hint = " '**' alone means folders; write '**/*.jsonl'." if rest.name == "**" else ""
        raise DataError(
            f"{pattern}: no file matches. Paths in prepare.sources are relative to the working "
            f"directory, which is {Path.cwd()}.{hint}"
        )
    return inside(sorted(files, key=lambda file: file.name), root)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _saved_dataset(folder: Path) -> list[SourceFile]:
    """The files that `Dataset.save_to_disk` listed in its state.json, in that order."""
    name = folder.as_posix()
    if (folder / _DICT_FILE).is_file():
        splits = sorted(state.parent.name for state in folder.glob(f"*/{_STATE_FILE}"))
        raise DataError(
            f"{name}: a folder of several splits. Name one: "
            f"{', '.join(f'{name}/{split}' for split in splits) or 'it holds none'}."
        )
    if not (folder / _STATE_FILE).is_file():
        raise DataError(
            f"{name}: a folder that `datasets` did not save. Name its files one by one under "
            f"prepare.sources, or with a pattern: {name}/*.jsonl."
        )
    files = [
        SourceFile(folder / listed, (folder / listed).as_posix()) for listed in _listed(folder)
    ]
    return inside(files, folder)


def _listed(folder: Path) -> list[str]:
    state_file = folder / _STATE_FILE
    try:
        state = json.loads(state_file.read_text(encoding="utf-8"))
        listed = [entry["filename"] for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{state_file.as_posix()}: does not list data files as `datasets` does: {error!r}. "
            "Save the dataset again."
        ) from error
    if not listed or not all(isinstance(name, str) and name for name in listed):
        raise DataError(
            f"{state_file.as_posix()}: lists no data files. Save a dataset that has rows."
        )
    return listed
