"""What people see of a dataset, on the page and in the terminal alike: where every record went,
the classes, the lengths, what was found in the rows, and some rows themselves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from luthier.data.dataset import QUARANTINE_NAME
from luthier.data.index import Fate
from luthier.data.rows import Split
from luthier.data.summary import DatasetCounts, DatasetInfo
from luthier.errors import LuthierError
from luthier.report import spelling
from luthier.report.dataset_rows import info_of, split_rows
from luthier.report.plots import Plot, tokens_plot
from luthier.report.token_text import Decoder, Part, ShownRow, Stretch, decoder_of, shown_row
from luthier.store import Artifact, Store

QUARANTINED_SHOWN, EXAMPLES_SHOWN = 20, 3
_LONGEST_STRETCH = 1200  # characters of a row's text that the page shows in one piece
_ELLIPSIS = " … "
_SPREADS = {
    "tokens": "Length of the rows",
    "supervised_tokens": "Supervised tokens of the rows",
}

REASONS: Mapping[str, str] = {
    Fate.LABEL_UNKNOWN.reason: "the label is not one of prepare.labels",
    Fate.CONTRADICTION.reason: "rows of one split answer the same text differently",
    Fate.DUPLICATE.reason: "the same row stands earlier in its split",
    Fate.LEAK_TEXT.reason: "the same text stands in a split that is held out",
    Fate.LEAK_GROUP.reason: "rows of its group stand in a split that is held out",
    Fate.NEAR_DUPLICATE.reason: "nearly the same row stands earlier in its split",
    Fate.LEAK_NEAR.reason: "nearly the same text stands in a split that is held out",
    Fate.LEAK_NGRAM.reason: "it shares a long run of words with a split that is held out",
    Fate.CONTAMINATED.reason: "its text stands in a contamination file",
    Fate.OVERLONG.reason: "longer than prepare.max_length_tokens",
    Fate.MIXTURE.reason: "above the share of its source",
    Fate.LIMIT.reason: "above prepare.limit",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One line of the books: `records` came or (below zero) went, and `left` were then there."""

    what: str
    reason: str
    records: int
    left: int

    @property
    def meaning(self) -> str:
        """The reason in words, where its name does not say all."""
        return REASONS.get(self.reason, "")


@dataclass(frozen=True)
class Books:
    """Every record's whereabouts; `missing` is 0 when they add up to `kept`."""

    steps: Sequence[Step]
    kept: int
    missing: int


@dataclass(frozen=True)
class Examples:
    """Some rows of each split; `problem` says why they are shown as messages, not as tokens."""

    rows: Mapping[str, Sequence[ShownRow]]
    problem: str


@dataclass(frozen=True)
class DatasetView:
    """One dataset, ready for the page.

    `classes` holds, for every label, rows and share of each split. `quarantined` are the first
    lines of quarantine.jsonl, {file, line, reason, raw}.
    """

    info: DatasetInfo
    stage: str
    ref: str
    books: Books
    classes: Mapping[str, Sequence[tuple[int, float]]]
    plots: Mapping[str, Plot]
    noise: "Findings"
    quarantined: Sequence[Mapping[str, Any]]
    quarantined_in_all: int
    examples: Examples


@dataclass(frozen=True)
class Findings:
    """A JSON object whose lists of objects became tables: name, columns, lines of cells."""

    facts: Mapping[str, str]
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]]


def dataset_view(dataset: Artifact, stage: str, store: Store) -> DatasetView:
    """Read dataset.json, the head of the quarantine, and a few rows of what `stage` made.

    Raises:
        DataError: the artifact holds no dataset that this version of Luthier wrote.
    """
    info = info_of(dataset)
    counts = info.counts
    plots = [
        tokens_plot(f"{stage}-{name}", title, _histograms(info, name))
        for name, title in _SPREADS.items()
    ]
    return DatasetView(
        info=info,
        stage=stage,
        ref=dataset.ref,
        books=books(counts),
        classes=classes(info),
        plots={plot.id: plot for plot in plots if plot is not None},
        noise=findings(info.label_noise or {}),
        quarantined=_quarantined(dataset),
        quarantined_in_all=sum(counts.quarantined.values()),
        examples=_examples(dataset, store, info),
    )


def books(counts: DatasetCounts) -> Books:
    """Read, made here, each reason to leave a record out, in the order of their size."""
    flows = [("read", "", counts.read), ("made here", "", counts.generated)]
    for what, losses in (("quarantined", counts.quarantined), ("dropped", counts.dropped)):
        flows += [(what, reason, -rows) for reason, rows in _largest_first(losses)]
    steps: list[Step] = []
    left = 0
    for what, reason, records in flows:
        if records or what == "read":
            left += records
            steps.append(Step(what, reason, records, left))
    return Books(steps, counts.kept, left - counts.kept)


def _largest_first(losses: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(losses.items(), key=lambda item: (-item[1], item[0]))


def classes(info: DatasetInfo) -> dict[str, list[tuple[int, float]]]:
    """Rows and share of each label, a pair a split, the largest class of the first split first."""
    splits = list(info.counts.splits.values())
    found = {
        label: [(split.classes.get(label, 0), _share(split.classes.get(label, 0), split.rows))
                for split in splits]
        for label in info.labels
    }  # fmt: skip
    return dict(sorted(found.items(), key=lambda item: -item[1][0][0] if item[1] else 0))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _histograms(info: DatasetInfo, name: str) -> dict[str, Sequence[int]]:
    return {split: getattr(found, name).histogram for split, found in info.counts.splits.items()}


def findings(values: Mapping[str, Any]) -> Findings:
    """Plain values and lists of objects, taken apart and spelled."""
    facts, tables = {}, []
    for name, value in values.items():
        title = name.replace("_", " ")
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            columns = list(dict.fromkeys(column for item in value for column in item))
            lines = [[spelling.value(item.get(column)) for column in columns] for item in value]
            tables.append((title, [column.replace("_", " ") for column in columns], lines))
        else:
            facts[title] = spelling.value(value)
    return Findings(facts, tables)


def _quarantined(dataset: Artifact) -> list[dict[str, Any]]:
    path = dataset.path / QUARANTINE_NAME
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, QUARANTINED_SHOWN)]


def _examples(dataset: Artifact, store: Store, info: DatasetInfo) -> Examples:
    decoder: Decoder | None = None
    problem = ""
    try:
        decoder = decoder_of(dataset, store, info.stop_token_ids)
    except LuthierError as error:
        problem = str(error)
    filled = (split for split, rows in info.splits.items() if rows)
    rows = {str(split): _rows(dataset, split, decoder) for split in filled}
    return Examples(rows, problem)


def _rows(dataset: Artifact, split: Split, decoder: Decoder | None) -> list[ShownRow]:
    rows = split_rows(dataset, split)
    picked = rows.at(rows.spread(EXAMPLES_SHOWN))
    return [_shortened(shown_row(record, split, place, decoder)) for place, record in picked]


def _shortened(row: ShownRow) -> ShownRow:
    """Long stretches without their middle: the page is for a glance, `inspect` shows all."""
    parts = [
        Part(part.name, [_shortened_stretch(stretch) for stretch in part.stretches])
        for part in row.parts
    ]
    return replace(row, parts=parts)


def _shortened_stretch(stretch: Stretch) -> Stretch:
    if len(stretch.text) <= _LONGEST_STRETCH:
        return stretch
    half = _LONGEST_STRETCH // 2
    text = f"{stretch.text[:half]}{_ELLIPSIS}{stretch.text[-half:]}"
    return replace(stretch, text=text)
