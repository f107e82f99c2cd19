"""Benchmark files whose texts must not be learned: their texts, as the search for copies wants.

A JSONL file gives every text value of every record, lists and objects inside included, and the
values of a record together; any other file gives its lines.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from luthier.config import Field, Section
from luthier.errors import DataError

LEAST_WORDS = 5  # of a text that can be copied: "yes" and "New York" stand in any data set
_PART_BYTES = 1 << 20
_JSON_LINES = (".jsonl", ".ndjson")


class ContaminationFile(Section):
    """One file of texts that no row may copy."""

    path: Path = Field(
        description="JSONL (.jsonl, .ndjson: every text in every record), else text, one a line"
    )
    columns: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, description="fields of a record to take; without it all of them"
    )


@dataclass(frozen=True)
class _Part:
    file: ContaminationFile
    offset: int  # bytes
    size: int
    line: int  # of its first line, from 1


class BenchmarkTexts:
    """The texts of contamination files as `Texts`: parts of about 1 MiB, no replies."""

    def __init__(self, files: Sequence[ContaminationFile]) -> None:
        """Read the files once, to know where their parts begin.

        Raises:
            DataError: a file cannot be read.
        """
        self._parts = [part for file in files for part in _parts(file)]

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return len(self._parts)

    def prompts(self, part: int) -> list[str]:
        """The texts of a part.

        Raises:
            DataError: a line is not UTF-8 or, in a JSONL file, not a JSON object.
        """
        return [text for _, text in _texts(self._parts[part])]

    def replies(self, part: int) -> list[str]:
        """Empty texts: whatever a benchmark says counts as asked."""
        return [""] * len(self.prompts(part))

    def place(self, part: int, row: int) -> str:
        """`file:line` of a text."""
        line = [line for line, _ in _texts(self._parts[part])][row]
        return f"{self.path(part)}:{line}"

    def path(self, part: int) -> Path:
        """The file that a part is of."""
        return self._parts[part].file.path

    def check(self, sizes: Sequence[int]) -> None:
        """Refuse a file without texts, given how many each part has.

        Raises:
            DataError: there is one.
        """
        total = dict.fromkeys((part.file.path for part in self._parts), 0)
        for part, size in zip(self._parts, sizes, strict=True):
            total[part.file.path] += size
        for path, size in total.items():
            if size == 0:
                raise DataError(
                    f"{path}: no texts to compare rows with. Give a contamination file that has "
                    "some, or take it out of the config."
                )


def _parts(file: ContaminationFile) -> Iterator[_Part]:
    offset, size, first = 0, 0, 1
    try:
        with file.path.open("rb") as opened:
            for number, line in enumerate(opened, start=1):
                size += len(line)
                if size >= _PART_BYTES:
                    yield _Part(file, offset, size, first)
                    offset, size, first = offset + size, 0, number + 1
    except OSError as error:
        raise DataError(
            f"{file.path}: the contamination file cannot be read ({error.strerror})."
        ) from error
    if size or not offset:
        yield _Part(file, offset, size, first)


def _texts(part: _Part) -> Iterator[tuple[int, str]]:
    """Texts with their lines."""
    with part.file.path.open("rb") as opened:
        opened.seek(part.offset)
        data = opened.read(part.size)
    for number, line in enumerate(data.split(b"\n"), start=part.line):
        if line.strip():
            for text in _values(part.file, number, line):
                yield number, text


def _values(file: ContaminationFile, number: int, line: bytes) -> list[str]:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        if file.path.suffix not in _JSON_LINES:
            return [text]
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file.path}:{number}: cannot be read: {error}. Mend the contamination file."
        ) from error
    if not isinstance(record, dict):
        raise DataError(f"{file.path}:{number}: not a JSON object. Mend the contamination file.")
    missing = [column for column in file.columns if column not in record]
    if missing:
        raise DataError(
            f"{file.path}:{number}: no '{missing[0]}' among {', '.join(map(repr, record))}. "
            "Name the columns that the contamination file has."
        )
    found = list(_strings([record[column] for column in file.columns or record]))
    return [*found, "\n".join(found)] if len(found) > 1 else found


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for inner in value:
                yield from _strings(inner)
        case dict():
            for inner in value.values():
                yield from _strings(inner)
