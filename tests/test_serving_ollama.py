"""The Modelfile: what Ollama reads back is what was meant."""

import pytest

from luthier.errors import ServingError
from luthier.serving.ollama import modelfile, quoted, read_value


def test_a_whole_modelfile() -> None:
    text = modelfile(
        "model-q8_0.gguf",
        stop_tokens=["<|im_end|>", "</s>"],
        context_tokens=512,
        system_prompt="Name the section.",
    )
    assert text == (
        "FROM ./model-q8_0.gguf\n"
        'PARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop "</s>"\n'
        "PARAMETER num_ctx 512\n"
        "PARAMETER temperature 0\n"
        "PARAMETER repeat_penalty 1.0\n"
        'SYSTEM "Name the section."\n'
    )


def test_no_system_prompt_no_system_line() -> None:
    text = modelfile("m.gguf", stop_tokens=["a"], context_tokens=9, system_prompt=None)
    assert "SYSTEM" not in text


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
