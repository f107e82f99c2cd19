"""One advice: the leaf, how it was reached, what would change it, and what to do next."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from luthier.advice.leaves import Leaf
from luthier.advice.next_steps import NextStep, RunState, next_steps
from luthier.advice.questions import QUESTIONS, Question, Value
from luthier.advice.rules import DATA_NEEDED, METHOD_FOR, METHODS, SIZES, DataNeed
from luthier.advice.tree import Change, Known, Step, changes, walk


@dataclass(frozen=True)
class Finding:
    """What a run measured about a question; `value` is None where that decides nothing.

    `source` says in a few words where, and what was found.
    """

    value: Value | None
    source: str


@dataclass(frozen=True)
class Reason:
    """One node of the path with its other ways on. `beside`: see `Known`."""

    step: Step
    answer: str
    source: str
    beside: str | None
    changes: Sequence[Change]


@dataclass(frozen=True)
class Advice:
    """What is advised. `method` is a key of METHODS, None where nothing is trained or the hardware
    is not known; `unused` are answers that the path did not ask for."""

    leaf: Leaf
    reasons: Sequence[Reason]
    data: DataNeed | None
    labelled: Known | None
    method: str | None
    hardware: Value | None
    unused: Sequence[str]
    next_steps: Sequence[NextStep]
    measured: Sequence[tuple[str, str]] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """JSON values, for `--json`."""
        return {
            "advice": self.leaf.id,
            "title": self.leaf.title,
            "text": self.leaf.text,
            "fine_tunes": self.leaf.fine_tunes,
            "path": [_reason_json(reason) for reason in self.reasons],
            "measured": [{"what": what, "found": found} for what, found in self.measured],
            "rules_of_thumb": {
                "data": asdict(self.data) if self.data else None,
                "methods": {name: asdict(METHODS[name]) for name in methods(self.leaf)},
                "figures": list(figures(self.leaf)),
            },
            "labelled_examples": self.labelled.value if self.labelled else None,
            "method": self.method,
            "hardware": self.hardware,
            "unused_answers": list(self.unused),
            "next": [asdict(step) for step in self.next_steps],
        }


def merged(given: Mapping[str, Value], found: Mapping[str, Finding]) -> dict[str, Known]:
    """Answers and measurements as one: what was measured wins, and the other stands beside it."""
    known: dict[str, Known] = {}
    for name, question in QUESTIONS.items():
        answer, measured = given.get(name), found.get(name)
        if measured is not None and measured.value is not None:
            beside = None
            if answer is not None and answer != measured.value:
                beside = f"your answer was {question.word(answer)}; what was measured counts"
            known[name] = Known(measured.value, measured.source, is_measured=True, beside=beside)
        elif answer is not None:
            beside = f"measured, but it does not decide: {measured.source}" if measured else None
            known[name] = Known(answer, "your answer", beside=beside)
    return known


def advise(
    known: Mapping[str, Known],
    state: RunState,
    found: Mapping[str, Finding] | None = None,
    measured: Sequence[tuple[str, str]] = (),
) -> Advice:
    """The advice for answers that reach a leaf.

    Args:
        known: by question.
        state: the run config there is, if any.
        found: what was measured, by question, to show where it did not decide.
        measured: what else a run measured: a label and a text.
    """
    walked = walk(known)
    leaf = walked.end
    assert isinstance(leaf, Leaf), "a question is open"
    hardware = known["hardware"].value if "hardware" in known and leaf.fine_tunes else None
    used = {step.node.question.id for step in walked.steps if step.known}
    used |= {"hardware"} if leaf.fine_tunes else set()
    used |= {"labelled_examples"} if leaf.goal else set()
    return Advice(
        leaf=leaf,
        reasons=[_reason(step, known, found or {}) for step in walked.steps],
        data=DATA_NEEDED[leaf.goal] if leaf.goal else None,
        labelled=known.get("labelled_examples") if leaf.goal else None,
        method=METHOD_FOR[str(hardware)] if hardware else None,
        hardware=hardware,
        unused=[name for name, one in known.items() if name not in used and not one.is_measured],
        next_steps=next_steps(leaf, state, str(hardware) if hardware else None),
        measured=measured,
    )


def figures(leaf: Leaf) -> tuple[str, ...]:
    """The rules of thumb to know at a leaf."""
    return (*leaf.figures, SIZES) if leaf.fine_tunes else leaf.figures


def methods(leaf: Leaf) -> list[str]:
    """The methods that a leaf may be trained with; pure classification has no use for DPO."""
    if not leaf.fine_tunes:
        return []
    return [name for name in METHODS if name != "dpo" or leaf.goal != "classification"]


def _reason(step: Step, known: Mapping[str, Known], found: Mapping[str, Finding]) -> Reason:
    others = changes(step, known)
    if step.known is None:
        undecided = found.get(step.node.question.id)
        source = undecided.source if undecided else "nothing was measured"
        return Reason(step, step.branch.answer, source, None, others)
    answer = step.node.question.word(step.known.value)
    return Reason(step, answer, step.known.source, step.known.beside, others)


def _reason_json(reason: Reason) -> dict[str, Any]:
    known = reason.step.known
    return {
        "question": reason.step.node.question.id,
        "text": reason.step.node.text,
        "answer": known.value if known else None,
        "measured": bool(known and known.is_measured),
        "source": reason.source,
        "beside": reason.beside,
        "reason": reason.step.branch.reason,
        "changes": [_change_json(change) for change in reason.changes],
    }


def _change_json(change: Change) -> dict[str, Any]:
    kind = "asks" if isinstance(change.end, Question) else "advice"
    return {"answer": change.answer, "example": change.example, kind: change.end.id}
