"""From one chunk of a file to one part of the spool: parse, clean, render, tokenise, index.

Runs in worker processes. What a part holds depends on its chunk and the recipe alone.
"""

import gc
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from luthier.data import chunks
from luthier.data.clocks import seconds_of
from luthier.data.filters import Filters
from luthier.data.formats import ROW_FORMATS, FormatOptions, compose, parse, with_distractors
from luthier.data.keys import group_of, row_keys
from luthier.data.normalise import Normaliser
from luthier.data.part_table import Found, Line, largest_id, part_table, with_label_codes
from luthier.data.pii import PiiFinder
from luthier.data.records import Record, SourceFile
from luthier.data.rows import (
    RawRow,
    Rejected,
    RowError,
    Split,
    message,
)
from luthier.data.section import PrepareSection
from luthier.data.slicing import slices_of
from luthier.data.spool import Spool
from luthier.data.tokens import Encoder
from luthier.data.tongue import Tongue

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 1000  # tokenised together

_PII_EXAMPLES = 2  # a part
GENERATED = "generated"  # the origin of rows made here
_KEEPS_RAW = ("classification", "extraction", "preference")  # tasks with faults found later


@dataclass(frozen=True)
class FilePlan:
    """One file to read: which source it is of, its split, and how its records become rows."""

    file: SourceFile
    source: int
    split: Split
    row_format: str
    reason: str
    columns: Mapping[str, str]
    origin: str = "data"


@dataclass(frozen=True)
class Recipe:
    """All that a worker needs to know, the same for every chunk."""

    section: PrepareSection
    options: FormatOptions
    tongue: Tongue
    files: tuple[FilePlan, ...]
    spool: Spool
    seed: int


@dataclass(frozen=True)
class Job:
    """One chunk to read: the part it becomes, and its file's place in the recipe."""

    part: int
    file: int
    chunk: chunks.Chunk


@dataclass
class _Books:
    """What became of the records of one chunk."""

    file: str
    read: int = 0
    generated: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    pii: Counter[str] = field(default_factory=Counter)
    pii_examples: list[str] = field(default_factory=list)

    def reject(self, record: RawRow, error: RowError) -> None:
        """Write a record down as unusable."""
        self.rejected.append(Rejected(record.file, record.line, str(error), record.raw))

    def take_personal(
        self, record: RawRow, personal: Mapping[str, str], *, redacted: bool
    ) -> None:
        """Count what is personal in a row; `personal` holds a masked example of each kind."""
        self.pii.update(personal.keys())
        self.changed["pii-redacted"] += bool(personal) and redacted
        for kind, example in personal.items():
            if len(self.pii_examples) < _PII_EXAMPLES:
                self.pii_examples.append(f"{record.file}:{record.line} {kind} {example}")

    def as_facts(self) -> dict[str, Any]:
        """As JSON values."""
        first = self.rejected[0] if self.rejected else None
        return {
            "file": self.file,
            "read": self.read,
            "generated": self.generated,
            "rejected": dict(Counter(rejected.kind for rejected in self.rejected)),
            "first_rejected": first and f"{first.file}:{first.line}: {first.reason}",
            "dropped": dict(self.dropped),
            "changed": {rule: rows for rule, rows in self.changed.items() if rows},
            "pii": dict(self.pii),
            "pii_examples": self.pii_examples,
        }


class Ingest:
    """One worker's tools, made once."""

    def __init__(self, recipe: Recipe) -> None:
        section = recipe.section
        self._recipe = recipe
        limit = section.max_length_tokens if section.on_overlong == "truncate" else None
        self._encoder = Encoder(recipe.tongue, section.task, section.loss_on, limit)
        self._normaliser = Normaliser(section.normalise)
        self._filters = Filters(section.filters)
        self._pii = PiiFinder(section.pii)
        self._redacts = section.pii.action == "redact"

    def part(self, job: Job) -> int:
        """Make a part of the spool; its number."""
        import pyarrow as pa

        plan = self._recipe.files[job.file]
        books = _Books(plan.file.name)
        lines = self._lines(job.chunk, plan, books)
        batches = [self._table([], plan)]
        while batch := list(islice(lines, _BATCH_ROWS)):
            batches.append(self._table(batch, plan))
        table, labels = with_label_codes(pa.concat_tables(batches))
        spool = self._recipe.spool
        ordered = sorted(books.rejected, key=lambda rejected: rejected.line)
        spool.rejected_path(job.part).write_text(
            "".join(rejected.as_json_line() for rejected in ordered), encoding="utf-8"
        )
        facts = {
            "plan": job.file,
            "labels": labels,
            "rows": table.num_rows,
            "largest_id": largest_id(table),
        }
        spool.write(job.part, table, books.as_facts() | facts)
        return job.part

    def _table(self, lines: list[Line], plan: FilePlan) -> "pa.Table":
        rows = self._encoder.encode([line.sheets for line in lines])
        raw = self._recipe.section.task in _KEEPS_RAW
        return part_table(lines, rows, plan.split, plan.source, raw=raw)

    def _lines(self, chunk: chunks.Chunk, plan: FilePlan, books: _Books) -> Iterator[Line]:
        """The rows of a chunk, one after another; grounded ones need each other's documents."""
        read: Iterator[Found] = (
            found for record in chunks.read(chunk) for found in self._read(record, plan, books)
        )
        if self._recipe.section.task == "grounded" and plan.origin == "data":
            read = iter(self._completed(list(read)))
        for found in read:
            yield from self._line(found, plan, books)

    def _read(self, record: Record, plan: FilePlan, books: _Books) -> Iterator[Found]:
        """A record as its format, the normaliser, the filters and the PII finder leave it."""
        books.read += 1
        if isinstance(record, Rejected):
            books.rejected.append(record)
            return
        try:
            row_format = ROW_FORMATS[plan.row_format]
            parsed = parse(record, row_format, plan.columns, self._recipe.options)
            found = Found(
                record,
                parsed,
                group_of(record, plan.columns),
                slices_of(record, self._recipe.section.slice_by),
                seconds_of(record, plan.columns),
                plan.origin,
            )
            changed = self._normaliser.apply(parsed)
            reason = self._filters.reason(parsed)
            if reason is not None:
                books.dropped[reason] += 1
                return
            personal = self._pii.apply(parsed)
        except RowError as error:
            books.reject(record, error)
            return
        books.changed.update(changed)
        books.take_personal(record, personal, redacted=self._redacts)
        yield found

    def _completed(self, read: list[Found]) -> list[Found]:
        """Grounded rows with documents of others among their own, and the rows made from them."""
        options = self._recipe.options
        given, made = with_distractors(
            [found.parsed for found in read], options.grounded, self._recipe.seed
        )
        rows = [replace(found, parsed=row) for found, row in zip(read, given, strict=True)]
        rows += [replace(read[place], parsed=row, origin=GENERATED) for place, row in made]
        return [replace(found, parsed=compose(found.parsed, options)) for found in rows]

    def _line(self, found: Found, plan: FilePlan, books: _Books) -> Iterator[Line]:
        """A row with its keys, rendered."""
        section, parsed = self._recipe.section, found.parsed
        keys = row_keys(parsed)
        system = section.system_prompt
        if system is not None and plan.origin == "data" and parsed.messages[0]["role"] != "system":
            parsed.messages.insert(0, message("system", system))
        try:
            sheets = self._encoder.render(parsed)
        except RowError as error:
            if found.origin != GENERATED:
                books.reject(found.record, error)
            return
        books.generated += found.origin == GENERATED
        yield Line(found, keys, sheets)


_ingest: Ingest | None = None


def set_up(recipe: Recipe) -> None:
    """Make this process a worker for a recipe."""
    global _ingest
    _ingest = Ingest(recipe)


def make_part(job: Job) -> int:
    """In a process that `set_up` prepared: make a part of the spool.

    A part's many small objects have no cycles: looking for those again and again while they are
    made costs 20 microseconds a row (2026-11-23), once behind them next to nothing.
    """
    assert _ingest is not None, "set_up comes first"
    collects = gc.isenabled()
    gc.disable()
    try:
        return _ingest.part(job)
    finally:
        gc.collect(0)  # the part's own: nothing older was made meanwhile
        if collects:
            gc.enable()
