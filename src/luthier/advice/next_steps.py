"""What to do after an advice: the commands to run, with the files that are there."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from luthier.advice.leaves import Leaf
from luthier.advice.rules import HELD_OUT_ROWS

_STARTER = "configs/tuned.yaml"


@dataclass(frozen=True)
class NextStep:
    """What to do, and the command that does it where there is one."""

    text: str
    command: str | None = None


@dataclass(frozen=True)
class RunState:
    """The run config there is, if any, the sections it has and the stages that it has made.

    `answers` is the file of answers, `written` whether the config is a starter written just now.
    """

    config: str | None = None
    sections: frozenset[str] = frozenset()
    made: frozenset[str] = frozenset()
    answers: str | None = None
    written: bool = False

    def runs(self, stage: str) -> bool:
        """Whether there is a config with this stage."""
        return self.config is not None and stage in self.sections


def next_steps(leaf: Leaf, state: RunState, hardware: str | None) -> list[NextStep]:
    """The steps for a leaf, in order."""
    match leaf.id:
        case "hybrid":
            return [*_retrieval(), *_training(state, hardware)]
        case "retrieval":
            return [*_retrieval(), *_measuring(state)]
        case "collect-labels":
            return [*_labels(state), *_measuring(state), _again(state)]
        case "prompting":
            return [*_measuring(state), *_prompting(state)]
        case "retrieval-and-prompting":
            said = "Log questions, answers and what users do with them; ask again in 30 days."
            return [*_retrieval(), NextStep(said, _command(state))]
        case _:
            return list(_training(state, hardware))


def _training(state: RunState, hardware: str | None) -> Iterator[NextStep]:
    config, on = _STARTER, f" --on {hardware}" if hardware else ""
    if state.config is not None and state.runs("sft"):
        config = shlex.quote(state.config)
    else:
        write = f"{_command(state)} --write {_STARTER} --data train.jsonl"
        yield NextStep("Write a complete run config for your data (docs/data.md: formats).", write)
    if state.written:
        yield NextStep("Look through the config: data, system prompt, base, target.")
    if state.runs("sft") and "evaluate" in state.made:
        said = "It is trained and compared with the best prompt already: read how it went."
        yield NextStep(said, f"luthier report {config}")
        return
    if "baseline" not in state.made and (state.runs("baseline") or not state.runs("sft")):
        said = "Measure prompting first; it may do."
        yield NextStep(said, f"luthier run {config} --until baseline")
        answers = f" --answers {shlex.quote(state.answers)}" if state.answers else ""
        again = f"luthier advise --config {config}{answers}"
        yield NextStep("Ask again with what it measured.", again)
    yield NextStep("See what training takes: memory and time.", f"luthier plan {config}{on}")
    yield NextStep("Train, compare on the same rows, merge, export.", f"luthier run {config}")


def _measuring(state: RunState) -> Iterator[NextStep]:
    """How to measure what prompting reaches, unless that was done."""
    if state.config is not None and state.runs("baseline"):
        config = shlex.quote(state.config)
        if "baseline" not in state.made:
            said = "Measure what prompting reaches."
            yield NextStep(said, f"luthier run {config} --until baseline")
        return
    rows = f"at least {HELD_OUT_ROWS} held-out rows (rule of thumb)"
    said = (
        f"Measure what prompting reaches on {rows}: a run config with base, prepare and baseline "
        "(as the head of configs/quickstart.yaml), with a target."
    )
    yield NextStep(said, "luthier run CONFIG --until baseline")


def _prompting(state: RunState) -> Iterator[NextStep]:
    config = shlex.quote(state.config) if state.config is not None else "CONFIG"
    if "baseline" in state.made:
        yield NextStep("Read which answers are wrong.", f"luthier report {config}")
    change = f"luthier baseline {config} --set baseline.few_shot=16"
    yield NextStep("Change baseline.instruction or the number of examples; measure again.", change)


def _labels(state: RunState) -> Iterator[NextStep]:
    said = "Collect labelled examples, as many of each class as you can."
    if state.config is not None and "prepare" in state.made:
        config = shlex.quote(state.config)
        yield NextStep(f"{said} What there is now:", f"luthier prepare {config}")
    else:
        yield NextStep(said)


def _again(state: RunState) -> NextStep:
    return NextStep("Ask again when there are more.", _command(state))


def _retrieval() -> Iterator[NextStep]:
    yield NextStep(
        "Build the retrieval with a search engine or vector store of your choice; Luthier has "
        "none. Keep the questions, the documents found and the answers: those are rows of "
        "prepare.task: grounded."
    )


def _command(state: RunState) -> str:
    """The command that gave this advice."""
    words = ["luthier advise"]
    if state.config is not None and not state.written:
        words.append(f"--config {shlex.quote(state.config)}")
    if state.answers is not None:
        words.append(f"--answers {shlex.quote(state.answers)}")
    return " ".join(words)
