"""What is left of what the base could do (F34): general text and questions, before and after.

The loss on text shows damage long before answers do; the questions say whether anything that
users notice is gone. Both are likelihoods, so nothing depends on how an answer is worded.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config import Field, Section
from luthier.data.rows import RowError
from luthier.data.strict_json import json_object
from luthier.data.tokens import IGNORE_INDEX
from luthier.errors import DataError
from luthier.evaluation.engine import Asked
from luthier.evaluation.journal import collect
from luthier.evaluation.statistics import PairedTest, compare, ratio_interval
from luthier.evaluation.systems import LocalSystem, Prompt
from luthier.gates import Gate, check
from luthier.models.chat import encode
from luthier.store.artifact import Workspace
from luthier.training.loss import mean_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_TEXT_TOKENS = 512  # of each text; the rest is not looked at
_FEWEST_TEXTS = 10  # for an interval


class RetentionSection(Section):
    """General text and questions that nothing is trained on."""

    texts: Path = Field(
        description='JSON Lines with a "text" each, of which the first 512 tokens count'
    )
    questions: Path | None = Field(
        None, description='JSON Lines with "question", "choices" and "answer", its place from 0'
    )
    max_increase_nats: float = Field(
        0.05, gt=0, description="by how much the loss on the texts may rise, nats a token"
    )
    max_questions_drop: float = Field(
        0.05, ge=0, le=1, description="share of the questions that may be lost"
    )

    def files(self) -> list[Path]:
        """What is read from outside the store."""
        return [self.texts] if self.questions is None else [self.texts, self.questions]


@dataclass(frozen=True)
class Question:
    """One question with its choices; `answer` is the place of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Material:
    """What is measured on: token ids of each text, the questions, and a prompt for each of their
    choices."""

    texts: list[tuple[int, ...]]
    questions: list[Question]
    prompts: list[Prompt]


@dataclass(frozen=True)
class Remembered:
    """One model: nats of each text, over so many tokens, and whether each question was answered
    right."""

    text_nats: list[float]
    text_tokens: list[int]
    right: list[bool]


def load_material(section: RetentionSection, tokenizer: "PreTrainedTokenizerBase") -> Material:
    """Read both files.

    Raises:
        DataError: a line is not what it must be, or there is no text at all.
    """
    texts = [
        tuple(encode(tokenizer, _text(line, place))[:MAX_TEXT_TOKENS])
        for line, place in _lines(section.texts)
    ]
    if len(texts) < _FEWEST_TEXTS:
        raise DataError(f"{section.texts} has {len(texts)} texts; {_FEWEST_TEXTS} are the least.")
    if min(map(len, texts)) == 1:
        raise DataError(f"{section.texts}: a text of one token has nothing to predict.")
    questions = (
        [_question(line, place) for line, place in _lines(section.questions)]
        if section.questions
        else []
    )
    prompts: list[Prompt] = []
    for n, one in enumerate(questions):
        asked = tuple(encode(tokenizer, f"Question: {one.question}\nAnswer:"))
        prompts += [
            Prompt(f"{n} {place}", asked, tuple(encode(tokenizer, f" {choice}")))
            for place, choice in enumerate(one.choices)
        ]
    return Material(texts, questions, prompts)


def remember(
    name: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    material: Material,
    workspace: Workspace,
) -> Remembered:
    """What one model makes of the material.

    A question's answer is the choice with the highest likelihood a byte, as `acc_norm` of
    EleutherAI's lm-evaluation-harness has it.
    """
    nats = _text_nats(f"{name}: general text", model, material, workspace)
    tokens = [len(ids) - 1 for ids in material.texts]
    if not material.questions:
        return Remembered(nats, tokens, [])
    system = LocalSystem(f"{name}-questions", model, tokenizer, Asked(stop_token_ids=()))
    replies = collect(system, material.prompts, workspace).replies
    log_p = [_known(reply.reference_log_p) for reply in replies]
    right, start = [], 0
    for one in material.questions:
        end = start + len(one.choices)
        scores = [
            total / len(f" {choice}".encode())
            for total, choice in zip(log_p[start:end], one.choices, strict=True)
        ]
        right.append(scores.index(max(scores)) == one.answer)
        start = end
    return Remembered(nats, tokens, right)


def _text_nats(
    title: str, model: "PreTrainedModel", material: Material, workspace: Workspace
) -> list[float]:
    """Nats of each text, its first token left out, which nothing predicts."""
    from datasets import Dataset

    losses = []
    with workspace.reporter.task(title, len(material.texts), "texts") as task:
        for ids in material.texts:
            workspace.raise_if_stopped()
            row = {"input_ids": [list(ids)], "labels": [[IGNORE_INDEX, *ids[1:]]]}
            losses.append(mean_loss(model, Dataset.from_dict(row)) * (len(ids) - 1))
            task.advance()
    return losses


def _known(log_p: float | None) -> float:
    return math.nan if log_p is None else log_p


def compare_retention(before: Remembered, after: Remembered, *, alpha: float) -> dict[str, Any]:
    """The part `retention` of evaluation.json.

    The increase is nats a token over all texts; its 95 % interval is over texts.
    """
    old, new, tokens = before.text_nats, after.text_nats, before.text_tokens
    rise = [later - earlier for later, earlier in zip(new, old, strict=True)]
    interval = ratio_interval(rise, tokens)
    assert interval is not None, "there are texts enough"
    found: dict[str, Any] = {
        "texts": {
            "rows": len(rise),
            "before_nats": sum(old) / sum(tokens),
            "after_nats": sum(new) / sum(tokens),
            "increase_nats": sum(rise) / sum(tokens),
            "interval": list(interval),
        },
        "questions": None,
    }
    if before.right:
        found["questions"] = asdict(compare(after.right, before.right, alpha=alpha))
    return found


def retention_gates(found: dict[str, Any], section: RetentionSection) -> list[Gate]:
    """F34: the loss on general text, and the questions.

    The questions fail only where the paired test says that some are lost: a handful of questions
    cannot tell a small loss from chance.
    """
    texts = found["texts"]
    low, high = texts["interval"]
    gates = [
        check(
            "retention",
            round(texts["increase_nats"], 6),
            "<=",
            section.max_increase_nats,
            f"{texts['rows']} general texts: {texts['after_nats']:.3f} nats a token, base "
            f"{texts['before_nats']:.3f}; {texts['increase_nats']:+.3f}, 95 % interval "
            f"{low:+.3f} to {high:+.3f}",
        )
    ]
    if found["questions"]:
        test = PairedTest(**found["questions"])
        lost = -test.difference if test.verdict == "worse" else 0.0
        gates.append(
            check(
                "retention-questions",
                round(lost, 6),
                "<=",
                section.max_questions_drop,
                f"{test.rows} general questions: {100 * test.new_accuracy:.1f} % right, base "
                f"{100 * test.old_accuracy:.1f} %, p {test.p_value:.2g}",
            )
        )
    return gates


def describe_retention(found: dict[str, Any]) -> list[str]:
    """Lines for the terminal."""
    texts, test = found["texts"], found["questions"]
    lines = [
        f"  general text: {texts['after_nats']:.3f} nats a token, base "
        f"{texts['before_nats']:.3f}; {texts['increase_nats']:+.3f} "
        "[{:+.3f}, {:+.3f}]".format(*texts["interval"])
    ]
    if test:
        lines.append(
            f"  general questions: {test['new_accuracy']:.3f} right, base "
            f"{test['old_accuracy']:.3f}; {test['difference']:+.3f} "
            "[{:+.3f}, {:+.3f}]".format(*test["interval"])
        )
    return lines


def _lines(path: Path) -> list[tuple[dict[str, object], str]]:
    """Each line's object, and where it stands."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Correct its path in the config.") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append((json_object(line), f"{path}:{number}"))
            except RowError as error:
                raise DataError(f"{path}:{number}: {error}.") from error
    if not found:
        raise DataError(f"{path} has no lines. Correct its path in the config.")
    return found


def _text(line: dict[str, object], place: str) -> str:
    text = line.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f'{place}: there is no "text". Each line is {{"text": "..."}}.')
    return text


def _question(line: dict[str, object], place: str) -> Question:
    match line:
        case {"question": str(question), "choices": list(choices), "answer": int(answer)}:
            texts = [one for one in choices if isinstance(one, str) and one.strip()]
            is_whole = len(texts) == len(choices) == len(set(texts)) > 1
            if is_whole and 0 <= answer < len(choices) and not isinstance(answer, bool):
                return Question(question, tuple(texts), answer)
    raise DataError(
        f'{place}: each line is {{"question": "...", "choices": ["...", "..."], "answer": 0}}, '
        "the choices different texts and the answer the place of the right one, from 0."
    )
