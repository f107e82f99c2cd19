"""Stage `accept`: what will be served, asked the rows that the tuned model was measured on."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator

from luthier.config import Field, Section, result_free
from luthier.data.dataset import read_info, read_schema
from luthier.errors import ConfigError
from luthier.evaluation.acceptance import Served, accept_served
from luthier.evaluation.answers import Answer, read_answers, write_answers
from luthier.evaluation.asking import Plan, ask, local_speed
from luthier.evaluation.asking_endpoints import ask_endpoint
from luthier.evaluation.endpoint_section import Endpoint, unique_names
from luthier.evaluation.prompts import trained_prompts
from luthier.evaluation.rows import load_rows
from luthier.evaluation.shipping import describe_verdict, read_verdict, ship_gate, weigh
from luthier.evaluation.speed import write_speeds
from luthier.evaluation.summary import describe, headline, read_summary, summarize, write_summary
from luthier.evaluation.systems import GGUF_PREFIX, LocalSystem, Prompt
from luthier.models.loading import load_model, load_tokenizer
from luthier.serving.llama_server import GREEDY, LlamaServer, require_llama_cpp
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.store.artifact import Artifact, Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT_MARGIN_TOKENS = 8  # of the longest prompt and answer


class AcceptSection(Section):
    """What is served: the merged model, the exported GGUF files, running servers."""

    systems: list[Literal["merged", "gguf"]] = Field(
        ["merged", "gguf"], description="which of those that this config makes are asked"
    )
    endpoints: list[Endpoint] = Field(
        default_factory=list, description="running servers of this model, such as vLLM or Ollama"
    )
    max_drop: float = Field(
        0.02,
        ge=0,
        le=1,
        description="by how much each may be worse than the tuned model, share of the rows",
    )
    max_p95_seconds: float | None = Field(
        None, gt=0, description="within which 95 % of single requests must be answered"
    )
    alpha: float = Field(0.05, gt=0, lt=1, description="level of the paired tests")
    require: bool = Field(
        False, description="whether what is not to be shipped stops the run, exit code 3"
    )
    speed_rows: int = Field(
        8,
        ge=0,
        description="test rows that are asked one at a time, for their seconds; 0: none",
        json_schema_extra=result_free,
    )

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        unique_names(self.endpoints)
        return self


@dataclass(frozen=True)
class _Acceptance:
    """The rows, the tuned model's answers to them, and what the config says."""

    section: AcceptSection
    inputs: StageInputs
    workspace: Workspace
    tokenizer: "PreTrainedTokenizerBase"
    plan: Plan
    prompts: list[Prompt]
    tuned: list[Answer]


def run(section: AcceptSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Ask each the rows of `evaluate`; compare with the tuned model's answers; judge."""
    measured = read_summary(inputs["evaluation"].path)
    acceptance = _begin(section, inputs, workspace, measured)
    served = list(_serve(acceptance))
    write_answers(workspace.path, [answer for one in served for answer in one.answers])
    write_speeds(workspace.path, {one.name.partition("/")[0]: one.speed for one in served})
    found = accept_served(
        served,
        acceptance.tuned,
        max_drop=section.max_drop,
        max_p95_seconds=section.max_p95_seconds,
        alpha=section.alpha,
    )
    verdict = weigh([*read_verdict(measured["ship"]).rules, *found.rules])
    answers = {one.name: one.answers for one in served}
    schema = read_schema(inputs["dataset"].path)
    summary = summarize(acceptance.plan.info, answers, inputs.seed, json_schema=schema)
    summary |= {"against_tuned": found.summary, "ship": verdict.as_json()}
    write_summary(workspace.path, summary)
    for line in [*describe(summary), *found.lines, describe_verdict(verdict)]:
        workspace.reporter.say(line)
    return StageResult(
        metrics=headline(summary) | {"ship": verdict.word},
        gates=[*found.gates, *([ship_gate(verdict)] if section.require else [])],
        facts={
            "rows": len(acceptance.plan.rows),
            "requests": {one.name: one.requests for one in served if one.requests},
        },
    )


def _begin(
    section: AcceptSection, inputs: StageInputs, workspace: Workspace, measured: dict[str, Any]
) -> _Acceptance:
    dataset, evaluation = inputs["dataset"].path, inputs["evaluation"].path
    info, known = read_info(dataset), read_answers(evaluation)
    free = "tuned/generation"
    tuned = known[free if free in known else measured["best_system"]]
    ids = {answer.id for answer in tuned}
    rows = [row for row in load_rows(dataset, "test") if row.id in ids]
    plan = Plan(
        info=info,
        rows=rows,
        scoring=["generation"],
        max_new_tokens=measured["max_new_tokens"],
        reading="exact",
    )
    return _Acceptance(
        section=section,
        inputs=inputs,
        workspace=workspace,
        tokenizer=load_tokenizer(inputs["base"].path),
        plan=plan,
        prompts=trained_prompts(info.task, rows),
        tuned=tuned,
    )


def _serve(acceptance: _Acceptance) -> Iterator[Served]:
    inputs, wanted = acceptance.inputs, acceptance.section.systems
    model, bundle = inputs.get("model"), inputs.get("bundle")
    if model is not None and "merged" in wanted:
        yield _merged(acceptance, model)
    if bundle is not None and "gguf" in wanted:
        for quantization, file in bundle.manifest.facts["gguf"].items():
            yield _gguf(acceptance, f"{GGUF_PREFIX}{quantization}", bundle.path / file)
    for endpoint in acceptance.section.endpoints:
        yield _endpoint(acceptance, endpoint)


def _merged(acceptance: _Acceptance, artifact: Artifact) -> Served:
    model, plan = load_model(artifact.path), acceptance.plan
    system = LocalSystem("merged", model, acceptance.tokenizer, plan.asked(()))
    answers, spent = ask(system, acceptance.prompts, plan, acceptance.workspace)
    speed = local_speed(
        model,
        acceptance.tokenizer,
        plan,
        acceptance.prompts,
        spent,
        acceptance.section.speed_rows,
    )
    [(name, found)] = answers.items()
    return Served(name, found, speed)


def _gguf(acceptance: _Acceptance, name: str, path: Path) -> Served:
    longest = max(len(prompt.token_ids) for prompt in acceptance.prompts)
    context_tokens = longest + acceptance.plan.max_new_tokens + _CONTEXT_MARGIN_TOKENS
    with LlamaServer(path, context_tokens=context_tokens) as server:
        endpoint = Endpoint(
            name=name, url=server.url, model=name, concurrency=1, extra_body=dict(GREEDY)
        )
        return _endpoint(acceptance, endpoint)


def _endpoint(acceptance: _Acceptance, endpoint: Endpoint) -> Served:
    found = ask_endpoint(
        endpoint,
        acceptance.prompts,
        acceptance.plan,
        acceptance.workspace,
        acceptance.tokenizer,
        acceptance.section.speed_rows,
    )
    [(name, answers)] = found.answers.items()
    return Served(name, answers, found.speed, asdict(found.summary))


def _check(section: AcceptSection, filled: frozenset[str]) -> None:
    """Nothing to ask is a config that does nothing."""
    makers = {"merged": "model", "gguf": "bundle"}
    if not section.endpoints and not any(makers[one] in filled for one in section.systems):
        raise ConfigError(
            "accept: there is nothing to ask. Add the section merge or export to the config, or "
            "name a server in accept.endpoints."
        )
    if "gguf" in section.systems and "bundle" in filled:
        require_llama_cpp()


STAGE = Stage(
    name="accept",
    order=90,
    summary="ask the merged model and the GGUF files the test rows; ship or not",
    makes="evaluation",
    version=1,
    section=AcceptSection,
    run=run,
    check=_check,
    slots=(
        Slot("base", "base", ("base",)),
        Slot("dataset", "dataset", ("prepare",)),
        Slot("evaluation", "evaluation", ("evaluate",)),
        Slot("model", "model", ("merge",), optional=True),
        Slot("bundle", "bundle", ("export",), optional=True),
    ),
    uses_seed=True,
    packages=("torch", "transformers", "xllamacpp"),
)
