"""Which base a QLoRA adapter is merged into (F28): both candidates measured, one kept.

The adapter was trained on the base in 4 or 8 bits. Merged into the base as stored it is another
model than was trained, often a better one; merged into the base as its bits decode it is that
model, with the quantisation's error kept for good.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.data.dataset import load_split, read_info, read_schema, split_files
from luthier.data.rows import Split, Task
from luthier.evaluation.answers import Answer
from luthier.evaluation.asking import Plan, ask, longest_reply
from luthier.evaluation.metrics import PRIMARY, Answered, measure
from luthier.evaluation.prompts import trained_prompts
from luthier.evaluation.retention import Material, RetentionSection, load_material, remember
from luthier.evaluation.rows import load_rows
from luthier.evaluation.statistics import compare
from luthier.evaluation.systems import LocalSystem
from luthier.models.loading import load_model, load_tokenizer
from luthier.models.parity import check_device
from luthier.store.artifact import Workspace
from luthier.training.loss import mean_loss

ALPHA = 0.05
_MARGIN_TOKENS = 4  # room for an answer that is longer than any it was taught
_ANSWERED: tuple[Task, ...] = ("classification", "extraction", "chat", "grounded", "text")


@dataclass(frozen=True)
class Measured:
    """One candidate: nats a token on validation rows and on general text, and its answers; None
    where nothing of the kind is measured."""

    validation_loss: float
    answers: Sequence[Answer] | None
    general_nats: float | None


class Candidates:
    """The rows and texts that every candidate is measured on.

    Args:
        dataset: the folder of a dataset artifact. Validation rows are asked; without such, train
            rows, never test rows, since what is chosen here is tested on those.
        base: whose tokenizer is used.
        rows: how many rows and how many texts at most.
        texts: a file of general text as `evaluate.retention.texts`; None: not measured.
        seed: of the sample of rows.

    Raises:
        DataError: the file of texts is not what it must be.
    """

    def __init__(
        self, dataset: Path, base: Path, *, rows: int, texts: Path | None, seed: int
    ) -> None:
        self._info, self._schema = read_info(dataset), read_schema(dataset)
        split: Split = "validation" if split_files(dataset, "validation") else "train"
        supervised = load_split(dataset, split, ["input_ids", "labels"])
        self._supervised = supervised.select(range(min(rows, len(supervised))))
        self._seed, self._tokenizer = seed, load_tokenizer(base)
        self._rows = load_rows(dataset, split, rows, seed) if self._has_answers() else []
        self._material: Material | None = None
        if texts is not None:
            found = load_material(RetentionSection(texts=texts), self._tokenizer)
            self._material = replace(found, texts=found.texts[:rows])

    def _has_answers(self) -> bool:
        return self._info.task in _ANSWERED

    def measure(self, name: str, folder: Path, workspace: Workspace) -> Measured:
        """Load a candidate once and measure it.

        Raises:
            InterruptedRunError: stopped on request.
        """
        model = load_model(folder, device=check_device(folder))
        answers = None
        if self._rows:
            plan = Plan(
                info=self._info,
                rows=self._rows,
                scoring=["generation"],
                max_new_tokens=longest_reply(self._rows) + _MARGIN_TOKENS,
                reading="exact",
            )
            system = LocalSystem(name, model, self._tokenizer, plan.asked(()))
            found, _ = ask(system, trained_prompts(self._info.task, self._rows), plan, workspace)
            [answers] = found.values()
        nats = None
        if self._material is not None:
            remembered = remember(name, model, self._tokenizer, self._material, workspace)
            nats = sum(remembered.text_nats) / sum(remembered.text_tokens)
        workspace.raise_if_stopped()
        return Measured(mean_loss(model, self._supervised), answers, nats)

    def numbers(self, measured: Mapping[str, Measured]) -> dict[str, Any]:
        """For the manifest: each measure by candidate, null where it was not taken."""
        return {
            "validation_loss": {name: one.validation_loss for name, one in measured.items()},
            "task_metric": {"name": PRIMARY[self._info.task], "rows": len(self._rows)}
            | {name: self._score(one.answers) for name, one in measured.items()}
            if self._rows
            else None,
            "general_nats": {name: one.general_nats for name, one in measured.items()}
            if self._material
            else None,
        }

    def _score(self, answers: Sequence[Answer] | None) -> float:
        answered = Answered(answers or [], self._info.labels, self._seed, self._schema)
        score: float = measure(answered, self._info.task)["metrics"][PRIMARY[self._info.task]]
        return score


def choose(measured: Mapping[str, Measured]) -> tuple[str, str]:
    """The better of two candidates, and one sentence that says why.

    The one that answers more rows as expected, where McNemar's exact test on the same rows tells
    them apart at 0.05 (`compare`); otherwise the one with the lower validation loss, of equal ones
    the first. The loss on general text is a number for the reader: it does not decide, since both
    have the same adapter, and what differs is the base.
    """
    (first, one), (second, other) = measured.items()
    if one.answers and other.answers:
        test = compare(
            [answer.correct for answer in one.answers],
            [answer.correct for answer in other.answers],
            alpha=ALPHA,
        )
        if test.verdict != "cannot tell":
            better, worse = (first, second) if test.verdict == "better" else (second, first)
            return better, (
                f"{better} base kept: {max(test.new_accuracy, test.old_accuracy):.3f} of "
                f"{test.rows} rows answered as expected, "
                f"{min(test.new_accuracy, test.old_accuracy):.3f} on the {worse} base, "
                f"p {test.p_value:.2g}"
            )
    losses = {name: found.validation_loss for name, found in measured.items()}
    better, worse = sorted(losses, key=lambda name: losses[name])
    return better, (
        f"{better} base kept: validation loss {losses[better]:.4f}, {losses[worse]:.4f} on the "
        f"{worse} base" + ("; their answers do not tell them apart" if one.answers else "")
    )
