"""A sweep before its first trial: what is searched, what every trial runs, and the study's key."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from luthier.config import RunConfig, Section
from luthier.config.document import nearest
from luthier.config.sources import read_sources
from luthier.data.section import PrepareSection
from luthier.errors import ConfigError
from luthier.evaluation.section import EvaluateSection
from luthier.pipeline import load_run
from luthier.stages import discover
from luthier.store import hash_files, package_versions
from luthier.store.canonical import sha256_json
from luthier.sweeping.measures import Measure, chosen_measures
from luthier.sweeping.section import SEARCHED_SECTIONS, SweepSection
from luthier.sweeping.space import Params, check_space, grid, overrides
from luthier.training.section import TrainingSection

# Of a config, in the pipeline's order: what trials run where it is there.
_TRIAL_STAGES = (*SEARCHED_SECTIONS, "evaluate")
_TRAINING = ("sft", "dpo")
_NAME_END = ".sweep"  # versions of trials have a name of their own
_LONGEST_NAME = 64


@dataclass(frozen=True)
class SweepPlan:
    """A config with a valid sweep. `measures` are its objectives, the first ranks."""

    config: RunConfig
    section: SweepSection
    measures: Sequence[Measure]

    @property
    def name(self) -> str:
        """What the versions that trials make are called."""
        return self.config.name[: _LONGEST_NAME - len(_NAME_END)] + _NAME_END

    @property
    def until(self) -> str:
        """The last stage that a trial runs."""
        stages = [stage for stage in _TRIAL_STAGES if stage in self.config.sections]
        needed = {measure.stage for measure in self.measures}
        return next(stage for stage in reversed(stages) if stage in needed or stage in _TRAINING)

    @property
    def fraction(self) -> float | None:
        """After which shares of sft candidates can be pruned."""
        sft = self.config.sections.get("sft")
        return sft.evaluate_every_fraction if isinstance(sft, TrainingSection) else None

    @property
    def first_seeds(self) -> list[int]:
        """The training seeds of every candidate."""
        return self.seeds(self.section.seeds_per_candidate)

    def seeds(self, count: int) -> list[int]:
        """So many training seeds, from the config's on."""
        return [self.config.seed + place for place in range(count)]

    @cached_property
    def trials(self) -> int:
        """Candidates in all: of a grid no more than it has."""
        if self.section.sampler != "grid":
            return self.section.trials
        return min(self.section.trials, len(grid(self.section.parameters)))

    def trial_config(self, params: Params, seed: int) -> RunConfig:
        """What a candidate runs with one training seed: on the validation rows, and nothing that
        only its winner needs.

        Raises:
            ConfigError: these values do not go together.
        """
        whole = self.winner_config(params)
        sections = {name: whole.sections[name] for name in _TRIAL_STAGES if name in whole.sections}
        for stage in _TRAINING:
            if stage in sections:
                sections[stage] = sections[stage].model_copy(update={"seed": seed})
        evaluate = sections.get("evaluate")
        if isinstance(evaluate, EvaluateSection):
            sections["evaluate"] = evaluate.model_copy(update=self._on_validation(evaluate))
        return replace(whole, name=self.name, sections=sections)

    def _on_validation(self, section: EvaluateSection) -> dict[str, Any]:
        timed = any(measure.name.endswith("_seconds") for measure in self.measures)
        return {
            "split": "validation",
            "judge": None,
            "harness": None,
            "speed_rows": section.speed_rows if timed else 0,
            # Shipping is judged on test rows, for the winner.
            "ship": section.ship.model_copy(update={"require": False}),
        }

    def winner_config(self, params: Params) -> RunConfig:
        """The user's own config with a candidate's values."""
        return load_run(str(self.config.path), [*self.config.overrides, *overrides(params)])

    @cached_property
    def key(self) -> str:
        """SHA-256 over all that decides what trials come to; budgets and places are left out."""
        stages = self.trial_config({}, self.config.seed).sections
        return sha256_json(
            {
                "sweep": self.section.key_fields(),
                "seed": self.config.seed,
                "stages": {name: self._identity(name, one) for name, one in stages.items()},
            }
        )

    def _identity(self, name: str, section: Section) -> dict[str, Any]:
        stage, fields = discover()[name], section.key_fields()
        for path in self.section.parameters:
            head, *rest = path.split(".")
            if head == name:
                _remove(fields, rest)
        return {
            "version": stage.version,
            "fields": fields,
            "files": [file.sha256 for file in hash_files(stage.files(section))],
            "packages": package_versions((*stage.packages, *stage.optional_packages(section))),
        }


def _remove(fields: dict[str, Any], path: Sequence[str]) -> None:
    """Take out what is searched: what the config itself says there changes no trial."""
    *parents, last = path
    for part in parents:
        fields = fields.get(part) or {}
    fields.pop(last, None)


def plan_sweep(path: str, given: Sequence[str]) -> SweepPlan:
    """A config's sweep, every value that it can propose checked against the schema.

    Raises:
        ConfigError: the config has no sweep, or one that cannot run; with the place in the file.
    """
    config = load_run(path, list(given))
    section = config.sections.get("sweep")
    if not isinstance(section, SweepSection):
        raise ConfigError(
            f"{path}: there is no section sweep. See what would make sense with: "
            f"luthier sweep --suggest {path}"
        )
    if "sft" not in config.sections:
        raise ConfigError(f"{path}: a sweep needs the section sft, which is not there.")
    _refuse_absent(config, section)
    check_space(config.path, section, given, lambda more: load_run(path, [*given, *more]))
    plan = SweepPlan(config, section, _measures(config, section))
    _refuse_unprunable(plan)
    return plan


def _measures(config: RunConfig, section: SweepSection) -> list[Measure]:
    prepare = config.sections.get("prepare")
    task = prepare.task if isinstance(prepare, PrepareSection) else "text"
    place = _place(config, "objective")
    return chosen_measures(section.objectives, task, list(config.sections), place)


def _refuse_absent(config: RunConfig, section: SweepSection) -> None:
    for name in section.parameters:
        head = name.partition(".")[0]
        if head not in config.sections:
            raise ConfigError(
                f"{_place(config, 'parameters', name)}: there is no section {head} to search."
            )


def _refuse_unprunable(plan: SweepPlan) -> None:
    if plan.section.pruning is not None and plan.fraction is None:
        raise ConfigError(
            f"{_place(plan.config, 'pruning')}: pruning compares candidates at the same share of "
            "their run, and sft measures none on the way. Set sft.evaluate_every_fraction, such "
            "as 0.25."
        )


def _place(config: RunConfig, *keys: str) -> str:
    """file:line of a key of the sweep, and its path."""
    root, _ = read_sources(Path(config.path), config.overrides)
    return f"{nearest(root, cast('Any', ('sweep', *keys))).mark}: {'.'.join(('sweep', *keys))}"
