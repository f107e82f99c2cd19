"""The decision tree as data, and the walk down it. The nodes and their order are the framework's.

One thing is added: the framework's rule of the baseline before the training stands as a node
before each training that no prompt has been asked about yet. Only a measurement answers it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from luthier.advice.leaves import LEAVES, Leaf
from luthier.advice.questions import QUESTIONS, Question, Value
from luthier.advice.rules import DATA_NEEDED

_BASELINE = "Has a baseline shown that the best prompt comes near enough to the target?"
_LEAST_LABELS = DATA_NEEDED["classification"].least


@dataclass(frozen=True)
class Known:
    """An answer that is known.

    `source`: who gave it, or where it was measured. `beside` stands beside it: the answer that a
    measurement overruled, or the measurement that could not decide.
    """

    value: Value
    source: str
    is_measured: bool = False
    beside: str | None = None


@dataclass(frozen=True)
class Branch:
    """One way on from a node, to a node of the tree or a leaf.

    `example` is an answer that takes it; None: nothing was measured.
    """

    answer: str
    takes: Callable[[Value | None], bool]
    example: Value | None
    reason: str
    to: str


@dataclass(frozen=True)
class Node:
    """A question and the ways on. One that is `measured_only` is never asked."""

    question: Question
    branches: tuple[Branch, ...]
    measured_only: bool = False

    @property
    def text(self) -> str:
        """The question, as this node means it."""
        return _BASELINE if self.measured_only else self.question.text

    def known(self, answers: Mapping[str, Known]) -> Known | None:
        """The answer, if it counts here."""
        known = answers.get(self.question.id)
        return None if known and self.measured_only and not known.is_measured else known

    def branch(self, value: Value | None) -> Branch:
        """The one way that an answer takes."""
        return next(branch for branch in self.branches if branch.takes(value))


@dataclass(frozen=True)
class Step:
    """A node on the path, what answered it, and the branch taken."""

    node: Node
    known: Known | None
    branch: Branch


@dataclass(frozen=True)
class Walk:
    """The path as far as the answers go; `place` is the leaf or open node where it ends."""

    steps: tuple[Step, ...]
    place: str

    @property
    def end(self) -> Leaf | Question:
        """The leaf, or the question that is open."""
        return TREE[self.place].question if self.place in TREE else LEAVES[self.place]


@dataclass(frozen=True)
class Change:
    """Another answer at a node of the path, and where it leads while all else stays."""

    answer: str
    example: Value
    end: Leaf | Question


def _yes(reason: str, to: str) -> Branch:
    return Branch("yes", lambda value: value is True, True, reason, to)


def _no(reason: str, to: str) -> Branch:
    return Branch("no", lambda value: value is False, False, reason, to)


def _task(task: str, reason: str, to: str) -> Branch:
    word = QUESTIONS["narrow_task"].word(task)
    return Branch(word, lambda value: value == task, task, reason, to)


def _baseline(tuned: str) -> Node:
    return Node(
        QUESTIONS["prompting_suffices"],
        (
            _yes("The best prompt comes within 10 points of the target (rule of thumb): improve "
                 "it first.", "prompting"),
            _no("The best prompt stays 20 points or more below the target (rule of thumb): with "
                "labelled data, training is worth it.", tuned),
            Branch("not decided", lambda value: value is None, None,
                   "No measurement has decided whether a prompt would do. Let one decide before "
                   "you train: within 10 points of the target (rule of thumb), a better prompt "
                   "comes first.", tuned),
        ),
        measured_only=True,
    )  # fmt: skip


def _label_count(value: Value | None) -> int:
    assert isinstance(value, int)
    return value


TREE: Mapping[str, Node] = {
    "knowledge": Node(
        QUESTIONS["needs_external_knowledge"],
        (
            _yes("What changes, or is your own, is looked up: a document can be corrected, "
                 "weights cannot.", "form"),
            _no("Nothing has to be looked up: what is needed can be learned.", "task"),
        ),
    ),
    "form": Node(
        QUESTIONS["format_beyond_prompting"],
        (
            _yes("Retrieval brings knowledge, not form; form is learned.", "hybrid"),
            _no("A prompt holds the form, so nothing has to be trained.", "retrieval"),
        ),
    ),
    "task": Node(
        QUESTIONS["narrow_task"],
        (
            _task("classification", "Narrow, with answers that can be checked: what small models "
                  "learn best.", "labels"),
            _task("extraction", "Narrow, with answers that can be checked: what small models "
                  "learn best.", "labels"),
            _task("none", "No label says what is right, so form is what training could change.",
                  "style"),
        ),
    ),
    "labels": Node(
        QUESTIONS["labelled_examples"],
        (
            Branch(f"{_LEAST_LABELS:,} or more",
                   lambda value: _label_count(value) >= _LEAST_LABELS, _LEAST_LABELS,
                   f"Enough to train on (rule of thumb: {_LEAST_LABELS:,} with LoRA).",
                   "tuned-labels"),
            Branch(f"fewer than {_LEAST_LABELS:,}",
                   lambda value: _label_count(value) < _LEAST_LABELS, _LEAST_LABELS - 1,
                   f"Too few to train on (rule of thumb: {_LEAST_LABELS:,} with LoRA).",
                   "collect-labels"),
        ),
    ),
    "tuned-labels": _baseline("fine-tune-small-model"),
    "style": Node(
        QUESTIONS["consistent_style"],
        (
            _yes("A form that must hold every time is prompted first, and trained if that "
                 "fails.", "prompted"),
            _no("No form has to hold, so training has nothing to teach.", "latency"),
        ),
    ),
    "prompted": Node(
        QUESTIONS["prompting_suffices"],
        (
            _yes("Prompting is the cheapest, and it is near enough.", "prompting"),
            _no("Prompting was tried and does not hold the form: training does.",
                "fine-tune-style"),
        ),
    ),
    "latency": Node(
        QUESTIONS["latency_under_50_ms"],
        (
            _yes("No retrieval and no large model fits into 50 ms (rule of thumb).",
                 "tuned-latency"),
            _no("There is time for retrieval and a good prompt.", "retrieval-and-prompting"),
        ),
    ),
    "tuned-latency": _baseline("fine-tune-latency"),
}  # fmt: skip


def walk(answers: Mapping[str, Known]) -> Walk:
    """Down the tree as far as the answers go."""
    steps: list[Step] = []
    place = "knowledge"
    while place in TREE:
        node = TREE[place]
        known = node.known(answers)
        if known is None and not node.measured_only:
            break
        branch = node.branch(known.value if known else None)
        steps.append(Step(node, known, branch))
        place = branch.to
    return Walk(tuple(steps), place)


def changes(step: Step, answers: Mapping[str, Known]) -> list[Change]:
    """The other ways on from a step, each with where it leads."""
    found: dict[str, Change] = {}
    for branch in step.node.branches:
        if branch.to == step.branch.to or branch.example is None:
            continue
        if branch.to in found:
            answer = f"{found[branch.to].answer} or {branch.answer}"
            found[branch.to] = replace(found[branch.to], answer=answer)
            continue
        changed = Known(branch.example, "a change", is_measured=step.node.measured_only)
        end = walk({**answers, step.node.question.id: changed}).end
        found[branch.to] = Change(branch.answer, branch.example, end)
    return list(found.values())


def open_questions(answers: Mapping[str, Known]) -> list[Question]:
    """The question that is open, then those that may follow, by the answer; none at a leaf."""
    return list(dict.fromkeys(_open_from(walk(answers).place, answers)))


def _open_from(place: str, answers: Mapping[str, Known]) -> list[Question]:
    if place not in TREE:
        return []
    node = TREE[place]
    known = node.known(answers)
    if known is not None or node.measured_only:
        return _open_from(node.branch(known.value if known else None).to, answers)
    below = [question for b in node.branches for question in _open_from(b.to, answers)]
    return [node.question, *below]
