"""What the artifacts of a sample run hold: a dataset, answers, a training log."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

from dataset_files import blank_record, said, spread, write_split
from luthier.data.summary import DatasetCounts, DatasetInfo, SplitCounts
from luthier.evaluation.answers import Answer

EVIL = "<script>alert(1)</script>"
LABELS = (
    "admin", "database", "devel", "doc", "games", "graphics", "kernel", "mail", "math", "net",
    "python", "science", "sound", "web",
)  # fmt: skip
SPLIT_ROWS = {"train": 280, "validation": 42, "test": 210}


def text_of(row: int) -> str:
    return f"{EVIL} program number {row} & more" if row % 2 else f"a tool for things, number {row}"


def info_of(task: str, labels: Sequence[str]) -> DatasetInfo:
    lengths = {split: [30 + row * 7 % 61 for row in range(n)] for split, n in SPLIT_ROWS.items()}
    splits = {
        split: SplitCounts(
            rows=rows,
            classes={label: rows // len(labels) for label in labels},
            majority_class_share=0.0714 if labels else None,
            tokens=spread(lengths[split]),
            supervised_tokens=spread([3] * rows),
        )
        for split, rows in SPLIT_ROWS.items()
    }
    counts = DatasetCounts(
        read=550, generated=0, kept=532, quarantined={"empty text": 4, EVIL: 1},
        dropped={"duplicate": 13}, changed={}, splits=splits,
    )  # fmt: skip
    return DatasetInfo(
        task=task, labels=list(labels), system_prompt=f"Name the section. {EVIL}",
        splits=SPLIT_ROWS, stop_token_ids=[2], max_length_tokens=256, counts=counts,
    )  # fmt: skip


def write_dataset(folder: Path, info: DatasetInfo) -> None:
    for split, rows in SPLIT_ROWS.items():
        records = []
        for row in range(rows):
            messages = [
                said("system", "Name the section."),
                said("user", text_of(row)),
                said("assistant", expected_of(row, info.labels)),
            ]
            ids = [1] * (30 + row * 7 % 61)
            made = blank_record(split, row) | {"id": f"{split}-{row}", "messages": messages}
            records.append(
                made | {"input_ids": ids, "labels": [*[-100] * (len(ids) - 3), 1, 1, 1]}
            )
        write_split(folder, split, records)
    (folder / "quarantine.jsonl").write_text("")
    (folder / "dataset.json").write_text(info.model_dump_json())


def expected_of(row: int, labels: Sequence[str]) -> str:
    return labels[row % len(labels)] if labels else f"reply {row}"


def answers_of(system: str, share: float, labels: Sequence[str]) -> list[Answer]:
    """Answers of which about `share` are right; always the same ones."""
    generator = random.Random(system)
    answers = []
    for row in range(SPLIT_ROWS["test"]):
        expected, right = expected_of(row, labels), generator.random() < share
        wrong = labels[(row + 1 + row % 3) % len(labels)] if labels else EVIL
        said = expected if right else wrong
        answers.append(
            Answer(
                system=system, id=f"test-{row}", expected=expected, answer=said, predicted=said,
                correct=right, stop_reason="stop", label_log_probability=None,
                reference_log_probability=None if labels else -2.5,
                reference_tokens=None if labels else 4,
            )
        )  # fmt: skip
    return answers


def training_log() -> bytes:
    generator = random.Random(1)
    lines: list[dict[str, float]] = []
    for step in range(1, 95):
        loss = 2.9 * math.exp(-step / 25) + 0.3 + generator.random() * 0.2
        rate = 1e-3 * min(step / 5, (95 - step) / 90)
        lines.append({"step": step, "loss": loss, "learning_rate": rate, "grad_norm": 1.0})
        if step in (47, 94):
            lines.append({"step": step, "eval_loss": 2.9 * math.exp(-step / 25) + 0.45})
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
