"""From a run config to sealed artifacts: what is reused, what goes on, what must run, and why."""

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from luthier.config import RunConfig, load_config
from luthier.errors import ConfigError, GateError, StoreError
from luthier.gates import Gate, failures, judged, spell
from luthier.interrupts import StopFlag
from luthier.progress import Reporter
from luthier.stages import discover
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.store import (
    Artifact,
    Identity,
    InputRef,
    ManifestDraft,
    Store,
    Workspace,
    compute_key,
    hash_files,
    package_versions,
)

StepState = Literal["reuse", "resume", "run", "wait"]


@dataclass(frozen=True)
class PlannedStep:
    """What would happen to one stage; `reasons` say why it is not reused."""

    stage: str
    state: StepState
    reasons: list[str]
    artifact: Artifact | None = None


@dataclass(frozen=True)
class DoneStep:
    """What happened to one stage."""

    stage: str
    state: StepState
    artifact: Artifact
    ref: str
    seconds: float


@dataclass(frozen=True)
class _Ingredients:
    """A stage whose inputs exist: what it reads and the key of what it makes."""

    inputs: Mapping[str, Artifact]
    identity: Identity
    key: str


@dataclass
class Pipeline:
    """One run config against one store. `pins` choose an input by slot name on purpose."""

    config: RunConfig
    store: Store
    reporter: Reporter = field(default_factory=Reporter)
    stop: StopFlag = field(default_factory=StopFlag)
    pins: Mapping[str, str] = field(default_factory=dict)
    _verified: set[str] = field(default_factory=set)

    def stages(self, until: str | None = None) -> list[Stage[Any]]:
        """The config's stages in order, up to `until`.

        Raises:
            ConfigError: `until` is not one of them, or a stage's input is made by none of them.
            LuthierError: a stage would fail for what can be seen now: a file or program missing.
        """
        stages = [stage for name, stage in discover().items() if name in self.config.sections]
        names = [stage.name for stage in stages]
        if until is not None and until not in names:
            raise ConfigError(
                f"{self.config.path}: there is no section {until}, so no such stage to run. "
                f"The config has: {', '.join(names)}."
            )
        chosen = stages[: names.index(until) + 1] if until else stages
        for stage in chosen:
            for slot in stage.slots:
                if not slot.optional and self._maker(slot) is None and slot.name not in self.pins:
                    raise ConfigError(
                        f"{self.config.path}: {stage.name} needs the section "
                        f"{' or '.join(reversed(slot.stages))}, which is not there."
                    )
        for stage in chosen:
            stage.check(self.config.sections[stage.name])
            stage.files(self.config.sections[stage.name])
        return chosen

    def plan(self, until: str | None = None) -> list[PlannedStep]:
        """What `run` would do, without doing it."""
        steps: list[PlannedStep] = []
        made: dict[str, Artifact] = {}
        for stage in self.stages(until):
            inputs, missing = self._inputs(stage, made)
            if missing:
                steps.append(PlannedStep(stage.name, "wait", [f"after {' and '.join(missing)}"]))
                continue
            ingredients = self._ingredients(stage, inputs)
            step = self._planned(stage, ingredients)
            if step.artifact is not None:
                made[stage.name] = step.artifact
            steps.append(step)
        return steps

    def run(self, until: str | None = None) -> list[DoneStep]:
        """Every stage in order, reusing what is there.

        Raises:
            GateError: a stage's gate failed; later stages did not run.
            InterruptedRunError: stopped on request; the same call goes on.
            LuthierError: a stage cannot work with its input.
        """
        done: list[DoneStep] = []
        made: dict[str, Artifact] = {}
        for stage in self.stages(until):
            inputs, missing = self._inputs(stage, made)
            assert not missing, "stages come after those that make their inputs"
            done.append(self._do(stage, inputs))
            made[stage.name] = done[-1].artifact
        return done

    def run_stage(self, name: str) -> DoneStep:
        """One stage on inputs that exist already.

        Raises:
            StoreError: an input does not exist yet; the message names the command that makes it.
        """
        made: dict[str, Artifact] = {}
        for stage in self.stages(name):
            inputs, missing = self._inputs(stage, made)
            if stage.name == name:
                if missing:
                    raise StoreError(self._missing_inputs(name, missing))
                return self._do(stage, inputs)
            if not missing:
                found = self.store.find(self._ingredients(stage, inputs).key)
                if found is not None:
                    made[stage.name] = found
        raise AssertionError("stages(name) ends with name")

    def artifacts(self) -> dict[str, Artifact]:
        """The artifacts that this config has already, by stage."""
        return {step.stage: step.artifact for step in self.plan() if step.artifact is not None}

    def _missing_inputs(self, name: str, missing: list[str]) -> str:
        path = self.config.path
        commands = ", then ".join(f"luthier {stage} {path}" for stage in missing)
        return (
            f"{name} reads what {' and '.join(missing)} makes for this config, which is not in "
            f"the store {self.store.root}. Run: {commands}. Or all at once: "
            f"luthier run {path} --until {name}"
        )

    def _maker(self, slot: Slot) -> str | None:
        """The stage of this config that fills a slot."""
        return next((name for name in slot.stages if name in self.config.sections), None)

    def _inputs(
        self, stage: Stage[Any], made: Mapping[str, Artifact]
    ) -> tuple[dict[str, Artifact], list[str]]:
        """The inputs that exist, by slot, and the stages that have not made theirs yet."""
        inputs: dict[str, Artifact] = {}
        missing: list[str] = []
        for slot in stage.slots:
            if slot.name in self.pins:
                inputs[slot.name] = self._pinned(slot)
                continue
            maker = self._maker(slot)
            if maker is None:
                continue
            if maker in made:
                inputs[slot.name] = made[maker]
            else:
                missing.append(maker)
        return inputs, missing

    def _pinned(self, slot: Slot) -> Artifact:
        artifact = self.store.resolve(self.pins[slot.name])
        if artifact.kind != slot.kind:
            raise StoreError(
                f"--input {slot.name}={self.pins[slot.name]}: that is of kind {artifact.kind}, "
                f"and {slot.name} takes kind {slot.kind}."
            )
        return artifact

    def _ingredients(self, stage: Stage[Any], inputs: Mapping[str, Artifact]) -> _Ingredients:
        section = self.config.sections[stage.name]
        identity = Identity(
            stage=stage.name,
            stage_version=stage.version,
            fields=section.key_fields()
            | ({"name of the run": self.config.name} if stage.uses_name else {}),
            inputs={slot: artifact.digest for slot, artifact in inputs.items()},
            files=hash_files(stage.files(section)),
            seed=self.config.seed if stage.uses_seed else None,
            packages=package_versions(stage.packages),
        )
        return _Ingredients(inputs, identity, compute_key(identity))

    def _planned(self, stage: Stage[Any], ingredients: _Ingredients) -> PlannedStep:
        artifact = self.store.find(ingredients.key)
        if artifact is not None:
            return PlannedStep(stage.name, "reuse", [], artifact)
        if self.store.has_workspace(stage.name, ingredients.key):
            return PlannedStep(stage.name, "resume", ["an earlier run was interrupted"])
        nearest = self.store.nearest(ingredients.identity)
        reasons = nearest[1] if nearest else ["never made before"]
        return PlannedStep(stage.name, "run", reasons)

    def _do(self, stage: Stage[Any], inputs: Mapping[str, Artifact]) -> DoneStep:
        self.stop.raise_if_requested()
        started = time.monotonic()
        ingredients = self._ingredients(stage, inputs)
        planned = self._planned(stage, ingredients)
        artifact = planned.artifact or self._make(stage, ingredients, planned)
        self._verify(artifact)
        ref = self.store.name(artifact, self.config.name)
        self._raise_on_failed_gates(stage, artifact, ref)
        seconds = time.monotonic() - started
        self.reporter.say(_said(stage, planned.state, ref, seconds, artifact.manifest.gates))
        return DoneStep(stage.name, planned.state, artifact, ref, seconds)

    def _verify(self, artifact: Artifact) -> None:
        """Read every byte once in a pipeline's life."""
        if artifact.key not in self._verified:
            self.store.verify(artifact)
            self._verified.add(artifact.key)

    def _make(
        self, stage: Stage[Any], ingredients: _Ingredients, planned: PlannedStep
    ) -> Artifact:
        self.reporter.say(f"{stage.name}: {stage.summary} ({'; '.join(planned.reasons[:3])})")
        for artifact in ingredients.inputs.values():
            self._verify(artifact)
        with self.store.workspace(
            stage.name, ingredients.key, self.reporter, self.stop
        ) as workspace:
            made_meanwhile = self.store.find(ingredients.key)
            if made_meanwhile is not None:
                return made_meanwhile
            return self._seal(stage, ingredients, workspace)

    def _seal(
        self, stage: Stage[Any], ingredients: _Ingredients, workspace: Workspace
    ) -> Artifact:
        section = self.config.sections[stage.name]
        started = time.monotonic()
        inputs = StageInputs(self.config.name, self.config.seed, ingredients.inputs)
        result: StageResult = stage.run(section, inputs, workspace)
        gc.collect()
        identity = ingredients.identity
        return self.store.seal(
            workspace,
            ManifestDraft(
                stage=stage.name,
                stage_version=stage.version,
                kind=stage.makes,
                key=ingredients.key,
                name=self.config.name,
                inputs=[
                    InputRef(slot=slot, kind=a.kind, key=a.key, digest=a.digest, ref=a.ref)
                    for slot, a in ingredients.inputs.items()
                ],
                external_files=list(identity.files),
                config=section.model_dump(mode="json"),
                key_fields=dict(identity.fields),
                seed=identity.seed,
                key_packages=dict(identity.packages),
                metrics=dict(result.metrics),
                facts=dict(result.facts),
                timings_seconds=dict(result.timings_seconds)
                | {"stage": time.monotonic() - started},
                gates=judged(result.gates, self.config.gates),
            ),
        )

    def _raise_on_failed_gates(self, stage: Stage[Any], artifact: Artifact, ref: str) -> None:
        failed = failures(judged(artifact.manifest.gates, self.config.gates))
        if not failed:
            return
        lines = "\n".join(f"  {spell(gate)}" for gate in failed)
        raise GateError(
            f"{stage.name}: {len(failed)} gate{'s' if len(failed) > 1 else ''} failed; nothing is "
            f"built on {ref}.\n{lines}\n"
            f"Look at it with: luthier show {ref}\n"
            "To go on all the same, lower the gate in the config, which every manifest will keep: "
            f"gates: {{{failed[0].id}: warn}}"
        )


def _said(stage: Stage[Any], state: StepState, ref: str, seconds: float, gates: list[Gate]) -> str:
    passed = sum(gate.status == "pass" for gate in gates)
    warned = [gate.id for gate in gates if gate.status == "warn"]
    words = f"{stage.name}: {'reused' if state == 'reuse' else 'made'} {ref} in {seconds:.1f} s"
    if gates:
        words += f", {passed} of {len(gates)} gates passed"
    return words + (f", warned: {', '.join(warned)}" if warned else "")


def load_run(path: str, overrides: list[str]) -> RunConfig:
    """A run config validated against the stages that exist."""
    return load_config(
        path, {name: stage.section for name, stage in discover().items()}, overrides
    )
