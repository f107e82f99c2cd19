"""Stage `evaluate`: the tuned model on held-out rows, against the best prompted baseline."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from luthier.data.dataset import read_info, read_schema
from luthier.data.rows import Split
from luthier.errors import ConfigError
from luthier.evaluation.answers import Answer, write_answers
from luthier.evaluation.asking import Plan, ask, local_speed, longest_reply, usable_scoring
from luthier.evaluation.before_after import ask_pairs, compare_task, describe_task, kept_gate
from luthier.evaluation.engine import Asked
from luthier.evaluation.general import General, GeneralLimits, Shown
from luthier.evaluation.held_out_pairs import (
    HeldOutPair,
    behaviour,
    describe_pairs,
    load_pairs,
    pair_gates,
    summarise_pairs,
)
from luthier.evaluation.journal import Collected
from luthier.evaluation.production import NAME, ask_production
from luthier.evaluation.prompts import label_tokens, trained_prompts
from luthier.evaluation.rows import load_rows
from luthier.evaluation.section import EvaluateSection
from luthier.evaluation.slices import analyse_errors, write_errors
from luthier.evaluation.speed import Speed, write_speeds
from luthier.evaluation.summary import describe, headline, summarize, write_summary
from luthier.evaluation.systems import LocalSystem
from luthier.evaluation.verdict import Candidate, Limits, judge
from luthier.evaluation.versus import read_baseline
from luthier.evaluation.win_rate import describe_win_rate, win_rate
from luthier.gates import Gate
from luthier.models.loading import load_tokenizer
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.stages.training import base_as_trained, load_trained, without_adapter
from luthier.store.artifact import Artifact, Workspace

_SYSTEM, _BEFORE = "tuned", "sft"
_MARGIN_TOKENS = 4  # room for an answer that is longer than any it was taught


def run(section: EvaluateSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Answer every row of the split with the prompt of training; compare with the best baseline,
    and after dpo with the adapter before it; say whether it is to be shipped."""
    questions = _questions(section, inputs, workspace)
    plan = questions.plan
    asked = {
        name: _ask(name, inputs[slot], questions, inputs, workspace)
        for name, slot in ((_BEFORE, "before"), (_SYSTEM, "adapter"))
        if inputs.get(slot) is not None
    }
    production = inputs.get("production")
    others = ask_production(production, plan, workspace)[0] if production else {}
    artifact = inputs.get("baseline")
    baseline = read_baseline(artifact.path) if artifact else None
    summary = _summarise(asked, others, plan, inputs, section.split)
    compared = asked[_SYSTEM].answers[f"{_SYSTEM}/{plan.scoring[0]}"]
    candidate = Candidate(
        name=compared[0].system,
        answers=compared,
        measured=summary["systems"][compared[0].system],
        labels=plan.info.labels,
        general=asked[_SYSTEM].general,
        production=(production.ref, others[f"{NAME}/{plan.scoring[0]}"]) if production else None,
    )
    limits = Limits(section.ship, questions.general.limits, section.alpha, inputs.seed)
    judged = judge(candidate, baseline, limits)
    gates, lines = list(judged.gates), list(judged.lines)
    summary |= judged.summary | {"measured_on": base_as_trained(inputs["adapter"])}
    if _BEFORE in asked:
        more, of_dpo, after_dpo = _before_and_after(
            section, plan, asked, questions.pairs, inputs.seed
        )
        summary |= more
        lines = [*of_dpo, *lines]
        gates += after_dpo
    if section.judge is not None and baseline is not None:
        found = win_rate(section.judge, plan.rows, compared, baseline.answers, workspace)
        summary["win_rate"] = asdict(found)
        lines.append(describe_win_rate(summary["win_rate"]))
    kept = [answer for found in asked.values() for answer in found.all_answers()]
    write_answers(workspace.path, [*kept, *(one for found in others.values() for one in found)])
    write_summary(workspace.path, summary, paired_test=judged.paired)
    errors = analyse_errors(compared, plan.rows, baseline.answers if baseline else None)
    write_errors(workspace.path, errors)
    write_speeds(workspace.path, {name: one.speed for name, one in asked.items()})
    for line in [*describe(summary), *lines]:
        workspace.reporter.say(line)
    return StageResult(
        metrics=headline(summary) | {"ship": judged.summary["ship"]["word"]},
        gates=gates,
        facts={
            "rows": len(plan.rows),
            "max_new_tokens": plan.max_new_tokens,
            "measured_on": summary["measured_on"],
            "rows_per_second": {name: one.spent.rows_per_second for name, one in asked.items()},
        },
        timings_seconds={name: one.spent.seconds for name, one in asked.items()},
    )


def _summarise(
    asked: "dict[str, _Answered]",
    others: dict[str, list[Answer]],
    plan: Plan,
    inputs: StageInputs,
    split: Split,
) -> dict[str, Any]:
    """The metrics of every system; what was there before is only compared with."""
    answers = {name: one for found in asked.values() for name, one in found.answers.items()}
    before = asked[_BEFORE].answers if _BEFORE in asked else {}
    schema = read_schema(inputs["dataset"].path)
    summary = summarize(
        plan.info, answers | others, inputs.seed, {**before, **others}, schema, split=split
    )
    return summary | {"reading": plan.reading, "max_new_tokens": plan.max_new_tokens}


@dataclass(frozen=True)
class _Questions:
    """What the models are asked: rows of the task, perhaps held-out pairs and what is general."""

    plan: Plan
    pairs: list[HeldOutPair]
    general: General
    speed_rows: int


@dataclass(frozen=True)
class _Answered:
    """What one adapter answered: the rows, by system, and the held-out pairs' prompts;
    and what the base and the adapter can do of what was not tuned for."""

    answers: dict[str, list[Answer]]
    spent: Collected
    speed: Speed | None
    pair_answers: list[Answer]
    pair_tokens: list[int]
    general: tuple[Shown, Shown] | None

    def all_answers(self) -> list[Answer]:
        """One after another."""
        return [one for found in self.answers.values() for one in found] + self.pair_answers


def _questions(section: EvaluateSection, inputs: StageInputs, workspace: Workspace) -> _Questions:
    dataset = inputs["dataset"].path
    info = read_info(dataset)
    rows = load_rows(dataset, section.split, section.limit_rows, inputs.seed)
    plan = Plan(
        info=info,
        rows=rows,
        scoring=usable_scoring(info, section.scoring),
        max_new_tokens=section.max_new_tokens or longest_reply(rows) + _MARGIN_TOKENS,
        reading="exact",
        all_labels=section.all_label_scores,
    )
    preferences = inputs.get("preferences")
    has_before = inputs.get("before") is not None
    return _Questions(
        plan,
        pairs=load_pairs(preferences.path, section.split) if preferences and has_before else [],
        general=General(_general(section), inputs["base"].path, inputs.seed, workspace),
        speed_rows=section.speed_rows,
    )


def _ask(
    name: str,
    adapter: Artifact,
    questions: _Questions,
    inputs: StageInputs,
    workspace: Workspace,
) -> _Answered:
    """What one adapter on its base says."""
    plan, base = questions.plan, inputs["base"]
    tokenizer, model = load_tokenizer(base.path), load_trained(base, adapter)
    labels = label_tokens(tokenizer, plan.info, plan.rows[0])
    system = LocalSystem(name, model, tokenizer, plan.asked(labels))
    prompts = trained_prompts(plan.info.task, plan.rows)
    answers, spent = ask(system, prompts, plan, workspace)
    speed = local_speed(model, tokenizer, plan, prompts, spent, questions.speed_rows)
    general = None
    if name == _SYSTEM:
        plain = partial(without_adapter, model, base, adapter)
        general = questions.general.ask(name, model, tokenizer, plain)
    said, tokens = list[Answer](), list[int]()
    if questions.pairs:
        pairs = questions.pairs
        longest = max(max(len(one.row.reference), one.rejected_tokens) for one in pairs)
        free = Asked(tuple(plan.info.stop_token_ids), max(longest, plan.max_new_tokens))
        said, tokens = ask_pairs(name, model, tokenizer, pairs, free, workspace)
    return _Answered(answers, spent, speed, said, tokens, general)


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
    summary = summarise_pairs(pairs, found, answers)
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


def _general(section: EvaluateSection) -> GeneralLimits:
    return GeneralLimits(section.retention, section.harness)


def _check(section: EvaluateSection, filled: frozenset[str]) -> None:
    """What can be seen before training: rows that cannot be compared, what the harness lacks."""
    if section.split != "test" and "baseline" in filled:
        raise ConfigError(
            f"evaluate.split: {section.split}: the baseline answered the test rows, and what "
            "answered other rows cannot be compared with it. Leave out the section baseline, or "
            "set evaluate.split: test."
        )
    _general(section).check()


STAGE = Stage(
    name="evaluate",
    order=60,
    summary="measure the tuned model against the baseline",
    makes="evaluation",
    version=5,
    section=EvaluateSection,
    run=run,
    check=_check,
    files=lambda section: _general(section).files(),
    slots=(
        Slot("base", "base", ("base",)),
        Slot("dataset", "dataset", ("prepare",)),
        Slot("adapter", "adapter", ("dpo", "sft")),
        Slot("before", "adapter", ("sft",), optional=True, only_with="dpo"),
        Slot("production", "model", optional=True, tag="production", tag_where=("split", "test")),
        Slot("preferences", "preferences", ("preferences",), optional=True, only_with="dpo"),
        Slot("baseline", "evaluation", ("baseline",), optional=True),
    ),
    uses_seed=True,
    packages=("torch", "transformers", "peft", "bitsandbytes"),
    optional_packages=lambda section: _general(section).packages(),
)
