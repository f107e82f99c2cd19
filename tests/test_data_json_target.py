"""Extraction: outputs are checked against a JSON Schema and spelled in its order."""

import json
import pickle
import runpy
import shutil
import socket
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from luthier.data.formats import (
    ROW_FORMATS,
    ClassificationOptions,
    ExtractionOptions,
    FormatOptions,
    GroundedOptions,
    options_of,
    parse,
)
from luthier.data.formats.json_target import JsonTarget, check_schema, read_schema
from luthier.data.rows import Parsed, RawRow, RowError
from luthier.errors import DataError


def extracted(output: Any, options: FormatOptions) -> Parsed:
    raw = RawRow("a.jsonl", 3, {"text": "t", "output": output})
    return parse(raw, ROW_FORMATS["extraction"], {}, options)


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}},
    },
    "required": ["name"],
    "$defs": {"part": {"properties": {"b": {"type": "integer"}, "a": {"$ref": "#/$defs/part"}}}},
}


def with_schema(schema: Any) -> FormatOptions:
    check_schema(schema)
    return FormatOptions(schema=json.dumps(schema))


def test_outputs_are_spelled_in_the_order_of_the_schema() -> None:
    output = {"new": 1, "parts": [{"z": 0, "a": {"a": {}, "b": 2}, "b": 1}], "name": "é"}
    spelled = '{"name": "é", "parts": [{"b": 1, "a": {"b": 2, "a": {}}, "z": 0}], "new": 1}'
    options = with_schema(SCHEMA)
    for found in (output, json.dumps(output, indent=2)):
        row = extracted(found, options)
        assert row.output == row.messages[-1]["content"] == spelled


def test_combined_schemas_order_keys_and_extra_keys_have_a_schema_too() -> None:
    schema = {
        "allOf": [{"properties": {"b": {}}}, {"properties": {"a": {}}}],
        "additionalProperties": {"properties": {"y": {}, "x": {}}},
    }
    row = extracted({"o": {"x": 1, "y": 2}, "a": 1, "b": 2}, with_schema(schema))
    assert row.output == '{"b": 2, "a": 1, "o": {"y": 2, "x": 1}}'


def test_without_a_schema_keys_stay_as_given() -> None:
    assert extracted({"b": 1, "a": [True]}, FormatOptions()).output == '{"b": 1, "a": [true]}'


def test_lists_are_outputs_where_a_schema_says_so() -> None:
    options = with_schema({"type": "array", "items": {"properties": {"b": {}, "a": {}}}})
    row = extracted('[{"a": 1, "b": 2}]', options)
    assert row.output == '[{"b": 2, "a": 1}]'


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "not-json: Expecting property name"),
        ("\ufeff{}", "byte-order-mark"),
        ("[]", "it is a list, not an object"),
        ('{"type": "objekt"}', '$.type: "objekt" is not valid'),
        ('{"properties": {"a b": {"pattern": "("}}}', """$.properties['a b'].pattern: "(" is"""),
        (
            '{"items": {"$ref": "https://a.org/s.json"}}',
            "$.items: $ref 'https://a.org/s.json' leads",
        ),
        ('{"properties": {"default": {"$ref": "other.json"}}}', "nothing is fetched"),
        ('{"$ref": "#/$defs/absent"}', "$: $ref '#/$defs/absent' names nothing in it"),
        ('{"$defs": {"unused": {"$ref": "#absent"}}}', "$.$defs.unused: $ref '#absent' is the"),
        ('{"$ref": "#"}', "leads to itself"),
        ('{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}', "leads to itself"),
        ('{"$ref": "#/enum/0", "enum": [{"type": "x"}]}', "$.enum[0].type: "),
        ('{"$schema": "https://a.org/mine"}', "not one of"),
        ('{"$defs": {"a": {"$id": "https://a.org/a"}}}', "$.$defs.a: has an $id of its own"),
        ('{"type": "object", "type": "array"}', "'type' stands twice"),
        ('{"not": ' * 201 + "{}" + "}" * 201, "nested-too-deep"),
    ],
)
def test_faulty_schema(tmp_path: Path, schema: str, reason: str) -> None:
    path = tmp_path / "schema.json"
    path.write_text(schema, encoding="utf-8")
    with pytest.raises(DataError) as raised:
        options_of(ClassificationOptions(), ExtractionOptions(json_schema=path), GroundedOptions())
    assert str(raised.value).startswith(f"{path}: not a usable JSON Schema: ")
    assert reason in str(raised.value)


def test_a_reference_among_values_is_no_reference() -> None:
    check_schema({"enum": [{"$ref": "https://a.org/s.json"}]})


def test_nothing_is_fetched_even_if_a_schema_was_not_checked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        schema = {"properties": {"a": {"$ref": f"http://127.0.0.1:{server.getsockname()[1]}/s"}}}
        with pytest.raises(ValueError, match="Retrieval is disabled"):
            JsonTarget(schema)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("reference", ["#/$defs/a~1b%20c/items", "#named"])
def test_references_give_the_order_of_keys_too(reference: str) -> None:
    part = {"$anchor": "named", "properties": {"b": {"type": "integer"}, "a": {}}}
    options = with_schema({"$ref": reference, "$defs": {"a/b c": {"items": part}}})
    assert extracted({"a": 1, "b": 2}, options).output == '{"b": 2, "a": 1}'
    with pytest.raises(RowError, match=r"^schema-violation: \$\.b: "):
        extracted({"b": "2"}, options)


@pytest.mark.parametrize(
    ("draft", "accepted"),
    [
        (None, True),
        ("https://json-schema.org/draft/2020-12/schema", True),
        ("https://json-schema.org/draft/2019-09/schema", False),
        ("http://json-schema.org/draft-07/schema#", False),
    ],
)
def test_the_schema_names_its_draft(draft: str | None, accepted: bool) -> None:
    """`items` after `prefixItems` began with 2020-12; `format` is checked in none of them."""
    schema = {"properties": {"mail": {"format": "email"}}, "prefixItems": [{}], "items": False}
    options = with_schema(schema if draft is None else schema | {"$schema": draft})
    assert extracted({"mail": "nobody"}, options).output == '{"mail": "nobody"}'
    with nullcontext() if accepted else pytest.raises(RowError, match="schema-violation"):
        extracted([1], options)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, "1.0", "1.5"),
        ({"type": "integer"}, "1e308", '"1"'),
        ({"type": "integer"}, "9" * 4000, "true"),
        ({"maximum": 2**53}, str(2**53), str(2**53 + 1)),
        ({"maximum": 1.0 * 2**53}, str(2**53), str(2**53 + 1)),
        ({"maximum": 10**400}, "1e308", str(10**400 + 1)),
        ({"const": 10**30}, str(10**30), str(10**30 + 1)),
        ({"const": 1}, "1.0", "true"),
        ({"multipleOf": 7}, str(7 * 10**40), str(7 * 10**40 + 1)),
        ({"multipleOf": 0.01}, "4.35", "4.355"),
        ({"uniqueItems": True}, f"[{10**30}, {10**30 + 1}]", "[1, 1.0]"),
    ],
)
def test_numbers_are_checked_exactly(schema: dict[str, Any], good: str, bad: str) -> None:
    options = with_schema({"properties": {"n": schema}})
    assert extracted(f'{{"n": {good}}}', options).output is not None
    with pytest.raises(RowError, match=r"^schema-violation: \$\.n: "):
        extracted(f'{{"n": {bad}}}', options)


STRING, NUMBER = {"type": "string"}, {"type": "integer"}
CITY = {"properties": {"city": {"properties": {"code": NUMBER}}, "kind": {"const": "city"}}}


@pytest.mark.parametrize(
    ("schema", "output", "violation"),
    [
        (
            {"properties": {"a": STRING, "b": STRING}, "required": ["d", "c"]},
            {"b": 1, "a": 1},
            '$: "c" is a required property',
        ),
        (
            {"properties": {"b": STRING, "a": STRING}},
            {"b": 1, "a": 1},
            '$.a: 1 is not of type "string"',
        ),
        (
            {"properties": {"a b": {"items": STRING}}},
            {"a b": ["", 1, 2]},
            """$['a b'][1]: 1 is not of type "string\"""",
        ),
        (
            {"anyOf": [STRING, CITY]},
            {"city": {"code": "x"}, "kind": "city"},
            '$.city.code: "x" is not of type "integer"',
        ),
        (
            {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
            {"c": 1},
            """$: {"c":1} is not valid under any of the schemas listed in the 'oneOf' keyword""",
        ),
        (
            {"oneOf": [{}, CITY]},
            {},
            "$: {} is valid under more than one of the schemas listed in the 'oneOf' keyword",
        ),
        (
            {"type": "array"},
            {"key": "x" * 5000},
            f"""$: {{"key":"{"x" * 92}…{"x" * 75}"}} is not of type "array\"""",
        ),
    ],
)
def test_one_violation_is_named(schema: dict[str, Any], output: Any, violation: str) -> None:
    options = with_schema(schema)
    keys_turned = dict(reversed(output.items()))
    for found in (output, keys_turned):
        with pytest.raises(RowError) as raised:
            extracted(found, options)
        assert str(raised.value) == f"schema-violation: {violation}"


def test_a_pattern_cannot_hang_the_run() -> None:
    options = with_schema({"properties": {"a": {"pattern": "^(?:(a|a|aa)+)+(?!x)$"}}})
    with pytest.raises(RowError, match="Max limit for backtracking"):
        extracted({"a": "a" * 40 + "!"}, options)


@pytest.mark.parametrize(
    "schema", [{"type": "object"}, {"additionalProperties": {"type": "null"}}]
)
def test_what_json_cannot_say_is_no_null(schema: dict[str, Any]) -> None:
    with pytest.raises(RowError, match=r"^output-not-json: "):
        extracted({"a": float("nan")}, with_schema(schema))


def test_absent_schema_file() -> None:
    with pytest.raises(DataError, match=r"^no\.json: .*No such file"):
        options_of(
            ClassificationOptions(),
            ExtractionOptions(json_schema=Path("no.json")),
            GroundedOptions(),
        )


def test_options_travel_to_other_processes() -> None:
    options = FormatOptions(ClassificationOptions(template="<{text}>"), schema=json.dumps(SCHEMA))
    assert pickle.loads(pickle.dumps(options)) == options


DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize(("folder", "rows"), [("home_intents", 3327), ("us_addresses", 1487)])
def test_the_shipped_rows_hold_to_their_schema(folder: str, rows: int) -> None:
    options = FormatOptions(schema=read_schema(DATA / folder / "schema.json"))
    outputs = [
        json.loads(line)["output"]
        for path in sorted((DATA / folder).glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert len(outputs) == rows
    for output in outputs[::4]:  # all of them are read whenever their config runs
        assert json.loads(extracted(output, options).output or "") == output


@pytest.mark.parametrize(
    ("folder", "output"),
    [
        ("home_intents", {"intent": "HassExplode", "slots": {}}),
        ("home_intents", {"intent": "HassTurnOn", "slots": {"nam": "tea"}}),
        ("home_intents", {"intent": "HassSetVolume", "slots": {"area": "office"}}),
        ("home_intents", {"intent": "HassSetVolume", "slots": {"volume_level": "30"}}),
        ("us_addresses", {}),
        ("us_addresses", {"StreetName": " "}),
        ("us_addresses", {"Street": "Main"}),
    ],
)
def test_the_shipped_schemas_refuse_wrong_outputs(folder: str, output: dict[str, Any]) -> None:
    options = FormatOptions(schema=read_schema(DATA / folder / "schema.json"))
    with pytest.raises(RowError, match=r"^schema-violation: \$"):
        extracted(output, options)


@pytest.mark.parametrize("folder", ["preferences_example", "grounded_example"])
def test_the_example_rows_are_what_their_script_makes(folder: str, tmp_path: Path) -> None:
    for name in (folder, "home_intents", "package_sections"):
        shutil.copytree(DATA / name, tmp_path / name)
    for path in (tmp_path / folder).glob("*.jsonl"):
        path.unlink()
    runpy.run_path(str(tmp_path / folder / "make.py"), run_name="__main__")
    for split in ("train", "validation"):
        made = (tmp_path / folder / f"{split}.jsonl").read_text(encoding="utf-8")
        assert made == (DATA / folder / f"{split}.jsonl").read_text(encoding="utf-8")
