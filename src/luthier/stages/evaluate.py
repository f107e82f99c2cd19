"""Stage `evaluate`: the tuned model on the test rows, against the best prompted baseline."""

from collections.abc import Sequence
from pathlib import Path

from luthier.config import Field, Section
from luthier.data.dataset import read_info
from luthier.errors import DataError
from luthier.evaluation.answers import Answer, Scoring, read_answers, write_answers
from luthier.evaluation.asking import Plan, ask, longest_reply, usable_scoring
from luthier.evaluation.prompts import label_tokens, trained_prompts
from luthier.evaluation.rows import load_rows
from luthier.evaluation.statistics import PairedTest, compare
from luthier.evaluation.summary import (
    describe,
    headline,
    read_summary,
    summarize,
    write_summary,
)
from luthier.evaluation.systems import LocalSystem
from luthier.gates import Gate, check
from luthier.models.loading import load_model, load_tokenizer
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.store.artifact import Workspace

_SYSTEM = "tuned"
_MARGIN_TOKENS = 4  # room for an answer that is longer than any it was taught


class EvaluateSection(Section):
    """The base with its adapter on the test rows."""

    scoring: list[Scoring] = Field(
        ["generation", "likelihood"],
        min_length=1,
        description="free answers, and for classification the likeliest label; "
        "the first is what is compared with the baseline",
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="of a free answer, stop token included; null: longest reply + 4"
    )
    alpha: float = Field(
        0.05, gt=0, lt=1, description="level of the paired test against the baseline"
    )
    limit_rows: int | None = Field(
        None, ge=1, description="evaluate a sample of this many rows; as baseline.limit_rows"
    )


def run(section: EvaluateSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Answer every test row with the prompt of training; compare with the best baseline."""
    dataset = inputs["dataset"].path
    info = read_info(dataset)
    rows = load_rows(dataset, "test", section.limit_rows, inputs.seed)
    plan = Plan(
        info=info,
        rows=rows,
        scoring=usable_scoring(info, section.scoring),
        max_new_tokens=section.max_new_tokens or longest_reply(rows) + _MARGIN_TOKENS,
        reading="exact",
    )
    system = _tuned(plan, inputs)
    answers, collected = ask(system, trained_prompts(info.task, rows), plan, workspace)
    write_answers(workspace.path, [answer for found in answers.values() for answer in found])
    summary = summarize(info, answers, inputs.seed)
    summary["reading"] = plan.reading
    compared = f"{_SYSTEM}/{plan.scoring[0]}"
    paired, gates = None, list[Gate]()
    baseline = inputs.get("baseline")
    if baseline is not None:
        old_name, old = _best_baseline(baseline.path)
        paired = _compare(answers[compared], old, section.alpha, inputs.seed)
        summary["compared"] = {"new": compared, "old": old_name}
        gates = [_beats_baseline(paired, compared, old_name)]
    write_summary(workspace.path, summary, paired_test=paired)
    for line in describe(summary):
        workspace.reporter.say(line)
    return StageResult(
        metrics=headline(summary),
        gates=gates,
        facts={
            "rows": len(rows),
            "max_new_tokens": plan.max_new_tokens,
            "rows_per_second": {_SYSTEM: collected.rows_per_second},
        },
        timings_seconds={_SYSTEM: collected.seconds},
    )


def _tuned(plan: Plan, inputs: StageInputs) -> LocalSystem:
    """The base with the adapter, in the numerics that the adapter was trained in."""
    base, adapter = inputs["base"].path, inputs["adapter"]
    training = adapter.manifest.facts["training"]
    tokenizer = load_tokenizer(base)
    model = load_model(
        base,
        dtype=training["dtype"],
        adapter=adapter.path,
        quantization=training["quantization"],
    )
    labels = label_tokens(tokenizer, plan.info, plan.rows[0])
    return LocalSystem(_SYSTEM, model, tokenizer, plan.asked(labels))


def _best_baseline(folder: Path) -> tuple[str, list[Answer]]:
    name = read_summary(folder)["best_system"]
    return name, read_answers(folder)[name]


def _compare(new: Sequence[Answer], old: Sequence[Answer], alpha: float, seed: int) -> PairedTest:
    if [answer.id for answer in new] != [answer.id for answer in old]:
        raise DataError(
            f"The baseline answered {len(old)} rows, this evaluation {len(new)}, and they are not "
            "the same. Give baseline.limit_rows and evaluate.limit_rows the same value, or run "
            "luthier baseline on this dataset."
        )
    return compare(
        [answer.correct for answer in new],
        [answer.correct for answer in old],
        alpha=alpha,
        seed=seed,
    )


def _beats_baseline(paired: PairedTest, new: str, old: str) -> Gate:
    low, high = paired.interval
    return check(
        "beats-baseline",
        paired.verdict,
        "==",
        "better",
        f"{new} {paired.new_accuracy:.3f}, {old} {paired.old_accuracy:.3f} on {paired.rows} rows; "
        f"difference {paired.difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}, "
        f"exact McNemar p {paired.p_value:.2g}; differences below "
        f"{paired.minimum_detectable_difference:.3f} are likely to stay unseen",
    )


STAGE = Stage(
    name="evaluate",
    order=60,
    summary="measure the tuned model against the baseline",
    makes="evaluation",
    version=1,
    section=EvaluateSection,
    run=run,
    slots=(
        Slot("base", "base", ("base",)),
        Slot("dataset", "dataset", ("prepare",)),
        Slot("adapter", "adapter", ("dpo", "sft")),
        Slot("baseline", "evaluation", ("baseline",), optional=True),
    ),
    uses_seed=True,
    packages=("torch", "transformers", "peft", "bitsandbytes"),
)
