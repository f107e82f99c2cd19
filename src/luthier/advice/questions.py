"""What is asked before anything is advised: the questions, and a file of answers to them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from luthier.config import Field, Section

Value = bool | int | str
HardwareName = Literal["cpu", "rtx-4090", "a100-40gb", "a100-80gb", "h100-80gb"]


@dataclass(frozen=True)
class Option:
    """One answer: its value in a file, how people say it, and when it is the right one."""

    value: Value
    word: str
    meaning: str


@dataclass(frozen=True)
class Question:
    """One question; without options the answer is a whole number, 0 or more."""

    id: str
    text: str
    options: tuple[Option, ...] = ()

    @property
    def allowed(self) -> str:
        """What a file of answers may say."""
        return " or ".join(spelled(option.value) for option in self.options) or "a whole number"

    def word(self, value: Value) -> str:
        """An answer as people say it."""
        words = [option.word for option in self.options if option.value == value]
        return words[0] if words else f"{value:,}"


def spelled(value: Value) -> str:
    """A value as YAML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _yes_or_no(question: str, text: str, yes: str, no: str) -> Question:
    return Question(question, text, (Option(True, "yes", yes), Option(False, "no", no)))


_ALL = (
    _yes_or_no(
        "needs_external_knowledge",
        "Does it need outside knowledge: changing, your own, or very broad?",
        "prices, tickets, manuals: what no model knows, or not for long",
        "all it needs stands in the input, or is common knowledge",
    ),
    _yes_or_no(
        "format_beyond_prompting",
        "Does it also need a style or format that prompting cannot hold?",
        "tried with a good prompt and examples, and it slips",
        "a prompt holds it, or the form does not matter",
    ),
    Question(
        "narrow_task",
        "Is it a narrow task whose answers can be checked against labels?",
        (
            Option("classification", "classification", "one of a fixed set of labels"),
            Option("extraction", "extraction", "fields read out of a text, as JSON"),
            Option("none", "neither", "free text: answers, drafts, dialogue"),
        ),
    ),
    Question("labelled_examples", "How many labelled examples are there to train on?"),
    _yes_or_no(
        "consistent_style",
        "Must style, tone or output format be the same every time?",
        "a house style, a fixed structure, a tone that must not slip",
        "any good answer will do",
    ),
    _yes_or_no(
        "prompting_suffices",
        "Do prompting and few-shot examples reach the consistency needed?",
        "within 10 points of the target, on 100 held-out examples or more",
        "further below it, or it slips in use",
    ),
    _yes_or_no(
        "latency_under_50_ms",
        "Is latency a hard limit, under 50 ms?",
        "an answer that comes later is of no use",
        "people or batches can wait a little",
    ),
    Question(
        "hardware",
        "What can it be trained on?",
        (
            Option("cpu", "cpu", "no GPU: a very small model only"),
            Option("rtx-4090", "rtx-4090", "24 GB; an RTX 3090 or A10 too"),
            Option("a100-40gb", "a100-40gb", "40 GB"),
            Option("a100-80gb", "a100-80gb", "80 GB"),
            Option("h100-80gb", "h100-80gb", "80 GB, faster"),
        ),
    ),
)
QUESTIONS: Mapping[str, Question] = {question.id: question for question in _ALL}


def _asks(question: str) -> str:
    return QUESTIONS[question].text


class AnswersSection(Section):
    """A file of answers. What is left out is asked, or known from what a run measured."""

    needs_external_knowledge: bool | None = Field(
        None, description=_asks("needs_external_knowledge")
    )
    format_beyond_prompting: bool | None = Field(
        None, description=_asks("format_beyond_prompting")
    )
    narrow_task: Literal["classification", "extraction", "none"] | None = Field(
        None, description=_asks("narrow_task")
    )
    labelled_examples: int | None = Field(None, ge=0, description=_asks("labelled_examples"))
    consistent_style: bool | None = Field(None, description=_asks("consistent_style"))
    prompting_suffices: bool | None = Field(None, description=_asks("prompting_suffices"))
    latency_under_50_ms: bool | None = Field(None, description=_asks("latency_under_50_ms"))
    hardware: HardwareName | None = Field(None, description=_asks("hardware"))

    def given(self) -> dict[str, Value]:
        """The questions that are answered, with their answers."""
        return {name: value for name in QUESTIONS if (value := getattr(self, name)) is not None}
