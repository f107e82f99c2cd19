"""Datasets as prepare leaves them, of real tokens: conversations with tools, emoji, text from
right to left and markup, and preferences."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dataset_files import blank_record, said, spread, write_split
from luthier.config import RunConfig
from luthier.data.rows import Split
from luthier.data.summary import (
    Advice,
    Classical,
    DatasetCounts,
    DatasetInfo,
    NearCounts,
    NearExample,
    PiiCounts,
    SourceRead,
    SplitCounts,
)
from luthier.models.loading import load_tokenizer
from luthier.pipeline import load_run
from luthier.store import ExternalFile, Store
from report_cases import Sample, seal
from report_contents import EVIL

STOP = 2  # SmolLM2's <|im_end|>
LABELS = ("games", "science")
FAMILY, HEBREW = "👩‍👩‍👧‍👦 naïve 数据", "שלום עולם, abc"

TEXTS: Sequence[Sequence[Mapping[str, Any]]] = (
    [said("user", f"Name it: {EVIL} & <b>more</b>"), said("assistant", "games")],
    [said("user", f"Echo {FAMILY}"), said("assistant", FAMILY)],
    [said("user", HEBREW), said("assistant", "science\nand two\tlines")],
    [
        said("system", "Be short."),
        said("user", "Weather in Oslo?"),
        said("assistant", "", tool_calls=json.dumps([{"function": {"name": "get_weather"}}])),
        said("tool", "4 degrees", tool_call_id="c1", name="get_weather"),
        said("assistant", "Four degrees."),
        said("user", "Thanks \x1b[2J"),
        said("assistant", "Any time."),
    ],
)


@cache
def tokenizer_of(folder: Path) -> Any:
    return load_tokenizer(folder)


def tokens_of(
    messages: Sequence[Mapping[str, Any]], tokenizer: Any
) -> tuple[list[int], list[int]]:
    """Ids and labels in SmolLM2's format: each reply with its stop token has a loss."""
    ids: list[int] = []
    labels: list[int] = []
    for message in messages:
        text = message["content"] or message["tool_calls"] or ""
        head = tokenizer(f"<|im_start|>{message['role']}\n")["input_ids"]
        reply = [*tokenizer(text)["input_ids"], STOP]
        tail = tokenizer("\n")["input_ids"]
        trained = reply if message["role"] == "assistant" else [-100] * len(reply)
        ids += [*head, *reply, *tail]
        labels += [-100] * len(head) + trained + [-100] * len(tail)
    return ids[: -len(tail)], labels[: -len(tail)]


def record(split: str, row: int, tokenizer: Any) -> dict[str, Any]:
    """Row `row` of a split: the texts in turn, the longest at 7."""
    messages = list(TEXTS[row % len(TEXTS)])
    if row == 7:
        messages = [said("user", "long " * 100), *messages[-1:]]
    ids, labels = tokens_of(messages, tokenizer)
    return blank_record(split, row) | {
        "group": f"group {row}" if row == 3 else None, "origin": "replay" if row == 5 else "data",
        "messages": messages, "label": LABELS[row % 2], "input_ids": ids, "labels": labels,
    }  # fmt: skip


def pair(split: str, row: int, tokenizer: Any) -> dict[str, Any]:
    """A preference: a prompt, and two replies of which the second is longer."""
    prompt = [said("user", f"Which is it, number {row}? {EVIL}")]
    chosen, rejected = said("assistant", "Short."), said("assistant", f"Very {'very ' * row}long.")
    ids = {
        name: tokens_of([message], tokenizer)[0]
        for name, message in (("prompt", prompt[0]), ("chosen", chosen), ("rejected", rejected))
    }
    return blank_record(split, row) | {
        "messages": prompt, "chosen": [chosen], "rejected": [rejected],
        **{f"{name}_ids": found for name, found in ids.items()},
    }  # fmt: skip


def split_counts(records: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> SplitCounts:
    if "prompt_ids" in records[0]:
        trained = [len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in records]
        tokens = [len(row["prompt_ids"]) + n for row, n in zip(records, trained, strict=True)]
    else:
        tokens = [len(row["input_ids"]) for row in records]
        trained = [sum(label != -100 for label in row["labels"]) for row in records]
    found = {label: sum(row.get("label") == label for row in records) for label in labels}
    return SplitCounts(
        rows=len(records), classes=found, tokens=spread(tokens), supervised_tokens=spread(trained),
        majority_class_share=max(found.values()) / len(records) if found else None,
    )  # fmt: skip


def full_info(splits: Mapping[Split, Sequence[Mapping[str, Any]]], task: Any) -> DatasetInfo:
    """dataset.json with something in every field."""
    labels = LABELS if task == "classification" else ()
    kept = sum(len(rows) for rows in splits.values())
    near = NearExample(
        kind="leak-near", left_out="data/train.jsonl:91", because_of="data/test.jsonl:4",
        similarity=0.913, text=f"a text {EVIL} one", other="a text that is much like it",
    )  # fmt: skip
    return DatasetInfo(
        task=task, labels=list(labels), system_prompt=f"Be good. {EVIL}",
        splits={split: len(rows) for split, rows in splits.items()},
        stop_token_ids=[STOP], max_length_tokens=1024,
        counts=DatasetCounts(
            read=kept + 38, generated=2, kept=kept, quarantined={"empty-text": 12, EVIL: 1},
            dropped={"duplicate": 20, "leak-near": 7}, changed={"unicode-nfc": 3},
            splits={split: split_counts(rows, labels) for split, rows in splits.items()},
        ),
        sources=[
            SourceRead(
                path=f"data/{EVIL}/{split}.jsonl", split=split, format="messages",
                reason="every record has a list `messages`", read=19, quarantined=6,
            )
            for split in splits
        ],
        near=NearCounts(
            jaccard=0.8, rows=1234, near_duplicates=5, leaks=7, ngram_leaks=2,
            contaminated={f"bench/{EVIL}.jsonl": 3}, examples=[near],
        ),
        pii=PiiCounts(rows={"email": 4}, redacted=False, examples=["train.jsonl:3 email j…@…"]),
        classical=Classical(
            split="test", rows=50, accuracy=0.7312, macro_f1=0.71, majority=0.21,
            reaches_target=True,
        ),
        label_noise={"rows": 200, "suspicious": [{"where": "data/train.jsonl:9", "label": EVIL}]},
        advice=[
            Advice(id="few-rows", level="warn", text=f"Only {kept} rows. {EVIL}"),
            Advice(id="majority", level="info", text="Two classes of the same size."),
        ],
    )  # fmt: skip


def quarantine() -> str:
    """25 lines of quarantine.jsonl."""
    rows = (
        {"file": "data/train.jsonl", "line": n + 1, "reason": "empty-text: nothing in it",
         "raw": f'{{"text": "{EVIL} {n}"}}'}
        for n in range(25)
    )  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in rows)


def make_dataset(
    folder: Path,
    tokenizer_dir: Path,
    *,
    task: str = "classification",
    sizes: Mapping[Split, int] | None = None,
) -> Sample:
    """A base and a dataset in the store `folder/artifacts`; the config is `folder/rows.yaml`."""
    is_pairs = task == "preference"
    make, tokenizer = pair if is_pairs else record, tokenizer_of(tokenizer_dir)
    sizes = sizes or {"train": 20, "test": 4}
    splits = {
        split: [make(split, row, tokenizer) for row in range(n)] for split, n in sizes.items()
    }

    def write(folder: Path) -> None:
        for split, rows in splits.items():
            write_split(folder, split, rows, is_pairs=is_pairs)
        (folder / "quarantine.jsonl").write_text(quarantine(), encoding="utf-8")
        info = full_info(splits, task)
        (folder / "dataset.json").write_text(info.model_dump_json(), encoding="utf-8")

    run = Sample(_config(folder, tokenizer_dir), Store(folder / "artifacts"), {})
    tokenizer_files = {path.name: path.read_bytes() for path in tokenizer_dir.iterdir()}
    raw = ExternalFile(path="data/train.jsonl", size_bytes=123, sha256="ab" * 32)
    seal(run, "base", tokenizer_files, facts={"vocabulary_size": len(tokenizer)})
    seal(
        run, "prepare", {}, write=write, kind="preferences" if is_pairs else "dataset",
        metrics={"rows": dict(sizes)}, external_files=[raw],
    )  # fmt: skip
    return run


def _config(folder: Path, base: Path) -> RunConfig:
    path = folder / "rows.yaml"
    path.write_text(
        f"name: rows\nbase: {{model: {base}}}\n"
        "prepare: {task: chat, sources: [{path: train.jsonl, split: train}]}\n",
        encoding="utf-8",
    )
    return load_run(str(path), [])
