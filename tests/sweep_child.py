"""One process that works on a sweep of the current folder, and writes down what it seals."""

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

from luthier.store import Artifact, Store
from luthier.sweeping.running import run_sweep
from sweep_cases import bench

SEALED = "sealed.txt"


def sweep_here(folder: Path) -> None:
    """Run the sweep of `run.yaml` in a folder to its end."""
    os.chdir(folder)
    seal = Store.seal

    def noted(self: Store, *arguments: Any) -> Artifact:
        artifact = seal(self, *arguments)
        with Path(SEALED).open("a", encoding="utf-8") as stream:
            stream.write(f"{artifact.key}\n")
        return artifact

    with patch.object(Store, "seal", noted):
        run_sweep(bench(Path("run.yaml")))
