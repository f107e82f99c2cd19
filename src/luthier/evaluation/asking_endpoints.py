"""Asking a server the rows, and how fast it answers when nobody else asks."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.evaluation.answers import Answer
from luthier.evaluation.asking import Plan, ask
from luthier.evaluation.endpoint_log import EndpointSummary
from luthier.evaluation.endpoint_section import Endpoint
from luthier.evaluation.endpoints import EndpointSystem
from luthier.evaluation.speed import Speed, measure_speed, spread
from luthier.evaluation.systems import Prompt
from luthier.store.artifact import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EndpointAnswers:
    """What a server said to the rows, by system; how fast; and what asking took."""

    answers: dict[str, list[Answer]]
    speed: Speed | None
    summary: EndpointSummary


def ask_endpoint(
    endpoint: Endpoint,
    prompts: Sequence[Prompt],
    plan: Plan,
    workspace: Workspace,
    tokenizer: "PreTrainedTokenizerBase",
    speed_rows: int,
) -> EndpointAnswers:
    """Ask every prompt, then some of them one at a time.

    Raises:
        ConfigError: the key's environment variable is not set.
        ServingError: rows stay without an answer.
    """
    system = EndpointSystem(endpoint, plan.max_new_tokens, workspace)
    answers, spent = ask(system, prompts, plan, workspace)
    speed = None
    if speed_rows:
        with tempfile.TemporaryDirectory(prefix="luthier-speed-") as folder:
            unkept = Workspace(Path(folder), stop=workspace.stop)
            one_by_one = endpoint.model_copy(update={"concurrency": 1})

            def make(max_new_tokens: int) -> EndpointSystem:
                named = one_by_one.model_copy(update={"name": f"alone-{max_new_tokens}"})
                return EndpointSystem(named, max_new_tokens, unkept)

            speed = measure_speed(
                make, spread(prompts, speed_rows), plan.max_new_tokens, spent, tokenizer
            )
    return EndpointAnswers(answers, speed, system.summary())
