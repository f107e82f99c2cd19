"""Asking in a terminal: arrows and Enter."""

import sys
from typing import Any

from luthier.advice.questions import Question, Value
from luthier.errors import InterruptedRunError
from luthier.report.terminal import printing

_MOST_DIGITS = 12


def can_ask() -> bool:
    """Whether somebody sits there: input and output are both a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def ask(question: Question, undecided: str | None = None) -> Value:
    """The answer that is chosen; `undecided` is a measurement that does not decide it.

    Raises:
        InterruptedRunError: Ctrl-C, Ctrl-D, or the terminal went away.
    """
    if undecided is not None:
        _say(f"measured, but it does not decide the next question: {undecided}", "dim")
    try:
        chosen = _prompt(question).unsafe_ask()
    except (KeyboardInterrupt, EOFError) as error:
        raise InterruptedRunError("Stopped. Nothing was advised, nothing written.") from error
    answer: Value = int(chosen) if not question.options else question.options[chosen].value
    _say(f"{question.text}  {question.word(answer)}")
    return answer


def _prompt(question: Question) -> Any:
    """The question; options are chosen by their place, because 0 and false are equal."""
    import questionary

    if not question.options:
        return questionary.text(
            question.text,
            qmark=" ",
            validate=_checked_count,
            instruction="(a number)",
            erase_when_done=True,
        )
    width = max(len(option.word) for option in question.options)
    choices = [
        questionary.Choice(f"{option.word:<{width}}  {option.meaning}", value=place)
        for place, option in enumerate(question.options)
    ]
    return questionary.select(
        question.text,
        choices,
        qmark=" ",
        pointer=">",
        instruction=" ",
        erase_when_done=True,
    )


def _checked_count(text: str) -> bool | str:
    is_count = text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
    return is_count or "a whole number, such as 1500"


def _say(text: str, style: str = "") -> None:
    from rich.padding import Padding
    from rich.text import Text

    with printing() as console:
        console.print(Padding(Text(text, style), (0, 0, 0, 2), expand=False))
    sys.stdout.flush()
