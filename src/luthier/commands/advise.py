"""`luthier advise`: should this be fine-tuned, prompted, or given retrieval?"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luthier.advice.leaves import Leaf
    from luthier.advice.next_steps import RunState
    from luthier.advice.questions import Question, Value
    from luthier.advice.tree import Known
    from luthier.commands.evidence import Evidence

_ANSWERS_FILE = "answers.yaml"
_STARTER_STAGES = frozenset({"baseline", "sft"})  # those that the next steps depend on


def advise(
    config: Annotated[
        str | None,
        typer.Option(help="a run config; what it has measured is not asked", metavar="CONFIG"),
    ] = None,
    answers: Annotated[
        str | None, typer.Option(help="a YAML file of answers (docs/advise.md)", metavar="FILE")
    ] = None,
    write: Annotated[
        str | None,
        typer.Option(
            help="write a run config there, if fine-tuning is advised", metavar="NEW_CONFIG"
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="your rows, for the config of --write", metavar="PATH")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Say whether to fine-tune, to prompt or to retrieve; why, and what would change it.

    Asks in the terminal (arrows, Enter) what neither --config nor --answers says. What a run has
    measured wins over an answer; rules of thumb are marked as such.
    """
    from luthier.advice.advice import advise as make_advice
    from luthier.advice.advice import merged
    from luthier.advice.leaves import Leaf
    from luthier.advice.next_steps import RunState
    from luthier.advice.tree import walk
    from luthier.commands.interview import can_ask
    from luthier.report.advice_view import print_advice

    _check_paths(write, data)
    given, evidence = _given(answers), _evidence(config, answers)
    asked: dict[str, Value] = {}
    if can_ask() and not as_json:
        asked = _ask(given, evidence)
    else:
        _refuse_open(given, evidence, needs_hardware=write is not None)
    known = merged(given | asked, evidence.found)
    leaf, state = walk(known).end, _with_answers(evidence.state, asked)
    assert isinstance(leaf, Leaf), "nothing is open any more"
    written = write if leaf.fine_tunes else None
    if written is not None:
        _write_starter(written, leaf, known, data)
        state = RunState(written, _STARTER_STAGES, answers=state.answers, written=True)
    advice = make_advice(known, state, evidence.found, evidence.measured)
    if as_json:
        whole = advice.as_json() | {"written": written}
        sys.stdout.write(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
        return
    print_advice(advice, asked, state.answers)
    if write is not None:
        said = f"Written: {write}" if written else f"Nothing written to {write}: no training."
        sys.stdout.write(f"\n{said}\n")


def _with_answers(state: "RunState", asked: "Mapping[str, Value]") -> "RunState":
    """With a file for the answers given in the terminal, which the next commands are to read."""
    return replace(state, answers=state.answers or _ANSWERS_FILE) if asked else state


def _check_paths(write: str | None, data: str | None) -> None:
    """What can be refused before anybody is asked anything."""
    if data is not None and write is None:
        raise ConfigError("--data names the rows for the config of --write. Give --write too.")
    if write is not None and os.path.lexists(write):
        raise _taken(write)
    if data is not None:
        from luthier.data.sources import expand

        expand(data)


def _taken(path: str) -> ConfigError:
    return ConfigError(f"--write {path}: that is there already, and stays. Name a new file.")


def _given(answers: str | None) -> "dict[str, Value]":
    from luthier.advice.questions import AnswersSection
    from luthier.config import load_section

    return {} if answers is None else load_section(answers, AnswersSection).given()


def _evidence(config: str | None, answers: str | None) -> "Evidence":
    from luthier.commands.evidence import no_evidence, read_evidence

    return no_evidence(answers) if config is None else read_evidence(config, answers)


def _ask(given: "Mapping[str, Value]", evidence: "Evidence") -> "dict[str, Value]":
    """Ask until a leaf is reached and, where that trains, the hardware is known."""
    from luthier.advice.advice import merged
    from luthier.commands.interview import ask
    from luthier.report.advice_view import print_known

    asked: dict[str, Value] = {}
    print_known(evidence.measured)
    while True:
        known = merged({**given, **asked}, evidence.found)
        waiting = _open(known, needs_hardware=True)
        if not waiting:
            return asked
        question = waiting[0]
        undecided = evidence.found.get(question.id)
        asked[question.id] = ask(question, undecided.source if undecided else None)


def _open(known: "Mapping[str, Known]", needs_hardware: bool) -> "list[Question]":
    """The next question, and those that may follow."""
    from luthier.advice.leaves import Leaf
    from luthier.advice.questions import QUESTIONS
    from luthier.advice.tree import open_questions, walk

    leaf = walk(known).end
    trains = not isinstance(leaf, Leaf) or leaf.fine_tunes
    if needs_hardware and trains and "hardware" not in known:
        return [*open_questions(known), QUESTIONS["hardware"]]
    return open_questions(known)


def _refuse_open(given: "Mapping[str, Value]", evidence: "Evidence", needs_hardware: bool) -> None:
    """Where nobody can be asked, say what is missing and how to give it."""
    from luthier.advice.advice import merged

    waiting = _open(merged(given, evidence.found), needs_hardware)
    if not waiting:
        return
    lines = _spelled(waiting[:1], evidence)
    if waiting[1:]:
        lines += ["What may be needed then, depending on it:", *_spelled(waiting[1:], evidence)]
    place = "in" if evidence.state.answers else "as lines of a file,"
    file = evidence.state.answers or _ANSWERS_FILE
    raise ConfigError(
        "An answer is missing, and there is no terminal to ask in:\n"
        + "\n".join(lines)
        + f"\nGive it {place} {file}, with --answers {file}; or run luthier advise in a terminal."
    )


def _spelled(questions: "Sequence[Question]", evidence: "Evidence") -> list[str]:
    lines = []
    for question in questions:
        lines.append(f"  {question.id}: {question.allowed}")
        lines.append(f"      {question.text}")
        if question.id in evidence.found:
            source = evidence.found[question.id].source
            lines.append(f"      measured, but it does not decide: {source}")
    return lines


def _write_starter(
    write: str, leaf: "Leaf", known: "Mapping[str, Known]", data: str | None
) -> None:
    from luthier.advice.starter import run_name, starter_config, task_of

    narrow = known.get("narrow_task")
    task = task_of(leaf, narrow.value if narrow else None)
    hardware = str(known["hardware"].value)
    text = starter_config(leaf, task, hardware, run_name(write), data)
    path = Path(write)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--write {write}: {path.parent} is no folder to write in.") from error
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise _taken(write) from error
    except OSError as error:
        raise ConfigError(f"--write {write}: cannot be written: {error.strerror}.") from error
