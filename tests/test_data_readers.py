"""Readers: what a file holds comes out unchanged, or as a quarantined record with its line."""

from pathlib import Path

import pytest

from luthier.data.readers import check_source, read_file
from luthier.data.rows import RAW_LIMIT_CHARACTERS, RawRow, Rejected
from luthier.errors import DataError


def read(folder: Path, name: str, content: bytes) -> list[RawRow | Rejected]:
    path = folder / name
    path.write_bytes(content)
    return list(read_file(path, name))


def only_fault(records: list[RawRow | Rejected]) -> Rejected:
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
    b"[" * 100_000: ("not-json", "recursion"),
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
    assert fault.raw.endswith("more characters)")


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
    b"a" * 200_000 + b",x": "csv-syntax",
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


def test_unusable_files_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "rows.jsnl").write_text("{}")
    (tmp_path / "folder.jsonl").mkdir()
    for name, message in {
        "missing.jsonl": "no such file",
        "empty.jsonl": "the file is empty",
        "rows.jsnl": r"Did you mean \.jsonl",
        "folder.jsonl": "a folder",
    }.items():
        with pytest.raises(DataError, match=message) as raised:
            check_source(tmp_path / name)
        assert name in str(raised.value)
        with pytest.raises(DataError, match=message):
            list(read_file(tmp_path / name, name))
