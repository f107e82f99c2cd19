"""A judge that the user supplies: a program that scores the answers to a prompt."""

import json
import math
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from luthier.config import Field, Section
from luthier.errors import DataError
from luthier.evaluation.pair_rules import Drawn

_SHOWN_CHARACTERS = 200


class JudgeSection(Section):
    """A program that scores answers."""

    command: list[str] = Field(
        ...,
        min_length=1,
        description="program and arguments; it reads a line of JSON a prompt (prompt, expected, "
        "answers) and writes a line with a list of scores, higher is better",
    )
    min_margin: float = Field(
        0.1, ge=0, description="answers whose scores are nearer than this are a tie"
    )
    timeout_seconds: float = Field(3600, gt=0, description="for all prompts together")


def ask_judge(judge: JudgeSection, drawn: Sequence[Drawn], field: str) -> list[Drawn]:
    """The same with the judge's scores; `field` is where the config names it.

    It gets a line of JSON a prompt on standard input, `{"prompt": [messages], "expected": text,
    "answers": [texts]}`, and answers with a line a prompt: a list of as many numbers, higher is
    better. No shell is involved.

    Raises:
        DataError: it cannot be started, fails, takes too long, or its answer is not that.
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
    called, timeout_seconds = " ".join(judge.command), judge.timeout_seconds
    try:
        done = subprocess.run(
            list(judge.command),
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
