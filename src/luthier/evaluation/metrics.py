"""All metrics, measured. Importing this registers them: one decorated function each."""

from typing import Any

from luthier.data.rows import Task
from luthier.evaluation import calibration  # noqa: F401, registers its metrics
from luthier.evaluation.classification_metrics import OTHER, macro_f1_change
from luthier.evaluation.extraction_metrics import json_object, key_hits
from luthier.evaluation.registry import METRICS, Answered, Metric, metric
from luthier.evaluation.text_metrics import nats_change

__all__ = [
    "METRICS",
    "OTHER",
    "PRIMARY",
    "Answered",
    "Metric",
    "json_object",
    "key_hits",
    "macro_f1_change",
    "measure",
    "metric",
    "nats_change",
]

PRIMARY: dict[Task, str] = {
    "classification": "accuracy",
    "extraction": "exact_match",
    "chat": "exact_match",
    "grounded": "exact_match",
    "text": "exact_match",
    "completion": "exact_match",
}


def measure(answered: Answered, task: Task) -> dict[str, Any]:
    """`{metrics: {name: value}, intervals: {name: [low, high]}}` of a task, JSON values only.

    A metric that these answers do not allow is None and has no interval.
    """
    chosen = [found for found in METRICS.values() if task in found.tasks]
    intervals = {
        found.name: interval
        for found in chosen
        if found.interval and (interval := found.interval(answered)) is not None
    }
    return {
        "metrics": {found.name: found.measure(answered) for found in chosen},
        "intervals": {name: list(interval) for name, interval in intervals.items()},
    }
