"""`Section.key_fields`, and the JSON Schema of a config file against what the loader accepts."""

import enum
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from luthier.config import Field, Section, json_schema, load_config, result_free
from luthier.errors import ConfigError


class Quality(enum.Enum):
    GOOD = "good"


class Source(Section):
    path: Path = Field(description="The file with the rows.")
    workers: int = Field(1, ge=1, json_schema_extra=result_free)


class Hub(Section):
    kind: Literal["hub"]
    revision: str


class Folder(Section):
    kind: Literal["folder"]
    path: Path


class Prepare(Section):
    """Rows in, one dataset out."""

    task: Literal["chat", "classification"] = Field(description="What a row is.")
    sources: list[Source] = Field(default_factory=list)
    cache: Path = Path("a") / "b"
    first: Source | None = None
    by_name: dict[str, Source] = Field(default_factory=dict)
    names: frozenset[str] = frozenset()
    quality: Quality = Quality.GOOD
    ratio: float = Field(0.5, gt=0)
    log_every_steps: int = Field(50, json_schema_extra=result_free)
    base: Annotated[Hub | Folder, Field(discriminator="kind")] | None = None


class Merge(Section):
    check: bool = True


SECTIONS: dict[str, type[Section]] = {"prepare": Prepare, "merge": Merge}


def test_key_fields_are_json_without_what_is_result_free() -> None:
    section = Prepare(
        task="chat",
        sources=[Source(path=Path("x/y"), workers=9)],
        first=Source(path=Path("z")),
        by_name={"a": Source(path=Path("w"))},
        names=frozenset({"b", "a"}),
        log_every_steps=3,
    )
    assert section.key_fields() == {
        "task": "chat",
        "sources": [{"path": "x/y"}],
        "cache": "a/b",
        "first": {"path": "z"},
        "by_name": {"a": {"path": "w"}},
        "names": ["a", "b"],
        "quality": "good",
        "ratio": 0.5,
        "base": None,
    }
    json.dumps(section.key_fields())
    assert section.model_dump(mode="json")["sources"] == [{"path": "x/y", "workers": 9}]


def test_a_whole_number_for_a_float_gives_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    keys = []
    for ratio in ("1", "1.0", "1e0"):
        path.write_text(f"name: x\nprepare: {{task: chat, ratio: {ratio}}}\n")
        keys.append(json.dumps(load_config(path, SECTIONS).sections["prepare"].key_fields()))
    assert len(set(keys)) == 1


def test_a_field_without_json_form_is_a_bug_that_shows() -> None:
    class Odd(Section):
        value: complex = 1j

    with pytest.raises(TypeError, match="complex, which has no JSON form"):
        Odd().key_fields()


def test_sections_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Merge().check = False  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        Merge.model_validate({"chek": True})


GOOD = [
    "name: x",
    "name: x\nseed: 1\ngates: {merge-parity: warn}\nmerge: {}",
    "name: x\nprepare: {task: chat, sources: [{path: a}], ratio: 1, quality: good}",
    "name: x\nprepare: {task: chat, base: {kind: hub, revision: main}, names: [a, b]}",
    "extends: base.yaml\nprepare: {ratio: 0.25, base: {revision: main}}\nmerge: null",
    "extends: base.yaml\nmerge: {check: false}\ngates:",
]
BAD = [
    "seed: 1",
    "name: X Y",
    "name: x\nzzz: 1",
    "name: x\nseed: -1",
    "name: x\nmerge:",
    "name: x\nmerge: {chek: true}",
    "name: x\nmerge: {check: 'true'}",
    "name: x\ngates: {no-gate: warn}",
    "name: x\ngates: {merge-parity: fail}",
    "name: x\nprepare: {}",
    "name: x\nprepare: {task: chats}",
    "name: x\nprepare: {task: chat, sources: [{pth: a}]}",
    "name: x\nprepare: {task: chat, ratio: 0}",
    "name: x\nprepare: {task: chat, base: {kind: hub, path: a}}",
    "extends: base.yaml\nprepare: {base: {revison: main}}",
    "extends: base.yaml\nprepare: {rato: 1}",
    "extends: base.yaml\nzzz: 1",
    "extends: [base.yaml]",
    "- name: x",
]


@pytest.mark.parametrize("text", GOOD + BAD)
def test_schema_and_loader_agree(text: str, tmp_path: Path) -> None:
    base = "name: b\nprepare: {task: chat, base: {kind: hub, revision: a}}\nmerge: {}\ngates: {}\n"
    (tmp_path / "base.yaml").write_text(base)
    (tmp_path / "x.yaml").write_text(text)
    validator = jsonschema.Draft202012Validator(json_schema(SECTIONS))
    found = [error.message for error in validator.iter_errors(yaml.safe_load(text))]
    if text in GOOD:
        assert found == []
        load_config(tmp_path / "x.yaml", SECTIONS)
    else:
        assert found
        with pytest.raises(ConfigError):
            load_config(tmp_path / "x.yaml", SECTIONS)


def test_schema_is_sound_and_tells_descriptions_and_defaults() -> None:
    schema = json_schema(SECTIONS)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(schema)) == schema
    prepare: dict[str, Any] = schema["$defs"]["Prepare"]
    assert prepare["description"] == "Rows in, one dataset out."
    assert prepare["properties"]["task"]["description"] == "What a row is."
    assert prepare["properties"]["ratio"]["default"] == 0.5
    assert prepare["properties"]["log_every_steps"]["x-result-free"] is True
    assert schema["$defs"]["config"]["properties"]["seed"]["default"] == 7


def test_every_object_of_the_schema_is_closed() -> None:
    definitions: dict[str, Any] = json_schema(SECTIONS)["$defs"]
    assert {name: one["additionalProperties"] for name, one in definitions.items()
            if one["type"] == "object"} == dict.fromkeys(
        [name for name in definitions if not name.endswith("Quality")], False
    )  # fmt: skip
