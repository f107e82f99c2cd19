"""Texts on which tokenizers disagree: what the gate of tokenizer parity is measured on."""

import json
import random
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files

_SEED = 29  # fixed: every run measures the same texts
_RANDOM_MIXES = 120

_SPACES = (" ", "\t", "\n", "\r\n")
_SPACE_COUNTS = (1, 2, 3, 4, 7, 16)
_AROUND_SPACES = (("", ""), ("a", "b"), ("", "1"))
_MIXED_SPACES = (
    *(" \n", "\n ", " \n \n ", "\t \t", "a \n b", "a\n\n\nb", "a \t\nb", "\r", "a\rb"),
    *("\x0b", "\x0c", "a \x0b b"),
)
_UNICODE_SPACES = "\u00a0\u1680\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000\u0085"
_CONTROLS = "".join(map(chr, (*range(1, 32), 0x7F, 0x80, 0x9F, 0xAD)))
_INVISIBLES = "\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2060\u2066\ufeff\ufffd\ufffc"


def nasty_texts(special_tokens: Iterable[str] = ()) -> list[str]:
    """At least 300 distinct texts, the same ones every time.

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
    yield from _random_mixes([*written["words"], *special_tokens])


def _random_mixes(pieces: list[str]) -> Iterator[str]:
    chance = random.Random(_SEED)
    for _ in range(_RANDOM_MIXES):
        joint = chance.choice(("", " ", "  ", "\n"))
        yield joint.join(chance.choices(pieces, k=chance.randint(2, 9)))
