"""The prepare stage end to end: the shipped data, SmolLM2's tokenizer, and data that is broken."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from luthier.data.dataset import load_split, read_info, split_files
from luthier.data.rows import SPLITS, Split
from luthier.data.section import PrepareSection
from luthier.errors import ConfigError, DataError
from luthier.models.loading import load_tokenizer
from luthier.stages import preferences
from luthier.stages.prepare import STAGE
from luthier.store.artifact import Artifact, Workspace
from prepare_cases import (
    SECTIONS,
    Prepared,
    StopsWhile,
    hashes,
    prepare,
    section_rows,
    stopped,
    train,
    write,
)

pytest_plugins = "prepare_fixtures"

SYSTEM = "Name the section of this software package."
GATES = {
    "stop-token-supervised",
    "answer-truncated",
    "supervised-tokens",
    "prompt-is-prefix",
    "single-bos",
    "template-renders",
    "template-parity",
    "split-leakage",
    "quarantine-share",
    "vocabulary-grows",
    "label-hygiene",
    "label-noise",
    "label-shift",
}


def shipped(*splits: str) -> list[dict[str, Any]]:
    return [{"path": str(SECTIONS / f"{split}.jsonl"), "split": split} for split in splits]


class Work(NamedTuple):
    """A config's fields, what came of them, and its hashes."""

    fields: dict[str, Any]
    found: Prepared
    hashes: dict[str, str]


@pytest.fixture(scope="module")
def sections(smol_base: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The shipped rows of package_sections, prepared."""
    return prepare(
        smol_base,
        tmp_path_factory.mktemp("sections") / "workspace",
        sources=shipped(*SPLITS),
        group_by="source",
        system_prompt=SYSTEM,
        max_length_tokens=256,
    )


def test_all_shipped_rows(sections: Prepared) -> None:
    assert sections.failing == []
    assert set(sections.gates) == GATES
    assert set(hashes(sections.path)) == {
        "train-00000.parquet",
        "validation-00000.parquet",
        "test-00000.parquet",
        "quarantine.jsonl",
        "dataset.json",
    }
    assert all(len(split_files(sections.path, split)) == 1 for split in SPLITS)
    info = sections.info
    assert (info.schema_version, info.task, info.system_prompt) == (2, "classification", SYSTEM)
    assert (info.counts.read, info.counts.generated, info.counts.quarantined) == (5402, 0, {})
    left_out = sum(info.counts.dropped.values())
    assert set(info.counts.dropped) == {"leak-near"}
    assert info.near is not None
    assert left_out == info.near.leaks
    assert info.splits["test"] == 612
    assert sum(info.splits.values()) == 5402 - left_out
    assert len(info.labels) == 14
    assert info.labels == sorted(info.labels)
    test = info.counts.splits["test"]
    assert sum(test.classes.values()) == 612
    assert test.majority_class_share == round(max(test.classes.values()) / 612, 4)
    assert test.supervised_tokens.min == 2
    assert test.tokens.p50 <= test.tokens.p95 <= test.tokens.max < 64
    assert sum(test.tokens.histogram) == 612
    assert set(sections.result.timings_seconds) == {"read", "decide", "near", "write", "measure"}


def test_every_source_says_how_it_was_read(sections: Prepared) -> None:
    found = {source.split: source for source in sections.info.sources}
    assert {split: source.read for split, source in found.items()} == {
        "train": 4175,
        "validation": 615,
        "test": 612,
    }
    assert {source.format for source in found.values()} == {"classification"}
    assert "column 'text' holds" in found["train"].reason
    assert found["train"].path == str(SECTIONS / "train.jsonl")


def test_findings_about_labels_are_told(sections: Prepared) -> None:
    info = sections.info
    assert info.classical is not None
    assert (info.classical.split, info.classical.rows) == ("test", 612)
    assert 0.78 < info.classical.accuracy < 0.88
    assert info.label_noise is not None
    suspects = info.label_noise["suspects"]
    assert len(suspects) == 50
    train_file = (SECTIONS / "train.jsonl").read_text(encoding="utf-8").splitlines()
    for suspect in suspects:
        path, _, line = suspect["where"].rpartition(":")
        row = json.loads(train_file[int(line) - 1])
        assert path == str(SECTIONS / "train.jsonl")
        assert (suspect["text"], suspect["given"]) == (row["text"][:200], row["label"])
    assert info.advice


def test_rows_are_tokens_of_their_source(smol_base: Artifact, sections: Prepared) -> None:
    tokenizer = load_tokenizer(smol_base.path)
    rows, source = sections.rows("test"), section_rows("test")
    assert len(rows) == len(source)
    assert len({row["id"] for row in rows}) == len(rows)
    for number, (row, raw) in enumerate(zip(rows, source, strict=True), start=1):
        supervised = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(supervised) == raw["label"] + "<|im_end|>"
        assert row["input_ids"][row["prompt_length"] :] == supervised
        assert [(one["role"], one["content"]) for one in row["messages"]] == [
            ("system", SYSTEM),
            ("user", raw["text"]),
            ("assistant", raw["label"]),
        ]
        assert (row["label"], row["group"], row["split"]) == (raw["label"], raw["source"], "test")
        assert (row["source_path"], row["source_line"]) == (str(SECTIONS / "test.jsonl"), number)
        assert (row["origin"], row["tools"], row["output"]) == ("data", None, None)
        assert tokenizer.decode(row["input_ids"]) == (
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{raw['text']}<|im_end|>\n"
            f"<|im_start|>assistant\n{raw['label']}<|im_end|>"
        )


def test_the_stage_names_the_files_that_it_reads(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text("{}")
    rows, prompts = write(tmp_path / "a.jsonl", [{}]), write(tmp_path / "prompts.jsonl", [{}])
    section = PrepareSection.model_validate(
        {
            "task": "extraction",
            "sources": [train(rows), {"path": str(tmp_path / "b*.jsonl"), "split": "test"}],
            "extraction": {"json_schema": str(tmp_path / "schema.json")},
            "contamination": [{"path": write(tmp_path / "known.jsonl", [{}])}],
            "replay": {"prompts": prompts},
        }
    )
    write(tmp_path / "b2.jsonl", [{}])
    write(tmp_path / "b1.jsonl", [{}])
    names = [path.name for path in STAGE.files(section)]
    assert names == [
        "a.jsonl",
        "b1.jsonl",
        "b2.jsonl",
        "known.jsonl",
        "prompts.jsonl",
        "schema.json",
    ]


def test_pairs_and_rows_have_sections_of_their_own() -> None:
    pairs = PrepareSection.model_validate({"task": "preference", "sources": [train("a.jsonl")]})
    rows = PrepareSection.model_validate({"task": "chat", "sources": [train("a.jsonl")]})
    STAGE.check(rows, frozenset())
    preferences.STAGE.check(pairs, frozenset())
    with pytest.raises(ConfigError, match="Put the section under `preferences:`"):
        STAGE.check(pairs, frozenset())
    with pytest.raises(ConfigError, match="Other rows belong under `prepare:`"):
        preferences.STAGE.check(rows, frozenset())


LIMITED: dict[str, Any] = {
    "sources": [train(SECTIONS / "validation.jsonl"), *shipped("test")],
    "validation_fraction": 0.1,
    "group_by": "source",
    "limit": {"train": 300, "validation": 40, "test": 50},
    "near": {"enabled": False},
}


@pytest.fixture(scope="module")
def limited(base: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(base, tmp_path_factory.mktemp("limited") / "workspace", **LIMITED)


def test_limits_are_counted(limited: Prepared) -> None:
    assert limited.info.splits == {"train": 300, "validation": 40, "test": 50}
    assert limited.dropped == {"limit": 615 + 612 - 390}
    assert limited.result.metrics["dropped"] == 615 + 612 - 390


def test_half_a_shard_is_written_anew(base: Artifact, limited: Prepared, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "train-00000.parquet").write_bytes(b"half")
    again = prepare(base, tmp_path / "again", **LIMITED)
    assert hashes(again.path) == hashes(limited.path)


def test_another_seed_draws_other_rows(base: Artifact, limited: Prepared, tmp_path: Path) -> None:
    other = prepare(base, tmp_path / "other", seed=8, **LIMITED)
    assert other.info.splits == limited.info.splits
    assert hashes(other.path)["train-00000.parquet"] != hashes(limited.path)["train-00000.parquet"]


PADDING_CHARACTERS = 66_000  # of a column that nobody reads: many chunks, few tokens


@pytest.fixture(scope="module")
def many_parts(base: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Eight parts, with every fate that a row can have in several of them."""
    folder = tmp_path_factory.mktemp("many")
    rows = [row | {"pad": "x" * PADDING_CHARACTERS} for row in section_rows("train", 150)]
    more = section_rows("train")[500:740]
    copied = [row | {"text": row["text"].upper()} for row in more[:40]]
    clashing = [row | {"label": "games"} for row in more[40:80] if row["label"] != "games"]
    for number, block in enumerate((more[:120], [*more[120:], *copied], [*clashing, *more[:50]])):
        write(folder / "small" / f"{number}.jsonl", [*block, {"text": number}])
    general = [{"instruction": f"thing {n}", "output": f"answer {n}"} for n in range(100)]
    fields = {
        "sources": [
            train(write(folder / "large.jsonl", rows)),
            train(folder / "small" / "*.jsonl"),
            {"path": write(folder / "test.jsonl", section_rows("test", 100)), "split": "test"},
        ],
        "validation_fraction": 0.1,
        "near": {"near_duplicates": "drop"},
        "replay": {"path": write(folder / "general.jsonl", general), "fraction": 0.05},
        "limit": {"validation": 20},
        "max_quarantine_fraction": 0.2,
    }
    found = prepare(base, folder / "workspace", workers=1, **fields)
    return Work(fields, found, hashes(found.path))


def parts_of(workspace: Workspace | Path) -> dict[str, int]:
    """When each part of the spool was written, in nanoseconds."""
    folder = workspace if isinstance(workspace, Path) else workspace.path
    spool = folder / "_scratch" / "spool"
    return {path.name: path.stat().st_mtime_ns for path in spool.glob("*.arrow")}


def test_many_parts_hold_every_fate(many_parts: Work) -> None:
    assert len(parts_of(many_parts.found.path)) == 8
    assert set(many_parts.found.quarantined) == {"column-missing", "contradiction"}
    assert {"duplicate", "near-duplicate", "mixture", "limit"} <= set(many_parts.found.dropped)


@pytest.mark.parametrize("workers", [1, 3])
def test_same_bytes_again_with_any_number_of_processes(
    base: Artifact, many_parts: Work, tmp_path: Path, workers: int
) -> None:
    found = prepare(base, tmp_path / "again", workers=workers, **many_parts.fields)
    assert hashes(found.path) == many_parts.hashes


STOPS = {
    "before the first part": ("reading and tokenising", 0, 1),
    "after some parts": ("reading and tokenising", 3, 4),
    "in the search": ("looking for near copies", 2, 8),
    "while writing": ("writing", 0, 8),
}


@pytest.mark.parametrize(("label", "steps", "parts"), STOPS.values(), ids=STOPS)
def test_a_stopped_run_goes_on_from_its_parts(
    base: Artifact, many_parts: Work, tmp_path: Path, label: str, steps: int, parts: int
) -> None:
    reporter = StopsWhile(label, steps)
    again = stopped(base, tmp_path / "stopped", reporter, workers=1, **many_parts.fields)
    kept = parts_of(again)
    assert len(kept) == parts
    found = prepare(base, again, workers=1, **many_parts.fields)
    assert hashes(found.path) == many_parts.hashes
    assert {name: parts_of(again)[name] for name in kept} == kept


def test_a_run_stopped_with_two_processes_goes_on_with_one(
    base: Artifact, many_parts: Work, tmp_path: Path
) -> None:
    reporter = StopsWhile("reading and tokenising", 2)
    again = stopped(base, tmp_path / "stopped", reporter, workers=2, **many_parts.fields)
    kept = parts_of(again)
    assert 3 <= len(kept) <= 8
    half = again.scratch / "spool" / ".000007.arrow.1.luthier-tmp"
    half.write_bytes(b"half a part of a process that was killed")
    found = prepare(base, again, workers=1, **many_parts.fields)
    half.unlink()
    assert hashes(found.path) == many_parts.hashes
    assert {name: parts_of(again)[name] for name in kept} == kept


def test_fractions_respect_groups_and_classes(
    base: Artifact, workspace: Workspace, tmp_path: Path
) -> None:
    rows = [{"text": f"text {i}", "label": "xy"[i % 2], "by": i // 4} for i in range(400)]
    found = prepare(
        base,
        workspace,
        sources=[train(write(tmp_path / "a.jsonl", rows))],
        group_by="by",
        validation_fraction=0.1,
        test_fraction=0.2,
    )
    splits: dict[Split, list[dict[str, Any]]] = {
        split: found.rows(split) for split in found.info.splits
    }
    assert {split: len(rows) for split, rows in splits.items()} == {
        "train": 280,
        "validation": 40,
        "test": 80,
    }
    assert Counter(row["label"] for row in splits["test"]) == {"x": 40, "y": 40}
    groups = [{row["group"] for row in rows} for rows in splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 100


def test_every_bad_row_is_accounted_for(
    base: Artifact, workspace: Workspace, tmp_path: Path
) -> None:
    good = [{"text": f"text {i}", "label": "xy"[i % 2]} for i in range(20)]
    path = tmp_path / "train.jsonl"
    write(
        path,
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
    path.write_bytes(path.read_bytes() + b'{"text": "\xff", "label": "x"}\n{"text": "cu')
    test = tmp_path / "test.csv"
    test.write_text("label,body\nx,in test\nxx,unknown\ny,alone\nz\n")
    found = prepare(
        base,
        workspace,
        sources=[train(path), {"path": str(test), "split": "test", "columns": {"text": "body"}}],
        max_length_tokens=120,
        on_overlong="drop",
        max_quarantine_fraction=0.5,
    )
    assert found.failing == []
    assert found.quarantined == {
        "contradiction": 2,
        "csv-fields": 1,
        "invalid-utf8": 1,
        "label-not-text": 1,
        "label-unknown": 1,
        "special-token-in-text": 1,
        "truncated-line": 1,
    }
    assert found.dropped == {"duplicate": 1, "leak-text": 1, "overlong": 1}
    assert (found.info.counts.read, found.info.counts.kept) == (33, 22)
    assert found.info.splits == {"train": 20, "test": 2}
    assert [(Path(line["file"]).name, line["line"]) for line in found.quarantine] == [
        *[("train.jsonl", number) for number in (22, 23, 25, 26, 28, 29)],
        ("test.csv", 3),
        ("test.csv", 5),
    ]
    assert found.quarantine[4]["raw"] == '{"text": "\\xff", "label": "x"}'
    assert found.quarantine[0]["raw"] == '{"text": "both", "label": "x"}'


def test_failing_gates(base: Artifact, workspace: Workspace, tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "xy"[i % 2]} for i in range(10)]
    path = write(tmp_path / "train.jsonl", [*rows, {"text": "none"}])
    test = write(tmp_path / "test.jsonl", rows[:3])
    found = prepare(
        base, workspace, sources=[train(path), {"path": test, "split": "test"}], on_leak="fail"
    )
    assert set(found.failing) == {"split-leakage", "quarantine-share"}
    assert found.gates["split-leakage"].detail.startswith("3 text, 0 group, 3 near copy")
    assert found.gates["split-leakage"].measured == 3  # an exact copy counts once
    assert found.gates["quarantine-share"].measured == round(1 / 14, 6)
    detail = found.gates["quarantine-share"].detail
    assert "train.jsonl:11: column-missing: no 'label' among 'text'" in detail


def test_chat_and_completion(smol_base: Artifact, tmp_path: Path) -> None:
    turns = [("user", "2 + 2?"), ("assistant", "4"), ("user", "3 + 3?"), ("assistant", "6")]
    messages = [{"role": role, "content": content} for role, content in turns]
    path = write(tmp_path / "chat.jsonl", [{"messages": messages}])
    chat = prepare(smol_base, tmp_path / "chat", task="chat", sources=[train(path)])
    assert chat.failing == []
    [row] = chat.rows()
    assert [(one["role"], one["content"]) for one in row["messages"]] == turns
    assert row["label"] is None
    assert sum(label == 2 for label in row["labels"]) == 2

    path = write(tmp_path / "plain.jsonl", [{"prompt": "1 + 1 =", "completion": " 2"}])
    plain = prepare(smol_base, tmp_path / "plain", task="completion", sources=[train(path)])
    assert plain.failing == []
    [row] = plain.rows()
    tokenizer = load_tokenizer(smol_base.path)
    assert tokenizer.decode(row["input_ids"]) == "1 + 1 = 2<|im_end|>"
    assert tokenizer.decode(row["input_ids"][: row["prompt_length"]]) == "1 + 1 ="
    with pytest.raises(DataError, match=r"no test rows.*prepare\.test_fraction"):
        load_split(plain.path, "test")


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "wrong column": (
        {"sources": ["wrong"]},
        r"wrong\.jsonl: no format of task: classification.*did you mean 'txt'|Did you mean 'txt'",
    ),
    "too few for a fraction": (
        {"sources": ["few"], "validation_fraction": 0.1},
        r"no validation rows.*prepare\.validation_fraction",
    ),
    "no file": ({"sources": ["missing"]}, r"missing\.jsonl: no such file"),
    "too long": (
        {"sources": ["few"], "max_length_tokens": 8},
        r"2 of 2 rows are longer.*few\.jsonl:1 \(\d+\), .*few\.jsonl:2 \(\d+\)\. Raise it to \d+",
    ),
}


@pytest.mark.parametrize(("fields", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_data_says_why(
    base: Artifact, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    write(tmp_path / "wrong.jsonl", [{"txt": "a", "label": "x"}] * 3)
    write(tmp_path / "few.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    named = [train(tmp_path / f"{name}.jsonl") for name in fields["sources"]]
    with pytest.raises(DataError, match=message):
        prepare(base, tmp_path / "workspace", **(fields | {"sources": named}))
    assert hashes(tmp_path / "workspace") == {}
    with pytest.raises(DataError, match="not a dataset of Luthier"):
        read_info(tmp_path / "workspace")
