"""Interrupted training runs under other settings: refusing to pass over them, and forking them.

A run under changed settings has another key, so it would silently begin from nothing beside the
hours that an interrupted one left (FAILURES F20). It is refused with what changed, until the user
says what is meant: the old settings, `--fork KEY@STEP`, or `--fresh`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import ConfigError
from luthier.progress import Reporter
from luthier.stages.contract import Fork, Stage
from luthier.store import Manifest, Recipe, Store, Unfinished, Workspace
from luthier.store.files import write_atomically
from luthier.store.history import differences
from luthier.store.keys import identity_of
from luthier.training.checkpoints import (
    checkpoint_damage,
    checkpoint_digest,
    checkpoint_folder,
    checkpoint_step,
    newest_intact,
    sealed_steps,
)

# The ingredient of a forked stage's key. No section's field has a space in its name.
FORK_FIELD = "fork of"
_FORK = re.compile(r"([0-9a-f]{6,64})(?:@(\d+))?")
_NOTE_NAME = "fork.json"
_SHOWN_DIGITS = 8
_KEPT_DIGITS = 16


@dataclass(frozen=True)
class ForkPoint:
    """A checkpoint to go on from: the stage that made it, 16 digits of its key, the step.

    `parent` is the interrupted run; None when it is gone and only a fork of it is left.
    """

    stage: str
    key: str
    step: int
    parent: Unfinished | None

    @property
    def ingredient(self) -> str:
        """What stands in the key of the forked run."""
        return f"{self.key}@{self.step}"


@dataclass(frozen=True)
class Conflict:
    """An interrupted run with checkpoints that differs from what is asked now."""

    unfinished: Unfinished
    step: int
    changes: list[str]

    @property
    def reason(self) -> str:
        """One line for `luthier plan`."""
        return f"{self._run} differs: {'; '.join(self.changes)} (--fork {self._name}, or --fresh)"

    @property
    def message(self) -> str:
        """Why nothing is run, and the ways out."""
        lines = "".join(f"\n  {change}" for change in self.changes)
        return (
            f"{self.unfinished.recipe.stage}: {self._run} differs from what is asked now:{lines}\n"
            "Restore these to go on with it; or add one of\n"
            f"  --fork {self._name}  to go on from its checkpoint with what is asked now\n"
            f"  --fresh  to begin anew; the interrupted run stays in {self.unfinished.path}"
        )

    @property
    def _run(self) -> str:
        key = self.unfinished.recipe.key[:_SHOWN_DIGITS]
        return f"an interrupted run at step {self.step} (key {key})"

    @property
    def _name(self) -> str:
        return f"{self.unfinished.recipe.key[:_SHOWN_DIGITS]}@{self.step}"


def find_conflict(stage: Stage[Any], recipe: Recipe, store: Store) -> Conflict | None:
    """The interrupted run of the same name and stage that differs least; of equals the furthest.

    Runs that a living process works on are none, and neither are those without a checkpoint.
    """
    if stage.checkpoints is None:
        return None
    conflicts = [
        Conflict(left, steps[0], differences(left.recipe, identity_of(recipe), store.find))
        for left in store.unfinished()
        if (left.recipe.stage, left.recipe.name) == (recipe.stage, recipe.name)
        and left.recipe.key != recipe.key
        and not left.is_busy
        and (steps := sealed_steps(left.scratch / stage.checkpoints))
    ]
    return min(conflicts, key=lambda one: (len(one.changes), -one.step), default=None)


def find_fork(
    text: str, store: Store, stages: Mapping[str, Stage[Any]], reporter: Reporter
) -> ForkPoint:
    """The checkpoint that `--fork KEY[@STEP]` means; without a step the newest intact one.

    A fork that was begun is found again when its parent is gone.

    Raises:
        ConfigError: it means nothing, or several.
    """
    match = _FORK.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--fork {text}: write it as KEY or KEY@STEP, such as 3fa9c2d1@120; KEY are six or "
            "more digits of an interrupted run's key."
        )
    prefix, step = match[1], int(match[2]) if match[2] else None
    parents = [one for one in store.unfinished() if one.recipe.key.startswith(prefix)]
    if len(parents) > 1:
        raise ConfigError(f"--fork {text} begins several keys:{_listing(parents, stages)}")
    parent = parents[0] if parents else None
    point = _point(parent, step, stages, reporter) if parent else None
    point = point or _forked_before(prefix, step, store)
    if point is None:
        raise ConfigError(f"--fork {text}: {_unknown(prefix, parent, store, stages)}")
    return point


def open_fork(
    point: ForkPoint, stage: Stage[Any], workspace: Workspace, recipe: Recipe, store: Store
) -> tuple[Fork, dict[str, Any]]:
    """What the forked stage begins from, and what its manifest says of the parent.

    Raises:
        ConfigError: the checkpoint is needed, and it is gone, damaged, or its run goes on now.
    """
    assert stage.checkpoints is not None
    parents = store.scratch(stage.name, point.key) / stage.checkpoints
    checkpoint = checkpoint_folder(parents, point.step)
    note = workspace.scratch / _NOTE_NAME
    if not note.exists() or not sealed_steps(workspace.scratch / stage.checkpoints):
        record = _record(point, checkpoint, recipe, store)
        write_atomically(note, json.dumps(record))
    fork = Fork(checkpoint, point.key, point.step)
    return fork, json.loads(note.read_text(encoding="utf-8"))


def parent_changes(point: ForkPoint, recipe: Recipe, store: Store) -> list[str]:
    """What is asked of a fork and was not of its parent; nothing when the parent is gone."""
    if point.parent is None:
        return []
    old, new = (_unforked(one) for one in (point.parent.recipe, recipe))
    return differences(old, identity_of(new), store.find)


def _record(point: ForkPoint, checkpoint: Path, recipe: Recipe, store: Store) -> dict[str, Any]:
    """The parent as the manifest keeps it."""
    name = f"--fork {point.ingredient}"
    if point.parent is None:
        raise ConfigError(f"{name}: that run is gone, and the fork has made no checkpoint yet.")
    if point.parent.is_busy:
        raise ConfigError(f"{name}: that run goes on now. Stop it first; it keeps what is done.")
    damage = checkpoint_damage(checkpoint)
    if damage is not None:
        others = [step for step in sealed_steps(checkpoint.parent) if step != point.step]
        raise ConfigError(f"{name}: {checkpoint} is damaged: {damage}. {_spell_steps(others)}")
    return {
        "parent_key": point.key,
        "parent_step": point.step,
        "checkpoint_digest": checkpoint_digest(checkpoint),
        "changes": parent_changes(point, recipe, store),
    }


def _unforked(recipe: Recipe) -> Recipe:
    fields = {name: value for name, value in recipe.key_fields.items() if name != FORK_FIELD}
    return recipe.model_copy(update={"key_fields": fields})


def _point(
    parent: Unfinished, step: int | None, stages: Mapping[str, Stage[Any]], reporter: Reporter
) -> ForkPoint | None:
    root = _checkpoints(parent, stages)
    if root is None:
        return None
    if step is None:
        newest = newest_intact(root, reporter.say)
        step = checkpoint_step(newest) if newest else None
    if step is None or step not in sealed_steps(root):
        return None
    return ForkPoint(parent.recipe.stage, parent.recipe.key[:_KEPT_DIGITS], step, parent)


def _checkpoints(left: Unfinished, stages: Mapping[str, Stage[Any]]) -> Path | None:
    """The folder of an unfinished run's checkpoints; None for a stage that makes none."""
    stage = stages.get(left.recipe.stage)
    return left.scratch / stage.checkpoints if stage and stage.checkpoints else None


def _forked_before(prefix: str, step: int | None, store: Store) -> ForkPoint | None:
    """The same fork as it was asked for earlier, finished or not."""
    recipes: list[Recipe | Manifest] = [left.recipe for left in store.unfinished()]
    recipes += [artifact.manifest for artifact in store.artifacts()]
    points = set()
    for recipe in recipes:
        key, _, forked_at = str(recipe.key_fields.get(FORK_FIELD, "")).partition("@")
        if forked_at and key.startswith(prefix[:_KEPT_DIGITS]) and step in (None, int(forked_at)):
            points.add(ForkPoint(recipe.stage, key, int(forked_at), None))
    if len(points) > 1:
        spelled = ", ".join(sorted(point.ingredient for point in points))
        raise ConfigError(f"--fork {prefix} can mean any of {spelled}. Say which.")
    return next(iter(points), None)


def _unknown(
    prefix: str, parent: Unfinished | None, store: Store, stages: Mapping[str, Stage[Any]]
) -> str:
    """Why there is nothing to fork, and what could be."""
    if parent is not None:
        root = _checkpoints(parent, stages)
        key = parent.recipe.key[:_SHOWN_DIGITS]
        if root is None:
            return (
                f"{key} is a run of {parent.recipe.stage}, which makes no checkpoints. "
                "The same command without --fork goes on with it."
            )
        return f"{key} has no such checkpoint. {_spell_steps(sealed_steps(root))}"
    for artifact in store.artifacts():
        if artifact.key.startswith(prefix):
            return (
                f"{artifact.ref} is finished, so its checkpoints are gone. "
                "What it made can be the input of another run."
            )
    return f"no interrupted run has such a key.{_listing(store.unfinished(), stages)}"


def _listing(found: Sequence[Unfinished], stages: Mapping[str, Stage[Any]]) -> str:
    lines = [
        f"\n  {left.recipe.key[:_KEPT_DIGITS]}  {left.recipe.stage} of {left.recipe.name}, "
        f"step {steps[0]}"
        for left in found
        if (root := _checkpoints(left, stages)) and (steps := sealed_steps(root))
    ]
    return f" There are:{''.join(lines)}" if lines else " None has a checkpoint."


def _spell_steps(steps: Sequence[int]) -> str:
    if not steps:
        return "There is no other."
    return f"There are those of step {', '.join(str(step) for step in steps)}."
