"""evaluation.json: the metrics of every system, and what one can conclude from them."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from luthier.data.rows import Split
from luthier.data.summary import DatasetInfo
from luthier.errors import DataError
from luthier.evaluation.answers import Answer
from luthier.evaluation.metrics import PRIMARY, Answered, measure
from luthier.evaluation.statistics import PairedTest
from luthier.evaluation.target import TargetVerdict
from luthier.store.files import write_atomically

EVALUATION_NAME = "evaluation.json"


def summarize(
    info: DatasetInfo,
    answers: Mapping[str, Sequence[Answer]],
    seed: int,
    only_to_compare: Collection[str] = (),
    json_schema: str | None = None,
    *,
    split: Split = "test",
) -> dict[str, Any]:
    """The part of evaluation.json that every evaluation has; `answers` are to rows of `split`.

    `best_system` has the highest primary metric; of equal ones the first. It is none of those
    that are `only_to_compare`. `json_schema`: see `Answered`.
    """
    primary = PRIMARY[info.task]
    systems = {
        name: {
            **measure(Answered(found, info.labels, seed, json_schema), info.task),
            "truncated": sum(answer.stop_reason == "length" for answer in found),
            "unread": sum(answer.predicted is None for answer in found),
        }
        for name, found in answers.items()
    }
    return {
        "task": info.task,
        "split": split,
        "rows": len(next(iter(answers.values()))),
        "primary_metric": primary,
        "best_system": max(
            (name for name in systems if name not in only_to_compare),
            key=lambda name: systems[name]["metrics"][primary],
        ),
        "systems": systems,
    }


def write_summary(
    folder: Path,
    summary: Mapping[str, Any],
    *,
    target: TargetVerdict | None = None,
    paired_test: PairedTest | None = None,
) -> None:
    """Write evaluation.json."""
    whole = {
        **summary,
        "target": asdict(target) if target else None,
        "paired_test": asdict(paired_test) if paired_test else None,
    }
    text = json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / EVALUATION_NAME, text + "\n")


def read_summary(folder: Path) -> dict[str, Any]:
    """evaluation.json of an evaluation artifact.

    Raises:
        DataError: it is missing or not JSON.
    """
    path = folder / EVALUATION_NAME
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not an evaluation of Luthier ({error}).") from error
    return found


def headline(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest keeps: the numbers of each system that are a single value."""
    return {
        "best_system": summary["best_system"],
        **{
            name: {
                key: value for key, value in system["metrics"].items() if isinstance(value, float)
            }
            for name, system in summary["systems"].items()
        },
    }


def describe(summary: Mapping[str, Any]) -> list[str]:
    """Lines for the terminal: one a system, and what was tuned was measured on."""
    primary = summary["primary_metric"]
    lines = []
    for name, system in summary["systems"].items():
        low, high = system["intervals"][primary]
        lines.append(
            f"  {name}: {primary} {system['metrics'][primary]:.3f} [{low:.3f}, {high:.3f}], "
            f"{system['truncated']} of {summary['rows']} answers cut off"
        )
    if "measured_on" in summary:
        lines.append(f"  the adapter was measured on {summary['measured_on']}")
    return lines
