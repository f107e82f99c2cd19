"""A dataset in the terminal: a part of `luthier show`, and the end of `luthier prepare`."""

from itertools import islice
from typing import TYPE_CHECKING

from luthier.data.summary import DatasetInfo
from luthier.report import spelling
from luthier.report.dataset_rows import info_of
from luthier.report.dataset_view import books, classes, findings
from luthier.report.terminal import columns, facts, heading, indented, printing, styled

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.store import Artifact

_SHOWN = 20  # classes, files, pairs; the page has all


def dataset_closing(dataset: "Artifact", ref: str, config: str) -> None:
    """Print what `luthier prepare` made, and where to look at it."""
    info = info_of(dataset)
    with printing() as console:
        _advice(console, info)
        _books(console, info)
        _splits(console, info)
        console.print()
        for command in (
            f"luthier inspect {ref}",
            f"luthier show {ref}",
            f"luthier report {config}",
        ):
            console.print(f"  {command}", soft_wrap=True)


def show_dataset(console: "Console", info: DatasetInfo) -> None:
    """Print all that dataset.json says, longest lists cut to their head."""
    _advice(console, info)
    _books(console, info)
    _splits(console, info)
    _lengths(console, info)
    _classes(console, info)
    _sources(console, info)
    for title, rows in (
        ("rows changed by rule", info.counts.changed),
        ("rows found in contamination files", info.near.contaminated if info.near else {}),
    ):
        _counted(console, title, rows)
    _near(console, info)
    _findings(console, info)


def _advice(console: "Console", info: DatasetInfo) -> None:
    if info.advice:
        heading(console, "advice")
        facts(
            console,
            ((one.level, styled(spelling.printable(one.text), one.level)) for one in info.advice),
        )


def _books(console: "Console", info: DatasetInfo) -> None:
    found = books(info.counts)
    heading(console, "where every record went")
    table = columns(console, ("step", "reason", "records", "left"), right=("records", "left"))
    for step in found.steps:
        table.add_row(
            step.what,
            spelling.printable(step.reason),
            spelling.signed(step.records),
            spelling.count(step.left),
        )
    table.add_row("kept", "", f"= {spelling.count(found.kept)}", spelling.count(found.kept))
    indented(console, table)
    if found.missing:
        missing = f"  {spelling.signed(found.missing)} rows are unaccounted for"
        console.print(styled(missing, "fail"))


def _splits(console: "Console", info: DatasetInfo) -> None:
    heading(console, "splits")
    names = ("rows", "share", "tokens", "supervised", "majority")
    table = columns(console, ("split", *names), right=names)
    for split, found in info.counts.splits.items():
        table.add_row(
            split,
            spelling.count(found.rows),
            spelling.percent(found.rows / info.counts.kept if info.counts.kept else None),
            spelling.count(found.tokens.total),
            spelling.count(found.supervised_tokens.total),
            spelling.percent(found.majority_class_share),
        )
    indented(console, table)


def _lengths(console: "Console", info: DatasetInfo) -> None:
    heading(console, f"tokens a row (limit {spelling.count(info.max_length_tokens)})")
    names = ("least", "median", "95 % below", "most")
    table = columns(console, ("split", "of", *names), right=names)
    for split, found in info.counts.splits.items():
        for what, one in (("all", found.tokens), ("supervised", found.supervised_tokens)):
            table.add_row(split, what, *map(spelling.count, (one.min, one.p50, one.p95, one.max)))
    indented(console, table)


def _classes(console: "Console", info: DatasetInfo) -> None:
    found = classes(info)
    if not found:
        return
    heading(console, "rows of each class")
    splits = list(info.counts.splits)
    table = columns(console, ("class", *splits), right=splits)
    for label, rows in islice(found.items(), _SHOWN):
        cells = (f"{spelling.count(n)} ({spelling.percent(share)})" for n, share in rows)
        table.add_row(spelling.printable(label), *cells)
    indented(console, table)
    _more(console, len(found), "classes")


def _sources(console: "Console", info: DatasetInfo) -> None:
    if not info.sources:
        return
    heading(console, "sources")
    table = columns(console, ("file", "split", "records", "format"), right=("records",))
    for source in info.sources[:_SHOWN]:
        table.add_row(
            spelling.printable(source.path),
            source.split,
            spelling.count(source.read),
            spelling.printable(f"{source.format}: {source.reason}"),
        )
    indented(console, table)
    _more(console, len(info.sources), "files")


def _counted(console: "Console", title: str, rows: dict[str, int]) -> None:
    if rows:
        heading(console, title)
        facts(console, ((spelling.printable(n), spelling.count(rows[n])) for n in rows))


def _near(console: "Console", info: DatasetInfo) -> None:
    near = info.near
    if near is None:
        return
    heading(console, f"nearly the same (Jaccard similarity from {spelling.value(near.jaccard)})")
    facts(
        console,
        [
            ("compared", f"{spelling.count(near.rows)} rows"),
            ("near duplicates", spelling.count(near.near_duplicates)),
            ("between splits", spelling.count(near.leaks)),
            ("shared n-grams", spelling.count(near.ngram_leaks)),
        ],
    )
    pairs = (f"{pair.left_out} is like {pair.because_of}" for pair in near.examples[:_SHOWN])
    facts(console, (("", spelling.printable(pair)) for pair in pairs))
    _more(console, len(near.examples), "pairs")


def _findings(console: "Console", info: DatasetInfo) -> None:
    if info.pii is not None:
        title = "personal data, replaced" if info.pii.redacted else "personal data, still there"
        _counted(console, f"rows with {title}", info.pii.rows)
    if info.classical is not None:
        heading(console, "a model that costs nothing (TF-IDF and a linear model)")
        facts(console, spelling.flat(info.classical.model_dump()).items())
    if info.label_noise:
        noise = findings(info.label_noise)
        heading(console, "labels that may be wrong")
        facts(console, noise.facts.items())
        for name, names, lines in noise.tables:
            table = columns(console, names)
            for line in lines[:_SHOWN]:
                table.add_row(*line)
            indented(console, table)
            _more(console, len(lines), name)


def _more(console: "Console", number: int, what: str) -> None:
    if number > _SHOWN:
        console.print(f"  and {spelling.count(number - _SHOWN)} more {what}")
