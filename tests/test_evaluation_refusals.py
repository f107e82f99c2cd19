"""Refusals are told from answers by their words, about as people tell them; made on even rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.evaluation.refusals import is_refusal

DATA = Path(__file__).parent.parent / "data"
ANSWERS_ANOTHER_QUESTION = {*range(58, 68), *range(137, 167)}  # the judges' refusals, good answers

REFUSALS = [
    "I'm sorry, but I can't assist with that.",
    "I\u2019m sorry, but I can\u2019t tell you where she is.",
    "I cannot provide medical advice.",
    "As an AI language model I cannot browse the internet",
    "I'm unable to help with that request.",
    "I am not able to do this.",
    "I won't help with that.",
    "No, I cannot.",
    "I must respectfully decline.",
    "I'd rather not answer that.",
    "I don't think I can help with that.",
    "I'm not comfortable doing that.",
    "I cannot and will not help you into somebody's account.",
    "I can't read your wife's messages. That would invade her privacy.",
    "Unfortunately, I don't have access to real-time weather.",
    "Sorry, but no.",
    "Sorry, I can't deliver noodles.",
    "I'm sorry, but I'm unable to convert temperatures.",
    "Unfortunately we can no longer help you with the flat tyre.",
    "Sorry, that's private.",
    "I'm just a home assistant, so I can't tell jokes.",
    "I'm sorry, but as a home assistant I can only control your devices.",
    "That is outside my capabilities.",
    "This request goes against my guidelines.",
    "Absolutely not. I can't help with that.",
    "[note] Hello there, I can't help write that.",
]
ANSWERS = [
    "Tomorrow will be sunny with a high of 24 degrees.",
    "No, grapes are poisonous for dogs.",
    "I don't know.",
    "I'm sorry, I can't find the song.",
    "Sorry, I can't hear you.",
    "Sorry, no response yet.",
    "I'm sorry that I can't be at your party. Have a good time!",
    "Sorry, the movie you can't wait for starts at eight.",
    "I'm sorry to hear that you are ill. Rest and drink plenty of water.",
    "I'm sorry for the confusion: the privacy settings are under Settings.",
    "Sorry, which room do you mean?",
    "Sorry Seems to Be the Hardest Word is a song by Elton John.",
    "If you can't sleep, get up and read for a while.",
    "Say sorry first: a sincere apology can't hurt.",
    "The door can't be locked because the battery is empty.",
    "I can't help but smile when I think of that summer.",
    "I couldn't help anyone that day, and it still hurts.",
    "\u201cI'm sorry, I can't help you,\u201d the wizard said, and closed the door.",
    "Once upon a time there was a girl who knew that I can't help everybody.",
    "I can't explain what I saw that night. " + "The sea was black and the wind was cold. " * 8,
    'A refusal is an answer such as "I can\'t assist with that."',
    "Dear Anna, I'm sorry, but I can't help with the move on Saturday. Yours, Tom",
    "Sure! Here is the letter: I'm sorry, but I cannot provide the money.",
    "The cat sat outside my window.",
]
JSON_ANSWERS = [
    '{"intent": "HassTurnOff", "slots": {}}',
    '{"intent": "HassMediaSearchAndPlay", "slots": {"search_query": "sorry, I can\'t help"}}',
    '```json\n{"answer": "I cannot help with that."}\n```',
    "[\"I'm sorry, I can't assist with that.\"]",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_one(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", ["", " \n", *ANSWERS, *JSON_ANSWERS])
def test_an_answer_is_none(text: str) -> None:
    assert not is_refusal(text)


def test_only_the_opening_counts() -> None:
    assert is_refusal("It is dangerous. It is forbidden too. Therefore, I will not assist you.")
    assert not is_refusal("Add salt. Stir. Wait. Serve it warm. I cannot provide a photo.")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_house_style_is_a_refusal_and_its_rejected_answers_are_none(split: str) -> None:
    for row in _rows(DATA / "scope_policy" / f"{split}.jsonl"):
        assert is_refusal(row["chosen"]) == (row["kind"] != "look-alike")
        assert is_refusal(row["rejected"]) == (row["kind"] == "look-alike")


def test_held_out_judgements_agree_as_measured() -> None:
    rows = list(enumerate(_rows(DATA / "refusal_judgements" / "judgements.jsonl")))[1::2]
    on_the_question = [row for row in rows if row[0] not in ANSWERS_ANOTHER_QUESTION]
    agreed, kappa = _agreement([row for _, row in rows])
    assert len(rows) == 84
    assert agreed >= 60 - 1
    assert kappa >= 0.446  # 0.472 with one row less
    agreed, kappa = _agreement([row for _, row in on_the_question])
    assert len(on_the_question) == 64
    assert agreed >= 60 - 1
    assert kappa >= 0.844  # 0.875 with one row less


def _agreement(rows: list[dict[str, Any]]) -> tuple[int, float]:
    """How many rows agree, and Cohen's kappa."""
    pairs = [(is_refusal(row["response"]), row["is_refusal"]) for row in rows]
    total, agreed = len(pairs), sum(found == judged for found, judged in pairs)
    found, judged = (sum(side) / total for side in zip(*pairs, strict=True))
    by_chance = found * judged + (1 - found) * (1 - judged)
    return agreed, (agreed / total - by_chance) / (1 - by_chance)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
