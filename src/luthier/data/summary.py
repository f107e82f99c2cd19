"""What a dataset holds, in numbers: the contents of dataset.json."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from luthier.data.rows import Split, Task


class Record(BaseModel):
    """A part of dataset.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Spread(Record):
    """How a count of tokens is spread over rows; percentiles are the nearest rank.

    `histogram` holds rows with 0, 1, 2 to 3, 4 to 7, ... tokens: bin k ends before 2 ** k.
    """

    min: int
    mean: float
    p50: int
    p95: int
    max: int
    total: int
    histogram: list[int]


class SplitCounts(Record):
    """One split: rows, rows a class, tokens a row and those with a loss."""

    rows: int
    classes: dict[str, int] = Field(description="rows of each label, absent ones as 0")
    majority_class_share: float | None = Field(description="accuracy of always saying the largest")
    tokens: Spread
    supervised_tokens: Spread


class DatasetCounts(Record):
    """Where every record went: read + generated = kept + all quarantined + all dropped."""

    read: int
    generated: int = Field(description="rows made here: answers of the base, unanswerable rows")
    kept: int
    quarantined: dict[str, int]
    dropped: dict[str, int]
    changed: dict[str, int] = Field(description="rows whose text a rule changed, by rule")
    splits: dict[Split, SplitCounts]


class SourceRead(Record):
    """One file as it was read: its format, and why it was taken for that."""

    path: str
    split: Split
    format: str
    reason: str
    read: int
    quarantined: int


class NearExample(Record):
    """Two rows that are nearly the same: `file:line` of both, shared share of shingles, texts."""

    kind: Literal["near-duplicate", "leak-near", "leak-ngram", "contaminated"]
    left_out: str
    because_of: str
    similarity: float
    text: str
    other: str


class NearCounts(Record):
    """What the search for near duplicates looked at and found. None of it when switched off."""

    jaccard: float
    rows: int
    near_duplicates: int
    leaks: int
    ngram_leaks: int
    contaminated: dict[str, int] = Field(description="rows, by contamination file")
    examples: list[NearExample]


class Advice(Record):
    """Something to know before paying for a GPU."""

    id: str
    level: Literal["info", "warn"]
    text: str


class Classical(Record):
    """What a cheap classical model reaches on the same splits: TF-IDF and a linear model."""

    split: Split
    rows: int
    accuracy: float
    macro_f1: float
    majority: float
    reaches_target: bool | None


class PiiCounts(Record):
    """Personal data found: rows a kind, over all rows read; redacted or not."""

    rows: dict[str, int]
    redacted: bool
    examples: list[str] = Field(description="file:line kind, the value masked")


class DatasetInfo(Record):
    """dataset.json: what the rows are for, how they were tokenised, and what was counted."""

    schema_version: int = 2
    task: Task
    labels: list[str]
    system_prompt: str | None
    answer_regex: str | None = None
    splits: dict[Split, int]
    stop_token_ids: list[int]
    max_length_tokens: int
    counts: DatasetCounts
    sources: list[SourceRead] = Field(default_factory=list)
    near: NearCounts | None = None
    pii: PiiCounts | None = None
    classical: Classical | None = None
    label_noise: dict[str, Any] | None = None
    advice: list[Advice] = Field(default_factory=list)
