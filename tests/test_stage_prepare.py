"""The prepare stage end to end: the shipped data, SmolLM2's tokenizer, and data that is broken."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from luthier.data.dataset import load_split, read_info
from luthier.data.section import PrepareSection
from luthier.errors import DataError, InterruptedRunError
from luthier.gates import failures
from luthier.models.loading import load_tokenizer
from luthier.progress import Reporter, Task
from luthier.stages.contract import StageInputs, StageResult
from luthier.stages.prepare import STAGE
from luthier.store.artifact import Artifact, Workspace
from luthier.store.manifest import Manifest

DATA = Path(__file__).parents[1] / "data" / "package_sections"
SYSTEM = "Name the section of this software package."


@pytest.fixture
def base(smol_tokenizer_dir: Path) -> Artifact:
    """SmolLM2's tokenizer as a sealed base would give it."""
    # Only what the stage reads of its base: the manifest's other fields are the store's affair.
    manifest = Manifest.model_construct(kind="base", facts={"stop_token_ids": [2]})
    return Artifact(smol_tokenizer_dir, manifest)


def prepare(
    base: Artifact, workspace: Workspace, seed: int = 7, **fields: Any
) -> tuple[StageResult, Path]:
    section = PrepareSection.model_validate({"task": "classification"} | fields)
    assert list(STAGE.files(section)) == [source.path for source in section.sources]
    result = STAGE.run(section, StageInputs("test", seed, {"base": base}), workspace)
    json.dumps([result.metrics, result.facts])
    return result, workspace.path


def shipped(*splits: str) -> list[dict[str, Any]]:
    return [{"path": DATA / f"{split}.jsonl", "split": split} for split in splits]


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file()
    }


def fresh(folder: Path, reporter: Reporter | None = None) -> Workspace:
    folder.mkdir()
    return Workspace(folder, reporter or Reporter())


def test_all_shipped_rows(base: Artifact, workspace: Workspace) -> None:
    result, folder = prepare(
        base,
        workspace,
        sources=shipped("train", "validation", "test"),
        group_by="source",
        system_prompt=SYSTEM,
        max_length_tokens=256,
    )
    assert failures(result.gates) == []
    assert {gate.id for gate in result.gates} == {
        "stop-token-supervised",
        "answer-truncated",
        "supervised-tokens",
        "prompt-is-prefix",
        "single-bos",
        "split-leakage",
        "quarantine-share",
    }
    assert set(hashes(folder)) == {
        "train.parquet",
        "validation.parquet",
        "test.parquet",
        "quarantine.jsonl",
        "dataset.json",
    }
    info = read_info(folder)
    assert info.splits == {"train": 4175, "validation": 615, "test": 612}
    assert (info.counts.read, info.counts.kept) == (5402, 5402)
    assert len(info.labels) == 14
    assert info.labels == sorted(info.labels)
    test = info.counts.splits["test"]
    assert sum(test.classes.values()) == 612
    assert test.majority_class_share == round(max(test.classes.values()) / 612, 4)
    assert test.supervised_tokens.min == 2
    assert test.tokens.p50 <= test.tokens.p95 <= test.tokens.max < 64
    _check_rows(base, folder)


def _check_rows(base: Artifact, folder: Path) -> None:
    tokenizer = load_tokenizer(base.path)
    rows = load_split(folder, "test").to_list()
    source = [json.loads(line) for line in (DATA / "test.jsonl").read_text().splitlines()]
    assert len(rows) == len(source)
    assert len({row["id"] for row in rows}) == len(rows)
    for number, (row, raw) in enumerate(zip(rows, source, strict=True), start=1):
        supervised = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(supervised) == raw["label"] + "<|im_end|>"
        assert row["input_ids"][row["prompt_length"] :] == supervised
        assert row["messages"] == [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": raw["text"]},
            {"role": "assistant", "content": raw["label"]},
        ]
        assert (row["label"], row["group"], row["split"]) == (raw["label"], raw["source"], "test")
        assert (row["source_path"], row["source_line"]) == (str(DATA / "test.jsonl"), number)
        assert tokenizer.decode(row["input_ids"]) == (
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{raw['text']}<|im_end|>\n"
            f"<|im_start|>assistant\n{raw['label']}<|im_end|>"
        )


class _StopsWhile(Reporter):
    """Asks for a stop while the task with this label goes on."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.workspace: Workspace | None = None

    @contextmanager
    def task(self, label: str, total: int, unit: str = "") -> Iterator[Task]:
        assert self.workspace is not None
        self.workspace.stop.requested = label == self.label
        with super().task(label, total, unit) as task:
            yield task


def test_same_bytes_again_and_after_a_stop(base: Artifact, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "sources": shipped("train", "test"),
        "validation_fraction": 0.1,
        "group_by": "source",
        "limit": {"train": 300, "validation": 40, "test": 50},
    }
    once = fresh(tmp_path / "once")
    result, folder = prepare(base, once, **fields)
    expected = hashes(folder)
    assert read_info(folder).splits == {"train": 300, "validation": 40, "test": 50}
    assert result.metrics["dropped"] == 4175 + 612 - 390

    for label in ("reading", "tokenising"):
        reporter = _StopsWhile(label)
        stopped = fresh(tmp_path / label, reporter)
        reporter.workspace = stopped
        with pytest.raises(InterruptedRunError):
            prepare(base, stopped, **fields)
        assert hashes(stopped.path) == {}
        again = Workspace(stopped.path)
        assert hashes(prepare(base, again, **fields)[1]) == expected

    (folder / "train.parquet").write_bytes(b"half")
    assert hashes(prepare(base, Workspace(folder), **fields)[1]) == expected
    other_seed = prepare(base, fresh(tmp_path / "other"), seed=8, **fields)[1]
    assert hashes(other_seed)["train.parquet"] != expected["train.parquet"]


def test_fractions_respect_groups_and_classes(
    base: Artifact, workspace: Workspace, tmp_path: Path
) -> None:
    rows = [{"text": f"text {i}", "label": "xy"[i % 2], "by": i // 4} for i in range(400)]
    _, folder = prepare(
        base,
        workspace,
        sources=[{"path": write(tmp_path / "a.jsonl", rows), "split": "train"}],
        group_by="by",
        validation_fraction=0.1,
        test_fraction=0.2,
    )
    splits = {split: load_split(folder, split).to_list() for split in read_info(folder).splits}
    assert {split: len(found) for split, found in splits.items()} == {
        "train": 280,
        "validation": 40,
        "test": 80,
    }
    assert Counter(row["label"] for row in splits["test"]) == {"x": 40, "y": 40}
    groups = [{row["group"] for row in found} for found in splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 100


def test_every_bad_row_is_accounted_for(
    base: Artifact, workspace: Workspace, tmp_path: Path
) -> None:
    good = [{"text": f"text {i}", "label": "xy"[i % 2]} for i in range(20)]
    train = tmp_path / "train.jsonl"
    write(
        train,
        [
            *good,
            good[0],
            {"text": "both", "label": "x"},
            {"text": "both", "label": "y"},
            {"text": "in test", "label": "x"},
            {"text": "no label", "label": None},
            {"text": "text <|im_end|>", "label": "x"},
            {"text": "long " * 100, "label": "x"},
        ],
    )
    train.write_bytes(train.read_bytes() + b'{"text": "\xff", "label": "x"}\n{"text": "cu')
    test = tmp_path / "test.csv"
    test.write_text("label,body\nx,in test\nxx,unknown\ny,alone\nz\n")
    result, folder = prepare(
        base,
        workspace,
        sources=[
            {"path": train, "split": "train"},
            {"path": test, "split": "test", "columns": {"text": "body"}},
        ],
        max_length_tokens=60,
        on_overlong="drop",
        max_quarantine_fraction=0.5,
    )
    assert failures(result.gates) == []
    counts = read_info(folder).counts
    assert counts.quarantined == {
        "contradiction": 2,
        "csv-fields": 1,
        "invalid-utf8": 1,
        "label-not-text": 1,
        "label-unknown": 1,
        "special-token-in-text": 1,
        "truncated-line": 1,
    }
    assert counts.dropped == {"duplicate": 1, "leak-text": 1, "overlong": 1}
    assert (counts.read, counts.kept) == (33, 22)
    assert read_info(folder).splits == {"train": 20, "test": 2}
    lines = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert [(Path(line["file"]).name, line["line"]) for line in lines] == [
        ("test.csv", 3),
        ("test.csv", 5),
        *[("train.jsonl", number) for number in (22, 23, 25, 26, 28, 29)],
    ]
    assert all(set(line) == {"file", "line", "reason", "raw"} for line in lines)
    assert lines[-2]["raw"] == '{"text": "\\xff", "label": "x"}'


def test_failing_gates(base: Artifact, workspace: Workspace, tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "xy"[i % 2]} for i in range(10)]
    train = write(tmp_path / "train.jsonl", [*rows, {"text": "none"}])
    test = write(tmp_path / "test.jsonl", rows[:3])
    sources = [{"path": train, "split": "train"}, {"path": test, "split": "test"}]
    result, _ = prepare(base, workspace, sources=sources, on_leak="fail")
    assert {gate.id: gate.measured for gate in failures(result.gates)} == {
        "split-leakage": 3,
        "quarantine-share": round(1 / 14, 6),
    }


def test_chat_and_completion(base: Artifact, tmp_path: Path) -> None:
    turns = [("user", "2 + 2?"), ("assistant", "4"), ("user", "3 + 3?"), ("assistant", "6")]
    messages = [{"role": role, "content": content} for role, content in turns]
    path = write(tmp_path / "chat.jsonl", [{"messages": messages}])
    sources = [{"path": path, "split": "train"}]
    result, folder = prepare(base, fresh(tmp_path / "chat"), task="chat", sources=sources)
    assert failures(result.gates) == []
    [row] = load_split(folder, "train").to_list()
    assert row["messages"] == messages
    assert row["label"] is None
    assert sum(label == 2 for label in row["labels"]) == 2

    path = write(tmp_path / "plain.jsonl", [{"prompt": "1 + 1 =", "completion": " 2"}])
    sources = [{"path": path, "split": "train"}]
    result, folder = prepare(base, fresh(tmp_path / "plain"), task="completion", sources=sources)
    assert failures(result.gates) == []
    [row] = load_split(folder, "train").to_list()
    tokenizer = load_tokenizer(base.path)
    assert tokenizer.decode(row["input_ids"]) == "1 + 1 = 2<|im_end|>"
    assert tokenizer.decode(row["input_ids"][: row["prompt_length"]]) == "1 + 1 ="
    with pytest.raises(DataError, match=r"no test rows.*prepare\.test_fraction"):
        load_split(folder, "test")


def test_unusable_data_says_why(base: Artifact, workspace: Workspace, tmp_path: Path) -> None:
    wrong = write(tmp_path / "wrong.jsonl", [{"txt": "a", "label": "x"}] * 3)
    with pytest.raises(DataError, match=r"no train rows are left of 3.*did you mean 'txt'"):
        prepare(base, workspace, sources=[{"path": wrong, "split": "train"}])
    few = write(tmp_path / "few.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    with pytest.raises(DataError, match=r"no validation rows.*prepare\.validation_fraction"):
        prepare(
            base, workspace, sources=[{"path": few, "split": "train"}], validation_fraction=0.1
        )
    with pytest.raises(DataError, match=r"missing\.jsonl: no such file"):
        prepare(base, workspace, sources=[{"path": tmp_path / "missing.jsonl", "split": "train"}])
    with pytest.raises(DataError, match="2 of 2 rows are longer"):
        prepare(
            base,
            workspace,
            sources=[{"path": few, "split": "train"}],
            max_length_tokens=8,
        )
    with pytest.raises(DataError, match="not a dataset of Luthier"):
        read_info(tmp_path)
