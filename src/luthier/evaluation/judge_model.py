"""A model as judge: what it is asked, and the scores read out of its reply."""

import json
import re
from collections.abc import Sequence
from typing import Any

from luthier.data.rows import Message
from luthier.evaluation.pair_rules import Drawn
from luthier.evaluation.systems import Prompt

RUBRIC = (
    "You compare answers to a request. A good answer says what the expected answer says, in the "
    "form it was asked for, and nothing that is wrong or was not asked for."
)
HIGHEST = 10
# Scores of many answers, or of one: [7], [7, 3.5]. The last list counts, for a model may think
# aloud before it.
_SCORES = re.compile(r"\[[\s\d.,+-]*\]")


def judge_prompts(rubric: str, drawn: Sequence[Drawn]) -> list[Prompt]:
    """What the model is asked about each prompt's answers, in their order."""
    return [
        Prompt(
            f"{number} {one.row.id}",
            token_ids=(),
            messages=(
                {"role": "system", "content": rubric},
                {"role": "user", "content": _question(one)},
            ),
        )
        for number, one in enumerate(drawn)
    ]


def _question(one: Drawn) -> str:
    answers = [
        f"<answer {place}>\n{text}\n</answer {place}>" for place, text in enumerate(one.answers, 1)
    ]
    scores = ", ".join(f"score of answer {place}" for place in range(1, len(one.answers) + 1))
    return "\n\n".join(
        [
            f"<request>\n{_conversation(one.row.messages[:-1])}\n</request>",
            f"<expected>\n{one.row.expected}\n</expected>",
            *answers,
            f"Score each answer from 1, worst, to {HIGHEST}, best. End with one line that is the "
            f"JSON list of the scores and nothing else: [{scores}]",
        ]
    )


def _conversation(messages: Sequence[Message]) -> str:
    return "\n".join(f"{message['role']}: {_content(message)}" for message in messages)


def _content(message: Message) -> str:
    """What is said; of a message that is no plain text, all of it."""
    content: Any = message.get("content")
    return content if isinstance(content, str) else json.dumps(message, ensure_ascii=False)


def read_scores(text: str, count: int) -> list[float] | None:
    """The last list of `count` numbers from 1 to 10 in a reply; None where there is none."""
    for found in reversed(_SCORES.findall(text)):
        try:
            scores = json.loads(found)
        except ValueError:
            continue
        if len(scores) == count and all(1 <= score <= HIGHEST for score in scores):
            return [float(score) for score in scores]
    return None
