"""Stage `prepare`: raw files become the tokenised rows that training and evaluation read.

Every record is read strictly; what cannot be used goes to quarantine.jsonl with file, line and
reason. Rows are cleaned (labels, contradictions, duplicates, texts that stand in two splits),
split, limited, and tokenised once with the base's own template. The gates measure the tokens.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.data import checks, cleaning, splits, tokens
from luthier.data.dataset import write_dataset
from luthier.data.formats import ROW_FORMATS, to_row
from luthier.data.readers import check_source, read_file
from luthier.data.rows import Ledger, Rejected, Row, RowError
from luthier.data.section import PrepareSection, Source
from luthier.data.summary import DatasetCounts, DatasetInfo, count
from luthier.data.tokens import Encoding, TokenizedRow
from luthier.errors import DataError
from luthier.gates import Gate
from luthier.models.loading import load_tokenizer
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.store.artifact import Artifact, Workspace

_BATCH_ROWS = 256


def run(section: PrepareSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Read, clean, split, tokenise, measure, write.

    Raises:
        DataError: a source cannot be read, no row is left to train on, or a row is too long.
    """
    encoding = _encoding(section, inputs["base"])
    started = time.monotonic()
    ledger = Ledger()
    rows = _read(section, ledger, workspace)
    rows, labels = _clean(section, rows, ledger)
    rows = splits.cut(rows, section.fractions, inputs.seed)
    rows = splits.limited(rows, section.limit, inputs.seed, ledger)
    read = time.monotonic()
    tokenized = _tokenize(rows, encoding, ledger, workspace)
    gates = _gates_before_limit(tokenized, encoding)
    tokenized = tokens.fit(tokenized, section.max_length_tokens, section.on_overlong, ledger)
    _check_splits(section, tokenized, ledger)
    gates += _gates(section, tokenized, encoding, ledger)
    counts = count(tokenized, labels, ledger)
    info = _info(section, labels, encoding, counts)
    write_dataset(workspace.path, tokenized, ledger.quarantined, info)
    timings = {"read": read - started, "tokenize": time.monotonic() - read}
    return StageResult(_metrics(counts), gates, {"counts": counts.model_dump()}, timings)


def _encoding(section: PrepareSection, base: Artifact) -> Encoding:
    stop_token_ids = [int(token_id) for token_id in base.manifest.facts["stop_token_ids"]]
    return Encoding(load_tokenizer(base.path), stop_token_ids, section.task, section.loss_on)


def _read(section: PrepareSection, ledger: Ledger, workspace: Workspace) -> list[Row]:
    rows: list[Row] = []
    with workspace.reporter.task("reading", len(section.sources), "files") as task:
        for source in section.sources:
            rows += _read_source(section, source, ledger, workspace)
            task.advance(rows=len(rows), quarantined=len(ledger.quarantined))
    return rows


def _read_source(
    section: PrepareSection, source: Source, ledger: Ledger, workspace: Workspace
) -> list[Row]:
    row_format, columns = ROW_FORMATS[section.task], section.columns_of(source)
    rows = []
    for record in read_file(source.path, source.path.as_posix()):
        if ledger.read % _BATCH_ROWS == 0:
            workspace.raise_if_stopped()
        ledger.read += 1
        if isinstance(record, Rejected):
            ledger.quarantine(record)
            continue
        try:
            rows.append(to_row(record, row_format, columns, source.split, section.system_prompt))
        except RowError as error:
            ledger.quarantine(Rejected(record.file, record.line, str(error), record.raw))
    return rows


def _clean(
    section: PrepareSection, rows: list[Row], ledger: Ledger
) -> tuple[list[Row], list[str]]:
    labels: list[str] = []
    if section.task == "classification":
        labels = sorted(section.labels or {str(r.label) for r in rows if r.split == "train"})
        rows = cleaning.known_labels(rows, labels, ledger)
        rows = cleaning.without_contradictions(rows, ledger)
    rows = cleaning.without_duplicates(rows, ledger)
    if section.on_leak == "drop":
        rows = cleaning.without_leaks(rows, ledger)
    return rows, labels


def _tokenize(
    rows: Sequence[Row], encoding: Encoding, ledger: Ledger, workspace: Workspace
) -> list[TokenizedRow]:
    tokenized: list[TokenizedRow] = []
    with workspace.reporter.task("tokenising", len(rows), "rows") as task:
        for start in range(0, len(rows), _BATCH_ROWS):
            workspace.raise_if_stopped()
            batch = rows[start : start + _BATCH_ROWS]
            tokenized += tokens.tokenize(batch, encoding, ledger)
            task.advance(len(batch))
    return tokenized


def _check_splits(section: PrepareSection, rows: Sequence[TokenizedRow], ledger: Ledger) -> None:
    """Every split that the section names must have rows."""
    named = {source.split for source in section.sources} | set(section.fractions)
    for split in sorted(named - {row.row.split for row in rows}):
        advice = "Mend the data or its columns in prepare.sources."
        if split in section.fractions:
            advice = f"Raise prepare.{split}_fraction, or give {split} rows by a source."
        raise DataError(
            f"prepare: no {split} rows are left of {ledger.read} records "
            f"({ledger.why()}). {advice}"
        )


def _gates_before_limit(rows: Sequence[TokenizedRow], encoding: Encoding) -> list[Gate]:
    tokenizer = encoding.tokenizer
    return [
        checks.prompt_is_prefix(rows),
        checks.single_bos(rows, tokenizer.bos_token, tokenizer.bos_token_id),
    ]


def _gates(
    section: PrepareSection, rows: Sequence[TokenizedRow], encoding: Encoding, ledger: Ledger
) -> list[Gate]:
    return [
        checks.stop_token_supervised(rows, encoding.stop_token_ids),
        checks.answer_truncated(rows),
        checks.supervised_tokens(rows),
        checks.split_leakage([row.row for row in rows]),
        checks.quarantine_share(ledger, section.max_quarantine_fraction),
    ]


def _info(
    section: PrepareSection, labels: list[str], encoding: Encoding, counts: DatasetCounts
) -> DatasetInfo:
    return DatasetInfo(
        task=section.task,
        labels=labels,
        system_prompt=section.system_prompt,
        splits={split: found.rows for split, found in counts.splits.items()},
        stop_token_ids=list(encoding.stop_token_ids),
        max_length_tokens=section.max_length_tokens,
        counts=counts,
    )


def _metrics(counts: DatasetCounts) -> dict[str, Any]:
    train = counts.splits["train"]
    return {
        "rows": {split: found.rows for split, found in counts.splits.items()},
        "quarantined": sum(counts.quarantined.values()),
        "dropped": sum(counts.dropped.values()),
        "train_tokens": train.tokens.total,
        "train_supervised_tokens": train.supervised_tokens.total,
        "majority_class_share": {
            split: found.majority_class_share for split, found in counts.splits.items()
        },
    }


def _files(section: PrepareSection) -> Sequence[Path]:
    for source in section.sources:
        check_source(source.path)
    return [source.path for source in section.sources]


STAGE = Stage(
    name="prepare",
    order=20,
    summary="read, clean, split and tokenise the data",
    makes="dataset",
    version=1,
    section=PrepareSection,
    run=run,
    slots=(Slot("base", "base", ("base",)),),
    uses_seed=True,
    packages=("transformers", "tokenizers"),
    files=_files,
)
