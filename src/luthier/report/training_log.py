"""Reading an adapter's training log."""

import json
from typing import Any

from luthier.store import Artifact
from luthier.training.log import LOG_NAME


def read_training_log(adapter: Artifact) -> list[dict[str, Any]]:
    """The lines of the log, {step, loss, learning_rate, ...} or {step, eval_loss}."""
    path = adapter.path / LOG_NAME
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
