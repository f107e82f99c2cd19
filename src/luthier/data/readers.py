"""Reading a data file: the reader that its suffix asks for, record by record."""

import difflib
from collections.abc import Iterator
from pathlib import Path

from luthier.data import delimited, json_lines
from luthier.data.records import READERS, Reader, Record
from luthier.errors import DataError

# Importing a module of readers registers them.
__all__ = ["check_source", "delimited", "json_lines", "read_file"]


def check_source(path: Path) -> None:
    """Look at a data file without reading it.

    Raises:
        DataError: it is missing, empty, not a file, or of a kind that no reader knows.
    """
    if path.is_dir():
        raise DataError(f"{path}: a folder. Name its files one by one under prepare.sources.")
    if not path.exists():
        raise DataError(
            f"{path}: no such file. Paths in prepare.sources are relative to the working "
            f"directory, which is {Path.cwd()}."
        )
    if not path.is_file():
        raise DataError(f"{path}: not a regular file. Save the data to one and name that.")
    _reader_for(path)
    if path.stat().st_size == 0:
        raise DataError(
            f"{path}: the file is empty. Remove it from prepare.sources, or write it anew."
        )


def read_file(path: Path, name: str) -> Iterator[Record]:
    """The records of a file, one after another; `name` is what they call their file.

    Raises:
        DataError: as `check_source`, and when the system cannot read the file.
    """
    check_source(path)
    try:
        with path.open("rb") as file:
            yield from _reader_for(path)(file, name)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}. Check its permissions."
        ) from error


def _reader_for(path: Path) -> Reader:
    suffix = path.suffix.lower()
    if suffix not in READERS:
        known = ", ".join(sorted(READERS))
        near = difflib.get_close_matches(suffix, READERS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise DataError(
            f"{path}: no reader for files ending in '{suffix}'. Known are {known}.{hint} "
            "Convert the file, and let its name say what it is."
        )
    return READERS[suffix]
