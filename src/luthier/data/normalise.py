"""One spelling for what looks the same: Unicode form, control characters, white space.

Nothing is changed unless the config asks for it, since every rule harms some data: NFC changes
what a model of raw text learns to write, white space is meaning in code and in completions.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import Final, Literal

from luthier.config import Field, Section
from luthier.data.rows import Parsed, RowError
from luthier.data.texts import rewrite

# C0, DEL and C1 (category Cc) but tab, line feed and carriage return. Not category Cf: joiners
# make emoji, right-to-left marks make Hebrew and Arabic readable.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_LINE_BREAKS: Final = re.compile(r"[\x0b\x0c\x85]")  # vertical tab, form feed, next line
_BLANK: Final = r" \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"  # Zs and tab
_RETURNS: Final = re.compile(r"\r\n?")
_TRAILING: Final = re.compile(rf"(?<![{_BLANK}])[{_BLANK}]+\n")
_INNER: Final = re.compile(rf"(?<=[^\n{_BLANK}])[{_BLANK}]{{2,}}")
_UNTIDY: Final = re.compile(rf"[{_BLANK}][{_BLANK}\n]|\n{{3}}|\r")  # in one pass
_EMPTY_LINES: Final = re.compile(r"\n{3,}")
_SHOWN_CHARACTERS: Final = 30

Rule = Callable[[str], str]


class NormaliseSection(Section):
    """Rules that change texts; all are off by default, and rows changed are counted by rule."""

    unicode: Literal["keep", "nfc"] = Field(
        "keep",
        description="nfc: canonical composition, so that one accented letter has one spelling",
    )
    control_characters: Literal["keep", "remove", "reject"] = Field(
        "keep",
        description="NUL, escape and the like (never tabs, newlines, joiners or direction marks): "
        "remove them (vertical tab, form feed and NEL become newlines), or reject the row",
    )
    whitespace: Literal["keep", "strip", "collapse"] = Field(
        "keep",
        description="strip: none around a text; collapse: also none at line ends, one blank for "
        "several inside a line (indentation stays), at most one empty line. Not for completions",
    )


class Normaliser:
    """The rules that a config switches on, in the order in which one can undo no other."""

    def __init__(self, section: NormaliseSection) -> None:
        self._rules = _rules(section)

    def apply(self, parsed: Parsed) -> tuple[str, ...]:
        """Change the row's free texts in place; the names of the rules that changed it.

        Labels, an extraction's output and tool calls stay as they are.

        Raises:
            RowError: a control character where they are rejected, or nothing is left of a text.
        """
        if not self._rules:
            return ()
        return tuple(name for name, rule in self._rules if rewrite(parsed, _never_empty(rule)))


def normalise(text: str, section: NormaliseSection) -> str:
    """One text after all rules; the same again when they are applied again.

    Raises:
        RowError: a control character where they are rejected.
    """
    for _, rule in _rules(section):
        text = rule(text)
    return text


def _rules(section: NormaliseSection) -> list[tuple[str, Rule]]:
    # composition comes after removal, which can bring a letter and its accent together
    controls: dict[str, Rule] = {"remove": _without_controls, "reject": _reject_controls}
    spaces: dict[str, Rule] = {"strip": str.strip, "collapse": _collapsed}
    rules = {
        "control-characters": controls.get(section.control_characters),
        "unicode-nfc": _composed if section.unicode == "nfc" else None,
        "whitespace": spaces.get(section.whitespace),
    }
    return [(name, rule) for name, rule in rules.items() if rule is not None]


def _never_empty(rule: Rule) -> Rule:
    def change(text: str) -> str:
        changed = rule(text)
        if not changed.strip() and text.strip():
            raise RowError("content-empty", f"nothing is left of {text[:_SHOWN_CHARACTERS]!r}")
        return changed

    return change


def _composed(text: str) -> str:
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return text
    return unicodedata.normalize("NFC", text)


def _without_controls(text: str) -> str:
    if _CONTROL.search(text) is None:
        return text
    return _CONTROL.sub("", _LINE_BREAKS.sub("\n", text))


def _reject_controls(text: str) -> str:
    found = _CONTROL.search(text)
    if found is None:
        return text
    near = text[max(0, found.start() - _SHOWN_CHARACTERS) : found.end() + _SHOWN_CHARACTERS]
    raise RowError("control-character", f"U+{ord(found[0]):04X} in {near!r}")


def _collapsed(text: str) -> str:
    if _UNTIDY.search(text) is None:
        return text.strip()
    text = _TRAILING.sub("\n", _RETURNS.sub("\n", text))
    return _EMPTY_LINES.sub("\n\n", _INNER.sub(" ", text)).strip()
