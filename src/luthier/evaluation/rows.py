"""The rows that are evaluated, and those that examples are taken from."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.data.dataset import load_split
from luthier.data.rows import Message, Split
from luthier.data.slicing import read_slices
from luthier.data.spool import message_from


@dataclass(frozen=True)
class AskedRow:
    """One row of a dataset: what is asked, and the reply that is expected.

    `prompt_ids` are the tokens that training saw before the reply, `reference` those of the reply
    with its stop token.
    """

    id: str
    messages: tuple[Message, ...]
    expected: str
    label: str | None
    prompt_ids: tuple[int, ...]
    reference: tuple[int, ...]
    group: str | None = None
    slices: Mapping[str, str] = field(default_factory=dict)

    @property
    def asked(self) -> tuple[Message, ...]:
        """The conversation before the reply, without its system message."""
        return tuple(message for message in self.messages[:-1] if message["role"] != "system")

    @property
    def question(self) -> str:
        """What is asked, as one text; without the system message."""
        return "\n".join(str(message["content"] or "") for message in self.asked)


def load_rows(
    folder: Path, split: Split, limit: int | None = None, seed: int = 0
) -> list[AskedRow]:
    """Rows of a split in its order; with `limit` a sample that depends on the seed alone.

    Replay rows, which are no part of the task, are left out.

    Raises:
        DataError: the dataset has no such split.
    """
    found: Sequence[Any] = load_split(folder, split).to_list()
    records = [record for record in found if record["origin"] != "replay"]
    if limit is not None and limit < len(records):
        chosen = random.Random(seed).sample(range(len(records)), limit)
        records = [records[index] for index in sorted(chosen)]
    return [_row(record) for record in records]


def evenly(rows: int, count: int) -> list[int]:
    """`count` row numbers at even distances, all of them where there are fewer."""
    count = min(rows, count)
    return [index * rows // count for index in range(count)]


def _row(record: Mapping[str, Any]) -> AskedRow:
    ids, prompt_length = record["input_ids"], record["prompt_length"]
    return AskedRow(
        id=record["id"],
        messages=tuple(map(message_from, record["messages"])),
        expected=record["label"] or record["messages"][-1]["content"],
        label=record["label"],
        prompt_ids=tuple(ids[:prompt_length]),
        reference=tuple(ids[prompt_length:]),
        group=record.get("group"),
        slices=read_slices(record.get("slices")),
    )
