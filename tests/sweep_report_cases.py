"""Sweeps for the report's tests: studies in a store, with sealed evaluations of their trials."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import Trial, TrialState

from luthier.evaluation.answers import Answer, write_answers
from luthier.evaluation.summary import summarize, write_summary
from luthier.interrupts import StopFlag
from luthier.pipeline import load_run
from luthier.progress import Reporter
from luthier.store import Identity, InputRef, ManifestDraft, Store, compute_key
from luthier.store.canonical import sha256_json
from luthier.sweeping.measures import chosen_measures
from luthier.sweeping.plan import SweepPlan
from luthier.sweeping.section import SweepSection
from luthier.sweeping.state import SweepState, read_state
from luthier.sweeping.study import RunRecord, Study
from luthier.sweeping.working import Tested
from report_contents import LABELS, info_of

PARAMETERS = """\
    sft.learning_rate: {log_uniform: [3.0e-4, 4.0e-3]}
    sft.lora.r: {choice: [4, 8, 16, 32]}
    sft.lora.dropout: {uniform: [0.0, 0.1], step: 0.05}
    sft.method: {choice: [lora, qlora]}
    sft.quantization.type: {choice: [nf4, fp4], when: {sft.method: qlora}}
"""
ACCURACY = "{metric: evaluate.accuracy}"
_REVISION = "a" * 40
_SYSTEM = "tuned/generation"
_INFO = info_of("classification", LABELS)


@dataclass
class Sweep:
    """A study that trials are put into by hand."""

    study: Study
    luck: random.Random = field(default_factory=lambda: random.Random(3))

    def begin(self) -> int:
        with self.study.deciding():
            number = self.study.begin()
        assert number is not None
        return number

    def done(
        self, *shares: float, more: Sequence[float] = (), losses: Sequence[float] = ()
    ) -> int:
        """A trial whose seeds have so large a share of the validation rows right."""
        number = self.begin()
        self.losses(number, *losses)
        values = [self.run(number, 7 + place, share, more) for place, share in enumerate(shares)]
        mean = [sum(column) / len(values) for column in zip(*values, strict=True)]
        self.study.optuna.tell(number, mean)
        return number

    def run(
        self, number: int, seed: int, share: float, more: Sequence[float] = ()
    ) -> Sequence[float]:
        """One run of a trial, as `luthier.sweeping.trial` keeps it."""
        answers = answered(share, 140, self.luck)
        key = self.evaluation(f"{number} {seed}", answers)
        values = [sum(answer.correct for answer in answers) / len(answers), *more]
        self.study.keep(RunRecord(number, seed, "done", values, {"evaluate": key}, 62.0))
        return values

    def lost(self, number: int, loss: float) -> None:
        """A trial that has a loss and no answers."""
        self.study.keep(RunRecord(number, 7, "done", [loss], {}, 62.0))
        self.study.optuna.tell(number, loss)

    def losses(self, number: int, *losses: float) -> None:
        """Validation losses at each quarter, as the trial's watch reports them."""
        frozen = self.study.trials()[number]
        sign = 1 if self.study.plan.measures[0].direction == "minimize" else -1
        for place, loss in enumerate(losses, 1):
            Trial(self.study.optuna, frozen._trial_id).report(sign * loss, 25 * place)

    def ended(self, state: Any, error: str | None = None) -> int:
        """A trial that did not come to its end."""
        number = self.begin()
        self.study.keep(RunRecord(number, 7, state, seconds=20.0, error=error))
        if state == "pruned":
            self.losses(number, 1.9)
        is_bad = state != "failed"
        self.study.optuna.tell(number, state=TrialState.PRUNED if is_bad else TrialState.FAIL)
        return number

    def test(self, number: int, share: float, error: str | None = None) -> None:
        """The winner on 210 test rows."""
        answers = answered(share, 210, self.luck)
        key = self.evaluation(f"test {number}", answers, split="test", ship="ship")
        self.study.keep_test(number, asdict(Tested({"evaluate": key}, error)))

    def evaluation(
        self, name: str, answers: Sequence[Answer], *, split: str = "validation", **metrics: Any
    ) -> str:
        """Seal an evaluation of one dataset and an adapter of its own; its key."""
        inputs = [_input("dataset", "dataset", "the rows"), _input("adapter", "adapter", name)]
        identity = Identity(
            stage="evaluate", stage_version=1, fields={"name": name},
            inputs={ref.slot: ref.digest for ref in inputs}, files=[], seed=7, packages={},
        )  # fmt: skip
        key = compute_key(identity)
        summary = summarize(_INFO, {_SYSTEM: list(answers)}, seed=7)
        draft = ManifestDraft(
            stage="evaluate", stage_version=1, kind="evaluation", key=key, name="router",
            inputs=inputs, external_files=[], key_fields={"name": name}, seed=7, key_packages={},
            metrics=metrics, facts={}, gates=[],
            timings_seconds={"stage": 1.0}, config={"split": split},
        )  # fmt: skip
        with self.study.store.workspace("evaluate", key, Reporter(), StopFlag()) as workspace:
            write_answers(workspace.path, answers)
            write_summary(workspace.path, summary)
            self.study.store.seal(workspace, draft)
        return key

    @property
    def state(self) -> SweepState:
        return read_state(self.study)


def _input(slot: str, kind: Any, name: str) -> InputRef:
    digest = sha256_json(name)
    return InputRef(slot=slot, kind=kind, key=digest, digest=digest, ref=f"router/{kind}@v1")


def answered(share: float, rows: int, luck: random.Random) -> list[Answer]:
    """So large a share right, to the row; rows are hard or easy for all alike."""
    order = sorted(range(rows), key=lambda row: random.Random(row).random() + 0.3 * luck.random())
    right = set(order[: round(share * rows)])
    found = []
    for row in range(rows):
        expected, other = LABELS[row % len(LABELS)], LABELS[(row + 1) % len(LABELS)]
        said = expected if row in right else other
        found.append(
            Answer(
                system=_SYSTEM, id=f"row-{row}", expected=expected, answer=said, predicted=said,
                correct=row in right, stop_reason="stop", label_log_probability=None,
                reference_log_probability=None, reference_tokens=None,
            )
        )  # fmt: skip
    return found


def make_sweep(
    folder: Path,
    *,
    objective: str = ACCURACY,
    parameters: str = PARAMETERS,
    more: str = "",
    overrides: Sequence[str] = (),
) -> Sweep:
    """An empty sweep of a config in this folder."""
    (folder / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n')
    path = folder / "router.yaml"
    path.write_text(
        f"name: router\nbase: {{model: some/model, revision: {_REVISION}}}\n"
        "prepare:\n  task: classification\n"
        f"  sources: [{{path: {folder}/rows.jsonl, split: train}}]\n"
        "sft: {evaluate_every_fraction: 0.25, per_device_batch_size: 16}\nevaluate: {}\n"
        f"sweep:\n  objective: {objective}\n  trials: 8\n  sampler: random\n{more}"
        f"  parameters:\n{parameters}"
    )
    config = load_run(str(path), list(overrides))
    section = config.sections["sweep"]
    assert isinstance(section, SweepSection)
    measures = chosen_measures(
        section.objectives, "classification", list(config.sections), str(path)
    )
    plan = SweepPlan(config, section, measures)  # without a look at every value of the space
    sweep = Sweep(Study(plan, Store(folder / "artifacts")))
    assert sweep.study.trials() == []
    return sweep


def whole_sweep(folder: Path, more: Mapping[str, Any] | None = None) -> Sweep:
    """Eight trials that ended in every way, finalists with seeds, and a tested winner."""
    options = (
        "  pruning: {kind: median, startup_trials: 2}\n"
        "  finalists: {candidates: 2, seeds: 3}\n  price_usd_per_hour: 2.5\n"
    )
    sweep = make_sweep(folder, more=options, **(more or {}))
    for place, share in enumerate((0.74, 0.78, 0.55, 0.76)):
        number = sweep.done(share, losses=[1 + 1 / quarter - share for quarter in range(1, 5)])
        assert number == place
    sweep.ended("pruned")
    sweep.ended("gate failed", "gates failed: adapter-moved measured 0.2")
    sweep.ended("failed", "DataError: a row has <b>no</b> text\nand a second line")
    sweep.begin()
    for number in (1, 3):
        for seed in (8, 9):
            sweep.run(number, seed, 0.77 + 0.01 * (seed - 8))
    sweep.test(1, 0.77)
    return sweep
