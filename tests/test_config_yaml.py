"""What a YAML text means, and what is refused with which line."""

import json
import math
import re
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from luthier.config.document import Mark, plain
from luthier.config.scalars import ScalarError, meaning
from luthier.config.yaml_reader import MAXIMUM_DEPTH, parse_yaml


def read(text: str) -> Any:
    node, problems = parse_yaml(text, lambda line, column: Mark(0, line, column, "x.yaml"))
    assert problems == []
    assert node is not None
    return plain(node)


def complaints(text: str) -> list[str]:
    _node, problems = parse_yaml(text, lambda line, column: Mark(0, line, column, "x.yaml"))
    return [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("5", 5),
        ("-5", -5),
        ("+5", 5),
        ("0", 0),
        ("1e-4", 1e-4),
        ("5e-4", 5e-4),
        ("5.0e-4", 5e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-0.5", -0.5),
        ("0.0", 0.0),
        ("0e5", 0.0),
        ("9223372036854775807", 2**63 - 1),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        *[(text, text) for text in ("no", "No", "yes", "on", "off", "y", "n", "True", "FALSE")],
        *[
            (text, text)
            for text in ("Null", "NULL", "nan", "inf", "1:30", "12:30:45", "2024-01-31")
        ],
        *[
            (text, text)
            for text in ("0x1F", "0o17", "0b1", "1_000", "1e", "e5", "1.2.3", ".", "+")
        ],
        *[(text, text) for text in ("1 000", "5%", "=", "--", "12ab", "٣", "package:a/b.gguf")],
    ],
)
def test_plain_scalar(raw: str, value: object) -> None:
    assert meaning(raw) == value
    assert type(meaning(raw)) is type(value)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            "010",
            "010 has a leading zero, which YAML readers take for different numbers. "
            "Write 10, or '010' for text",
        ),
        (
            "-007",
            "-007 has a leading zero, which YAML readers take for different numbers. "
            "Write -7, or '-007' for text",
        ),
        (
            "00.5",
            "00.5 has a leading zero, which YAML readers take for different numbers. "
            "Write 0.5, or '00.5' for text",
        ),
        (
            "000",
            "000 has a leading zero, which YAML readers take for different numbers. "
            "Write 0, or '000' for text",
        ),
        (".nan", ".nan is not a finite number. Write a number, or '.nan' for text"),
        ("-.INF", "-.INF is not a finite number. Write a number, or '-.INF' for text"),
        ("1e999", "1e999 does not fit in 64 bits. Put it in quotes for text"),
        ("1e-999", "1e-999 does not fit in 64 bits. Put it in quotes for text"),
        (
            "9223372036854775808",
            "9223372036854775808 does not fit in 64 bits. Put it in quotes for text",
        ),
        (
            "1" * 5000,
            "1" * 40 + "... does not fit in 64 bits. Put it in quotes for text",
        ),
    ],
)
def test_refused_scalar(raw: str, said: str) -> None:
    with pytest.raises(ScalarError) as caught:
        meaning(raw)
    assert str(caught.value) == said


def test_quotes_and_blocks_are_text() -> None:
    text = "a: '5'\nb: \"no\"\nc: |\n  1\nd: '.nan'\ne: '010'\nf: ''\n"
    assert read(text) == {"a": "5", "b": "no", "c": "1\n", "d": ".nan", "e": "010", "f": ""}


def test_keys_are_text_as_spelled() -> None:
    text = "no: 1\ntrue: 2\n010: 3\n1: 4\n.nan: 5\n'<<': 6\nnull: 7"
    assert read(text) == {
        "no": 1, "true": 2, "010": 3, "1": 4, ".nan": 5, "<<": 6, "null": 7,
    }  # fmt: skip


def test_a_byte_order_mark_and_windows_lines_are_fine() -> None:
    assert read("\ufeffa: 1\r\nb: [x,\r\n  y]\r\n") == {"a": 1, "b": ["x", "y"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", ["x.yaml:3: a is given twice, first in line 1. Keep one"]),
        ("a: {b: 1, 'b': 2}", ["x.yaml:1: b is given twice, first in line 1. Keep one"]),
        (
            "a: &x 1\nb: *x",
            [
                "x.yaml:1: the anchor &x is refused. Write the value out, or use extends",
                "x.yaml:2: the alias *x is refused. Write the value out, or use extends",
            ],
        ),
        (
            "a:\n  <<: {b: 1}",
            ["x.yaml:2: the merge key << is refused. Write the keys out, or use extends"],
        ),
        (
            "a: !!str 5\nb: !python/object:os.system x\n! c: ! d",
            [
                "x.yaml:1: the tag !!str is refused. Remove it; quotes make a value text",
                "x.yaml:2: the tag !python/object:os.system is refused. "
                "Remove it; quotes make a value text",
                "x.yaml:3: the tag ! is refused. Remove it; quotes make a value text",
                "x.yaml:3: the tag ! is refused. Remove it; quotes make a value text",
            ],
        ),
        ("? [a, b]\n: c", ["x.yaml:1: a key must be text, not a list or a mapping"]),
        ("'': c", ["x.yaml:1: a key is empty. Write its name before the colon"]),
        (
            "a: 1\n---\nb: 2",
            ["x.yaml:2: a second document starts here. A config is one document: remove '---'"],
        ),
        ("a:\n\tb: 1", ["x.yaml:2: a tab cannot indent or start a value. Use spaces"]),
        (
            "a: b: c",
            [
                "x.yaml:1: not valid YAML: mapping values are not allowed here. "
                "Put text that contains ': ' in quotes, and check the indentation"
            ],
        ),
        (
            "a:\n  b: @c",
            [
                "x.yaml:2: not valid YAML: found character '@' that cannot start any token. "
                "Put text that starts with this character in quotes"
            ],
        ),
        (
            "a: 'b\n",
            [
                "x.yaml:2: not valid YAML: found unexpected end of stream "
                "(while scanning a quoted scalar, line 1)"
            ],
        ),
        ("a: 1\nb: \x07", ["x.yaml:2: the character U+0007 is not allowed in YAML. Remove it"]),
        (
            'a: "\\ud83d"',
            ["x.yaml:1: half a surrogate pair is no character. Write the character itself"],
        ),
        (
            'a: "\\UFFFFFFFF"',
            ["x.yaml:1: not valid YAML: a number in a \\U escape or after %YAML is out of range"],
        ),
        (
            "%YAML 1." + "9" * 5000 + "\n---\na: 1",
            ["x.yaml:1: not valid YAML: a number in a \\U escape or after %YAML is out of range"],
        ),
        (
            "[" * 50_000,
            [f"x.yaml:1: nested more than {MAXIMUM_DEPTH} levels deep. Make it flatter"],
        ),
        (
            "a: 010\nb: .inf\nb: 1\nc: [",
            [
                "x.yaml:1: 010 has a leading zero, which YAML readers take for different numbers. "
                "Write 10, or '010' for text",
                "x.yaml:2: .inf is not a finite number. Write a number, or '.inf' for text",
                "x.yaml:3: b is given twice, first in line 2. Keep one",
                "x.yaml:4: not valid YAML: expected the node content, but found '<stream end>' "
                "(while parsing a flow node, line 4)",
            ],
        ),
    ],
)
def test_refused_text(text: str, said: list[str]) -> None:
    assert complaints(text) == said


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "\ufeff"])
def test_nothing_is_no_node(text: str) -> None:
    assert parse_yaml(text, lambda line, column: Mark(0, line, column, "x")) == (None, [])


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc<-_ é:#", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(json_values)
def test_json_reads_as_itself(value: Any) -> None:
    assert read(json.dumps(value, ensure_ascii=False)) == value or isinstance(value, float)


@settings(max_examples=150, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_reads_as_itself(value: float) -> None:
    assert meaning(repr(value)) == value


@settings(max_examples=300, deadline=None)
@given(st.text("0123456789+-._eEnaifxob:~", max_size=8))
def test_a_scalar_is_a_finite_number_text_or_refused(raw: str) -> None:
    try:
        value = meaning(raw)
    except ScalarError:
        return
    assert value == raw if isinstance(value, str) else value is None or math.isfinite(value)


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30))
def test_text_written_by_pyyaml_reads_as_itself_or_is_refused(text: str) -> None:
    """But 1e5, which PyYAML takes for text and so does not quote: here it is a number."""
    assume(not re.fullmatch(r"[-+]?[0-9]+[eE][-+]?[0-9]+", text))
    node, problems = parse_yaml(
        yaml.safe_dump({"a": text}, allow_unicode=True),
        lambda line, column: Mark(0, line, column, "x"),
    )
    if not problems:
        assert node is not None
        assert plain(node) == {"a": text}


yaml_like = st.text(st.sampled_from("ab:- \n{}[],&*!|>'\"%@#?<~0.1\t\\u\x00\ud800é"), max_size=60)


@settings(max_examples=500, deadline=None)
@given(yaml_like | st.text(max_size=60))
def test_any_text_is_read_or_explained_on_one_line(text: str) -> None:
    node, problems = parse_yaml(text, lambda line, column: Mark(0, line, column, "x"))
    for problem in problems:
        assert problem.mark.line >= 1
        assert "\n" not in str(problem)
    if node is not None:
        json.dumps(plain(node), allow_nan=False).encode()
