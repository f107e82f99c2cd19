"""The training log of an artifact: a line for every step and every evaluation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.store.files import write_atomically

# Rates differ between equal runs: what lies below `measured/` is not in an artifact's digest.
LOG_NAME = "measured/training_log.jsonl"


def write_log(folder: Path, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the lines of a trainer's history that have a loss or an evaluation; those lines."""
    log = [line for line in history if "loss" in line or "eval_loss" in line]
    path = folder / LOG_NAME
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in log))
    return log


def metrics_of(log: list[dict[str, Any]]) -> Mapping[str, Any]:
    """First and last loss; the validation loss before training, its lowest and its last."""
    losses = [line["loss"] for line in log if "loss" in line]
    evaluations = [line["eval_loss"] for line in log if "eval_loss" in line]
    return {
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "validation_loss_before": evaluations[0] if evaluations else None,
        "validation_loss": min(evaluations[1:], default=None),
        "last_validation_loss": evaluations[-1] if evaluations else None,
    }
