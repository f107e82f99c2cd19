"""Stage `baseline`: what the base model does when it is only asked well, before any training."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from pydantic import model_validator

from luthier.config import Field, Section, result_free
from luthier.data.dataset import read_info, read_schema
from luthier.data.summary import DatasetInfo
from luthier.evaluation.answers import Answer, Scoring, write_answers
from luthier.evaluation.asking import Plan, ask, local_speed, longest_reply, usable_scoring
from luthier.evaluation.asking_endpoints import ask_endpoint
from luthier.evaluation.endpoint_section import Endpoint, unique_names
from luthier.evaluation.journal import Collected
from luthier.evaluation.linear import linear_answers
from luthier.evaluation.nearest import NearestExamples
from luthier.evaluation.prompts import (
    PromptForm,
    choose_examples,
    label_instruction,
    label_tokens,
    make_prompts,
)
from luthier.evaluation.rows import load_rows
from luthier.evaluation.speed import Speed, write_speeds
from luthier.evaluation.summary import (
    describe,
    headline,
    summarize,
    write_summary,
)
from luthier.evaluation.systems import LocalSystem
from luthier.evaluation.target import Target, TargetVerdict, judge_target, worth_tuning
from luthier.evaluation.versus import LINEAR
from luthier.models.loading import load_model, load_tokenizer
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.store.artifact import Workspace

_MARGIN_TOKENS = 3  # a prompted model wraps its label: "Section: games."


class BaselineSection(Section):
    """The base model, prompted: zero-shot and with examples."""

    few_shot: int = Field(8, ge=0, description="examples in the prompt, from train rows; 0: none")
    few_shot_by: list[Literal["balanced", "nearest"]] = Field(
        ["balanced"],
        min_length=1,
        description="balanced: the same for every row, classes taking turns; nearest: those most "
        "alike by TF-IDF, others for each row, which takes longer",
    )
    scoring: list[Scoring] = Field(
        ["generation", "likelihood"],
        min_length=1,
        description="free answers, and for classification the likeliest label",
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="of a free answer, stop token included; null: longest reply + 3"
    )
    linear: bool = Field(
        True,
        description="of a classification also TF-IDF and a linear model, trained within seconds: "
        "no prompt, so never the best of them, and what a tuned model should not be worse than",
    )
    lenient: bool = Field(
        True, description="read the first label that stands in a free answer as whole words"
    )
    target: Target | None = Field(None, description="judged by the 10/20-point rule")
    require: bool = Field(
        False, description="stop, exit code 3, unless the target's verdict is to fine-tune"
    )
    instruction: str | None = Field(
        None, description="system message; null: the dataset's, with the labels to choose from"
    )
    endpoints: list[Endpoint] = Field(
        default_factory=list,
        description="servers that are asked the same way, such as a larger model's",
    )
    limit_rows: int | None = Field(None, ge=1, description="evaluate a sample of this many rows")
    speed_rows: int = Field(
        8,
        ge=0,
        description="test rows that are asked one at a time, for their seconds; 0: none",
        json_schema_extra=result_free,
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.require and self.target is None:
            raise ValueError("require is about the target, and there is none. Set target")
        unique_names(self.endpoints)
        return self


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
    asked = _ask_all(section, forms, plan, inputs, workspace)
    answers = {name: one for found in asked.values() for name, one in found.answers.items()}
    if section.linear and info.labels:
        answers[LINEAR] = linear_answers(load_rows(dataset, "train"), rows, inputs.seed)
    write_answers(workspace.path, [answer for found in answers.values() for answer in found])
    summary = summarize(info, answers, inputs.seed, {LINEAR}, read_schema(dataset))
    summary["reading"] = plan.reading
    summary["few_shot"] = section.few_shot
    summary["few_shot_ids"] = [row.id for form in forms.values() for row in form.examples]
    target = _judge(section, summary)
    write_summary(workspace.path, summary, target=target)
    write_speeds(workspace.path, {name: one.speed for name, one in asked.items()})
    for line in describe(summary):
        workspace.reporter.say(line)
    if target:
        workspace.reporter.say(f"  {target.verdict}: {target.reason}")
    return StageResult(
        metrics={**headline(summary), "target": asdict(target) if target else None},
        gates=[worth_tuning(target)] if target and section.require else [],
        facts={
            "rows": len(rows),
            "max_new_tokens": plan.max_new_tokens,
            "rows_per_second": {
                name: one.spent.rows_per_second for name, one in asked.items() if one.spent
            },
            "requests": {name: one.requests for name, one in asked.items() if one.requests},
        },
        timings_seconds={name: one.spent.seconds for name, one in asked.items() if one.spent},
    )


def _forms(
    section: BaselineSection, inputs: StageInputs, info: DatasetInfo
) -> dict[str, PromptForm]:
    instruction = section.instruction or label_instruction(info)
    forms = {"zero-shot": PromptForm(info.task, instruction)}
    if section.few_shot:
        train = load_rows(inputs["dataset"].path, "train")
        examples = choose_examples(train, section.few_shot, inputs.seed)
        if "balanced" in section.few_shot_by:
            forms["few-shot"] = PromptForm(info.task, instruction, examples)
        if "nearest" in section.few_shot_by:
            nearest = NearestExamples(train, section.few_shot)
            forms["nearest"] = PromptForm(info.task, instruction, nearest=nearest)
    return forms


@dataclass(frozen=True)
class _Answered:
    """What the base said to one prompt form, by system."""

    answers: dict[str, list[Answer]]
    speed: Speed | None
    spent: Collected | None = None
    requests: dict[str, Any] | None = None


def _ask_all(
    section: BaselineSection,
    forms: dict[str, PromptForm],
    plan: Plan,
    inputs: StageInputs,
    workspace: Workspace,
) -> dict[str, _Answered]:
    base = inputs["base"].path
    tokenizer, model = load_tokenizer(base), load_model(base)
    labels = label_tokens(tokenizer, plan.info, plan.rows[0])
    asked: dict[str, _Answered] = {}
    for name, form in forms.items():
        system = LocalSystem(name, model, tokenizer, plan.asked(labels))
        prompts = make_prompts(form, tokenizer, plan.rows)
        answers, spent = ask(system, prompts, plan, workspace)
        speed = local_speed(model, tokenizer, plan, prompts, spent, section.speed_rows)
        asked[name] = _Answered(answers, speed, spent)
    for endpoint in section.endpoints:
        for form_name, form in forms.items():
            name = f"{endpoint.name}-{form_name}"
            found = ask_endpoint(
                endpoint.model_copy(update={"name": name}),
                make_prompts(form, tokenizer, plan.rows),
                replace(plan, scoring=["generation"]),
                workspace,
                tokenizer,
                section.speed_rows,
            )
            asked[name] = _Answered(found.answers, found.speed, requests=asdict(found.summary))
    return asked


def _judge(section: BaselineSection, summary: dict[str, object]) -> TargetVerdict | None:
    if section.target is None:
        return None
    return judge_target(summary, section.target.metric, section.target.value)


STAGE = Stage(
    name="baseline",
    order=30,
    summary="ask the base model, zero-shot and with examples",
    makes="evaluation",
    version=3,
    section=BaselineSection,
    run=run,
    slots=(Slot("base", "base", ("base",)), Slot("dataset", "dataset", ("prepare",))),
    uses_seed=True,
    packages=("torch", "transformers"),
)
