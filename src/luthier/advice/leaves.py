"""Where the tree ends: the eight things that can be advised."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from luthier.advice import rules
from luthier.advice.rules import Goal

LeafId = Literal[
    "hybrid",
    "retrieval",
    "fine-tune-small-model",
    "collect-labels",
    "prompting",
    "fine-tune-style",
    "fine-tune-latency",
    "retrieval-and-prompting",
]


@dataclass(frozen=True)
class Leaf:
    """One advice. `goal` says which data it takes; `figures` are rules of thumb to know."""

    id: LeafId
    title: str
    text: str
    fine_tunes: bool
    goal: Goal | None = None
    figures: tuple[str, ...] = ()


_ALL = (
    Leaf(
        "hybrid",
        "Retrieval and a fine-tuned generator",
        "Retrieval first: it brings the knowledge. Then a model fine-tuned on rows of question, "
        "retrieved documents and answer holds the form.",
        fine_tunes=True,
        goal="style",
        figures=(rules.RETRIEVAL_LATENCY, rules.FORGETTING),
    ),
    Leaf(
        "retrieval",
        "Retrieval, no fine-tuning",
        "Look the knowledge up and put it into the prompt. Training would freeze it.",
        fine_tunes=False,
        figures=(rules.RETRIEVAL_ACCURACY, rules.RETRIEVAL_LATENCY),
    ),
    Leaf(
        "fine-tune-small-model",
        "Fine-tune a small model",
        "A small model (rule of thumb: 7B to 13B) fine-tuned on the labels, measured against the "
        "best prompt on rows that training has not seen.",
        fine_tunes=True,
        goal="classification",
        figures=(rules.TUNED_ACCURACY, rules.FORGETTING),
    ),
    Leaf(
        "collect-labels",
        "Collect labels first",
        "There is too little to train on. Collect labelled examples; meanwhile few-shot prompting "
        "or retrieval does the work, and its corrected answers become labels.",
        fine_tunes=False,
        goal="classification",
    ),
    Leaf(
        "prompting",
        "Prompting, no fine-tuning",
        "A better prompt with examples is the cheapest way there. Keep the held-out set, and "
        "measure every change of the prompt on it.",
        fine_tunes=False,
        figures=(rules.MOST_PROBLEMS,),
    ),
    Leaf(
        "fine-tune-style",
        "Fine-tune for style or format",
        "Train on examples that all have the wanted form. Their quality counts for more than "
        "their number.",
        fine_tunes=True,
        goal="style",
        figures=(rules.FORGETTING,),
    ),
    Leaf(
        "fine-tune-latency",
        "Fine-tune a small model for latency",
        "A small model that has learned the task answers from a short prompt, without the round "
        "trip of retrieval.",
        fine_tunes=True,
        goal="instructions",
        figures=(rules.TUNED_LATENCY, rules.RETRIEVAL_LATENCY, rules.FORGETTING),
    ),
    Leaf(
        "retrieval-and-prompting",
        "Retrieval with good prompting, and look again",
        "Nothing here calls for training. Instrument what you have, collect its failures, and "
        "decide again after 30 days of production data.",
        fine_tunes=False,
        figures=(rules.MOST_PROBLEMS, rules.VOLUME),
    ),
)
LEAVES: Mapping[str, Leaf] = {leaf.id: leaf for leaf in _ALL}
