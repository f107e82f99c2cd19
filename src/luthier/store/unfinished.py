"""Workspaces of runs that did not end: what each was for, and whether somebody works in it now."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from luthier.store.artifact import SCRATCH_NAME, Workspace
from luthier.store.files import write_atomically
from luthier.store.manifest import MANIFEST_NAME, Recipe

RECIPE_NAME = "identity.json"


@dataclass(frozen=True)
class Unfinished:
    """A workspace that a run left or works in now.

    `is_busy`: a living process has its lock. What it holds may change at any moment.
    """

    recipe: Recipe
    path: Path
    is_busy: bool

    @property
    def scratch(self) -> Path:
        """Checkpoints and partial answers."""
        return self.path / SCRATCH_NAME


def note_recipe(workspace: Workspace, recipe: Recipe) -> None:
    """Write what a workspace is for, so that `Store.unfinished` can tell."""
    write_atomically(workspace.scratch / RECIPE_NAME, recipe.model_dump_json(indent=1))


def read_unfinished(partial: Path, lock: Path) -> Unfinished | None:
    """The workspace in a folder; None when it does not say what it is for, or is all but sealed.

    A run that was killed before it could write that had made nothing yet.
    """
    if (partial / MANIFEST_NAME).exists():  # its seal was cut off, and is ended without any work
        return None
    try:
        text = (partial / SCRATCH_NAME / RECIPE_NAME).read_bytes()
        recipe = Recipe.model_validate_json(text)
    except (OSError, ValueError):
        return None
    return Unfinished(recipe, partial, _is_held(lock))


def discard_unfinished(partial: Path, lock: Path) -> bool:
    """Delete a workspace, and whatever it holds; False while a living process has its lock."""
    if not partial.exists():
        return True
    try:
        with FileLock(lock, blocking=False):
            shutil.rmtree(partial)
    except Timeout:
        return False
    return True


def _is_held(lock: Path) -> bool:
    if not lock.exists():
        return False
    try:
        with FileLock(lock, blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # a store that may only be read: nobody works there
        return False
