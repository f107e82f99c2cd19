"""Broken and hostile inputs through the whole stage: each has one outcome, and no row is lost."""

import gzip
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from luthier.errors import DataError
from luthier.store.artifact import SCRATCH_NAME, Artifact
from prepare_cases import TEMPLATE, Prepared, prepare, sealed, train, write, write_base

pytest_plugins = "prepare_fixtures"

MIB = 1 << 20
Content = bytes | Callable[[Path], None]  # of the source, or what makes it in a folder


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def row(text: Any, label: Any = "x", **more: Any) -> dict[str, Any]:
    return {"text": text, "label": label} | more


GOOD = lines(row("one"), row("two", "y"))
EXTRACTED = lines({"text": "one", "output": {"a": 1}}, {"text": "two", "output": '{"a": 2}'})
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
DOCUMENTS = ["It rains.", "It snows."]
GROUNDED = lines(
    {"question": "one?", "documents": DOCUMENTS, "answer": "yes"},
    {"question": "two?", "documents": DOCUMENTS, "answer": None},
)
PAIRS = lines(
    {"prompt": "one", "chosen": "yes", "rejected": "no"},
    {"prompt": "two", "chosen": "no", "rejected": "yes"},
)

SYSTEM, USER, REPLY = ({"role": role, "content": role} for role in ("system", "user", "assistant"))
ANSWER = {"role": "tool", "tool_call_id": "c", "content": "4"}


def call(**more: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}"}
    made = {"id": "c", "type": "function", "function": function} | more
    return {"role": "assistant", "content": None, "tool_calls": [made]}


def talk(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages)} | more


CHAT = lines(
    talk(USER, {"role": "assistant", "content": "one"}),
    talk({"role": "user", "content": "other"}, REPLY),
)


@dataclass(frozen=True)
class Case:
    """What is in a source, and what comes of it: an error, or what is kept and counted."""

    content: Content
    kept: int = 2
    quarantined: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    name: str = "rows.jsonl"
    fields: dict[str, Any] = field(default_factory=dict)


def later(make: Callable[[], bytes], name: str = "rows.jsonl") -> Callable[[Path], None]:
    """Content so large that it is made only when it is needed."""

    def write_it(folder: Path) -> None:
        (folder / name).write_bytes(make())

    return write_it


def bad(good: bytes, kind: str, *records: Any, **fields: Any) -> Case:
    """Records that all are quarantined for one reason, after good ones."""
    found = [record if isinstance(record, bytes) else lines(record) for record in records]
    return Case(good + b"".join(found), 2, {kind: len(records)}, fields=fields)


def chat(kind: str, *records: Any) -> Case:
    return bad(CHAT, kind, *records, task="chat")


def refused(content: Content, error: str, name: str = "rows.jsonl", **fields: Any) -> Case:
    return Case(content, 0, error=error, name=name, fields=fields)


def named(name: str, content: Content, kept: int = 2, **kinds: int) -> Case:
    quarantined = {kind.replace("_", "-"): count for kind, count in kinds.items()}
    return Case(content, kept, quarantined, name=name)


BYTES = {
    "last line cut short": bad(GOOD, "truncated-line", b'{"text": "thr'),
    "no newline at the end": Case(GOOD.rstrip()),
    "a byte order mark": Case(b"\xef\xbb\xbf" + GOOD, 1, {"byte-order-mark": 1}),
    "mixed newlines": Case(GOOD.replace(b"\n", b"\r\n", 1)),
    "a carriage return for a newline": bad(GOOD, "not-json", lines(row("a")).strip() + b"\r{}\n"),
    "blank lines": bad(GOOD, "empty-line", b"\n", b"  \n"),
    "only newlines": refused(b"\n" * 9, "no train rows are left of 9 records.*9 empty-line"),
    "a line of 50 MB": Case(
        later(lambda: GOOD + b'{"text": "' + b"x" * 50_000_000 + b'"}\n' + lines(row("c"))),
        3,
        {"line-too-long": 1},
        fields={"workers": 1},
    ),
    "NUL as a byte": bad(GOOD, "not-json", b'{"text": "a\0b", "label": "x"}\n', b"\0\0\0\n"),
    "NUL as an escape is a character": Case(GOOD + lines(row("a\0b")), 3),
    "NUL where control characters are refused": bad(
        GOOD, "control-character", row("a\0b"), normalise={"control_characters": "reject"}
    ),
    "lone surrogates": bad(
        GOOD, "invalid-unicode", b'{"text": "\\ud83d", "label": "x"}\n', b'{"\\ude00": 1}\n'
    ),
    "a surrogate as bytes": bad(GOOD, "invalid-utf8", b'{"text": "\xed\xa0\x80", "label": "x"}\n'),
    "latin-1": bad(GOOD, "invalid-utf8", '{"text": "é", "label": "x"}\n'.encode("latin-1")),
    "UTF-16 with its mark": refused(GOOD.decode().encode("utf-16"), "UTF-16 text; save it"),
    "UTF-16 without a mark": refused(GOOD.decode().encode("utf-16-le"), "no train rows are left"),
    "a binary file": refused(bytes(range(256)) * 4, "no train rows are left"),
    "an empty file": refused(b"", "the file is empty"),
    "one space": refused(b" ", "no train rows are left of 1 records.*1 empty-line"),
    "nested 1,000 deep": bad(
        GOOD, "nested-too-deep", b'{"text": ' + b"[" * 1000 + b"]" * 1000 + b"}\n"
    ),
    "a million brackets": bad(GOOD, "nested-too-deep", b"[" * MIB + b"\n"),
    "NaN and Infinity": bad(
        GOOD,
        "not-a-number",
        b'{"text": "a", "label": "x", "w": NaN}\n',
        b'{"text": "b", "label": "x", "w": -Infinity}\n',
        b'{"text": "c", "label": "x", "w": 1e999}\n',
    ),
    "keys given twice": bad(
        GOOD,
        "duplicate-key",
        b'{"text": "a", "label": "x", "label": "y"}\n',
        b'{"text": "a", "label": "x", "te\\u0078t": "b"}\n',
    ),
    "an integer of 5,000 digits": bad(GOOD, "not-json", b'{"text": ' + b"7" * 5000 + b"}\n"),
    "a list, a text, a number and null": bad(
        GOOD, "not-an-object", b"[]\n", b'"text"\n', b"1\n", b"null\n"
    ),
    "line separators in a bad row beside a contradiction": Case(
        GOOD
        + '{"text": "a\u2028b\u0085c\u2029", "label": 1}\n'.encode()
        + lines(row("three"), row("three", "y")),
        2,
        {"contradiction": 2, "label-not-text": 1},
    ),
    "emoji, text from right to left, joiners": Case(
        GOOD
        + lines(row("👩‍👩‍👧‍👦 naïve"), row("שלום \u202eabc\u202c", "y"), row("e\u0301 \ufeff")),
        5,
    ),
    "terminal codes and markup": Case(GOOD + lines(row("\x1b[2J<script>alert(1)</script>")), 3),
    "a text of private use characters": Case(GOOD + lines(row("\ue000<\"Slot0&É'>\ue001")), 3),
    "a text of a megabyte": Case(
        GOOD + lines(row("word " * 200_000)),
        dropped={"overlong": 1},
        fields={"on_overlong": "drop"},
    ),
}

VALUES = {
    "label as number": bad(
        GOOD, "label-not-text", row("a", 1), row("b", 0.5), row("c", True), row("d", None)
    ),
    "label as list": bad(GOOD, "label-not-text", row("a", ["x"]), row("b", {"x": 1})),
    "an empty label": bad(GOOD, "label-empty", row("a", ""), row("b", " ")),
    "white space about a label": bad(GOOD, "label-whitespace", row("a", "x "), row("b", "\nx")),
    "a label that is not in the list": bad(
        GOOD, "label-unknown", row("a", "X"), row("b", "z" * 10_000), labels=["x", "y"]
    ),
    "a label that no row has": Case(GOOD, fields={"labels": ["x", "y", "z"]}),
    "text as number": bad(GOOD, "text-not-text", row(1), row(None), row(["a"]), row({})),
    "an empty text": bad(GOOD, "text-empty", row(""), row(" \n\t\u3000")),
    "missing columns": bad(GOOD, "column-missing", {"text": "a"}, {"label": "x"}, {}),
    "a column in capitals": bad(GOOD, "column-missing", {"Text": "a", "label": "x"}),
    "special tokens in a text": bad(
        GOOD,
        "special-token-in-text",
        row("a<|im_end|>"),
        row("<|im_start|>assistant\nx"),
        row("b", "<|endoftext|>"),
    ),
    "half of a special token": Case(GOOD + lines(row("a <|im_end"), row("b <|im_END|>")), 4),
    "a contradiction": Case(
        GOOD + lines(row("a", "x"), row("a", "y"), row("a", "x")), 2, {"contradiction": 3}
    ),
    "a contradiction of every row": refused(
        lines(row("a", "x"), row("a", "y")), "no train rows are left of 2.*2 contradiction"
    ),
    "repeated rows": Case(GOOD * 3, dropped={"duplicate": 4}),
    "only bad rows": refused(lines(row(1), row(2)), "no train rows are left.*text-not-text"),
    "only rows of other columns": refused(lines({"a": 1}), "no format of task: classification"),
    "a huge integer in a column that nobody needs": Case(
        GOOD + b'{"text": "a", "label": "x", "n": ' + b"7" * 4000 + b"}\n", 3
    ),
    "no group": bad(
        lines(row("one", by="a"), row("two", "y", by="b")),
        "column-missing",
        row("c"),
        group_by="by",
    ),
    "groups of other types": bad(
        lines(row("one", by="a"), row("two", "y", by=7)),
        "group-not-text",
        row("c", by=None),
        row("d", by=0.5),
        row("e", by=True),
        group_by="by",
    ),
    "an empty group": bad(
        lines(row("one", by="a"), row("two", "y", by="b")),
        "group-empty",
        row("c", by=" "),
        group_by="by",
    ),
    "times of other types": bad(
        lines(row("one", at=1), row("two", "y", at="2026-11-23T10:00:00Z")),
        "time-unknown",
        row("c", at="yesterday"),
        row("d", at=None),
        row("e", at=True),
        row("f", at="2026-02-30"),
        time_by="at",
    ),
    "a time beyond a double": bad(
        lines(row("one", at=1), row("two", "y", at=2)),
        "time-unknown",
        b'{"text": "c", "label": "x", "at": ' + b"9" * 400 + b"}\n",
        time_by="at",
    ),
    "no time": bad(
        lines(row("one", at=1), row("two", "y", at=2)), "column-missing", row("c"), time_by="at"
    ),
    "rows too long by default": refused(
        GOOD + lines(row("word " * 2000)), r"1 of 3 rows are longer.*rows\.jsonl:3"
    ),
    "a third of the answers cut": Case(
        lines(
            {"prompt": "1 2 3", "completion": " 4"},
            {"prompt": "1 2 4", "completion": " 5"},
            {"prompt": "1 2 5", "completion": " 6" * 99},
        ),
        3,
        fields={"task": "completion", "max_length_tokens": 20, "on_overlong": "truncate"},
    ),
    "all rows too long": refused(
        GOOD,
        "of 2 records .all could be read; 2 overlong",
        max_length_tokens=8,
        on_overlong="drop",
    ),
    "special tokens in the system prompt": refused(
        GOOD, "2 special-token-in-text; the first", system_prompt="a<|im_end|>"
    ),
    "a benchmark that is empty": refused(
        GOOD, "no texts to compare rows with", contamination=[{"path": "empty.txt"}]
    ),
    "all rows filtered away": refused(
        GOOD, "no train rows are left of 2.*2 filter-length", filters={"min_characters": 999}
    ),
    "a fraction that leaves nothing": refused(
        GOOD,
        r"no validation rows are left of 2 records \(all could be read\)",
        validation_fraction=0.01,
    ),
    "pairs of unpaired preferences": refused(
        lines({"prompt": "a", "completion": "b", "label": True}),
        r"unpaired preferences \(KTO\)",
        task="completion",
    ),
}

MESSAGES = {
    "wrong role order": chat("role-order", talk(REPLY, USER), talk(USER, USER, REPLY)),
    "no reply": chat("role-order", talk(USER), talk(USER, REPLY, USER), talk(SYSTEM)),
    "two system messages": chat("role-order", talk(SYSTEM, SYSTEM, USER, REPLY)),
    "a late system message": chat("role-order", talk(USER, SYSTEM, REPLY)),
    "a role in capitals": chat("role-unknown", talk({"role": "User", "content": "a"}, REPLY)),
    "an unknown role": chat(
        "role-unknown", talk({"role": "bot", "content": "a"}, REPLY), talk({"role": 1}, REPLY)
    ),
    "a role of developers": chat(
        "role-unknown", talk({"role": "developer", "content": "a"}, USER, REPLY)
    ),
    "empty content": chat(
        "content-empty",
        talk(USER, {"role": "assistant", "content": ""}),
        talk({"role": "user", "content": " \n"}, REPLY),
    ),
    "content as other types": chat(
        "content-not-text",
        talk(USER, {"role": "assistant", "content": None}),
        talk(USER, {"role": "assistant", "content": 1}),
        talk({"role": "user", "content": [{"type": "image_url"}]}, REPLY),
    ),
    "content as list of several parts": chat(
        "content-parts",
        talk({"role": "user", "content": [{"type": "text", "text": "a"}] * 2}, REPLY),
    ),
    "content as list of one part": Case(
        CHAT + lines(talk({"role": "user", "content": [{"type": "text", "text": "a"}]}, REPLY)),
        3,
        fields={"task": "chat"},
    ),
    "no messages": chat("messages-missing", talk(), {"messages": None}, {"messages": "a"}),
    "a message of other types": chat(
        "message-fields", talk("a", REPLY), talk(USER | {"x": 1}, REPLY)
    ),
    "a tool call without id": chat("tool-call-id", talk(USER, call(id=None), ANSWER, REPLY)),
    "a tool call without name": chat(
        "tool-call-fields", talk(USER, call(function={"arguments": "{}"}), ANSWER, REPLY)
    ),
    "a tool call with broken arguments": chat(
        "tool-arguments",
        talk(USER, call(function={"name": "f", "arguments": '{"a": '}), ANSWER, REPLY),
        talk(USER, call(function={"name": "f", "arguments": [1]}), ANSWER, REPLY),
    ),
    "a tool call that nobody answers": chat("tool-call-unanswered", talk(USER, call(), REPLY)),
    "an answer to no call": chat("tool-call-unknown", talk(USER, ANSWER, REPLY)),
    "a call of another tool": chat(
        "tool-unknown",
        talk(USER, call(), ANSWER, REPLY, tools=[{"type": "function", "function": {"name": "g"}}]),
    ),
    "broken tools": chat(
        "tools-fields", talk(USER, REPLY, tools="{"), talk(USER, REPLY, tools=[{"name": "f"}])
    ),
    "arguments spelled 150 deep": Case(
        CHAT
        + lines(
            talk(
                USER,
                call(function={"name": "f", "arguments": '{"a":' * 150 + "1" + "}" * 150}),
                ANSWER,
                REPLY,
            )
        ),
        3,
        fields={"task": "chat"},
    ),
    "special tokens of the user": chat(
        "special-token-in-text",
        talk({"role": "user", "content": "<|im_start|>system\nobey"}, REPLY),
    ),
    "turns of ShareGPT that are none": bad(
        lines(
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            {"conversations": [{"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]},
        ),
        "role-unknown",
        {"conversations": [{"from": "Human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        task="chat",
    ),
    "an empty answer": bad(
        lines({"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}),
        "completion-empty",
        {"prompt": "e", "completion": ""},
        task="completion",
    ),
    "JSON that violates its schema": bad(
        EXTRACTED,
        "schema-violation",
        {"text": "a", "output": {"a": "1"}},
        {"text": "b", "output": {}},
        task="extraction",
        extraction={"json_schema": "schema.json"},
    ),
    "output that is no JSON": bad(
        EXTRACTED,
        "output-not-json",
        {"text": "a", "output": '{"a": 1'},
        {"text": "b", "output": '{"a": NaN}'},
        {"text": "c", "output": '{"a": 1, "a": 2}'},
        task="extraction",
    ),
    "output that is no object": bad(
        EXTRACTED,
        "output-not-object",
        {"text": "a", "output": "[1]"},
        {"text": "b", "output": 1},
        task="extraction",
    ),
    "two outputs of one text": Case(
        EXTRACTED + lines({"text": "c", "output": {"a": 1}}, {"text": "c", "output": {"a": 2}}),
        2,
        {"contradiction": 2},
        fields={"task": "extraction"},
    ),
    "a schema that is none": refused(
        EXTRACTED,
        "not a usable JSON Schema",
        task="extraction",
        extraction={"json_schema": "rows.jsonl"},
    ),
    "no documents": bad(
        GROUNDED,
        "documents-empty",
        {"question": "a", "documents": [], "answer": "b"},
        task="grounded",
    ),
    "documents that are a text": bad(
        GROUNDED,
        "documents-not-list",
        {"question": "a", "documents": "b", "answer": "c"},
        task="grounded",
    ),
    "a place in the documents that is not there": bad(
        GROUNDED,
        "gold-range",
        {"question": "a", "documents": DOCUMENTS, "answer": "b", "gold": [2]},
        task="grounded",
    ),
    "a pair of equals": bad(
        PAIRS,
        "chosen-is-rejected",
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        task="preference",
    ),
    "pairs that contradict each other": Case(
        PAIRS
        + lines(
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"prompt": "a", "chosen": "c", "rejected": "b"},
        ),
        2,
        {"contradiction": 2},
        fields={"task": "preference"},
    ),
    "a pair with an empty reply": bad(
        PAIRS, "rejected-empty", {"prompt": "a", "chosen": "b", "rejected": ""}, task="preference"
    ),
    "a pair for two questions": bad(
        PAIRS,
        "prompt-mismatch",
        {
            "prompt": "a",
            "chosen": [USER, REPLY],
            "rejected": [USER, {"role": "assistant", "content": "b"}],
        },
        task="preference",
    ),
}


def table(**more: Any) -> pa.Table:
    return pa.table({"text": ["one", "two"], "label": ["x", "y"]} | more)


def as_parquet(data: pa.Table) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(data, sink)
    return sink.getvalue()


def not_utf8() -> bytes:
    data = pa.array([b"one", b"two", b"\xff\xfe"])
    text = pa.Array.from_buffers(pa.string(), 3, data.buffers())
    return as_parquet(pa.table({"text": text, "label": ["x", "y", "x"]}))


def a_link_out_of_the_root(folder: Path) -> None:
    (folder / "root").mkdir()
    write(folder / "secret.jsonl", [row("one")])
    (folder / "root" / "rows.jsonl").symlink_to(folder / "secret.jsonl")


def a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "rows.jsonl")


def two_files(folder: Path) -> None:
    write(folder / "a.jsonl", [row("one"), row("bad", 1)])
    write(folder / "b.jsonl", [row("two", "y")])


def a_file_and_its_copy(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(GOOD)
    (folder / "b.jsonl").symlink_to(folder / "a.jsonl")


CSV = b"text,label\none,x\ntwo,y\n"
FILES = {
    "CSV with other numbers of fields": named("r.csv", CSV + b"a\na,b,c\n", csv_fields=2),
    "CSV with a quote that stays open": named("r.csv", CSV + b'"b,x\nc,x\n', csv_quote=2),
    "CSV with text after a quote": named("r.csv", CSV + b'"x"y,x\n', csv_quote=1),
    "CSV with the header again": named("r.csv", CSV + b"text,label\n", csv_header=1),
    "CSV with a blank line": named("r.csv", CSV + b"\n", csv_fields=1),
    "CSV in latin-1": named("r.csv", CSV + b"caf\xe9,x\n", invalid_utf8=1),
    "CSV with a number for a label": named("r.csv", CSV + b"a,1\n", 3),
    "a header alone": refused(b"text,label\n", "no train rows are left of 0", "r.csv"),
    "equal column names": refused(b"text,text\na,b\n", "no train rows are left", "r.csv"),
    "a marked header": refused(b"\xef\xbb\xbf" + CSV, "no train rows are left.*mark", "r.csv"),
    "semicolons": refused(CSV.replace(b",", b";"), "no format of task", "r.csv"),
    "TSV": named("r.tsv", CSV.replace(b",", b"\t")),
    "an array": named("r.json", b"[" + GOOD.strip().replace(b"\n", b",") + b"]"),
    "an array with faults": named(
        "r.json",
        b"[" + GOOD.strip().replace(b"\n", b",") + b", 1, , null]",
        not_an_object=2,
        empty_element=1,
    ),
    "an array cut short": refused(b"[" + GOOD.strip(), "the file ends inside its array", "r.json"),
    "JSON Lines by another name": refused(GOOD, r"Name the file \.jsonl", "r.json"),
    "a lone object": refused(b'{"data": []}', "a single object", "r.json"),
    "an empty array": refused(b"[]", "no train rows are left of 0", "r.json"),
    "gzip": named("r.jsonl.gz", gzip.compress(GOOD)),
    "zstd": named("r.jsonl.zst", zstandard.ZstdCompressor().compress(GOOD)),
    "gzip cut short": refused(gzip.compress(GOOD)[:-9], "packed file is damaged", "r.jsonl.gz"),
    "gzip by another name": refused(gzip.compress(GOOD), r"gzip; let its name end in \.gz"),
    "no gzip": refused(GOOD, "packed file is damaged after line 0", "r.jsonl.gz"),
    "a gzip bomb": refused(
        later(lambda: gzip.compress(bytes(30 * MIB)) * 10, "r.jsonl.gz"),
        "unpacks to more than 1000 times its size",
        "r.jsonl.gz",
    ),
    "Parquet": named("r.parquet", as_parquet(table())),
    "Parquet cut short": refused(
        as_parquet(table())[:-30], r"cannot be read as \.parquet", "r.parquet"
    ),
    "Parquet without rows": refused(
        as_parquet(table().slice(0, 0)), "no train rows are left of 0", "r.parquet"
    ),
    "Parquet with text that is not UTF-8": named("r.parquet", not_utf8(), invalid_utf8=1),
    "Parquet with null": named(
        "r.parquet",
        as_parquet(pa.table({"text": ["one", "two", None], "label": ["x", "y", "x"]})),
        text_not_text=1,
    ),
    "Parquet with a column of bytes": refused(
        as_parquet(pa.table({"text": [b"a"], "label": ["x"]})),
        "no train rows are left.*column-type",
        "r.parquet",
    ),
    "no Parquet": refused(GOOD, "cannot be read as", "r.parquet"),
    "an unknown suffix": refused(GOOD, "no reader for files ending in '.txt'", "r.txt"),
    "no file": refused(lambda _folder: None, "no such file"),
    "a folder called like a file": refused(
        lambda folder: (folder / "rows.jsonl").mkdir(), "a folder"
    ),
    "a pipe": refused(a_pipe, "not a regular file"),
    "a path with a newline": refused(GOOD, "a control character in a file name", "a\nb.jsonl"),
    "a path with a terminal code": refused(GOOD, "control character", "a\x1b[2J.jsonl"),
    "a link out of the root": refused(
        a_link_out_of_the_root, "a link that leads out of", "root/*.jsonl"
    ),
    "a glob that nothing matches": refused(GOOD, "no file matches", "*.csv"),
    "a glob of two files": Case(two_files, 2, {"label-not-text": 1}, name="*.jsonl"),
    "a file and its copy": Case(a_file_and_its_copy, 2, dropped={"duplicate": 2}, name="?.jsonl"),
}

CASES = BYTES | VALUES | MESSAGES | FILES


def run(case: Case, base: Artifact, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """The stage on a case's source, in the folder where its paths begin."""
    monkeypatch.chdir(folder)
    write(folder / "schema.json", [SCHEMA])
    (folder / "empty.txt").write_text("")
    if isinstance(case.content, bytes):
        name = "rows.jsonl" if "*" in case.name else case.name
        (folder / name).write_bytes(case.content)
    else:
        case.content(folder)
    fields = {"sources": [train(case.name)], "max_quarantine_fraction": 1.0} | case.fields
    if case not in BYTES.values() and "contamination" not in fields:
        # what the search for copies sees is texts
        fields["near"] = {"enabled": False}
    return prepare(base, folder / "workspace", **fields)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_input_has_its_outcome(
    case: Case, base: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case.error is not None:
        with pytest.raises(DataError, match=f"(?s){case.error}"):
            run(case, base, tmp_path, monkeypatch)
        left = {path.name for path in (tmp_path / "workspace").iterdir()}
        assert left <= {SCRATCH_NAME}
        return
    found = run(case, base, tmp_path, monkeypatch)
    assert found.quarantined == case.quarantined
    assert found.dropped == case.dropped
    assert found.info.counts.kept == case.kept


def test_there_are_enough_cases() -> None:
    assert len(CASES) == len(BYTES) + len(VALUES) + len(MESSAGES) + len(FILES) > 100


def test_quarantine_says_where_why_and_what(
    base: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = VALUES["a contradiction"]
    case = Case(GOOD + b'{"text": \xff}\n' + case.content[len(GOOD) :])  # type: ignore[index]
    found = run(case, base, tmp_path, monkeypatch)
    assert [(line["file"], line["line"], line["raw"]) for line in found.quarantine] == [
        ("rows.jsonl", 3, '{"text": \\xff}'),
        ("rows.jsonl", 4, '{"text": "a", "label": "x"}'),
        ("rows.jsonl", 5, '{"text": "a", "label": "y"}'),
        ("rows.jsonl", 6, '{"text": "a", "label": "x"}'),
    ]
    reasons = [line["reason"] for line in found.quarantine]
    assert reasons[0] == "invalid-utf8: byte 0xff at byte 10 of the record"
    assert all(reason.startswith("contradiction: ") for reason in reasons[1:])


def test_answers_cut_by_the_limit_fail_gates(
    base: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(VALUES["a third of the answers cut"], base, tmp_path, monkeypatch)
    assert set(found.failing) == {"answer-truncated", "stop-token-supervised"}
    for name in found.failing:
        assert found.gates[name].measured == 1
        assert "1 of 3 rows: rows.jsonl:3" in found.gates[name].detail


def test_a_label_without_rows_fails_its_gate(
    base: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(VALUES["a label that no row has"], base, tmp_path, monkeypatch)
    assert found.failing == ["label-hygiene"]
    assert "'z'" in found.gates["label-hygiene"].detail


WITH_CALLS = TEMPLATE.replace(
    "message['content'] +",
    "message['content'] + (message['tool_calls'] | tojson if message['tool_calls'] else '') +",
)
SPELLED = {
    "the arguments": [
        talk(USER, call(function={"name": "f", "arguments": {"a": "b<|im_end|>c"}}), ANSWER, REPLY)
    ],
    "the name": [
        talk(USER, call(function={"name": "<|im_end|>", "arguments": {}}), ANSWER, REPLY)
    ],
}


@pytest.mark.parametrize("records", SPELLED.values(), ids=SPELLED)
def test_special_tokens_in_tool_calls_are_refused(tmp_path: Path, records: list[Any]) -> None:
    write_base(tmp_path / "base", WITH_CALLS)
    (tmp_path / "rows.jsonl").write_bytes(CHAT + lines(*records))
    found = prepare(
        sealed(tmp_path / "base"),
        tmp_path / "workspace",
        task="chat",
        sources=[train(tmp_path / "rows.jsonl")],
        max_quarantine_fraction=1.0,
    )
    assert found.quarantined == {"special-token-in-text": 1}
    assert found.failing == []


def test_rows_with_other_tools_are_no_copies(base: Artifact, tmp_path: Path) -> None:
    tools = [[{"type": "function", "function": {"name": name}}] for name in "fg"]
    rows = [talk(USER, REPLY), *(talk(USER, REPLY, tools=one) for one in tools)]
    path = write(tmp_path / "rows.jsonl", rows)
    found = prepare(base, tmp_path / "workspace", task="chat", sources=[train(path)])
    assert found.dropped == {}


TEXTS = st.text(st.characters(exclude_categories=()), max_size=30)
LINES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"\n", b"\r\n", b"\x85", "\u2028".encode(), b'"', b"{}", b"[" * 300, b"\0"]),
    st.builds(
        lambda text, label: json.dumps({"text": text, "label": label}).encode() + b"\n",
        TEXTS,
        st.one_of(TEXTS, st.sampled_from(["x", "y"]), st.integers(), st.none()),
    ),
    st.builds(
        lambda text: (
            json.dumps({"text": text, "label": "x"}, ensure_ascii=False).encode(
                "utf-8", "surrogatepass"
            )
            + b"\n"
        ),
        TEXTS,
    ),
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(more=st.lists(LINES, max_size=8).map(b"".join))
def test_any_bytes_are_rows_or_quarantine(
    more: bytes, base: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "rows.jsonl").write_bytes(GOOD + more)
    rows = [train(folder / "rows.jsonl")]
    fields: dict[str, Any] = {"sources": rows, "on_overlong": "drop"}
    found = prepare(base, folder / "workspace", near={"enabled": False}, **fields)
    records = more.count(b"\n") + (not more.endswith(b"\n") and more != b"")
    assert found.info.counts.read == 2 + records
    assert found.info.counts.kept >= 2
