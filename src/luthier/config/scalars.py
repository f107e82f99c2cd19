"""What an unquoted YAML scalar means. Fewer meanings than YAML 1.1 has, and none that surprises.

Numbers are decimal (`5`, `-0.5`, `1e-4`); only `true` and `false` are booleans; `null`, `~` and
nothing are null; all else is text: `no`, `on`, `1:30`, `2024-01-31`, `0x1F`, `1_000`. Spellings on
which YAML readers disagree about the number are refused.
"""

import math
import re

from luthier.config.document import Scalar, shortened

_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: dict[str, Scalar] = {"true": True, "false": False, "null": None, "~": None, "": None}
_INTEGER_LIMIT = 2**63
_INTEGER_DIGITS = 20


class ScalarError(ValueError):
    """A scalar that is refused; the message says why and what to write."""


def meaning(raw: str) -> Scalar:
    """The value of a plain scalar.

    Raises:
        ScalarError: the scalar is a number that is refused.
    """
    if raw in _WORDS:
        return _WORDS[raw]
    if _NOT_FINITE.fullmatch(raw):
        raise ScalarError(f"{raw} is not a finite number. Write a number, or '{raw}' for text")
    if not _FLOAT.fullmatch(raw):
        return raw
    if _LEADING_ZERO.match(raw):
        raise ScalarError(_about_leading_zero(raw))
    return _integer(raw) if _INTEGER.fullmatch(raw) else _float(raw)


def _about_leading_zero(raw: str) -> str:
    sign = "-" if raw.startswith("-") else ""
    number = raw.lstrip("+-").lstrip("0")
    if not number or not number[0].isdigit():
        number = "0" + number
    return (
        f"{shortened(raw)} has a leading zero, which YAML readers take for different numbers. "
        f"Write {shortened(sign + number)}, or '{shortened(raw)}' for text"
    )


def _integer(raw: str) -> int:
    if len(raw) > _INTEGER_DIGITS or abs(int(raw)) >= _INTEGER_LIMIT:
        raise ScalarError(f"{shortened(raw)} does not fit in 64 bits. Put it in quotes for text")
    return int(raw)


def _float(raw: str) -> float:
    number = float(raw)
    digits = re.split("[eE]", raw)[0]
    if math.isinf(number) or (number == 0 and re.search("[1-9]", digits)):
        raise ScalarError(f"{shortened(raw)} does not fit in 64 bits. Put it in quotes for text")
    return number
