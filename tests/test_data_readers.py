"""Readers: what a file holds comes out unchanged, or as a quarantined record with its line."""

import gzip
import json
import pickle
from pathlib import Path

import pytest

from luthier.data import chunks
from luthier.data.records import Record, SourceFile
from luthier.data.rows import RAW_LIMIT_CHARACTERS, RawRow, Rejected
from luthier.errors import DataError


def read(folder: Path, name: str, content: bytes) -> list[Record]:
    path = folder / name
    path.write_bytes(content)
    return read_all(SourceFile(path, name))


def read_all(file: SourceFile, chunk_bytes: int = chunks.CHUNK_BYTES) -> list[Record]:
    return [record for chunk in chunks.cut(file, chunk_bytes) for record in chunks.read(chunk)]


def only_fault(records: list[Record]) -> Rejected:
    faults = [record for record in records if isinstance(record, Rejected)]
    assert len(faults) == 1
    return faults[0]


JSONL_FAULTS = {
    b'{"text": "caf\xe9"}': ("invalid-utf8", "0xe9"),
    b'{"text": NaN}': ("not-a-number", "NaN"),
    b'{"text": -Infinity}': ("not-a-number", "-Infinity"),
    b'{"text": 1e999}': ("not-a-number", "1e999"),
    b'\xef\xbb\xbf{"text": "a"}': ("byte-order-mark", "U+FEFF"),
    b'{"text": "a", "text": "b"}': ("duplicate-key", "'text'"),
    b'{"a": {"b": 1, "b": 1}}': ("duplicate-key", "'b'"),
    b'["a"]': ("not-an-object", "array"),
    b"null": ("not-an-object", "null"),
    b"": ("empty-line", "nothing"),
    b'{"text": "a"} {"text": "b"}': ("not-json", "Extra data"),
    b'{"text": "a",}': ("not-json", "character"),
    b"{'text': 'a'}": ("not-json", "character"),
    b'{"text": "a\tb"}': ("not-json", "control character"),
    b'{"text": "\\ud800"}': ("invalid-unicode", "surrogate"),
    b'{"\\ud800": 1, "\\ud800": 2}': ("duplicate-key", "\\ud800"),
    b'{"n": ' + b"1" * 5000 + b"}": ("not-json", "digits"),
    b"[" * 100_000: ("nested-too-deep", "200 levels"),
    b'{"a": ' * 1000 + b"1" + b"}" * 1000: ("nested-too-deep", "200 levels"),
    b'{"a\\u003a": 1, "a:": 2}': ("duplicate-key", "'a:'"),
    b'{"a": "\\u003a", "b": 1, "b": 1}': ("duplicate-key", "'b'"),
}


@pytest.mark.parametrize("line", JSONL_FAULTS)
def test_faulty_json_line_is_quarantined_alone(tmp_path: Path, line: bytes) -> None:
    records = read(tmp_path, "a.jsonl", b'{"text": "one"}\n' + line + b'\n{"text": "three"}\n')
    kind, detail = JSONL_FAULTS[line]
    fault = only_fault(records)
    assert (fault.file, fault.line, fault.kind) == ("a.jsonl", 2, kind)
    assert detail in fault.reason
    fault.as_json_line().encode()
    assert [r.values for r in records if isinstance(r, RawRow)] == [
        {"text": "one"},
        {"text": "three"},
    ]
    assert [record.line for record in records] == [1, 2, 3]


def test_json_lines_come_out_unchanged(tmp_path: Path) -> None:
    content = '{"t": " a\\u00e9\\ud83d\\ude00\u2028 ", "n": 1.5, "x": null}\r\n{"t": ""}'
    records = read(tmp_path, "a.ndjson", content.encode())
    assert [record.values for record in records if isinstance(record, RawRow)] == [
        {"t": " aé😀\u2028 ", "n": 1.5, "x": None},
        {"t": ""},
    ]


def test_truncated_last_line_is_named_as_such(tmp_path: Path) -> None:
    fault = only_fault(read(tmp_path, "a.jsonl", b'{"text": "one"}\n{"text": "tw'))
    assert (fault.line, fault.kind) == (2, "truncated-line")


def test_raw_is_escaped_and_capped(tmp_path: Path) -> None:
    fault = only_fault(read(tmp_path, "a.jsonl", b"\xef\xbb\xbf\xff" + b"x" * 5000 + b"\n"))
    assert fault.raw.startswith("\\ufeff\\xffxxx")
    assert len(fault.raw) < RAW_LIMIT_CHARACTERS + 40
    assert fault.raw.endswith("(5005 bytes in all)")


def test_csv_comes_out_unchanged(tmp_path: Path) -> None:
    content = b'text,label\r\n"a ""b"", c\nd",x\r\n plain ,y\r\n,z'
    records = read(tmp_path, "a.csv", content)
    assert [(r.line, r.values) for r in records if isinstance(r, RawRow)] == [
        (2, {"text": 'a "b", c\nd', "label": "x"}),
        (4, {"text": " plain ", "label": "y"}),
        (5, {"text": "", "label": "z"}),
    ]


def test_tsv_splits_at_tabs_alone(tmp_path: Path) -> None:
    records = read(tmp_path, "a.tsv", b'text\tlabel\na, b\t"x\ty"\n')
    assert [r.values for r in records if isinstance(r, RawRow)] == [
        {"text": "a, b", "label": "x\ty"}
    ]


CSV_FAULTS = {
    b"one": "csv-fields",
    b"one,x,more": "csv-fields",
    b"": "csv-fields",
    b"caf\xe9,x": "invalid-utf8",
    b'5" disk,x': "csv-quote",
    b'"a"b,x': "csv-quote",
    b"a\rb,x": "csv-syntax",
    b"text,label": "csv-header",
}


@pytest.mark.parametrize("line", CSV_FAULTS)
def test_faulty_csv_record_is_quarantined_alone(tmp_path: Path, line: bytes) -> None:
    records = read(tmp_path, "a.csv", b"text,label\none,x\n" + line + b"\nthree,y\n")
    fault = only_fault(records)
    assert (fault.line, fault.kind) == (3, CSV_FAULTS[line])
    assert [r.values["text"] for r in records if isinstance(r, RawRow)] == ["one", "three"]


def test_quote_that_never_closes_loses_no_line_unseen(tmp_path: Path) -> None:
    records = read(tmp_path, "a.csv", b'text,label\none,x\n"two,x\nthree,y\nfour,z\n')
    faults = [record for record in records if isinstance(record, Rejected)]
    assert [(fault.line, fault.kind) for fault in faults] == [
        (3, "csv-quote"),
        (4, "csv-quote"),
        (5, "csv-quote"),
    ]
    assert all("since line 3" in fault.reason for fault in faults)


def test_quote_open_for_a_megabyte_ends_there(tmp_path: Path) -> None:
    body = b"x,y\n" * 300_000
    records = read(tmp_path, "a.csv", b'text,label\n"one,x\n' + body + b'two,"y"\n')
    assert len(records) == 300_002
    last = records[-1]
    assert isinstance(last, RawRow)
    assert last.values == {"text": "two", "label": "y"}


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (b"text,label,text", "csv-header"),
        (b"text,,label", "csv-header"),
        (b"", "csv-header"),
        (b"\xef\xbb\xbftext,label", "byte-order-mark"),
        (b'\xef\xbb\xbf"text","label"', "byte-order-mark"),
        (b"text,lab\xe9l", "invalid-utf8"),
    ],
)
def test_faulty_csv_header_quarantines_every_row(tmp_path: Path, header: bytes, kind: str) -> None:
    records = read(tmp_path, "a.csv", header + b"\none,x\ntwo,y\n")
    assert all(isinstance(record, Rejected) for record in records)
    assert [record.line for record in records] == [1, 2, 3]
    assert [r.kind for r in records if isinstance(r, Rejected)] == [kind, *["csv-header"] * 2]


def test_a_long_csv_field_is_a_field(tmp_path: Path) -> None:
    """Python's csv module stops at 128 KiB, which a document may well have."""
    long = b"a" * 200_000
    content = b"text,label\n" + long + b',x\n"' + long + b'",y\n,"z"\n'
    rows = [r.values for r in read(tmp_path, "a.csv", content) if isinstance(r, RawRow)]
    text = long.decode()
    assert rows == [
        {"text": text, "label": "x"},
        {"text": text, "label": "y"},
        {"text": "", "label": "z"},
    ]


def test_integers_beyond_64_bits_stay_exact(tmp_path: Path) -> None:
    numbers = [2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**30, 123456789012345678]
    content = "".join(json.dumps({"n": number}) + "\n" for number in numbers).encode()
    rows = read(tmp_path, "a.jsonl", content)
    assert [row.values["n"] for row in rows if isinstance(row, RawRow)] == numbers


def test_the_elements_of_an_array_have_their_lines(tmp_path: Path) -> None:
    content = b'\n[ {"a": "],[{"},\n\n  {"a":\n "\\\\\\""}, {"a":"\\"},{"}, {"b":"\\\\"}, 5\n]\n'
    records = read(tmp_path, "a.json", content)
    assert [(r.line, r.values) for r in records if isinstance(r, RawRow)] == [
        (2, {"a": "],[{"}),
        (4, {"a": '\\"'}),
        (5, {"a": '"},{'}),
        (5, {"b": "\\"}),
    ]
    assert only_fault(records).line == 5
    assert only_fault(records).raw == "5"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv.gz"])
def test_a_chunk_can_be_read_in_another_process(tmp_path: Path, name: str) -> None:
    contents = {
        "a.jsonl": b'{"t": "x", "l": "y"}\n' * 50,
        "a.json": b"[" + b",\n".join([b'{"t": "x", "l": "y"}'] * 50) + b"]",
        "a.csv": b"t,l\n" + b'"x",y\n' * 50,
        "a.tsv.gz": gzip.compress(b"t\tl\n" + b"x\ty\n" * 50),
    }
    path = tmp_path / name
    path.write_bytes(contents[name])
    found = list(chunks.cut(SourceFile(path, name), 64))
    assert len(found) > 3
    assert all((chunk.data is None) == (not name.endswith(".gz")) for chunk in found)
    records = [r for chunk in pickle.loads(pickle.dumps(found)) for r in chunks.read(chunk)]
    assert len(records) == 50
    assert all(isinstance(r, RawRow) and r.values == {"t": "x", "l": "y"} for r in records)
    path.write_bytes(contents[name][:-20])
    if not name.endswith(".gz"):
        with pytest.raises(DataError, match="became shorter"):
            list(chunks.read(found[-1]))
