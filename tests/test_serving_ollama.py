"""The Modelfile: what Ollama reads back is what was meant."""

from pathlib import Path

import pytest

from luthier.errors import ServingError
from luthier.serving.ollama import base_licence, modelfile, quoted, read_value


def test_a_whole_modelfile() -> None:
    text = modelfile(
        "model-q8_0.gguf",
        stop_tokens=["<|im_end|>", "</s>"],
        context_tokens=512,
        system_prompt="Name the section.",
        licence="MIT",
        template="{{ range .Messages }}{{ .Content }}\n{{ end }}",
    )
    assert text == (
        "FROM ./model-q8_0.gguf\n"
        'PARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop "</s>"\n'
        "PARAMETER num_ctx 512\n"
        "PARAMETER num_predict 512\n"
        "PARAMETER temperature 0\n"
        "PARAMETER top_k 1\n"
        "PARAMETER repeat_penalty 1.0\n"
        'TEMPLATE "{{ range .Messages }}{{ .Content }}\n{{ end }}"\n'
        'SYSTEM "Name the section."\n'
        'LICENSE "MIT"\n'
    )


def test_what_is_not_given_has_no_line() -> None:
    text = modelfile("m.gguf", stop_tokens=["a"], context_tokens=9, system_prompt=None)
    commands = {line.split()[0] for line in text.splitlines()}
    assert commands == {"FROM", "PARAMETER"}


LICENCE = """\ufeffThe "Software" Licence\f
Copyright \u00a9 2026\u00a0The Authors "

"AS IS", without \"\"\"any\"\"\"
"""


def test_licence_files_are_read_back_as_text(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text(LICENCE, encoding="utf-8")
    (tmp_path / "LICENSE.extra").write_text("More terms.\n", encoding="utf-8")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    licence = base_licence(tmp_path, "apache-2.0")
    assert licence is not None
    text = modelfile(
        "m.gguf", stop_tokens=["a"], context_tokens=9, system_prompt="S", licence=licence
    )
    before, _, after = text.partition("\nLICENSE ")
    assert before.endswith('SYSTEM "S"')
    value = read_value(after)
    assert value is not None
    assert value.split() == licence.replace('"""', "'''").strip("\ufeff").split()


def test_a_licence_may_be_a_name_or_unknown(tmp_path: Path) -> None:
    assert base_licence(tmp_path, "apache-2.0") == "apache-2.0"
    assert base_licence(tmp_path) is None
    (tmp_path / "LICENSE").write_text(" \n", encoding="utf-8")
    assert base_licence(tmp_path) is None


def test_the_apache_licence_is_held_word_for_word() -> None:
    root = Path(__file__).parent.parent
    licence = base_licence(root)
    assert licence == (root / "LICENSE").read_text("utf-8").strip()
    text = modelfile(
        "m.gguf", stop_tokens=[], context_tokens=9, system_prompt=None, licence=licence
    )
    assert read_value(text.partition("\nLICENSE ")[2]) == licence


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        'a "quoted" word',
        '"all of it"',
        'ends in a quote "',
        '" begins with one',
        "two\nlines",
        'a line that ends in "\nand goes on',
        " spaces around ",
        "\n",
        "tab\tinside",
        "C:\\path\\n",
        "ünïcode 日本語 🙂",
        'three """ in a line',
        "SYSTEM of\nFROM nothing",
        "",
    ],
)
def test_values_are_read_back(value: str) -> None:
    text = quoted(value, "the system prompt")
    assert read_value(f"{text}\n") == value
    assert read_value(f"{text}\nPARAMETER stop x\n") == value


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ('quotes """\nat a line end and "', "a line of it ends in"),
        ("zero\u200dwidth joiner", r"drops U\+200D"),
        ("no-break\u00a0space", r"drops U\+00A0"),
        ("bell\a", r"drops U\+0007"),
    ],
)
def test_what_ollama_cannot_hold_is_refused(value: str, told: str) -> None:
    with pytest.raises(ServingError, match=told):
        quoted(value, "the system prompt")
