"""Experiment trackers, through transformers' own callbacks. None is on unless a config asks.

Their settings are environment variables; they are set for the length of a training only, and what
the user has set stays as it is.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from luthier.errors import ConfigError
from luthier.training.job import TrainingJob
from luthier.training.section import TrackingSection, TrainingSection

_MODULES = {
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "wandb": "wandb",
    "trackio": "trackio",
}
_PACKAGES = _MODULES | {"mlflow": "mlflow-skinny"}


def check_trackers(section: TrainingSection) -> None:
    """Raises ConfigError when a tracker that the config names is not installed."""
    for name in section.tracking.to if section.tracking else ():
        if importlib.util.find_spec(_MODULES[name]) is None:
            raise ConfigError(
                f"{section.stage_name}.tracking.to: {name} is not installed. Install it with: "
                f"pip install {_PACKAGES[name]}, or luthier[trackers]."
            )


def tracker_arguments(job: TrainingJob) -> dict[str, Any]:
    """Arguments of SFTConfig that switch the config's trackers on."""
    tracking = job.section.tracking
    if tracking is None:
        return {"report_to": []}
    return {
        "report_to": list(tracking.to),
        "run_name": _run_name(job),
        "project": tracking.project or job.name,
        # Without it, Trackio would publish the run when training ends.
        "trackio_static_space_id": False,
    }


@contextmanager
def tracking_environment(job: TrainingJob) -> Iterator[None]:
    """Where the trackers write and how they call the run, for the length of the block. Trackers
    read it when the trainer is made. What they print goes to standard error."""
    from accelerate.utils import patch_environment

    tracking = job.section.tracking
    if tracking is None:
        yield
        return
    settings = _settings(tracking, job)
    mine = {name: value for name, value in settings.items() if name not in os.environ}
    tracking.folder.mkdir(parents=True, exist_ok=True)
    with patch_environment(**mine):
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            _finish_wandb()


def _settings(tracking: TrackingSection, job: TrainingJob) -> dict[str, str]:
    folder, project = tracking.folder.absolute(), tracking.project or job.name
    settings = {
        "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard" / project / _run_name(job)),
        "MLFLOW_EXPERIMENT_NAME": project,
        "WANDB_PROJECT": project,
        "WANDB_DIR": str(folder),
        # The same run goes on when the training does.
        "WANDB_RUN_ID": _run_name(job),
        "WANDB_RESUME": "allow",
        "WANDB_SILENT": "true",
        # What the trackers would send to their makers.
        "WANDB_ERROR_REPORTING": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TRACKIO_DIR": str(folder / "trackio"),
    }
    if tracking.offline:
        settings |= {
            "WANDB_MODE": "offline",
            # The one kind of store that mlflow-skinny has without a server.
            "MLFLOW_TRACKING_URI": (folder / "mlflow").as_uri(),
            "MLFLOW_ALLOW_FILE_STORE": "true",
        }
    return settings


def _run_name(job: TrainingJob) -> str:
    """The run's name and the first digits of the workspace's name, which is the key."""
    return f"{job.name}-{job.outputs.name[:8]}"


def _finish_wandb() -> None:
    """Its callback leaves the run open, and the next training would go on in it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
