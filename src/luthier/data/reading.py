"""Reading all sources into the spool: which files, in which format, and what became of them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice

from luthier.data import chunks
from luthier.data.formats import detect, named_format
from luthier.data.ingest import FilePlan, Job, Recipe, make_part
from luthier.data.records import SourceFile
from luthier.data.rows import RawRow, Task
from luthier.data.section import PrepareSection, Source
from luthier.data.slicing import refuse_unknown
from luthier.data.sources import expand
from luthier.data.spool import Spool
from luthier.data.summary import SourceRead
from luthier.data.workers import Workers, cores
from luthier.errors import DataError
from luthier.store.artifact import Workspace

_SEEN_ROWS = 100  # that tell a file's format
_MUCH_BYTES = 16 << 20  # of data, from which starting processes pays
_PII_EXAMPLES = 5


@dataclass
class Reading:
    """What all parts hold together: rows in each, and the sums of their books."""

    spool: Spool
    sizes: list[int] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    generated: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    pii: Counter[str] = field(default_factory=Counter)
    pii_examples: list[str] = field(default_factory=list)
    first_rejected: str | None = None
    largest_id: int = 0
    read_by_plan: Counter[int] = field(default_factory=Counter)
    rejected_by_plan: Counter[int] = field(default_factory=Counter)

    @property
    def read(self) -> int:
        """Records found in all files."""
        return self.read_by_plan.total()

    @property
    def starts(self) -> list[int]:
        """The number of each part's first row, and of the row after the last."""
        return list(accumulate(self.sizes, initial=0))

    def add(self, part: int) -> None:
        """Take a complete part into the sums."""
        facts = self.spool.facts(part)
        file = facts["file"]
        rejected = Counter(facts["rejected"])
        self.sizes.append(facts["rows"])
        self.files.append(file)
        self.generated += facts["generated"]
        self.rejected += rejected
        self.dropped += Counter(facts["dropped"])
        self.changed += Counter(facts["changed"])
        self.pii += Counter(facts["pii"])
        self.pii_examples += facts["pii_examples"][: _PII_EXAMPLES - len(self.pii_examples)]
        self.first_rejected = self.first_rejected or facts["first_rejected"]
        self.largest_id = max(self.largest_id, facts["largest_id"])
        self.read_by_plan[facts["plan"]] += facts["read"]
        self.rejected_by_plan[facts["plan"]] += rejected.total()

    def why(self) -> str:
        """What took records away so far, for a message: counts, then the first one rejected."""
        counts = {**self.rejected, **self.dropped}
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        if self.first_rejected:
            said += f"; the first is {self.first_rejected}"
        return said or ("all could be read" if self.read else "nothing was read")


def plan_files(section: PrepareSection) -> tuple[FilePlan, ...]:
    """Every file of every source, with its format, told from its first records where not named.

    Raises:
        DataError: a source cannot be read, no format fits its records, or no file has a column
            that the score is to be broken down by.
    """
    plans = tuple(
        _plan(section, number, source, file)
        for number, source in enumerate(section.sources)
        for file in source_files(source)
    )
    if section.slice_by:
        seen = (values for plan in plans for values in _first_values(plan.file))
        refuse_unknown(section.slice_by, {name for values in seen for name in values})
    return plans


def source_files(source: Source) -> list[SourceFile]:
    """The files that a source names.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    if source.path.startswith("hub:"):
        from luthier.data.hub import fetch

        return fetch(source.path.removeprefix("hub:"), str(source.revision), source.files)
    return expand(source.path)


def replay_plan(files: Sequence[SourceFile], section: PrepareSection) -> tuple[FilePlan, ...]:
    """Files of replay rows, which are conversations whatever the task.

    They count as a source behind all others.

    Raises:
        DataError: as `plan_files`.
    """
    source, number = Source(path="replay", split="train"), len(section.sources)
    return tuple(_planned(file, "chat", source, number, {}, "replay") for file in files)


def _plan(section: PrepareSection, number: int, source: Source, file: SourceFile) -> FilePlan:
    return _planned(file, section.task, source, number, section.columns_of(source), "data")


def _planned(
    file: SourceFile,
    task: Task,
    source: Source,
    number: int,
    columns: Mapping[str, str],
    origin: str,
) -> FilePlan:
    seen = _first_values(file)
    try:
        row_format, reason = (
            detect(task, seen, columns)
            if source.format == "auto"
            else named_format(task, source.format, seen, columns)
        )
    except DataError as error:
        raise DataError(f"{file.name}: {error}") from error
    return FilePlan(file, number, source.split, row_format.name, reason, columns, origin)


def _first_values(file: SourceFile) -> list[dict[str, object]]:
    first = next(iter(chunks.cut(file)), None)
    records = islice(chunks.read(first), _SEEN_ROWS) if first is not None else iter(())
    return [dict(record.values) for record in records if isinstance(record, RawRow)]


def worker_count(section: PrepareSection, files: Sequence[FilePlan]) -> int:
    """Processes to read with."""
    if section.workers:
        return section.workers
    size_bytes = sum(plan.file.path.stat().st_size for plan in files)
    return cores() if size_bytes > _MUCH_BYTES else 1


def read_all(recipe: Recipe, pool: Workers, workspace: Workspace) -> Reading:
    """Every chunk of every file into the spool; parts that are there already are kept."""
    reading = Reading(recipe.spool)
    left_bytes = sum(plan.file.path.stat().st_size for plan in recipe.files)
    with workspace.reporter.task("reading and tokenising", left_bytes, "bytes") as task:
        for part, size_bytes in pool.map(_part_if_missing, _jobs(recipe)):
            workspace.raise_if_stopped()
            reading.add(part)
            done_bytes = min(size_bytes, left_bytes)  # packed files hold more than their size
            left_bytes -= done_bytes
            task.advance(done_bytes, rows=sum(reading.sizes), quarantined=reading.rejected.total())
    return reading


def _jobs(recipe: Recipe) -> Iterator[tuple[Spool, Job]]:
    part = 0
    for number, plan in enumerate(recipe.files):
        for chunk in chunks.cut(plan.file):
            yield recipe.spool, Job(part, number, chunk)
            part += 1


def _part_if_missing(task: tuple[Spool, Job]) -> tuple[int, int]:
    spool, job = task
    if not spool.has(job.part):
        make_part(job)
    return job.part, job.chunk.size


def sources_read(files: Sequence[FilePlan], reading: Reading) -> list[SourceRead]:
    """How each file was read, for dataset.json."""
    return [
        SourceRead(
            path=plan.file.name,
            split=plan.split,
            format=plan.row_format,
            reason=plan.reason,
            read=reading.read_by_plan[number],
            quarantined=reading.rejected_by_plan[number],
        )
        for number, plan in enumerate(files)
    ]
