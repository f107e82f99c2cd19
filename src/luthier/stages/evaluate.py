"""Stage `evaluate`: the tuned model on the test rows, against the best prompted baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.config import Field, Section
from luthier.data.dataset import read_info
from luthier.errors import DataError
from luthier.evaluation.answers import Answer, Scoring, read_answers, write_answers
from luthier.evaluation.asking import Plan, ask, longest_reply, usable_scoring
from luthier.evaluation.before_after import ask_pairs, compare_task, describe_task, kept_gate
from luthier.evaluation.engine import Asked
from luthier.evaluation.held_out_pairs import (
    HeldOutPair,
    behaviour,
    describe_pairs,
    load_pairs,
    pair_gates,
    summarise_pairs,
)
from luthier.evaluation.journal import Collected
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
from luthier.models.loading import load_tokenizer
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.stages.training import load_trained
from luthier.store.artifact import Artifact, Workspace

_SYSTEM, _BEFORE = "tuned", "sft"
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
    max_task_drop: float = Field(
        0.02,
        ge=0,
        le=1,
        description="by how much dpo may lower the share of test rows answered as expected",
    )
    max_over_refusal: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of the held-out pairs' requests to be answered that dpo may have "
        "refused",
    )
    max_length_growth: float = Field(
        1.25,
        gt=0,
        description="how many times as long as before dpo, or as the chosen replies, the answers "
        "to the held-out pairs' prompts may be",
    )


def run(section: EvaluateSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Answer every test row with the prompt of training; compare with the best baseline, and after
    dpo with the adapter before it."""
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
    preferences = inputs.get("preferences")
    has_before = inputs.get("before") is not None
    pairs = load_pairs(preferences.path) if preferences and has_before else []
    asked = {
        name: _ask(name, inputs[slot], plan, pairs, inputs, workspace)
        for name, slot in ((_BEFORE, "before"), (_SYSTEM, "adapter"))
        if inputs.get(slot) is not None
    }
    answers = {name: one for found in asked.values() for name, one in found.answers.items()}
    kept = [answer for found in asked.values() for answer in found.all_answers()]
    write_answers(workspace.path, kept)
    before = asked[_BEFORE].answers if _BEFORE in asked else {}
    summary = summarize(info, answers, inputs.seed, only_to_compare=before)
    summary["reading"] = plan.reading
    compared = f"{_SYSTEM}/{plan.scoring[0]}"
    paired, gates = None, list[Gate]()
    baseline = inputs.get("baseline")
    if baseline is not None:
        old_name, old = _best_baseline(baseline.path)
        paired = _compare(answers[compared], old, section.alpha, inputs.seed)
        summary["compared"] = {"new": compared, "old": old_name}
        gates = [_beats_baseline(paired, compared, old_name)]
    lines: list[str] = []
    if before:
        more, lines, after_dpo = _before_and_after(section, plan, asked, pairs, inputs.seed)
        summary |= more
        gates += after_dpo
    write_summary(workspace.path, summary, paired_test=paired)
    for line in [*describe(summary), *lines]:
        workspace.reporter.say(line)
    return StageResult(
        metrics=headline(summary),
        gates=gates,
        facts={
            "rows": len(rows),
            "max_new_tokens": plan.max_new_tokens,
            "rows_per_second": {name: one.spent.rows_per_second for name, one in asked.items()},
        },
        timings_seconds={name: one.spent.seconds for name, one in asked.items()},
    )


@dataclass(frozen=True)
class _Answered:
    """What one adapter answered: the test rows, by system, and the held-out pairs' prompts."""

    answers: dict[str, list[Answer]]
    spent: Collected
    pair_answers: list[Answer]
    pair_tokens: list[int]

    def all_answers(self) -> list[Answer]:
        """One after another."""
        return [one for found in self.answers.values() for one in found] + self.pair_answers


def _ask(
    name: str,
    adapter: Artifact,
    plan: Plan,
    pairs: list[HeldOutPair],
    inputs: StageInputs,
    workspace: Workspace,
) -> _Answered:
    """What one adapter on its base says."""
    base = inputs["base"]
    tokenizer, model = load_tokenizer(base.path), load_trained(base, adapter)
    labels = label_tokens(tokenizer, plan.info, plan.rows[0])
    system = LocalSystem(name, model, tokenizer, plan.asked(labels))
    answers, spent = ask(system, trained_prompts(plan.info.task, plan.rows), plan, workspace)
    if not pairs:
        return _Answered(answers, spent, [], [])
    replies = max(max(len(pair.row.reference), pair.rejected_tokens) for pair in pairs)
    free = Asked(tuple(plan.info.stop_token_ids), max(replies, plan.max_new_tokens))
    said, tokens = ask_pairs(name, model, tokenizer, pairs, free, workspace)
    return _Answered(answers, spent, said, tokens)


def _before_and_after(
    section: EvaluateSection,
    plan: Plan,
    asked: dict[str, _Answered],
    pairs: list[HeldOutPair],
    seed: int,
) -> tuple[dict[str, Any], list[str], list[Gate]]:
    """What evaluation.json, the terminal and the gates get of dpo's effect."""
    way = plan.scoring[0]
    before, after = (asked[name].answers[f"{name}/{way}"] for name in (_BEFORE, _SYSTEM))
    kept = compare_task(before, after, plan.info.labels, alpha=section.alpha, seed=seed)
    found = {
        name: behaviour(
            pairs, one.pair_answers, one.answers.get(f"{name}/generation", []), one.pair_tokens
        )
        for name, one in asked.items()
    }
    answers = {name: one.pair_answers for name, one in asked.items()}
    summary = summarise_pairs(pairs, found, answers, seed)
    return (
        {"kept": kept, "pairs": summary},
        [*describe_task(kept), *describe_pairs(summary)],
        [
            kept_gate(kept, section.max_task_drop),
            *pair_gates(
                summary,
                max_over_refusal=section.max_over_refusal,
                max_length_growth=section.max_length_growth,
            ),
        ],
    )


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
    version=3,
    section=EvaluateSection,
    run=run,
    slots=(
        Slot("base", "base", ("base",)),
        Slot("dataset", "dataset", ("prepare",)),
        Slot("adapter", "adapter", ("dpo", "sft")),
        Slot("before", "adapter", ("sft",), optional=True, only_with="dpo"),
        Slot("preferences", "preferences", ("preferences",), optional=True, only_with="dpo"),
        Slot("baseline", "evaluation", ("baseline",), optional=True),
    ),
    uses_seed=True,
    packages=("torch", "transformers", "peft", "bitsandbytes"),
)
