"""Rules of thumb of the decision framework. Claims, not measurements: what is measured wins.

Papers: LoRA, arXiv 2106.09685; QLoRA, 2305.14314; DPO, 2305.18290; retrieval, 2005.11401.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Goal = Literal["classification", "style", "instructions"]


@dataclass(frozen=True)
class DataNeed:
    """Training rows for a goal: the least that is worth a try, and how many are reliable."""

    goal: str
    least: int
    reliable: int
    text: str


DATA_NEEDED: Mapping[Goal, DataNeed] = {
    "classification": DataNeed(
        "classification or extraction",
        1_000,
        5_000,
        "1,000 labelled examples at least with LoRA; 5,000 to 10,000 are reliable",
    ),
    "style": DataNeed("a style or format", 500, 1_000, "500 to 1,000 examples of high quality"),
    "instructions": DataNeed(
        "following instructions on new tasks", 10_000, 50_000, "10,000 to 50,000 examples"
    ),
}
HELD_OUT_ROWS = 100  # "a held-out set of at least 100 examples"


@dataclass(frozen=True)
class Method:
    """A way to train; `quality` is against full fine-tuning."""

    name: str
    use: str
    hardware: str
    quality: str


METHODS: Mapping[str, Method] = {
    "lora": Method("LoRA", "general use", "one A100 40 GB", "about 1 to 2 % below"),
    "qlora": Method(
        "QLoRA (NF4)",
        "a small budget",
        "one RTX 4090, 3090 or A10",
        "about 2 to 5 % below on reasoning, under 1 % on classification and extraction",
    ),
    "full": Method("full SFT", "the best quality", "4 to 8 A100", "the reference"),
    "dpo": Method(
        "DPO, after SFT",
        "preferences and refusals",
        "as its SFT",
        "starts from an SFT; pure format does not need it",
    ),
}
# What the table's hardware column says of each hardware that the question offers. A CPU stands in
# no table: LoRA, because 4 bits save memory that a very small model does not need.
METHOD_FOR: Mapping[str, Literal["lora", "qlora"]] = {
    "cpu": "lora",
    "rtx-4090": "qlora",
    "a100-40gb": "lora",
    "a100-80gb": "lora",
    "h100-80gb": "lora",
}

MOST_PROBLEMS = (
    "About 70 % of production problems need better prompting or retrieval, about 30 % need "
    "fine-tuning; fine-tuning the wrong problem costs weeks."
)
RETRIEVAL_LATENCY = "Retrieval adds 100 to 400 ms to every answer."
TUNED_LATENCY = "A fine-tuned 7B model answers in 15 to 30 ms on one A100."
RETRIEVAL_ACCURACY = (
    "On the framework's classification task a prompted frontier model reached 31 %, with "
    "retrieval 52 to 65 %."
)
TUNED_ACCURACY = (
    "On the framework's classification task a prompted frontier model reached 31 %, a fine-tuned "
    "7B model 88 %, at a tenth to a fifteenth of the cost per token."
)
FORGETTING = (
    "Against forgetting: LoRA (the base stays frozen), 1 to 3 epochs, a small share of general "
    "instruction data mixed in."
)
SIZES = (
    "A 7B model takes about 14 GB in 16 bits and about 5 GB in 4 bits; adapters are typically 50 "
    "to 300 MB."
)
VOLUME = (
    "Below 1 million tokens a month: prompting. 1 to 10 million: retrieval and prompting through "
    "a cost-efficient API. Above 10 million on one task: a fine-tuned small model."
)
