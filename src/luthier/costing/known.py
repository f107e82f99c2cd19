"""A number and where it is from, and the machine that it was measured on."""

from dataclasses import dataclass
from typing import Literal

Origin = Literal["yours", "measured", "predicted", "example table", "default"]


@dataclass(frozen=True)
class Known:
    """A number, who says so, and more of that in words."""

    value: float
    origin: Origin
    detail: str = ""


@dataclass(frozen=True)
class Assumption:
    """One number that the costs depend on."""

    what: str
    unit: str
    known: Known


def machine(gpu: str | None) -> str:
    """A manifest's GPU in words; None is a processor."""
    return gpu if gpu is not None else "a CPU"


def is_priced(measured_on: str | None, priced: str | None) -> bool:
    """Whether what was measured on that GPU (by its driver's name; None: a CPU) is of the machine
    that the price is of (by its name in the hardware table; None: whatever GPU measured)."""
    if priced == "cpu":
        return measured_on is None
    if measured_on is None:
        return False
    return priced is None or all(part in measured_on.lower() for part in priced.split("-"))
