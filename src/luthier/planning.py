"""What a run would do to each stage, and why: reuse, go on, run, or wait for an earlier one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from luthier.config import RunConfig
from luthier.errors import ConfigError, StoreError
from luthier.forking import FORK_FIELD, ForkPoint, find_conflict, find_fork, parent_changes
from luthier.progress import Reporter
from luthier.refusing import (
    refuse_architecture,
    refuse_full,
    refuse_unexportable,
    refuse_unjudged,
)
from luthier.stages import discover
from luthier.stages.contract import Slot, Stage, named_by
from luthier.store import (
    Artifact,
    Identity,
    InputRef,
    Recipe,
    Store,
    compute_key,
    hash_files,
    package_versions,
)
from luthier.store.keys import identity_of
from luthier.store.manifest import ArtifactKind
from luthier.training.checkpoints import sealed_steps

StepState = Literal["reuse", "resume", "run", "wait"]


@dataclass(frozen=True)
class Choices:
    """What a command line chooses on purpose.

    `pins` are versions by input slot. `fork` is KEY or KEY@STEP of the interrupted run to go on
    from. `fresh` begins anew where an interrupted run under other settings would be refused.
    """

    pins: Mapping[str, str] = field(default_factory=dict)
    fork: str | None = None
    fresh: bool = False


@dataclass(frozen=True)
class PlannedStep:
    """What would happen to one stage; `reasons` say why it is not reused.

    `refusal`: what the run would say instead of running it.
    """

    stage: str
    state: StepState
    reasons: list[str]
    artifact: Artifact | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class Ingredients:
    """A stage whose inputs exist: what it reads, and what the key of what it makes is made of."""

    inputs: Mapping[str, Artifact]
    recipe: Recipe
    fork: ForkPoint | None = None


@dataclass
class Planner:
    """One run config against one store."""

    config: RunConfig
    store: Store
    reporter: Reporter = field(default_factory=Reporter)
    choices: Choices = field(default_factory=Choices)
    _exportable: set[str] = field(default_factory=set, init=False)

    def stages(self, until: str | None = None) -> list[Stage[Any]]:
        """The config's stages in order, up to `until`.

        Raises:
            ConfigError: `until` is not one of them, a stage's input is made by none of them or is
                not in the store, or what is to be forked is none of them.
            LuthierError: a stage would fail for what can be seen now: a file or program missing.
        """
        stages = _after_their_makers(
            [stage for name, stage in discover().items() if name in self.config.sections]
        )
        names = [stage.name for stage in stages]
        if until is not None and until not in names:
            raise ConfigError(
                f"{self.config.path}: there is no section {until}, so no such stage to run. "
                f"The config has: {', '.join(names)}."
            )
        chosen = stages[: names.index(until) + 1] if until else stages
        for stage in chosen:
            self._refuse_missing_makers(stage)
        if self._fork is not None and self._fork.stage not in [stage.name for stage in chosen]:
            raise ConfigError(
                f"--fork {self.choices.fork} is a run of {self._fork.stage}, which this command "
                "does not run."
            )
        for stage in chosen:
            stage.check(self.config.sections[stage.name], self._filled(stage))
            stage.files(self.config.sections[stage.name])
        chosen_names = [stage.name for stage in chosen]
        if "export" in chosen_names:
            refuse_unexportable(self.config)
        if "dpo" in chosen_names:
            refuse_full(self.config)
        refuse_unjudged(self.config, chosen_names)
        return chosen

    def plan(self, until: str | None = None) -> list[PlannedStep]:
        """What `run` would do, without doing it."""
        steps: list[PlannedStep] = []
        made: dict[str, Artifact] = {}
        for stage in self.stages(until):
            inputs, missing = self.inputs(stage, made)
            if missing:
                steps.append(PlannedStep(stage.name, "wait", [f"after {' and '.join(missing)}"]))
                continue
            step = self.planned(stage, self.ingredients(stage, inputs))
            if step.artifact is not None:
                made[stage.name] = step.artifact
            steps.append(step)
        return steps

    def inputs(
        self, stage: Stage[Any], made: Mapping[str, Artifact]
    ) -> tuple[dict[str, Artifact], list[str]]:
        """The inputs that exist, by slot, and the stages that have not made theirs yet.

        Raises:
            ConfigError: an export target does not know the base's architecture (F32).
        """
        if "base" in made and "export" in self.config.sections:
            self._refuse_architecture(made["base"])
        inputs: dict[str, Artifact] = {}
        missing: list[str] = []
        for slot in stage.slots:
            named = self._named(stage, slot)
            if named:
                inputs |= named
                continue
            tagged = self._tagged(stage, slot, inputs)
            if tagged is not None:
                inputs[slot.name] = tagged
            maker = self._maker(slot)
            if maker is None:
                continue
            if maker in made:
                inputs[slot.name] = made[maker]
            else:
                missing.append(maker)
        return inputs, missing

    def ingredients(self, stage: Stage[Any], inputs: Mapping[str, Artifact]) -> Ingredients:
        """What a stage would make its artifact of, and the key of that."""
        section = self.config.sections[stage.name]
        fork = self._fork if self._fork and self._fork.stage == stage.name else None
        identity = Identity(
            stage=stage.name,
            stage_version=stage.version,
            fields=section.key_fields()
            | ({"name of the run": self.config.name} if stage.uses_name else {})
            | ({FORK_FIELD: fork.ingredient} if fork else {}),
            inputs={slot: artifact.digest for slot, artifact in inputs.items()},
            files=hash_files(stage.files(section)),
            seed=self.config.seed_of(stage.name) if stage.uses_seed else None,
            packages=package_versions((*stage.packages, *stage.optional_packages(section))),
        )
        recipe = Recipe(
            stage=stage.name,
            stage_version=stage.version,
            key=compute_key(identity),
            name=self.config.name,
            inputs=[
                InputRef(slot=slot, kind=a.kind, key=a.key, digest=a.digest, ref=a.ref)
                for slot, a in inputs.items()
            ],
            external_files=list(identity.files),
            key_fields=dict(identity.fields),
            seed=identity.seed,
            key_packages=dict(identity.packages),
        )
        return Ingredients(inputs, recipe, fork)

    def planned(self, stage: Stage[Any], ingredients: Ingredients) -> PlannedStep:
        """What would happen to a stage whose inputs exist."""
        recipe, fork = ingredients.recipe, ingredients.fork
        artifact = self.store.find(recipe.key)
        if artifact is not None:
            return PlannedStep(stage.name, "reuse", [], artifact)
        if self.store.has_workspace(stage.name, recipe.key):
            return PlannedStep(stage.name, "resume", [self._interrupted(stage, recipe.key)])
        if fork is not None:
            changes = parent_changes(fork, recipe, self.store)
            return PlannedStep(stage.name, "run", [f"forked from {fork.ingredient}", *changes])
        nearest = self.store.nearest(identity_of(recipe))
        reasons = nearest[1] if nearest else ["never made before"]
        conflict = None if self.choices.fresh else find_conflict(stage, recipe, self.store)
        if conflict is None:
            return PlannedStep(stage.name, "run", reasons)
        reasons = [conflict.reason, *reasons]
        return PlannedStep(stage.name, "run", reasons, refusal=conflict.message)

    @cached_property
    def _fork(self) -> ForkPoint | None:
        if self.choices.fork is None:
            return None
        return find_fork(self.choices.fork, self.store, discover(), self.reporter)

    def _interrupted(self, stage: Stage[Any], key: str) -> str:
        steps = []
        if stage.checkpoints is not None:
            steps = sealed_steps(self.store.scratch(stage.name, key) / stage.checkpoints)
        return "an earlier run was interrupted" + (f" after step {steps[0]}" if steps else "")

    def _refuse_architecture(self, base: Artifact) -> None:
        if base.key not in self._exportable:
            refuse_architecture(self.config, base.path)
            self._exportable.add(base.key)

    def _refuse_missing_makers(self, stage: Stage[Any]) -> None:
        for slot in stage.slots:
            named, maker = self._named(stage, slot), self._maker(slot)
            if not named and maker is None and not slot.optional:
                raise ConfigError(
                    f"{self.config.path}: {stage.name} needs the section "
                    f"{' or '.join(reversed(slot.stages))}, which is not there."
                )

    def _filled(self, stage: Stage[Any]) -> frozenset[str]:
        """The slots of a stage that a stage of this config or the command line fills."""
        return frozenset(
            slot.name
            for slot in stage.slots
            if self._maker(slot) is not None or self._named(stage, slot)
        )

    def _maker(self, slot: Slot) -> str | None:
        """The stage of this config that fills a slot."""
        if slot.only_with is not None and slot.only_with not in self.config.sections:
            return None
        return next((name for name in slot.stages if name in self.config.sections), None)

    def _tagged(
        self, stage: Stage[Any], slot: Slot, inputs: Mapping[str, Artifact]
    ) -> Artifact | None:
        """What the slot's tag names, unless it is what this run made."""
        if slot.tag is None:
            return None
        if slot.tag_where is not None:
            field, value = slot.tag_where
            if getattr(self.config.sections[stage.name], field) != value:
                return None
        try:
            found = self.store.tagged(self.config.name, slot.kind, slot.tag)
        except StoreError as error:
            raise ConfigError(str(error)) from error
        if found is None or "adapter" not in inputs:
            return found
        own = inputs["adapter"].digest
        is_own = any(ref.slot == "adapter" and ref.digest == own for ref in found.manifest.inputs)
        return None if is_own else found

    def _named(self, stage: Stage[Any], slot: Slot) -> dict[str, Artifact]:
        """The artifacts that the command line, or the stage's section, names for a slot."""
        if slot.name in self.choices.pins:
            return {slot.name: self._pinned(slot.name, slot.kind)}
        found = {}
        for named in named_by(self.config.sections[stage.name], slot):
            if named.slot in self.choices.pins:
                found[named.slot] = self._pinned(named.slot, slot.kind)
                continue
            place = f"{self.config.path}: {stage.name}.{named.field}: {named.reference}"
            found[named.slot] = self._resolved(named.reference, place, named.slot, slot.kind)
        return found

    def _pinned(self, slot: str, kind: ArtifactKind) -> Artifact:
        text = self.choices.pins[slot]
        return self._resolved(text, f"--input {slot}={text}", slot, kind)

    def _resolved(self, text: str, place: str, slot: str, kind: ArtifactKind) -> Artifact:
        try:
            artifact = self.store.resolve(text)
        except StoreError as error:
            raise ConfigError(f"{place}: {error}") from error
        if artifact.kind != kind:
            raise ConfigError(
                f"{place}: that is of kind {artifact.kind}, and {slot} takes kind {kind}."
            )
        return artifact


def _after_their_makers(stages: Sequence[Stage[Any]]) -> list[Stage[Any]]:
    """The stages in their order, each after those of them that make what it reads."""
    waiting, placed = list(stages), list[Stage[Any]]()
    while waiting:
        missing = {stage.name for stage in waiting}
        ready = next(
            stage
            for stage in waiting
            if not missing & {maker for slot in stage.slots for maker in slot.stages}
        )
        waiting.remove(ready)
        placed.append(ready)
    return placed
