"""Every kind of row, file and rule through the whole stage: what is asked for comes out."""

import gzip
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from luthier.errors import DataError
from luthier.models.loading import load_tokenizer
from luthier.store.artifact import Artifact
from prepare_cases import prepare, sources, train, write

pytest_plugins = "prepare_fixtures"

NO_NEAR = {"near": {"enabled": False}}
OURS = "You are a helpful assistant."


@pytest.fixture(scope="module")
def tokenizer(base: Artifact) -> Any:
    return load_tokenizer(base.path)


def labelled(count: int, labels: str = "xy", **more: Any) -> list[dict[str, Any]]:
    return [
        {"text": f"text number {n}", "label": labels[n % len(labels)]} | more for n in range(count)
    ]


def simple(row: dict[str, Any], column: str = "messages") -> list[tuple[str, str]]:
    return [(one["role"], one["content"]) for one in row[column]]


def learned(row: dict[str, Any], tokenizer: Any) -> list[str]:
    """The stretches of a row that are learned."""
    stretches: list[list[int]] = []
    before = -100
    for label in row["labels"]:
        if label != -100:
            if before == -100:
                stretches.append([])
            stretches[-1].append(label)
        before = label
    return [tokenizer.decode(stretch) for stretch in stretches]


END = "<|im_end|>"
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
ONE_ROW: dict[str, tuple[str, dict[str, Any], list[tuple[str, str]], list[str]]] = {
    "messages": (
        "chat",
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        [("user", "a"), ("assistant", "b")],
        [f"b{END}"],
    ),
    "messages and tools": (
        "chat",
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "3", "tool_call_id": "c"},
                {"role": "assistant", "content": "3!"},
            ],
            "tools": TOOLS,
        },
        [("user", "a"), ("assistant", ""), ("tool", "3"), ("assistant", "3!")],
        [END, f"3!{END}"],
    ),
    "sharegpt": (
        "chat",
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
                {"from": "human", "value": "c"},
                {"from": "gpt", "value": "d"},
            ],
            "system": "s",
        },
        [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
        [f"b{END}", f"d{END}"],
    ),
    "alpaca": (
        "chat",
        {"instruction": "do", "input": "this", "output": "done"},
        [("user", "do\nthis"), ("assistant", "done")],
        [f"done{END}"],
    ),
    "prompt_completion": (
        "completion",
        {"prompt": "1 + 1 =", "completion": " 2"},
        [("user", "1 + 1 ="), ("assistant", " 2")],
        [f" 2{END}"],
    ),
    "text": ("text", {"text": "all of it"}, [("assistant", "all of it")], [f"all of it{END}"]),
    "classification": (
        "classification",
        {"text": "a", "label": "x"},
        [("user", "a"), ("assistant", "x")],
        [f"x{END}"],
    ),
    "extraction": (
        "extraction",
        {"text": "a", "output": {"b": 1}},
        [("user", "a"), ("assistant", '{"b": 1}')],
        [f'{{"b": 1}}{END}'],
    ),
    "grounded": (
        "grounded",
        {"question": "why?", "documents": [{"title": "t", "text": "d"}, "e"], "answer": "so"},
        [("user", "[1] t\nd\n\n[2] e\n\nQuestion: why?"), ("assistant", "so")],
        [f"so{END}"],
    ),
}


@pytest.mark.parametrize("name", ONE_ROW)
def test_a_row_of_every_format(base: Artifact, tokenizer: Any, tmp_path: Path, name: str) -> None:
    task, raw, messages, replies = ONE_ROW[name]
    path = write(tmp_path / "rows.jsonl", [raw])
    found = prepare(base, tmp_path / "workspace", task=task, sources=[train(path)], **NO_NEAR)
    [row] = found.rows()
    assert simple(row) == messages
    assert learned(row, tokenizer) == replies
    assert found.info.sources[0].format == name.removesuffix(" and tools")
    assert found.failing == []
    assert row["label"] == raw.get("label")
    assert row["output"] == ('{"b": 1}' if task == "extraction" else None)
    whole = tokenizer.decode(row["input_ids"])
    assert whole.endswith(replies[-1])
    if task not in ("completion", "text"):
        prompt = tokenizer.decode(row["input_ids"][: row["prompt_length"]])
        assert prompt.endswith("<|im_start|>assistant\n")
        assert whole.startswith(
            "<|im_start|>system\n" + (messages[0][1] if messages[0][0] == "system" else OURS)
        )


def test_tools_and_calls_are_kept_as_json(base: Artifact, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [ONE_ROW["messages and tools"][1]])
    found = prepare(base, tmp_path / "workspace", task="chat", sources=[train(path)], **NO_NEAR)
    [row] = found.rows()
    assert json.loads(row["tools"]) == TOOLS
    assert json.loads(row["messages"][1]["tool_calls"]) == [CALL]
    assert row["messages"][2]["tool_call_id"] == "c"


LOSSES = {
    "all_assistant_turns": [f"b{END}", f"d{END}"],
    "last_turn": [f"d{END}"],
}


@pytest.mark.parametrize("loss_on", ["all_assistant_turns", "last_turn", "full_text"])
def test_the_loss_is_where_it_is_asked_for(
    base: Artifact, tokenizer: Any, tmp_path: Path, loss_on: str
) -> None:
    path = write(tmp_path / "rows.jsonl", [ONE_ROW["sharegpt"][1]])
    found = prepare(
        base,
        tmp_path / "workspace",
        task="chat",
        sources=[train(path)],
        loss_on=loss_on,
        **NO_NEAR,
    )
    assert found.failing == []
    [row] = found.rows()
    if loss_on == "full_text":
        assert row["labels"] == [-100, *row["input_ids"][1:]]
    else:
        assert learned(row, tokenizer) == LOSSES[loss_on]
    counted = found.info.counts.splits["train"].supervised_tokens.total
    assert counted == sum(label != -100 for label in row["labels"])


def test_extraction_is_spelled_as_its_schema_says(base: Artifact, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name"],
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    rows = [
        {"text": "a", "output": {"age": 1, "name": "A"}},
        {"text": "b", "output": '{ "name":"B" }'},
        {"text": "c", "output": {"age": 1}},
    ]
    found = prepare(
        base,
        tmp_path / "workspace",
        task="extraction",
        sources=[train(write(tmp_path / "rows.jsonl", rows))],
        extraction={"json_schema": str(tmp_path / "schema.json")},
        max_quarantine_fraction=0.5,
        **NO_NEAR,
    )
    assert [row["output"] for row in found.rows()] == ['{"name": "A", "age": 1}', '{"name": "B"}']
    assert found.quarantined == {"schema-violation": 1}


def test_grounded_rows_get_distractors_and_unanswerable_twins(
    base: Artifact, tmp_path: Path
) -> None:
    rows = [
        {"question": f"question {n}?", "documents": [f"document {n}"], "answer": f"answer {n}"}
        for n in range(40)
    ]
    rows.append({"question": "nothing?", "documents": ["document 99"], "answer": None})
    found = prepare(
        base,
        tmp_path / "workspace",
        task="grounded",
        sources=[train(write(tmp_path / "rows.jsonl", rows))],
        grounded={"distractors": 3, "unanswerable_fraction": 0.5, "not_found_reply": "Not there."},
        **NO_NEAR,
    )
    made = [row for row in found.rows() if row["origin"] == "generated"]
    given = [row for row in found.rows() if row["origin"] == "data"]
    assert len(given) == 41
    assert found.info.counts.generated == len(made) > 10
    assert found.info.counts.kept == 41 + len(made)
    for row in given:
        asked = row["messages"][0]["content"]
        assert asked.count("document ") == 4
        if row["messages"][1]["content"] != "Not there.":
            number = row["source_line"] - 1
            assert f"document {number}\n" in asked
    for row in made:
        number = row["source_line"] - 1
        asked, reply = (one["content"] for one in row["messages"])
        assert reply == "Not there."
        assert f"question {number}?" in asked
        assert f"document {number}\n" not in asked


def test_preferences_have_both_replies_as_tokens(
    base: Artifact, tokenizer: Any, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "a", "chosen": "good", "rejected": "bad one"},
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "b"}],
            "chosen": [{"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": "no"}],
        },
    ]
    implicit = [
        {
            side: [{"role": "user", "content": "c"}, {"role": "assistant", "content": side}]
            for side in ("chosen", "rejected")
        }
    ]
    found = prepare(
        base,
        tmp_path / "workspace",
        task="preference",
        sources=[
            train(write(tmp_path / "explicit.jsonl", rows)),
            train(write(tmp_path / "implicit.jsonl", implicit)),
        ],
        system_prompt="ours",
        **NO_NEAR,
    )
    assert found.failing == []
    assert [source.format for source in found.info.sources] == [
        "preference",
        "preference_conversations",
    ]
    shown = [
        {name: tokenizer.decode(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")}
        for row in found.rows()
    ]
    head = (
        "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert shown == [
        {"prompt": head.format("ours", "a"), "chosen": f"good{END}", "rejected": f"bad one{END}"},
        {"prompt": head.format("s", "b"), "chosen": f"yes{END}", "rejected": f"no{END}"},
        {
            "prompt": head.format("ours", "c"),
            "chosen": f"chosen{END}",
            "rejected": f"rejected{END}",
        },
    ]
    first = found.rows()[0]
    assert simple(first) == [("system", "ours"), ("user", "a")]
    assert simple(first, "chosen") == [("assistant", "good")]
    assert simple(first, "rejected") == [("assistant", "bad one")]
    assert "labels" not in first
    counts = found.info.counts.splits["train"]
    lengths = [
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        for row in found.rows()
    ]
    assert (counts.tokens.max, counts.tokens.total) == (max(lengths), sum(lengths))


def by_time(count: int) -> list[dict[str, Any]]:
    rows = [
        {"text": f"text {n}", "label": "xy"[n % 2], "by": f"author {n // 3}", "at": n}
        for n in range(count)
    ]
    random.Random(5).shuffle(rows)
    return rows


@pytest.mark.parametrize("how", ["random", "stratified", "group", "time"])
def test_splits_are_cut_as_asked(base: Artifact, tmp_path: Path, how: str) -> None:
    extra = {"group": {"group_by": "by"}, "time": {"time_by": "at"}}.get(how, {})
    found = prepare(
        base,
        tmp_path / "workspace",
        sources=[train(write(tmp_path / "rows.jsonl", by_time(120)))],
        split_by=how,
        validation_fraction=0.1,
        test_fraction=0.2,
        **extra,
        **NO_NEAR,
    )
    assert found.info.splits == {"train": 84, "validation": 12, "test": 24}
    assert found.failing == []
    texts = {
        split: {int(row["messages"][0]["content"].split()[1]) for row in found.rows(split)}
        for split in found.info.splits
    }
    if how == "stratified":
        assert found.info.counts.splits["test"].classes == {"x": 12, "y": 12}
    if how == "group":
        assert not {n // 3 for n in texts["test"]} & {n // 3 for n in texts["train"]}
    if how == "time":
        assert texts == {
            "train": set(range(84)),
            "validation": set(range(84, 96)),
            "test": set(range(96, 120)),
        }


def test_groups_are_whole_though_sources_give_the_splits(base: Artifact, tmp_path: Path) -> None:
    rows = {
        "train": [{"text": "a", "label": "x", "by": 1}, {"text": "b", "label": "y", "by": 2}],
        "test": [{"text": "c", "label": "x", "by": 1}],
    }
    found = prepare(
        base,
        tmp_path / "workspace",
        sources=sources(tmp_path, rows),
        group_by="by",
        labels=["x", "y"],
        **NO_NEAR,
    )
    assert found.dropped == {"leak-group": 1}


def test_weights_mix_sources(base: Artifact, tmp_path: Path) -> None:
    rows = labelled(100)
    found = prepare(
        base,
        tmp_path / "workspace",
        sources=[
            train(write(tmp_path / "a.jsonl", rows[:60]), weight=3),
            train(write(tmp_path / "b.jsonl", rows[60:]), weight=1.5),
        ],
        **NO_NEAR,
    )
    files = Counter(Path(row["source_path"]).name for row in found.rows())
    assert files == {"a.jsonl": 60, "b.jsonl": 30}
    assert found.dropped == {"mixture": 10}


def test_limits_leave_classes_in_proportion(base: Artifact, tmp_path: Path) -> None:
    found = prepare(
        base,
        tmp_path / "workspace",
        sources=[train(write(tmp_path / "a.jsonl", labelled(100, "xxxy")))],
        test_fraction=0.2,
        limit={"train": 40, "test": 8},
        **NO_NEAR,
    )
    assert found.info.splits == {"train": 40, "test": 8}
    assert found.info.counts.splits["train"].classes == {"x": 30, "y": 10}
    assert found.info.counts.splits["test"].classes == {"x": 6, "y": 2}
    assert found.dropped == {"limit": 52}


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
def test_replay_is_the_share_of_train_that_is_asked_for(
    base: Artifact, tmp_path: Path, fraction: float
) -> None:
    general = [
        {"instruction": f"general thing {n}", "output": f"general answer {n}"} for n in range(200)
    ]
    found = prepare(
        base,
        tmp_path / "workspace",
        sources=[train(write(tmp_path / "a.jsonl", labelled(120)))],
        replay={"path": write(tmp_path / "general.jsonl", general), "fraction": fraction},
        system_prompt="ours",
        validation_fraction=0.1,
        test_fraction=0.1,
        **NO_NEAR,
    )
    origins = Counter(row["origin"] for row in found.rows())
    assert origins["data"] == 96
    assert origins["replay"] == round(96 * fraction / (1 - fraction))
    for split in ("validation", "test"):
        assert {row["origin"] for row in found.rows(split)} == {"data"}  # type: ignore[arg-type]
    assert found.info.labels == ["x", "y"]
    assert found.failing == []
    replayed = next(row for row in found.rows() if row["origin"] == "replay")
    assert [role for role, _ in simple(replayed)] == ["user", "assistant"]
    assert replayed["label"] is None
    assert found.dropped == {"mixture": 200 - origins["replay"]}


def test_too_few_replay_rows_are_told(base: Artifact, tmp_path: Path) -> None:
    general = [{"instruction": "general thing", "output": "general answer"}]
    found = prepare(
        base,
        tmp_path / "workspace",
        sources=[train(write(tmp_path / "a.jsonl", labelled(60)))],
        replay={"path": write(tmp_path / "general.jsonl", general), "fraction": 0.5},
        **NO_NEAR,
    )
    assert found.info.splits["train"] == 61
    assert "replay-short" in {advice.id for advice in found.info.advice}


def test_rules_that_change_texts_are_counted(base: Artifact, tmp_path: Path) -> None:
    rows = [
        {"text": "plain", "label": "x"},
        {"text": "e\u0301t\u0065\u0301", "label": "y"},
        {"text": "a\x07b", "label": "x"},
        {"text": "  two   words ", "label": "y"},
        {"text": "mail ann@example.org now", "label": "x"},
        {"text": "short", "label": "y"},
        {"text": "drop this one", "label": "y"},
    ]
    found = prepare(
        base,
        tmp_path / "workspace",
        sources=[train(write(tmp_path / "a.jsonl", rows))],
        normalise={"unicode": "nfc", "control_characters": "remove", "whitespace": "collapse"},
        filters={"reject_pattern": "drop", "min_characters": 2},
        pii={"action": "redact"},
        **NO_NEAR,
    )
    assert found.info.counts.changed == {
        "control-characters": 1,
        "pii-redacted": 1,
        "unicode-nfc": 1,
        "whitespace": 1,
    }
    assert found.dropped == {"filter-pattern": 1}
    assert [row["messages"][0]["content"] for row in found.rows()] == [
        "plain",
        "été",
        "ab",
        "two words",
        "mail [EMAIL] now",
        "short",
    ]
    assert found.info.pii is not None
    assert (found.info.pii.rows, found.info.pii.redacted) == ({"email": 1}, True)
    assert "ann@example.org" not in (found.path / "dataset.json").read_text()


def test_personal_data_is_told_by_default(base: Artifact, tmp_path: Path) -> None:
    rows = [*labelled(3), {"text": "mail ann@example.org now", "label": "x"}]
    path = write(tmp_path / "a.jsonl", rows)
    found = prepare(base, tmp_path / "workspace", sources=[train(path)], **NO_NEAR)
    assert found.info.pii is not None
    assert found.info.pii.rows == {"email": 1}
    assert found.info.pii.examples == [f"{path}:4 email a***@e***.org"]
    assert found.rows()[3]["messages"][0]["content"] == rows[3]["text"]


def test_labels_stand_in_the_system_prompt(base: Artifact, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "sources": [train(write(tmp_path / "a.jsonl", labelled(4)))],
        "labels": ["x", "y"],
        "system_prompt": "One of:\n{labels}\nNo other.",
        **NO_NEAR,
    }
    options = {"label_descriptions": {"x": "the first"}, "template": "Which? {text}"}
    found = prepare(base, tmp_path / "workspace", classification=options, **fields)
    prompt = "One of:\n- x: the first\n- y\nNo other."
    assert found.info.system_prompt == prompt
    assert simple(found.rows()[0]) == [
        ("system", prompt),
        ("user", "Which? text number 0"),
        ("assistant", "x"),
    ]
    with pytest.raises(DataError, match="'z' is not one of the 2 labels"):
        prepare(
            base,
            tmp_path / "other",
            classification={"label_descriptions": {"z": "the last"}},
            **fields,
        )


def as_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(["text,label\n", *(f"{row['text']},{row['label']}\n" for row in rows)]).encode()


def test_every_kind_of_file_gives_the_same_rows(base: Artifact, tmp_path: Path) -> None:
    rows = labelled(60)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_bytes(as_csv(rows))
    (tmp_path / "a.tsv").write_bytes(as_csv(rows).replace(b",", b"\t"))
    table = pa.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "a.parquet")
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)
    found = {}
    for path in sorted(tmp_path.glob("a.*")):
        one = prepare(base, tmp_path / f"of {path.name}", sources=[train(path)], **NO_NEAR)
        assert one.info.sources[0].read == 60
        found[path.name] = [
            {name: value for name, value in row.items() if name != "source_path"}
            for row in one.rows()
        ]
    plain = [row | {"source_line": 0} for row in found["a.jsonl"]]
    assert len(found) == 8
    for rows_found in found.values():
        assert [row | {"source_line": 0} for row in rows_found] == plain


def test_several_sources_a_glob_and_other_column_names(base: Artifact, tmp_path: Path) -> None:
    rows = labelled(40)
    write(tmp_path / "part" / "1.jsonl", rows[:10])
    write(tmp_path / "part" / "2.jsonl", rows[10:20])
    (tmp_path / "b.csv").write_bytes(as_csv(rows[20:30]).replace(b"text,label", b"body,kind"))
    renamed = [{"t": row["text"], "label": row["label"]} for row in rows[30:]]
    found = prepare(
        base,
        tmp_path / "workspace",
        sources=[
            train(tmp_path / "part" / "*.jsonl"),
            train(tmp_path / "b.csv", columns={"text": "body", "label": "kind"}),
            {
                "path": write(tmp_path / "c.jsonl", renamed),
                "split": "test",
                "columns": {"text": "t"},
            },
        ],
        **NO_NEAR,
    )
    assert found.info.splits == {"train": 30, "test": 10}
    assert [Path(source.path).name for source in found.info.sources] == [
        "1.jsonl",
        "2.jsonl",
        "b.csv",
        "c.jsonl",
    ]
    texts = [row["messages"][0]["content"] for row in found.rows()]
    assert texts == [row["text"] for row in rows[:30]]
    assert found.rows("test")[0]["source_line"] == 1


def test_a_file_named_twice_is_counted_once_a_source(base: Artifact, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", labelled(4))
    found = prepare(
        base,
        tmp_path / "workspace",
        sources=[train(path), train(tmp_path / "*.jsonl")],
        **NO_NEAR,
    )
    assert found.dropped == {"duplicate": 4}
    assert [source.read for source in found.info.sources] == [4, 4]
