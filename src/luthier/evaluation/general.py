"""What a tuned model can still do that it was not tuned for (F34), against its base.

General text and questions (`retention`), and tasks of lm-evaluation-harness (`harness`).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.evaluation.harness import Harness, TaskScores
from luthier.evaluation.harness_section import DISTRIBUTION, HarnessSection
from luthier.evaluation.harness_verdict import compare_harness, describe_harness, harness_gates
from luthier.evaluation.retention import (
    Material,
    Remembered,
    RetentionSection,
    compare_retention,
    describe_retention,
    load_material,
    remember,
    retention_gates,
)
from luthier.gates import Gate
from luthier.models.loading import load_tokenizer
from luthier.store.artifact import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Shown:
    """One model: what it makes of general text and questions, and its scores of tasks."""

    remembered: Remembered | None
    tasks: list[TaskScores] | None


@dataclass(frozen=True)
class GeneralLimits:
    """What the config says of both."""

    retention: RetentionSection | None
    harness: HarnessSection | None

    def files(self) -> "list[Path]":
        """What is read from outside the store."""
        parts = (self.retention, self.harness)
        return [path for part in parts if part is not None for path in part.files()]

    def packages(self) -> tuple[str, ...]:
        """The distributions whose version changes the result."""
        return () if self.harness is None else (DISTRIBUTION,)

    def check(self) -> None:
        """Find now what would stop the measurement later.

        Raises:
            ConfigError, DataError: see `HarnessSection.check`.
        """
        if self.harness is not None:
            self.harness.check()


@dataclass
class JudgedGeneral:
    """What evaluation.json, the gates and the terminal get."""

    summary: dict[str, Any] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


class General:
    """What is asked, read once; nothing where the config asks for neither."""

    def __init__(
        self, limits: GeneralLimits, base: "Path", seed: int, workspace: Workspace
    ) -> None:
        self.limits, self._workspace = limits, workspace
        retention, harness = limits.retention, limits.harness
        self._harness = Harness(harness, seed, workspace) if harness else None
        self._material: Material | None = None
        if retention is not None:
            self._material = load_material(retention, load_tokenizer(base))

    def ask(
        self,
        name: str,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        base: "Callable[[], AbstractContextManager[PreTrainedModel]]",
    ) -> tuple[Shown, Shown] | None:
        """The base and the tuned model; None where nothing is asked."""
        if self._harness is None and self._material is None:
            return None
        after = self._ask(name, model, tokenizer)
        with base() as plain:
            return self._ask("base", plain, tokenizer), after

    def _ask(
        self, name: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
    ) -> Shown:
        remembered = None
        if self._material is not None:
            remembered = remember(name, model, tokenizer, self._material, self._workspace)
        tasks = self._harness.ask(name, model, tokenizer) if self._harness else None
        return Shown(remembered, tasks)


def judge_general(
    found: tuple[Shown, Shown] | None, limits: GeneralLimits, *, alpha: float
) -> JudgedGeneral:
    """Compare what was asked of both."""
    judged = JudgedGeneral()
    if found is None:
        return judged
    before, after = found
    if limits.retention is not None and before.remembered and after.remembered:
        kept = compare_retention(before.remembered, after.remembered, alpha=alpha)
        judged.summary["retention"] = kept
        judged.gates += retention_gates(kept, limits.retention)
        judged.lines += describe_retention(kept)
    if limits.harness is not None and before.tasks is not None and after.tasks is not None:
        tasks = compare_harness(before.tasks, after.tasks, alpha=alpha)
        judged.summary["harness"] = tasks
        judged.gates += harness_gates(tasks, limits.harness)
        judged.lines += describe_harness(tasks)
    return judged
