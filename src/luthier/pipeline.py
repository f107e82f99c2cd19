"""From a run config to sealed artifacts: what is reused, what goes on, what must run, and why."""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from luthier.config import RunConfig, Section, load_config
from luthier.errors import ConfigError, GateError, StoreError
from luthier.estimate.cost_section import CostSection
from luthier.forking import open_fork
from luthier.gates import Gate, failures, judged, spell
from luthier.interrupts import StopFlag
from luthier.planning import Choices, Ingredients, PlannedStep, Planner, StepState
from luthier.progress import Reporter, reporter_for_stderr
from luthier.stages import discover
from luthier.stages.contract import Stage, StageInputs, StageResult
from luthier.store import Artifact, ManifestDraft, Store, Workspace, note_recipe
from luthier.sweeping.section import SweepSection
from luthier.watching import Watch

__all__ = [
    "Choices",
    "DoneStep",
    "Pipeline",
    "PlannedStep",
    "all_sections",
    "load_run",
    "open_pipeline",
]


@dataclass(frozen=True)
class DoneStep:
    """What happened to one stage."""

    stage: str
    state: StepState
    artifact: Artifact
    ref: str
    seconds: float


@dataclass
class Pipeline:
    """One run config against one store."""

    config: RunConfig
    store: Store
    reporter: Reporter = field(default_factory=Reporter)
    stop: StopFlag = field(default_factory=StopFlag)
    choices: Choices = field(default_factory=Choices)
    watch: Watch = field(default_factory=Watch)
    # Keys of artifacts whose every byte was read; several pipelines of one process can share it.
    verified: set[str] = field(default_factory=set)

    @cached_property
    def _planner(self) -> Planner:
        return Planner(self.config, self.store, self.reporter, self.choices)

    def plan(self, until: str | None = None) -> list[PlannedStep]:
        """What `run` would do, without doing it."""
        return self._planner.plan(until)

    def run(self, until: str | None = None) -> list[DoneStep]:
        """Every stage in order, reusing what is there.

        Raises:
            GateError: a stage's gate failed; later stages did not run.
            ConfigError: an interrupted run with checkpoints differs from what is asked now.
            InterruptedRunError: stopped on request; the same call goes on.
            PrunedRunError: `watch` ended it; the same call without one goes on.
            LuthierError: a stage cannot work with its input.
        """
        done: list[DoneStep] = []
        made: dict[str, Artifact] = {}
        for stage in self._planner.stages(until):
            inputs, missing = self._planner.inputs(stage, made)
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
        for stage in self._planner.stages(name):
            inputs, missing = self._planner.inputs(stage, made)
            if stage.name == name:
                if missing:
                    raise StoreError(self._missing_inputs(name, missing))
                return self._do(stage, inputs)
            if not missing:
                found = self.store.find(self._planner.ingredients(stage, inputs).recipe.key)
                if found is not None:
                    made[stage.name] = found
        raise AssertionError("stages(name) ends with name")

    def artifacts(self) -> dict[str, Artifact]:
        """The artifacts that this config has already, by stage."""
        return {step.stage: step.artifact for step in self.plan() if step.artifact is not None}

    def discard_unfinished(self, until: str) -> None:
        """Delete what the first stage that is not done has made so far, and may go on with."""
        made: dict[str, Artifact] = {}
        for stage in self._planner.stages(until):
            inputs, _ = self._planner.inputs(stage, made)
            key = self._planner.ingredients(stage, inputs).recipe.key
            found = self.store.find(key)
            if found is None:
                self.store.discard(stage.name, key)
                return
            made[stage.name] = found

    def _missing_inputs(self, name: str, missing: list[str]) -> str:
        path = self.config.path
        commands = ", then ".join(f"luthier {stage} {path}" for stage in missing)
        return (
            f"{name} reads what {' and '.join(missing)} makes for this config, which is not in "
            f"the store {self.store.root}. Run: {commands}. Or all at once: "
            f"luthier run {path} --until {name}"
        )

    def _do(self, stage: Stage[Any], inputs: Mapping[str, Artifact]) -> DoneStep:
        self.stop.raise_if_requested()
        started = time.monotonic()
        ingredients = self._planner.ingredients(stage, inputs)
        planned = self._planner.planned(stage, ingredients)
        if planned.refusal is not None:
            raise ConfigError(planned.refusal)
        artifact = planned.artifact or self._make(stage, ingredients, planned)
        self._verify(artifact)
        ref = self.store.name(artifact, self.config.name)
        self._raise_on_failed_gates(stage, artifact, ref)
        seconds = time.monotonic() - started
        self.reporter.say(_said(stage, planned.state, ref, seconds, artifact.manifest.gates))
        return DoneStep(stage.name, planned.state, artifact, ref, seconds)

    def _verify(self, artifact: Artifact) -> None:
        """Read every byte once in a pipeline's life."""
        if artifact.key not in self.verified:
            self.store.verify(artifact)
            self.verified.add(artifact.key)

    def _make(self, stage: Stage[Any], ingredients: Ingredients, planned: PlannedStep) -> Artifact:
        self.reporter.say(f"{stage.name}: {stage.summary} ({'; '.join(planned.reasons[:3])})")
        for artifact in ingredients.inputs.values():
            self._verify(artifact)
        key = ingredients.recipe.key
        with self.store.workspace(
            stage.name, key, self.reporter, self.stop, self.watch
        ) as workspace:
            made_meanwhile = self.store.find(key)
            if made_meanwhile is not None:
                return made_meanwhile
            note_recipe(workspace, ingredients.recipe)
            return self._seal(stage, ingredients, workspace)

    def _seal(self, stage: Stage[Any], ingredients: Ingredients, workspace: Workspace) -> Artifact:
        section, recipe = self.config.sections[stage.name], ingredients.recipe
        started = time.monotonic()
        fork, parent = None, None
        if ingredients.fork is not None:
            fork, parent = open_fork(ingredients.fork, stage, workspace, recipe, self.store)
        seed = self.config.seed_of(stage.name)
        inputs = StageInputs(self.config.name, seed, ingredients.inputs, fork)
        result: StageResult = stage.run(section, inputs, workspace)
        gc.collect()
        return self.store.seal(
            workspace,
            ManifestDraft(
                **dict(recipe),
                kind=stage.makes,
                config=section.model_dump(mode="json"),
                metrics=dict(result.metrics),
                facts=dict(result.facts) | ({"fork": parent} if parent else {}),
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
            f"{stage.name}: {' and '.join(gate.id for gate in failed)} failed; nothing is built "
            f"on {ref}.\n{lines}\n"
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


def all_sections() -> dict[str, type[Section]]:
    """Every section that a run config may have: of the stages, and those that are no stage."""
    stages = {name: stage.section for name, stage in discover().items()}
    return stages | {"cost": CostSection, "sweep": SweepSection}


def load_run(path: str, overrides: list[str]) -> RunConfig:
    """A run config validated against the sections that exist."""
    return load_config(path, all_sections(), overrides)


def open_pipeline(
    config: str,
    overrides: Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    fork: str | None = None,
    fresh: bool = False,
) -> Pipeline:
    """What a command line asks for, on the default store; SIGINT and SIGTERM stop it from now on.

    `inputs` are the texts of `--input`, each SLOT=VERSION.

    Raises:
        ConfigError: the config or the command line is wrong.
    """
    choices = Choices(_pins(inputs or []), fork, fresh)
    loaded = load_run(config, list(overrides or []))
    stop = StopFlag()
    stop.install()
    return Pipeline(loaded, Store.default(), reporter_for_stderr(), stop, choices)


def _pins(texts: Sequence[str]) -> dict[str, str]:
    pins: dict[str, str] = {}
    for text in texts:
        slot, equals, reference = text.partition("=")
        if not equals or not slot or not reference:
            raise ConfigError(
                f"--input {text}: write it as slot=version, such as adapter=name/adapter@v2."
            )
        pins[slot] = reference
    return pins
