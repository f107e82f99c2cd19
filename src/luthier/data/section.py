"""The `prepare:` section of a run config."""

import difflib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import model_validator

from luthier.config import Field, Section
from luthier.data.formats import ROW_FORMATS
from luthier.data.rows import Split, Task
from luthier.data.tokens import LossOn, OnOverlong

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Text = Annotated[str, Field(min_length=1)]


class Source(Section):
    """One data file."""

    path: Path = Field(description="JSONL (.jsonl, .ndjson), CSV (.csv) or TSV (.tsv) file")
    split: Split = Field(description="what its rows are for: train, validation or test")
    columns: dict[str, Text] = Field(
        default_factory=dict,
        description="what this file calls the task's columns and `group`, e.g. {text: body}",
    )


class PrepareSection(Section):
    """Which rows, how they become splits and tokens, and what to do with bad ones."""

    task: Task = Field(
        description="classification (columns text, label), chat (messages) or completion "
        "(prompt, completion: plain text, no chat template)"
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
    group_by: Text | None = Field(
        None,
        description="column whose equal values are never in two splits, e.g. one author's rows",
    )
    system_prompt: Text | None = Field(
        None, description="system message of every conversation that has none of its own"
    )
    labels: Annotated[list[Text], Field(min_length=2)] | None = Field(
        None, description="the labels there are; without it, those of the train rows"
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
    loss_on: LossOn = Field(
        "all_assistant_turns", description="which replies of a conversation are learned"
    )

    @model_validator(mode="after")
    def _sources_fit(self) -> Self:
        given = {source.split for source in self.sources}
        if "train" not in given:
            raise ValueError("no source has split: train, so there is nothing to learn from")
        paths = [source.path for source in self.sources]
        twice = next((path for path in paths if paths.count(path) > 1), None)
        if twice is not None:
            raise ValueError(f"sources name {twice} twice")
        for source in self.sources:
            _check_columns(source, self.task)
        return self

    @model_validator(mode="after")
    def _splits_fit(self) -> Self:
        given = {source.split for source in self.sources}
        for split, fraction in self.fractions.items():
            if split in given:
                raise ValueError(
                    f"{split} rows come from a source and from {split}_fraction {fraction}; "
                    "keep one of the two"
                )
        if sum(self.fractions.values()) >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        for split in self.limit:
            if split not in given | set(self.fractions):
                raise ValueError(f"limit.{split}: no source and no fraction gives {split} rows")
        return self

    @model_validator(mode="after")
    def _task_fits(self) -> Self:
        if self.labels is not None and self.task != "classification":
            raise ValueError(f"labels are of no use to task: {self.task}")
        if self.system_prompt is not None and self.task == "completion":
            raise ValueError("system_prompt is of no use to task: completion, which is plain text")
        for label in self.labels or ():
            if label != label.strip():
                raise ValueError(f"the label {label!r} begins or ends with white space")
        if len(set(self.labels or ())) != len(self.labels or ()):
            raise ValueError("labels name one label twice")
        return self

    @property
    def fractions(self) -> dict[Split, float]:
        """The splits to cut from train, with their share of it."""
        shares: dict[Split, float] = {
            "test": self.test_fraction,
            "validation": self.validation_fraction,
        }
        return {split: share for split, share in shares.items() if share > 0}

    def columns_of(self, source: Source) -> dict[str, str]:
        """The source's names for the task's columns and, where rows have groups, `group`."""
        inherited = {"group": self.group_by} if self.group_by is not None else {}
        return inherited | source.columns


def _check_columns(source: Source, task: Task) -> None:
    known = [*ROW_FORMATS[task].columns, "group"]
    for column in source.columns:
        if column not in known:
            near = difflib.get_close_matches(column, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"{source.path}: columns.{column} is unknown; task: {task} has "
                f"{', '.join(known)}.{hint}"
            )
