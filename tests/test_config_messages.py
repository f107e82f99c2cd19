"""Each kind of mistake in a config has its sentence, with the line of the value."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import model_validator

from luthier.config import Field, Section, load_config
from luthier.errors import ConfigError


class Source(Section):
    path: Path = Field(description="The file with the rows.")
    split: Literal["train", "test"] | None = None


class Replay(Section):
    path: Path
    fraction: float = Field(0.05, gt=0, le=1)


class Prepare(Section):
    task: Literal["classification", "chat", "completion"] = Field(description="What rows are.")
    sources: list[Source] = Field(min_length=1, max_length=2)
    labels: tuple[str, ...] = ()
    system_prompt: str | None = Field(None, min_length=1, max_length=60)
    fail: bool = False
    replay: Replay | None = None
    aliases: dict[str, str] = Field(default_factory=dict)


class Lora(Section):
    r: int = Field(16, gt=0)
    target_modules: Literal["all-linear"] | list[str] = "all-linear"


class Sft(Section):
    learning_rate: float = Field(2e-4, gt=0)
    epochs: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    lora: Lora = Field(default_factory=Lora)
    batch_tokens: int | None = Field(None, multiple_of=8)
    batch_size: int | None = None
    revision: str | None = Field(None, pattern="^[0-9a-f]{4}$")

    @model_validator(mode="after")
    def _one_batch(self) -> "Sft":
        if self.batch_tokens and self.batch_size:
            raise ValueError("batch_tokens and batch_size exclude each other.\nKeep one")
        return self


SECTIONS: dict[str, type[Section]] = {"prepare": Prepare, "sft": Sft}
START = "name: x\nprepare:\n  task: chat\n  sources: [{path: a.jsonl}]\n"  # four lines, valid


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def complaints(text: str) -> list[str]:
    Path("x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config("x.yaml", SECTIONS)
    return str(caught.value).split("\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sft: {learning_rat: 1e-4}", "sft.learning_rat is unknown. Did you mean learning_rate?"),
        ("sft: {Learning-Rate: 1}", "sft.Learning-Rate is unknown. Did you mean learning_rate?"),
        ("sft: {r: 8}", "sft.r is unknown. Did you mean sft.lora.r?"),
        ("learning_rate: 1", "learning_rate is unknown. Did you mean sft.learning_rate?"),
        ("sfts: {}", "sfts is unknown. Did you mean sft?"),
        ("sft: {lora: {zzz: 1}}", "sft.lora.zzz is unknown. Known here: r, target_modules"),
        ("zzz: 1", "zzz is unknown. Known here: name, seed, gates, prepare, sft"),
        (
            "'a b\\n': 1",
            "'a b\\\\n' is unknown. Known here: name, seed, gates, prepare, sft",
        ),
        ("sft: {learning_rate: fast}", "sft.learning_rate must be a number, got the text 'fast'"),
        (
            "sft: {learning_rate: '1e-4'}",
            "sft.learning_rate must be a number, got the text '1e-4'. Write 1e-4",
        ),
        (
            "sft: {batch_size: 1_000}",
            "sft.batch_size must be a whole number, got the text '1_000'. Write 1000",
        ),
        ("sft: {learning_rate: true}", "sft.learning_rate must be a number, got true"),
        ("sft: {learning_rate: [1]}", "sft.learning_rate must be a number, got a list"),
        ("sft: {learning_rate:}", "sft.learning_rate must be a number, got null"),
        ("sft: {batch_size: true}", "sft.batch_size must be a whole number, got true"),
        ("sft: {batch_size: 1.5}", "sft.batch_size must be a whole number, got the number 1.5"),
        (
            "sft: {batch_size: 1e3}",
            "sft.batch_size must be a whole number, got the number 1e3. Write 1000",
        ),
        ("sft: {learning_rate: -1}", "sft.learning_rate must be greater than 0, got -1"),
        ("sft: {lora: {r: 0}}", "sft.lora.r must be greater than 0, got 0"),
        ("sft: {batch_tokens: 9}", "sft.batch_tokens must be a multiple of 8, got the number 9"),
        (
            "sft: {epochs: atuo}",
            "sft.epochs must be a whole number or 'auto', got the text 'atuo'. Did you mean auto?",
        ),
        ("sft: {epochs: 0}", "sft.epochs must be at least 1 or 'auto', got 0"),
        (
            "sft: {lora: {target_modules: q_proj}}",
            "sft.lora.target_modules must be 'all-linear' or a list, got the text 'q_proj'. "
            "Write [q_proj]",
        ),
        (
            "sft: {lora: {target_modules: [q_proj, 1]}}",
            "sft.lora.target_modules[1] must be text, got the number 1. Write '1'",
        ),
        (
            "sft: {revision: 1234}",
            "sft.revision must be text, got the number 1234. Write '1234'",
        ),
        (
            "sft: {revision: 12e5}",
            "sft.revision must be text, got the number 12e5. Write '12e5'",
        ),
        (
            "sft: {revision: main}",
            "sft.revision must be text of the form ^[0-9a-f]{4}$, got the text 'main'",
        ),
        ("sft: fast", "sft must be a mapping, got the text 'fast'"),
        ("sft: [a]", "sft must be a mapping, got a list"),
        ("sft:", "sft is empty. Write sft: {} for its defaults, or remove it"),
        ("gates:", "gates is empty. Write gates: {} for its defaults, or remove it"),
        (
            "sft: {batch_tokens: 8, batch_size: 1}",
            "sft: batch_tokens and batch_size exclude each other. Keep one",
        ),
        ("seed: -1", "seed must be at least 0, got -1"),
        ("seed: 4294967296", "seed must be less than 4294967296, got 4294967296"),
        ("seed: x", "seed must be a whole number, got the text 'x'"),
        ("gates: [merge-parity]", "gates must be a mapping, got a list"),
        (
            "gates: {loss-is-rel: warn}",
            "gates.loss-is-rel is unknown. Did you mean loss-is-real?",
        ),
        ("gates: {merge-parity: off}", "gates.merge-parity must be 'warn', got the text 'off'"),
    ],
)
def test_one_mistake(text: str, said: str) -> None:
    assert complaints(START + text) == [f"x.yaml:5: {said}"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "task: chats",
            "prepare.task must be 'classification', 'chat' or 'completion', "
            "got the text 'chats'. Did you mean chat?",
        ),
        (
            "task: 5",
            "prepare.task must be 'classification', 'chat' or 'completion', got the number 5",
        ),
        ("labels: [no, 1]", "prepare.labels[1] must be text, got the number 1. Write '1'"),
        ("labels: urgent", "prepare.labels must be a list, got the text 'urgent'. Write [urgent]"),
        ("fail: yes", "prepare.fail must be true or false, got the text 'yes'. Write true"),
        ("fail: 'False'", "prepare.fail must be true or false, got the text 'False'. Write false"),
        ("fail: 1", "prepare.fail must be true or false, got the number 1"),
        (
            "system_prompt: ''",
            "prepare.system_prompt must have at least 1 character, got the text ''",
        ),
        (
            f"system_prompt: {'a' * 61}",
            f"prepare.system_prompt must have at most 60 characters, got the text '{'a' * 40}...'",
        ),
        ("replay: {path: 5}", "prepare.replay.path must be text, got the number 5. Write '5'"),
        (
            "replay: {path: x, fraction: 2}",
            "prepare.replay.fraction must be at most 1, got 2",
        ),
        ("replay: {}", "prepare.replay.path is missing"),
        ("aliases: {a: no, b: 5}", "prepare.aliases.b must be text, got the number 5. Write '5'"),
    ],
)
def test_one_mistake_in_prepare(text: str, said: str) -> None:
    lines = {"task": "task: chat", "sources": "sources: [{path: a}]"}
    lines.pop(text.partition(":")[0], None)
    body = "".join(f"  {line}\n" for line in lines.values())
    found = complaints(f"name: x\nprepare:\n{body}  {text}")
    assert found == [f"x.yaml:{3 + len(lines)}: {said}"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("name: My Run", "'My Run'"),
        ("name: -x", "'-x'"),
        ("name: ''", "''"),
        (f"name: {'a' * 65}", f"'{'a' * 40}...'"),
        ('name: "x\\n"', r"'x\n'"),
    ],
)
def test_names(text: str, shown: str) -> None:
    assert complaints(text) == [
        "x.yaml:1: name must be 1 to 64 characters a-z, 0-9, '.', '_' or '-', "
        f"the first a letter or digit, got the text {shown}"
    ]


def test_missing_keys_stand_at_the_mapping_they_belong_in() -> None:
    text = "\nseed: 1\nprepare:\n  sources:\n    - path: a\n    - split: train\n"
    assert complaints(text) == [
        "x.yaml:2: name is missing (Names everything that comes of this config)",
        "x.yaml:3: prepare.task is missing (What rows are)",
        "x.yaml:6: prepare.sources[1].path is missing (The file with the rows)",
    ]


def test_all_mistakes_at_once_in_the_order_of_the_file() -> None:
    text = """\
sed: 3
sft:
  epochs: fast
  learning_rate: 010
  lora: &l
    r: -1
    rr: 2
    r: 4
prepare:
  task: chat
  sources:
    - {path: a, split: tests}
    - {pth: b}
gates:
  merge-parity: fail
"""
    assert complaints(text) == [
        "x.yaml:1: name is missing (Names everything that comes of this config)",
        "x.yaml:1: sed is unknown. Did you mean seed?",
        "x.yaml:3: sft.epochs must be a whole number or 'auto', got the text 'fast'",
        "x.yaml:4: 010 has a leading zero, which YAML readers take for different numbers. "
        "Write 10, or '010' for text",
        "x.yaml:5: the anchor &l is refused. Write the value out, or use extends",
        "x.yaml:6: sft.lora.r must be greater than 0, got -1",
        "x.yaml:7: sft.lora.rr is unknown. Did you mean r?",
        "x.yaml:8: r is given twice, first in line 6. Keep one",
        "x.yaml:12: prepare.sources[0].split must be 'train' or 'test', got the text 'tests'. "
        "Did you mean test?",
        "x.yaml:13: prepare.sources[1].path is missing (The file with the rows)",
        "x.yaml:13: prepare.sources[1].pth is unknown. Did you mean path?",
        "x.yaml:15: gates.merge-parity must be 'warn', got the text 'fail'",
    ]


words = st.sampled_from(
    ["name", "seed", "gates", "prepare", "sft", "sweep", "lora", "r", "epochs", "task", "sources",
     "path", "base", "kind", "hub", "parameters", "choice", "x", "1", "1e-4", "null", "yes", "010"]
)  # fmt: skip
trees = st.recursive(
    words,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(words, inner, max_size=3).map(
            lambda entries: "{" + ", ".join(f"{k}: {v}" for k, v in entries.items()) + "}"
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(words, trees, max_size=4))
def test_any_tree_is_loaded_or_explained(entries: dict[str, str]) -> None:
    Path("x.yaml").write_text("".join(f"{key}: {value}\n" for key, value in entries.items()))
    said = ""
    try:
        load_config("x.yaml", SECTIONS)
    except ConfigError as error:
        said = str(error)
    assert all(line.startswith("x.yaml:") for line in said.splitlines())
    for jargon in ("nput should", "valid ", "function", "literal", "dictionary", "instance"):
        assert jargon not in said
