"""`extends`, `--set`: what the merged config is, and where its mistakes are shown."""

import json
from pathlib import Path

import pytest

from luthier.config import Field, RunConfig, Section, load_config
from luthier.errors import ConfigError


class Lora(Section):
    r: int = Field(16, gt=0)
    alpha: int = 32
    modules: list[str] = Field(default_factory=list)


class Sft(Section):
    method: str
    learning_rate: float = Field(2e-4, gt=0)
    lora: Lora = Field(default_factory=Lora)
    prompt: str | None = None
    folder: Path = Path("data/raw")


class Dpo(Section):
    beta: float = 0.1


SECTIONS: dict[str, type[Section]] = {"sft": Sft, "dpo": Dpo}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs/deep").mkdir(parents=True)


def write(**files: str) -> None:
    for name, text in files.items():
        Path("configs", f"{name}.yaml").write_text(text, encoding="utf-8")


def load(*overrides: str, path: str = "configs/x.yaml") -> RunConfig:
    return load_config(path, SECTIONS, overrides)


def complaints(*overrides: str, path: str = "configs/x.yaml") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*overrides, path=path)
    return str(caught.value).split("\n")


def test_what_a_config_holds() -> None:
    write(x="name: x-1\nsft: {method: lora, learning_rate: 5e-4, folder: a/b}\n")
    config = load("sft.lora.r=8")
    assert (config.name, config.seed, config.gates) == ("x-1", 7, {})
    assert (config.path, config.overrides) == (Path("configs/x.yaml"), ("sft.lora.r=8",))
    assert config.sections == {
        "sft": Sft(method="lora", learning_rate=5e-4, lora=Lora(r=8), folder=Path("a/b"))
    }
    assert config.resolved() == {
        "name": "x-1",
        "seed": 7,
        "gates": {},
        "sft": {
            "method": "lora",
            "learning_rate": 5e-4,
            "lora": {"r": 8, "alpha": 32, "modules": []},
            "prompt": None,
            "folder": "a/b",
        },
    }
    json.dumps(config.resolved())


def test_sections_come_in_the_order_of_the_pipeline() -> None:
    write(x="dpo: {}\nsft: {method: lora}\nname: x\nseed: 0\ngates: {merge-parity: warn}\n")
    config = load()
    assert list(config.sections) == ["sft", "dpo"]
    assert (config.seed, config.gates) == (0, {"merge-parity": "warn"})


def test_extends_merges_mappings_and_replaces_lists() -> None:
    write(
        a="name: a\nsft: {method: lora, lora: {r: 4, alpha: 8, modules: [q, k]}}\ndpo: {}\n",
        b="extends: a.yaml\nsft: {lora: {r: 2}}\n",
        x="extends: ./b.yaml\nname: x\nsft: {prompt: no, lora: {modules: [v]}}\ndpo: null\n",
    )
    config = load()
    assert config.name == "x"
    lora = Lora(r=2, alpha=8, modules=["v"])
    assert config.sections == {"sft": Sft(method="lora", prompt="no", lora=lora)}


def test_a_removed_section_can_come_back_without_what_it_had() -> None:
    write(
        a="name: a\ndpo: {beta: 0.5}\nsft: {method: lora}\n",
        b="extends: a.yaml\ndpo:\n",
        x="extends: b.yaml\ndpo: {}\n",
    )
    assert load().sections["dpo"] == Dpo(beta=0.1)


def test_null_removes_the_seed_and_gates_that_are_inherited() -> None:
    write(
        a="name: a\nseed: 3\ngates: {merge-parity: warn}\n",
        x="extends: a.yaml\nseed: null\ngates: null\n",
    )
    assert (load().seed, load().gates) == (7, {})


def test_extends_is_relative_to_the_file_that_says_it() -> None:
    write(a="name: a\n")
    Path("configs/deep/b.yaml").write_text("extends: ../a.yaml\nseed: x\n")
    assert complaints(path="configs/deep/b.yaml") == [
        "configs/deep/b.yaml:2: seed must be a whole number, got the text 'x'"
    ]
    Path("configs/deep/b.yaml").write_text("extends: ../a.yaml\n")
    write(a="name: a\nseed: x\n")
    assert complaints(path="configs/deep/b.yaml") == [
        "configs/a.yaml:2: seed must be a whole number, got the text 'x'"
    ]


def test_extends_through_a_linked_folder_finds_the_real_neighbour() -> None:
    write(a="name: a\nseed: x\n")
    Path("link").symlink_to(Path("configs/deep").resolve())
    Path("configs/deep/b.yaml").write_text("extends: ../a.yaml\n")
    assert complaints(path="link/b.yaml") == [
        "link/../a.yaml:2: seed must be a whole number, got the text 'x'"
    ]


def test_mistakes_stand_where_their_value_was_written() -> None:
    write(
        a="name: a\nsft:\n  lora:\n    r: -1\n    alpha: x\nsed: 1\n",
        x="extends: a.yaml\nseed: 010\nsft:\n  lora: {alpha: 8}\n  prompt: 5\n",
    )
    assert complaints("sft.learning_rate=fast", "dpo.bta=1") == [
        "configs/x.yaml:2: 010 has a leading zero, which YAML readers take for different numbers. "
        "Write 10, or '010' for text",
        "configs/x.yaml:3: sft.method is missing",
        "configs/x.yaml:5: sft.prompt must be text, got the number 5. Write '5'",
        "configs/a.yaml:4: sft.lora.r must be greater than 0, got -1",
        "configs/a.yaml:6: sed is unknown. Did you mean seed?",
        "--set sft.learning_rate: sft.learning_rate must be a number, got the text 'fast'",
        "--set dpo.bta: dpo.bta is unknown. Did you mean beta?",
    ]


@pytest.mark.parametrize(
    ("extends", "said"),
    [
        ("[a.yaml]", "extends must be the path of a config, relative to this file"),
        ("", "extends must be the path of a config, relative to this file"),
        ("''", "extends must be the path of a config, relative to this file"),
        ('"a\\0"', "extends must be the path of a config, relative to this file"),
        ("bse.yaml", "extends: configs/bse.yaml does not exist. Did you mean configs/base.yaml?"),
        ("zzz", "extends: configs/zzz does not exist. YAML files there: base.yaml, x.yaml"),
        ("no/a.yaml", "extends: configs/no/a.yaml does not exist. There is no folder configs/no"),
        (
            "../configs",
            "extends: configs is a folder. Name a config file. "
            "In it: configs/base.yaml, configs/x.yaml",
        ),
        (
            "x.yaml",
            "extends makes a circle: configs/x.yaml -> configs/x.yaml. Remove one of them",
        ),
    ],
)
def test_wrong_extends(extends: str, said: str) -> None:
    write(base="seed: 1\n", x=f"name: x\nextends: {extends}\n")
    assert complaints() == [f"configs/x.yaml:2: {said}"]


def test_a_circle_of_files() -> None:
    write(x="name: x\nextends: a.yaml\n", a="extends: deep/../x.yaml\n")
    assert complaints() == [
        "configs/a.yaml:1: extends makes a circle: "
        "configs/x.yaml -> configs/a.yaml -> configs/x.yaml. Remove one of them"
    ]


def test_an_extended_file_that_is_no_config() -> None:
    write(x="name: x\nextends: a.yaml\nseed: 010\n", a="- b\n")
    assert complaints() == [
        "configs/x.yaml:3: 010 has a leading zero, which YAML readers take for different numbers. "
        "Write 10, or '010' for text",
        "configs/a.yaml:1: a config must be a mapping (key: value), not a list",
    ]


@pytest.mark.parametrize(
    ("override", "sft"),
    [
        ("sft.learning_rate=1e-4", {"learning_rate": 1e-4}),
        ("sft.prompt=no", {"prompt": "no"}),
        ("sft.prompt='5'", {"prompt": "5"}),
        ("sft.prompt=a=b", {"prompt": "a=b"}),
        ("sft.prompt=package:a/b", {"prompt": "package:a/b"}),
        ("sft.prompt='a: b'", {"prompt": "a: b"}),
        ("sft.prompt=null", {"prompt": None}),
        ("sft.prompt=''", {"prompt": ""}),
        ("sft.folder=a/b", {"folder": Path("a/b")}),
        ("sft.lora.r=4", {"lora": Lora(r=4, alpha=9)}),
        ("sft.lora={r: 4}", {"lora": Lora(r=4)}),
        ("sft.lora.modules=[q, k]", {"lora": Lora(alpha=9, modules=["q", "k"])}),
    ],
)
def test_set(override: str, sft: dict[str, object]) -> None:
    write(x="name: x\nsft: {method: lora, prompt: old, lora: {alpha: 9}}\n")
    values = {"method": "lora", "prompt": "old", "lora": Lora(alpha=9)} | sft
    assert load(override).sections == {"sft": Sft.model_validate(values)}


def test_set_makes_removes_and_renames() -> None:
    write(a="name: a\ndpo: {}\n", x="extends: a.yaml\n")
    config = load("dpo=null", "sft.method=lora", "sft.lora.r=2", "name=b", "seed=9", "seed=10")
    assert (config.name, config.seed) == ("b", 10)
    assert config.sections == {"sft": Sft(method="lora", lora=Lora(r=2))}
    assert load("dpo=null", "dpo.beta=0.3").sections == {"dpo": Dpo(beta=0.3)}
    assert load("gates.merge-parity=warn").gates == {"merge-parity": "warn"}


def test_set_completes_an_empty_section() -> None:
    write(x="name: x\nsft:\n")
    assert load("sft.method=lora").sections == {"sft": Sft(method="lora")}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sft", "sft: must look like section.key=value, as in --set sft.learning_rate=1e-4"),
        ("=1", ": must look like section.key=value, as in --set sft.learning_rate=1e-4"),
        ("a..b=1", "a..b: must look like section.key=value, as in --set sft.learning_rate=1e-4"),
        ("extends=a.yaml", "extends: extends can only be written in the file"),
        ("sft.prompt=", "sft.prompt: no value. Write sft.prompt=null, "
         "or sft.prompt=\"''\" for empty text"),
        ("sft.prompt=a: b", "sft.prompt: the value reads as YAML lines. "
         "Put text in quotes, or write [a, b] or {a: b}"),
        ("sft.prompt=- a", "sft.prompt: the value reads as YAML lines. "
         "Put text in quotes, or write [a, b] or {a: b}"),
        ("sft.prompt=@a", "sft.prompt: not valid YAML: found character '@' that cannot start any "
         "token. Put text that starts with this character in quotes"),
        ("sft.prompt=*a", "sft.prompt: the alias *a is refused. "
         "Write the value out, or use extends"),
        ("sft.learning_rate=.nan", "sft.learning_rate: .nan is not a finite number. "
         "Write a number, or '.nan' for text"),
        ("sft.lora={r: 1, r: 2}", "sft.lora: r is given twice. Keep one"),
        ("sft.prompt=5", "sft.prompt: sft.prompt must be text, got the number 5. "
         "Write --set sft.prompt=\"'5'\""),
        ("sft.lora.modules.0=q", "sft.lora.modules.0: sft.lora.modules is a list. "
         "Set it as a whole: --set sft.lora.modules=..."),
        ("sft.method.x=q", "sft.method.x: sft.method is a single value. "
         "Set it as a whole: --set sft.method=..."),
        ("sfd.r=1", "sfd.r: sfd is unknown. Did you mean sft?"),
        ("dpo=null", "dpo: dpo is empty. Write dpo: {} for its defaults, or remove it"),
        ("sft={}", "sft: sft.method is missing"),
        ("sft=null", ""),
    ],
)  # fmt: skip
def test_wrong_set(override: str, said: str) -> None:
    write(x="name: x\nsft: {method: lora, lora: {modules: [a]}}\n")
    if said:
        assert complaints(override) == [f"--set {said}"]
    else:
        assert load(override).sections == {}
