"""How numbers are written for people. A missing number is written as a dash."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NOTHING = "–"  # noqa: RUF001, a dash on purpose
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_LEAST_SHOWN_P = 1e-4
_WHOLE_NUMBERS_FROM = 100
_HARMLESS = "\n\t\u200c\u200d"  # joiners are part of emoji and of Persian words


def percent(share: float | None) -> str:
    """A share from 0 to 1: `83.3 %`."""
    return NOTHING if share is None else f"{100 * share:.1f} %"


def percent_interval(low: float | None, high: float | None) -> str:
    """Two shares: `80.1 to 86.0 %`."""
    if low is None or high is None:
        return NOTHING
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def points_interval(difference: float, low: float, high: float) -> str:
    """A difference of two shares in points, and its interval: `+38.1 (+30.2, +46.0)`."""
    return f"{points(difference)} ({points(low)}, {points(high)})"


def points(difference: float) -> str:
    """A difference of two shares, in percentage points with its sign: `+38.1`."""
    return f"{100 * difference:+.1f}"


def p_value(p: float) -> str:
    """`p = 0.012`, `p < 0.0001`."""
    return f"p < {_LEAST_SHOWN_P:.4f}" if p < _LEAST_SHOWN_P else f"p = {p:.2g}"


def decimal(value: float | None) -> str:
    """Three digits after the point: `0.812`."""
    return NOTHING if value is None else f"{value:.3f}"


def count(value: float) -> str:
    """A whole number: `4,000`."""
    return f"{value:,.0f}"


def signed(number: int) -> str:
    """A whole number with its sign: `+4,000`."""
    return f"{number:+,}"


def size(size_bytes: int) -> str:
    """Decimal units, as disks are sold: `19.5 MB`."""
    for unit_bytes, unit in _UNITS:
        if size_bytes >= unit_bytes:
            return f"{size_bytes / unit_bytes:.1f} {unit}"
    return f"{size_bytes} bytes"


def duration(seconds: float) -> str:
    """`0.4 s`, `42 s`, `5 min 12 s`, `1 h 4 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def latency(seconds: float | None) -> str:
    """Of one request: `42 ms`, `1.3 s`."""
    if seconds is None:
        return NOTHING
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def rate(per_second: float) -> str:
    """Without false digits: `812`, `3.4`."""
    return count(per_second) if per_second >= _WHOLE_NUMBERS_FROM else f"{per_second:.2g}"


def value(anything: Any) -> str:
    """A value of a manifest: floats in five digits, lists on one line, text as `printable`."""
    match anything:
        case None:
            return NOTHING
        case bool():
            return "yes" if anything else "no"
        case int():
            return f"{anything}"
        case float():
            return f"{anything:.5g}"
        case list() | tuple():
            return ", ".join(value(item) for item in anything) or NOTHING
        case Mapping():
            return ", ".join(f"{name}: {value(item)}" for name, item in anything.items())
    return printable(str(anything))


def printable(text: str) -> str:
    """Text without what a terminal would obey: escape sequences, bells, carriage returns."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in _HARMLESS else char.encode("unicode_escape").decode()
        for char in text
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Leaves by dotted path, spelled; an empty mapping is a leaf."""
    leaves: dict[str, str] = {}
    for name, item in values.items():
        path = f"{prefix}{name}"
        if isinstance(item, Mapping) and item:
            leaves |= flat(item, f"{path}.")
        else:
            leaves[path] = value(item)
    return leaves


def comparison_sign(comparison: str) -> str:
    """A comparison of a gate as mathematics writes it."""
    return {"==": "=", "!=": "≠", "<=": "≤", ">=": "≥"}.get(comparison, comparison)


def status_word(status: str) -> str:
    """The word beside a gate's colour."""
    return {"pass": "passed", "warn": "warned", "fail": "failed"}.get(status, status)


def config_arguments(path: Path, overrides: Sequence[str]) -> str:
    """A config and its `--set` on the command line, to paste into a shell."""
    return " ".join(
        [shlex.quote(str(path)), *(f"--set {shlex.quote(text)}" for text in overrides)]
    )
