"""Chat templates as forms to fill in.

Jinja takes some 30 microseconds a rendering, as much as the tokenizer takes for a short row. Most
templates only put each message's text somewhere, whole or stripped, whatever it says. Such a
template is a form: for one order of roles it is rendered once, with texts that cannot be looked
at, and from then on filled in. A template that does look at a text (a test, a replacement, a
length), or that joins texts before it writes them, has no form.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_EDGE = " \n\t"  # white space round a probe: a template that strips it shows

_JOINING = ("join", "format", "format_map")  # filters, and methods of a text


class _LookedAtError(Exception):
    """A template did something with a message's text that depends on what it says."""


class _Opaque(str):
    """A text that may be written, whole or stripped, and that is not empty: nothing else."""

    __slots__ = ()

    def __add__(self, other: str) -> "_Opaque":
        return _Opaque(str.__add__(self, other))

    def __radd__(self, other: str) -> "_Opaque":
        return _Opaque(str.__add__(other, self))

    def __bool__(self) -> bool:
        return True  # formats refuse messages of white space alone

    def __str__(self) -> str:
        return self

    def strip(self, chars: str | None = None, /) -> "_Opaque":
        if chars is not None or not _SLOT.fullmatch(self):
            raise _LookedAtError
        return _Opaque(str.strip(self))


def _refuse(*_arguments: Any, **_named: Any) -> Any:
    raise _LookedAtError


_HARMLESS = {
    "__add__", "__radd__", "__bool__", "__str__", "strip", "__new__", "__init__", "__class__",
    "__getattribute__", "__setattr__", "__delattr__", "__init_subclass__", "__subclasshook__",
    "__doc__", "__hash__", "__sizeof__", "__dir__", "__getnewargs__", "__getstate__",
    "__reduce__", "__reduce_ex__",
}  # fmt: skip
for _name in set(dir(str)) - _HARMLESS:
    setattr(_Opaque, _name, _refuse)

_RARE = "\ue000\ue001"  # private use: no template writes them
_SPELLED = f"{_EDGE}\ue000<\"Slot{{}}&É'>\ue001{_EDGE}"
_SLOT = re.compile(rf'(?:{_EDGE})?\ue000<"Slot(\d+)&É\'>\ue001(?:{_EDGE})?')


@dataclass(frozen=True, slots=True)
class Form:
    """A rendering with places for texts: `constants[0] + text + constants[1] + ...`.

    `texts` says which message stands in each place and whether it is stripped; `lost` that some
    message stands nowhere.
    """

    constants: tuple[str, ...]
    texts: tuple[tuple[int, bool], ...]
    lost: bool

    def fill(self, contents: Sequence[str]) -> str:
        """The rendering of these texts."""
        text = self.constants[0]
        for (place, stripped), constant in zip(self.texts, self.constants[1:], strict=True):
            text += contents[place].strip() if stripped else contents[place]
            text += constant
        return text

    def begins(self, other: "Form") -> bool:
        """Whether every filling of `other` begins with the filling of this form."""
        places = len(self.texts)
        return (
            self.texts == other.texts[:places]
            and self.constants[:-1] == other.constants[:places]
            and other.constants[places].startswith(self.constants[-1])
        )


def probe(template: Any, source: str, roles: Sequence[str], given: dict[str, Any]) -> Form | None:
    """The form of a compiled template for one order of roles; None when it has none.

    `given` are the template's other variables.
    """
    messages = [
        {"role": role, "content": _Opaque(_SPELLED.format(place))}
        for place, role in enumerate(roles)
    ]
    try:
        if _joins_texts(template.environment.parse(source)):
            return None
        text = template.render(messages=messages, **given)
    except Exception:  # noqa: BLE001, whatever it was: Jinja on real rows will say it
        return None
    return _form_of(str.__str__(text), len(roles))


def _form_of(text: str, messages: int) -> Form | None:
    constants, texts, end = [], [], 0
    for found in _SLOT.finditer(text):
        edges = (found[0].startswith(_EDGE), found[0].endswith(_EDGE))
        if edges[0] != edges[1]:
            return None  # stripped at one side, after it was joined to other text
        constants.append(text[end : found.start()])
        texts.append((int(found[1]), not edges[0]))
        end = found.end()
    constants.append(text[end:])
    if any(mark in constant for constant in constants for mark in _RARE):
        return None  # a text was changed on its way
    lost = {place for place, _ in texts} != set(range(messages))
    return Form(tuple(constants), tuple(texts), lost)


def _joins_texts(template: Any) -> bool:
    """Whether a template's tree has what joins texts to a plain one, which could be looked at."""
    from jinja2 import nodes

    joining = (nodes.Concat, nodes.Mod, nodes.AssignBlock, nodes.FilterBlock, nodes.Macro)
    if template.find(joining):
        return True
    return any(found.name in _JOINING for found in template.find_all(nodes.Filter)) or any(
        found.attr in _JOINING for found in template.find_all(nodes.Getattr)
    )
