"""Texts on which tokenizers disagree: what the gate of tokenizer parity is measured on."""

import json
import random
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files

_SEED = 29  # fixed: every run measures the same texts
_RANDOM_MIXES = 200
_RANDOM_WORDS = 12  # of each script
_RANDOM_NUMBERS = 80
_RANDOM_CODE = 120

_SPACES = (" ", "\t", "\n", "\r\n")
_SPACE_COUNTS = (1, 2, 3, 4, 7, 16)
_AROUND_SPACES = (("", ""), ("a", "b"), ("", "1"))
_MIXED_SPACES = (
    *(" \n", "\n ", " \n \n ", "\t \t", "a \n b", "a\n\n\nb", "a \t\nb", "\r", "a\rb"),
    *("\x0b", "\x0c", "a \x0b b"),
)
_UNICODE_SPACES = "\u00a0\u1680\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000\u0085"
_CONTROLS = "".join(map(chr, (*range(1, 32), 0x7F, 0x80, 0x9F, 0xAD)))
# First and last code point: letters and marks that every Unicode since 6.0 has.
_SCRIPTS = (
    *((0x00C0, 0x024F), (0x0250, 0x02AF), (0x0370, 0x03FF), (0x0400, 0x04FF), (0x0531, 0x0587)),
    *((0x05D0, 0x05EA), (0x0620, 0x066F), (0x0710, 0x072F), (0x0905, 0x0939), (0x0985, 0x09B9)),
    *((0x0A05, 0x0A39), (0x0B85, 0x0BB9), (0x0C05, 0x0C39), (0x0D05, 0x0D39), (0x0E01, 0x0E3A)),
    *((0x0E81, 0x0EB0), (0x0F40, 0x0F6C), (0x1000, 0x102A), (0x10D0, 0x10FA), (0x1200, 0x1256)),
    *((0x13A0, 0x13F4), (0x1780, 0x17B3), (0x1820, 0x1877), (0x3041, 0x3096), (0x30A1, 0x30FA)),
    *((0x3105, 0x312D), (0x4E00, 0x9FCB), (0xAC00, 0xD7A3), (0xFF21, 0xFF5A), (0x10330, 0x1034A)),
    *((0x2190, 0x21FF), (0x2200, 0x22FF), (0x2500, 0x257F), (0x2600, 0x26FF), (0x1D400, 0x1D454)),
)
_EMOJI = ("\U0001f600", "\U0001f468", "\U0001f469", "\U0001f467", "\u2764\ufe0f", "\U0001f680")
_EMOJI_PARTS = ("\u200d", "\U0001f3fb", "\U0001f3ff", "\ufe0f", "\U0001f1e9\U0001f1ea", "\u20e3")
_CODE = (
    *(
        "def ",
        "return",
        "if (",
        ")",
        "{",
        "}",
        "[0]",
        "->",
        "=>",
        "==",
        "!=",
        "+=",
        "::",
        ";",
        ",",
    ),
    *(
        "\n    ",
        "\n\t",
        "\n\n",
        "  ",
        " ",
        '"',
        "'",
        "`",
        "\\n",
        "#",
        "//",
        "/*",
        "*/",
        "<T>",
        "&&",
    ),
    *(
        "self.",
        "x_1",
        "camelCase",
        "CONST_A",
        "0xff",
        "1e-5",
        "$var",
        "@a.b",
        "</div>",
        "%s",
        "lambda",
    ),
)
_INVISIBLES = "\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2060\u2066\ufeff\ufffd\ufffc"


def nasty_texts(special_tokens: Iterable[str] = ()) -> list[str]:
    """More than 1,000 distinct texts, the same ones every time.

    Args:
        special_tokens: the spelling of each special token; it comes alone, within words, cut
            short, doubled, with spaces around it.
    """
    return list(dict.fromkeys(_texts(list(dict.fromkeys(special_tokens)))))


def _texts(special_tokens: list[str]) -> Iterator[str]:
    # Emoji, scripts, code, digits: escaped in a file, where they cannot disturb an editor.
    written: Mapping[str, list[str]] = json.loads(
        files(__package__).joinpath("nasty_texts.json").read_text("utf-8")
    )
    yield from (*written["plain"], *written["digits"], *written["emoji"], *written["scripts"])
    for space in _SPACES:
        for count in _SPACE_COUNTS:
            yield from (f"{left}{space * count}{right}" for left, right in _AROUND_SPACES)
    yield from _MIXED_SPACES
    for text in written["accented"]:
        yield unicodedata.normalize("NFC", text)
        yield unicodedata.normalize("NFD", text)
    yield from written["combining"]
    yield from (f"a{character}b" for character in _UNICODE_SPACES + _CONTROLS + _INVISIBLES)
    for token in special_tokens:
        yield from (token, f"a{token}b", f" {token} ", f"{token}{token}", f"{token}\n1")
        yield from (token[:-1], token[1:])
    chance = random.Random(_SEED)
    yield from _random_mixes(chance, [*written["words"], *special_tokens])
    yield from _random_words(chance)
    yield from _random_numbers(chance)
    for _ in range(_RANDOM_CODE):
        yield "".join(chance.choices(_CODE, k=chance.randint(3, 14)))
        yield "".join(chance.choices(_EMOJI + _EMOJI_PARTS, k=chance.randint(2, 5)))


def _random_mixes(chance: random.Random, pieces: list[str]) -> Iterator[str]:
    for _ in range(_RANDOM_MIXES):
        joint = chance.choice(("", " ", "  ", "\n"))
        yield joint.join(chance.choices(pieces, k=chance.randint(2, 9)))


def _random_words(chance: random.Random) -> Iterator[str]:
    """A few words of each script, with and without spaces."""
    for first, last in _SCRIPTS:
        assigned = [chr(c) for c in range(first, last + 1) if unicodedata.category(chr(c)) != "Cn"]
        for _ in range(_RANDOM_WORDS):
            words = ("".join(chance.choices(assigned, k=chance.randint(1, 6))) for _ in range(3))
            yield chance.choice(("", " ", ", ", "1")).join(words)


def _random_numbers(chance: random.Random) -> Iterator[str]:
    for _ in range(_RANDOM_NUMBERS):
        digits = "".join(chance.choices("0123456789", k=chance.randint(1, 14)))
        yield chance.choice(("", " ", "-", "$", "x", "#")) + digits
        unit = chance.choice(("", "%", " km", "a"))
        yield f"{digits[:3]}{chance.choice('.,:/- e')}{digits}{unit}"
