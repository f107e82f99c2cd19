"""All metrics, measured: one decorated function each.

A module `*_metrics.py` beside this one adds those that it has; nothing else registers them.
"""

import importlib
import pkgutil
from typing import Any

from luthier import evaluation
from luthier.data.rows import Task
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

for _module in pkgutil.iter_modules(evaluation.__path__):
    if _module.name.endswith("_metrics"):
        importlib.import_module(f"{evaluation.__name__}.{_module.name}")

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
