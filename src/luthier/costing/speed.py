"""Measured speed and lengths: `measured/speed.json` of the evaluations that a config has."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.costing.known import machine
from luthier.errors import DataError
from luthier.evaluation.summary import read_summary
from luthier.store import Artifact

SPEED_FILE = Path("measured", "speed.json")
_TUNED_STAGES = ("accept", "evaluate")  # what was measured as it is served comes first
_BEFORE_DPO = "sft/"
_BEST = "tuned/generation"


@dataclass(frozen=True)
class Speed:
    """What was measured of one system: numbers by name, and the GPU; None is a processor."""

    stage: str
    system: str
    numbers: Mapping[str, float]
    gpu: str | None

    @property
    def where(self) -> str:
        """Which measurement this is, in words."""
        return f"{self.stage}, {self.system}, on {machine(self.gpu)}"

    def get(self, name: str) -> float | None:
        """A number that was measured."""
        return self.numbers.get(name)


def tuned_speed(artifacts: Mapping[str, Artifact]) -> Speed | None:
    """Of the tuned model's free answers, the newest stage's; None where nothing measured it."""
    for stage in _TUNED_STAGES:
        found = _speeds(artifacts, stage)
        names = [name for name in found if not name.startswith(_BEFORE_DPO)]
        if names:
            generating = [name for name in names if name.endswith("/generation")]
            return found[_BEST if _BEST in names else (generating or names)[0]]
    return None


def prompted_speed(artifacts: Mapping[str, Artifact]) -> Speed | None:
    """Free answers to the baseline's best prompt, also where its likeliest label did best, which
    no server is asked for; None where nothing measured it."""
    found = _speeds(artifacts, "baseline")
    if not found:
        return None
    try:
        best = str(read_summary(artifacts["baseline"].path)["best_system"])
    except (DataError, KeyError):
        return None
    return found.get(f"{best.partition('/')[0]}/generation")


def _speeds(artifacts: Mapping[str, Artifact], stage: str) -> dict[str, Speed]:
    """By system; those with nothing that is a positive number are left out."""
    artifact = artifacts.get(stage)
    if artifact is None:
        return {}
    gpu = artifact.manifest.environment.gpu
    found = {}
    for system, values in _mapping(_read(artifact.path / SPEED_FILE)).items():
        numbers = {name: float(one) for name, one in _mapping(values).items() if _counts(one)}
        if numbers:
            found[system] = Speed(stage, system, numbers, gpu)
    return found


def _read(path: Path) -> Any:
    """The file's values; nothing where it is missing, as in artifacts of older versions."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _counts(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and value > 0 and math.isfinite(value)
