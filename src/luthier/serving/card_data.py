"""What the model card says of the data: where every record went, and what was found in it."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from luthier.data.sources import HUB_PREFIX
from luthier.serving import markdown
from luthier.serving.parity_tables import percent

if TYPE_CHECKING:
    from luthier.data.summary import DatasetCounts, DatasetInfo
    from luthier.store.artifact import Artifact

SHOWN_LABELS = 30
_SHOWN_SOURCES = 20


def hub_datasets(dataset: "Artifact") -> list[str]:
    """The ids of the hub's data sets that rows came from."""
    paths = [str(one["path"]) for one in dataset.manifest.config.get("sources", [])]
    ids = [path.removeprefix(HUB_PREFIX) for path in paths if path.startswith(HUB_PREFIX)]
    return list(dict.fromkeys(ids))


def data_parts(dataset: "Artifact", info: "DatasetInfo | None") -> list[str]:
    """Paragraphs and tables, each with a line end."""
    if info is None:
        return ["Nothing is recorded of the data.\n"]
    return [
        f"Task: {info.task}. Luthier read the rows strictly, put what could not be used in "
        "quarantine, and kept the\nsplits apart.\n",
        _sources(dataset, info),
        _counts(info.counts),
        _splits(info.counts),
        *([_labels(info.labels)] if info.labels else []),
        "".join(f"- {line}\n" for line in _found(dataset, info)),
    ]


def shown_path(path: str) -> str:
    """A source's path as a stranger may see it: of one outside the project only its name."""
    if path.startswith(HUB_PREFIX):
        return path
    pure = PurePath(path)
    return pure.name if pure.is_absolute() or ".." in pure.parts else path


def _sources(dataset: "Artifact", info: "DatasetInfo") -> str:
    revisions = {
        str(one["path"]): str(one["revision"])
        for one in dataset.manifest.config.get("sources", [])
        if one.get("revision")
    }
    rows = [
        (
            markdown.code(shown_path(one.path)),
            one.split,
            markdown.plain(one.format),
            f"{one.read:,}",
            f"{one.quarantined:,}",
        )
        for one in info.sources[:_SHOWN_SOURCES]
    ]
    header = ("source", "for", "format", "records read", "quarantined")
    found = markdown.table(header, rows, "lllrr")
    more = len(info.sources) - _SHOWN_SOURCES
    pinned = "".join(
        f"- {markdown.code(path)} at commit {markdown.code(commit)}\n"
        for path, commit in revisions.items()
    )
    notes = [f"And {more:,} more files.\n" if more > 0 else "", pinned]
    return "\n".join([found, *(note for note in notes if note)])


def _counts(counts: "DatasetCounts") -> str:
    rows = [
        ("records read", f"{counts.read:,}", ""),
        ("rows made here", f"{counts.generated:,}", ""),
        ("quarantined, could not be used", _sum(counts.quarantined), _reasons(counts.quarantined)),
        ("dropped by a rule", _sum(counts.dropped), _reasons(counts.dropped)),
        ("kept", f"{counts.kept:,}", ""),
        ("of these, text changed by a rule", _sum(counts.changed), _reasons(counts.changed)),
    ]
    return markdown.table(("step", "rows", "why"), rows, "lrl")


def _sum(reasons: Mapping[str, int]) -> str:
    return f"{sum(reasons.values()):,}"


def _reasons(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{markdown.plain(why)} {count:,}" for why, count in reasons.items())


def _splits(counts: "DatasetCounts") -> str:
    rows = [
        (
            name,
            f"{split.rows:,}",
            f"{split.tokens.total:,}",
            f"{split.supervised_tokens.total:,}",
            f"{split.tokens.p50:,}",
            f"{split.tokens.max:,}",
            percent(split.majority_class_share) if split.majority_class_share else "",
        )
        for name, split in counts.splits.items()
    ]
    header = (
        *("split", "rows", "tokens", "of these with a loss", "tokens a row, median", "longest"),
        "largest class",
    )
    return markdown.table(header, rows, "lrrrrrr")


def _labels(labels: Sequence[str]) -> str:
    return f"Labels ({len(labels):,}): {markdown.shortened(labels, SHOWN_LABELS)}.\n"


def _found(dataset: "Artifact", info: "DatasetInfo") -> list[str]:
    replay = dataset.manifest.config.get("replay")
    lines = []
    if replay:
        path = markdown.code(shown_path(str(replay.get("path") or replay.get("prompts"))))
        made = "" if replay.get("path") else "answers of the base to "
        lines.append(f"Replay, so that general skills are kept: {made}{path}, up to "
                     f"{percent(replay['fraction'])} of train.")  # fmt: skip
    near = info.near
    if near is None:
        lines.append("Near copies across splits: not looked for.")
    else:
        lines.append(
            f"Near copies among {near.rows:,} rows: {near.near_duplicates:,}; leaks from train "
            f"to a held-out split: {near.leaks + near.ngram_leaks:,}."
        )
    if info.pii is None:
        lines.append("Personal data: not looked for.")
    else:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in info.pii.rows.items() if count)
        done = "redacted" if info.pii.redacted else "left as it was"
        lines.append(f"Rows with personal data found: {f'{kinds}, {done}' if kinds else 'none'}.")
    if info.classical:
        lines.append(
            f"TF-IDF and a linear model on the same rows: {percent(info.classical.accuracy)} of "
            f"{info.classical.rows:,} {info.classical.split} rows."
        )
    return lines
