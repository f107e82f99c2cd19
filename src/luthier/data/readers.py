"""The readers that there are, and which one a file's name asks for."""

import difflib

from luthier.data import columnar, delimited, json_array, json_lines
from luthier.data.compressed import PACKINGS
from luthier.data.records import READERS, SourceFile
from luthier.errors import DataError

# Importing a module of readers registers them.
__all__ = [
    "READERS",
    "columnar",
    "delimited",
    "json_array",
    "json_lines",
    "kind_of",
]


def kind_of(file: SourceFile) -> tuple[str, str | None]:
    """(suffix of its reader, suffix of its packing): rows.jsonl.gz is ('.jsonl', '.gz').

    Raises:
        DataError: no reader knows the suffix.
    """
    suffixes = [suffix.lower() for suffix in file.path.suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in PACKINGS else None
    kind = suffixes[-1] if suffixes else ""
    if kind in READERS:
        return kind, packing
    known = ", ".join(sorted(READERS))
    near = difflib.get_close_matches(kind, READERS, n=1)
    hint = f" Did you mean {near[0]}{packing or ''}?" if near else ""
    raise DataError(
        f"{file.name}: no reader for files ending in '{kind}{packing or ''}'. Known are {known}, "
        f"those of text also packed ({', '.join(PACKINGS)}).{hint} "
        "Convert the file, and let its name say what it is."
    )
