"""The stages, one file each. A module here with a `STAGE` is a stage; nothing registers it."""

import importlib
import pkgutil
from functools import cache
from typing import Any

from luthier.stages.contract import Stage


@cache
def discover() -> dict[str, Stage[Any]]:
    """Every stage by name, in pipeline order."""
    found: list[Stage[Any]] = []
    for module in pkgutil.iter_modules(__path__):
        stage = getattr(importlib.import_module(f"{__name__}.{module.name}"), "STAGE", None)
        if isinstance(stage, Stage):
            found.append(stage)
    return {stage.name: stage for stage in sorted(found, key=lambda stage: stage.order)}
