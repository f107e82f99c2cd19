"""Stage `baseline`: what the base model does when it is only asked well, before any training."""

from dataclasses import asdict
from typing import Literal

from luthier.config import Field, Section
from luthier.data.dataset import read_info
from luthier.data.summary import DatasetInfo
from luthier.evaluation.answers import Answer, Scoring, write_answers
from luthier.evaluation.asking import Plan, ask, longest_reply, usable_scoring
from luthier.evaluation.journal import Collected
from luthier.evaluation.prompts import (
    PromptForm,
    choose_examples,
    label_instruction,
    label_tokens,
    make_prompts,
)
from luthier.evaluation.rows import load_rows
from luthier.evaluation.summary import (
    TargetVerdict,
    describe,
    headline,
    judge_target,
    summarize,
    write_summary,
)
from luthier.evaluation.systems import LocalSystem
from luthier.models.loading import load_model, load_tokenizer
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.store.artifact import Workspace

_MARGIN_TOKENS = 3  # a prompted model wraps its label: "Section: games."


class Target(Section):
    """What the model must reach to be of use."""

    metric: Literal["accuracy", "macro_f1", "exact_match"] = Field(
        "accuracy", description="the metric that has to reach it"
    )
    value: float = Field(gt=0, le=1, description="its least useful value, as a share")


class BaselineSection(Section):
    """The base model, prompted: zero-shot and with examples."""

    few_shot: int = Field(8, ge=0, description="examples in the prompt, from train rows; 0: none")
    scoring: list[Scoring] = Field(
        ["generation", "likelihood"],
        min_length=1,
        description="free answers, and for classification the likeliest label",
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="of a free answer, stop token included; null: longest reply + 3"
    )
    lenient: bool = Field(
        True, description="read the first label that stands in a free answer as whole words"
    )
    target: Target | None = Field(None, description="judged by the 10/20-point rule")
    instruction: str | None = Field(
        None, description="system message; null: the dataset's, with the labels to choose from"
    )
    limit_rows: int | None = Field(None, ge=1, description="evaluate a sample of this many rows")


def run(section: BaselineSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Ask the base every test row in each prompt form; name the best; judge the target."""
    dataset = inputs["dataset"].path
    info = read_info(dataset)
    rows = load_rows(dataset, "test", section.limit_rows, inputs.seed)
    plan = Plan(
        info=info,
        rows=rows,
        scoring=usable_scoring(info, section.scoring),
        max_new_tokens=section.max_new_tokens or longest_reply(rows) + _MARGIN_TOKENS,
        reading="lenient" if section.lenient else "exact",
    )
    forms = _forms(section, inputs, info)
    answers, spent = _ask_all(forms, plan, inputs, workspace)
    write_answers(workspace.path, [answer for found in answers.values() for answer in found])
    summary = summarize(info, answers, inputs.seed)
    summary["reading"] = plan.reading
    summary["few_shot_ids"] = [row.id for form in forms.values() for row in form.examples]
    target = _judge(section, summary)
    write_summary(workspace.path, summary, target=target)
    for line in describe(summary):
        workspace.reporter.say(line)
    if target:
        workspace.reporter.say(f"  {target.verdict}: {target.reason}")
    return StageResult(
        metrics={**headline(summary), "target": asdict(target) if target else None},
        gates=[],
        facts={
            "rows": len(rows),
            "max_new_tokens": plan.max_new_tokens,
            "rows_per_second": {name: found.rows_per_second for name, found in spent.items()},
        },
        timings_seconds={name: found.seconds for name, found in spent.items()},
    )


def _forms(
    section: BaselineSection, inputs: StageInputs, info: DatasetInfo
) -> dict[str, PromptForm]:
    instruction = section.instruction or label_instruction(info)
    forms = {"zero-shot": PromptForm(info.task, instruction)}
    if section.few_shot:
        train = load_rows(inputs["dataset"].path, "train")
        examples = choose_examples(train, section.few_shot, inputs.seed)
        forms["few-shot"] = PromptForm(info.task, instruction, examples)
    return forms


def _ask_all(
    forms: dict[str, PromptForm], plan: Plan, inputs: StageInputs, workspace: Workspace
) -> tuple[dict[str, list[Answer]], dict[str, Collected]]:
    base = inputs["base"].path
    tokenizer, model = load_tokenizer(base), load_model(base)
    labels = label_tokens(tokenizer, plan.info, plan.rows[0])
    answers: dict[str, list[Answer]] = {}
    spent: dict[str, Collected] = {}
    for name, form in forms.items():
        system = LocalSystem(name, model, tokenizer, plan.asked(labels))
        prompts = make_prompts(form, tokenizer, plan.rows)
        found, spent[name] = ask(system, prompts, plan, workspace)
        answers.update(found)
    return answers, spent


def _judge(section: BaselineSection, summary: dict[str, object]) -> TargetVerdict | None:
    if section.target is None:
        return None
    return judge_target(summary, section.target.metric, section.target.value)


STAGE = Stage(
    name="baseline",
    order=30,
    summary="ask the base model, zero-shot and with examples",
    makes="evaluation",
    version=2,
    section=BaselineSection,
    run=run,
    slots=(Slot("base", "base", ("base",)), Slot("dataset", "dataset", ("prepare",))),
    uses_seed=True,
    packages=("torch", "transformers"),
)
