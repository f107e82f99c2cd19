"""A judge that the user names: a program, or a model behind a server, that scores answers."""

import json
import math
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from pydantic import model_validator

from luthier.config import Field, Section
from luthier.errors import DataError
from luthier.evaluation.endpoint_section import Endpoint
from luthier.evaluation.endpoints import EndpointSystem
from luthier.evaluation.judge_model import RUBRIC, judge_prompts, read_scores
from luthier.evaluation.pair_rules import Drawn
from luthier.store.artifact import Workspace

_SHOWN_CHARACTERS = 200


class JudgeSection(Section):
    """What scores answers: a program or a model, one of the two."""

    command: list[str] | None = Field(
        None,
        min_length=1,
        description="program and arguments; it reads a line of JSON a prompt (prompt, expected, "
        "answers) and writes a line with a list of scores, higher is better",
    )
    endpoint: Endpoint | None = Field(
        None, description="server with a model that scores answers from 1 to 10"
    )
    rubric: str = Field(
        RUBRIC, min_length=1, description="of the model: its system message, what a good answer is"
    )
    max_new_tokens: int = Field(
        512, ge=1, description="of a reply of the model, whatever it thinks aloud included"
    )
    max_unread_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the model's replies that may hold no scores; what they are about "
        "counts as a tie",
    )
    min_margin: float = Field(
        0.1, ge=0, description="answers whose scores are nearer than this are a tie"
    )
    timeout_seconds: float = Field(
        3600, gt=0, description="of the program, for all prompts together"
    )

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if (self.command is None) == (self.endpoint is None):
            raise ValueError("a judge is a command or an endpoint. Give one of the two")
        return self


def ask_judge(
    judge: JudgeSection, drawn: Sequence[Drawn], field: str, workspace: Workspace
) -> list[Drawn]:
    """The same with the judge's scores; `field` is where the config names it.

    A model's replies are kept in the workspace when they come, and not asked for again. Where
    one holds no scores, `scores` stays None.

    Raises:
        ConfigError: the variable of the model's key is not set.
        DataError: the program cannot be started, fails, takes too long, or its answer is none;
            more than `max_unread_fraction` of the model's replies hold no scores.
        InterruptedRunError: a stop was requested while the model was asked.
        ServingError: more than `max_missing_fraction` of the requests stay without a reply.
    """
    if not drawn:
        return []
    if judge.endpoint is not None:
        return _ask_model(judge, judge.endpoint, drawn, field, workspace)
    assert judge.command is not None, "the section looked"
    return _ask_program(judge.command, judge.timeout_seconds, drawn, field)


def _ask_model(
    judge: JudgeSection,
    endpoint: Endpoint,
    drawn: Sequence[Drawn],
    field: str,
    workspace: Workspace,
) -> list[Drawn]:
    system = EndpointSystem(endpoint, judge.max_new_tokens, workspace)
    texts = list[str]()
    with workspace.reporter.task(f"judge {endpoint.name}", len(drawn), "answers") as task:
        for replies in system.replies(judge_prompts(judge.rubric, drawn), 0):
            texts += [reply.text for reply in replies]
            task.advance(len(replies))
    scored = [
        replace(one, scores=read_scores(text, len(one.answers)))
        for one, text in zip(drawn, texts, strict=True)
    ]
    unread = [text for one, text in zip(scored, texts, strict=True) if one.scores is None]
    if len(unread) > judge.max_unread_fraction * len(drawn):
        raise DataError(
            f"{field}.endpoint: {len(unread)} of {len(drawn)} replies of {endpoint.model} hold no "
            f"list of scores from 1 to 10, such as: {unread[0][-_SHOWN_CHARACTERS:]!r}. Take a "
            f"larger model, or raise {field}.max_new_tokens if it was cut off."
        )
    return scored


def _ask_program(
    command: Sequence[str], timeout_seconds: float, drawn: Sequence[Drawn], field: str
) -> list[Drawn]:
    """It gets a line of JSON a prompt on standard input, `{"prompt": [messages], "expected": text,
    "answers": [texts]}`, and answers with a line a prompt: a list of as many numbers, higher is
    better. No shell is involved.
    """
    lines = [
        json.dumps(
            {
                "prompt": list(one.row.messages[:-1]),
                "expected": one.row.expected,
                "answers": list(one.answers),
            }
        )
        for one in drawn
    ]
    called = " ".join(command)
    try:
        done = subprocess.run(
            list(command),
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except OSError as error:
        raise DataError(
            f"{field}.command: {called} cannot be started: {error.strerror}."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"{field}.command: {called} took more than {timeout_seconds:g} s for {len(drawn)} "
            f"prompts. Raise {field}.timeout_seconds, or limit the rows."
        ) from error
    if done.returncode != 0:
        raise DataError(
            f"{field}.command: {called} ended with {done.returncode}: "
            f"{done.stderr.strip()[-_SHOWN_CHARACTERS:]}"
        )
    said = done.stdout.splitlines()
    if len(said) != len(drawn):
        raise DataError(
            f"{field}.command: {called} gave {len(said)} lines for {len(drawn)} prompts. It "
            "must give one line a prompt."
        )
    return [
        replace(
            one,
            scores=_scores(
                line, len(one.answers), f"{field}.command: line {number} of what {called} gave"
            ),
        )
        for number, (one, line) in enumerate(zip(drawn, said, strict=True), 1)
    ]


def _scores(line: str, count: int, what: str) -> list[float]:
    try:
        found: Any = json.loads(line)
    except ValueError:
        found = None
    is_list = isinstance(found, list) and len(found) == count
    if not is_list or not all(_is_number(one) for one in found):
        raise DataError(f"{what} is not a list of {count} numbers: {line[:_SHOWN_CHARACTERS]}")
    return [float(one) for one in found]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
