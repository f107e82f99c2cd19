"""The `prepare:` section of a run config (and `preferences:`, which is the same for pairs)."""

import difflib
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from luthier.config import Field, Section, result_free
from luthier.data.contamination import ContaminationFile
from luthier.data.filters import FilterSection
from luthier.data.final_answer import checked_pattern
from luthier.data.formats import (
    ROW_FORMATS,
    ClassificationOptions,
    ExtractionOptions,
    GroundedOptions,
    formats_of,
)
from luthier.data.label_noise import MAX_LABEL_NOISE
from luthier.data.near import NearSection
from luthier.data.normalise import NormaliseSection
from luthier.data.pii import PiiSection
from luthier.data.replay import ReplaySection
from luthier.data.rows import Split, Task
from luthier.data.splits import SplitBy
from luthier.data.tokens import LossOn, OnOverlong

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Text = Annotated[str, Field(min_length=1)]


class Source(Section):
    """Data files of one origin."""

    path: Text = Field(
        description="a file (.jsonl, .json, .csv, .tsv, .parquet, .arrow; .gz and .zst too), a "
        "glob, a folder that datasets' save_to_disk wrote, or hub:OWNER/NAME"
    )
    split: Split = Field(description="what its rows are for: train, validation or test")
    format: Text = Field(
        "auto", description="row format, or auto: told from the columns, with the reason shown"
    )
    columns: dict[str, Text] = Field(
        default_factory=dict,
        description="what this file calls the format's columns, `group` and `time`, e.g. "
        "{text: body}",
    )
    weight: Annotated[float, Field(gt=0.0)] | None = Field(
        None,
        description="share of train in proportion to the other sources' weights; no row is "
        "repeated, so the scarcest source decides how many rows there are",
    )
    revision: Text | None = Field(
        None, description="of hub:OWNER/NAME: the commit, 40 hexadecimal digits"
    )
    files: list[Text] = Field(
        default_factory=list, description="of hub:OWNER/NAME: its files, as patterns"
    )


class PrepareSection(Section):
    """Which rows, how they become splits and tokens, and what to do with bad ones."""

    task: Task = Field(
        description="classification (text, label), extraction (text, output), chat (messages), "
        "completion (prompt, completion: no template), text (no prompt), grounded (question, "
        "documents, answer), preference (chosen, rejected; only under `preferences:`)"
    )
    sources: Annotated[list[Source], Field(min_length=1)] = Field(
        description="data files, in order"
    )
    validation_fraction: Fraction = Field(
        0.0, description="share of train that becomes validation, when no source gives it"
    )
    test_fraction: Fraction = Field(
        0.0, description="share of train that becomes test, when no source gives it"
    )
    split_by: SplitBy = Field(
        "auto",
        description="how those shares are drawn: random, stratified (by label), group, or time "
        "(the latest rows); auto: time with time_by, group with group_by, stratified with labels",
    )
    group_by: Text | None = Field(
        None,
        description="column whose equal values are never in two splits, e.g. one author's rows",
    )
    slice_by: list[Text] = Field(
        default_factory=list,
        description="columns whose values are kept with each row; evaluate breaks the score down "
        "by each of them",
    )
    time_by: Text | None = Field(
        None, description="column with each row's time: seconds since 1970, or ISO 8601"
    )
    system_prompt: Text | None = Field(
        None,
        description="system message of every conversation that has none of its own; {labels} in "
        "it becomes the list of `labels` with their descriptions",
    )
    labels: Annotated[list[Text], Field(min_length=2)] | None = Field(
        None, description="the labels there are; without it, those of the train rows"
    )
    answer_regex: Annotated[Text, AfterValidator(checked_pattern)] | None = Field(
        None,
        description="chat and completion: what counts of a reply, as '#### (-?[0-9.,]+)': the "
        "first group of the last match. An answer is right where it has the same; rows without "
        "are quarantined",
    )
    classification: ClassificationOptions = Field(default_factory=ClassificationOptions)
    extraction: ExtractionOptions = Field(default_factory=ExtractionOptions)
    grounded: GroundedOptions = Field(default_factory=GroundedOptions)
    normalise: NormaliseSection = Field(default_factory=NormaliseSection)
    filters: FilterSection = Field(default_factory=FilterSection)
    pii: PiiSection = Field(default_factory=PiiSection)
    near: NearSection = Field(default_factory=NearSection)
    contamination: list[ContaminationFile] = Field(
        default_factory=list,
        description="files with texts that no row may repeat, such as benchmarks",
    )
    replay: ReplaySection | None = Field(
        None, description="general instruction data mixed into train, against forgetting"
    )
    max_length_tokens: int = Field(
        1024, ge=8, description="longest row, prompt and reply, in tokens"
    )
    on_overlong: OnOverlong = Field(
        "fail",
        description="longer rows: fail (stop and name them), drop (count them), truncate (cuts "
        "replies, which the gates answer-truncated and stop-token-supervised then fail)",
    )
    on_leak: Literal["drop", "fail"] = Field(
        "drop",
        description="a text or group in two splits: drop it from train (or from validation, when "
        "test has it), or fail the gate split-leakage",
    )
    limit: dict[Split, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        description="at most so many rows of a finished split, classes in proportion, seeded",
    )
    max_quarantine_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.01, description="largest share of the records read that may be unusable"
    )
    max_label_noise: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        MAX_LABEL_NOISE, description="largest estimated share of wrong labels in train"
    )
    target_accuracy: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="accuracy wanted; advice tells when a cheap classical model reaches it"
    )
    loss_on: LossOn = Field(
        "all_assistant_turns",
        description="what is learned of a conversation: every reply, the last one, or all of it",
    )
    workers: Annotated[int, Field(ge=0)] = Field(
        0,
        description="processes; 0: as many as there are CPU cores, one for little data",
        json_schema_extra=result_free,
    )

    @model_validator(mode="after")
    def _sources_fit(self) -> Self:
        if "train" not in self.given_splits:
            raise ValueError("no source has split: train, so there is nothing to learn from")
        paths = [source.path for source in self.sources]
        twice = next((path for path in paths if paths.count(path) > 1), None)
        if twice is not None:
            raise ValueError(f"sources name {twice} twice")
        for source in self.sources:
            _check_source(source, self.task)
        weighted = [
            source.weight is not None for source in self.sources if source.split == "train"
        ]
        if any(weighted) and not all(weighted):
            raise ValueError("give every train source a weight, or none")
        return self

    @model_validator(mode="after")
    def _splits_fit(self) -> Self:
        for split, fraction in self.fractions.items():
            if split in self.given_splits:
                raise ValueError(
                    f"{split} rows come from a source and from {split}_fraction {fraction}; "
                    "keep one of the two"
                )
        if sum(self.fractions.values()) >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        for split in self.limit:
            if split not in self.given_splits | set(self.fractions):
                raise ValueError(f"limit.{split}: no source and no fraction gives {split} rows")
        for how, column, name in (
            ("group", self.group_by, "group_by"),
            ("time", self.time_by, "time_by"),
        ):
            if self.split_by == how and column is None:
                raise ValueError(f"split_by: {how} needs {name}, the column that says it")
        return self

    @model_validator(mode="after")
    def _task_fits(self) -> Self:
        if self.labels is not None and self.task != "classification":
            raise ValueError(f"labels are of no use to task: {self.task}")
        if self.system_prompt is not None and self.task in ("completion", "text"):
            raise ValueError(
                f"system_prompt is of no use to task: {self.task}, which is plain text"
            )
        if self.answer_regex is not None and self.task not in ("chat", "completion"):
            raise ValueError(
                f"answer_regex is of no use to task: {self.task}, only to chat and completion"
            )
        if self.replay is not None and self.task in ("completion", "text", "preference"):
            raise ValueError(f"replay rows are conversations and do not fit task: {self.task}")
        if self.grounded.distractors and (self.fractions or self.task != "grounded"):
            raise ValueError(
                "grounded.distractors: give every split by a source (a document of a test row "
                "must not stand among those of a train row), with task: grounded"
            )
        return self

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        for label in self.labels or ():
            if label != label.strip():
                raise ValueError(f"the label {label!r} begins or ends with white space")
        if len(set(self.labels or ())) != len(self.labels or ()):
            raise ValueError("labels name one label twice")
        if "{labels}" in (self.system_prompt or "") and self.labels is None:
            raise ValueError("system_prompt says {labels}, so `labels` must list them")
        return self

    @model_validator(mode="after")
    def _near_fits(self) -> Self:
        if self.contamination and not self.near.enabled:
            raise ValueError("contamination is looked for by the near search: set near.enabled")
        return self

    @property
    def given_splits(self) -> set[Split]:
        """The splits that sources give."""
        return {source.split for source in self.sources}

    @property
    def fractions(self) -> dict[Split, float]:
        """The splits to cut from train, with their share of it."""
        shares: dict[Split, float] = {
            "test": self.test_fraction,
            "validation": self.validation_fraction,
        }
        return {split: share for split, share in shares.items() if share > 0}

    def columns_of(self, source: Source) -> dict[str, str]:
        """What the source calls the format's columns and, where rows have them, group and time."""
        inherited = {"group": self.group_by, "time": self.time_by}
        return {name: column for name, column in inherited.items() if column} | source.columns


def _check_source(source: Source, task: Task) -> None:
    formats = formats_of(task)
    if source.format != "auto":
        names = [one.name for one in formats]
        if source.format not in names:
            raise ValueError(_unknown("format", source.format, names, source, task))
        formats = [ROW_FORMATS[source.format]]
    known = [*dict.fromkeys(column for one in formats for column in one.columns), "group", "time"]
    for column in source.columns:
        if column not in known:
            raise ValueError(_unknown("columns", column, known, source, task))
    if source.path.startswith("hub:") and source.revision is None:
        raise ValueError(f"{source.path}: needs revision, the commit that is pinned")
    if not source.path.startswith("hub:") and (source.revision or source.files):
        raise ValueError(f"{source.path}: revision and files are for hub:OWNER/NAME")


def _unknown(what: str, name: str, known: list[str], source: Source, task: Task) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    dotted = f"columns.{name}" if what == "columns" else f"format {name}"
    return f"{source.path}: {dotted} is unknown; task: {task} has {', '.join(known)}.{hint}"
