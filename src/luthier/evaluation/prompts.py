"""Prompts for a base that was not trained on the task: an instruction, and perhaps examples.

One form serves both: the instruction with the labels as the system message, the examples as
earlier turns, the bare text as the user's last message. Measured on SmolLM2-135M-Instruct with 61
rows of package_sections (2026-11-23, 14 labels, one draw of 8 examples), accuracy of generation
read leniently / of likelihood:
  no examples: this form 0.05 / 0.25; "write the label and nothing else" 0.07 / 0.20; the text
  between "Text:" and "Label:" 0.07 / 0.23; all in one user message 0.05 / 0.05
  8 examples: this form 0.18 / 0.26; "\nSection:" after the text 0.13 / 0.26; examples in one user
  message 0.05 / 0.16; 14 examples as turns 0.15 / 0.28
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.data.rows import Message, Task
from luthier.data.summary import DatasetInfo
from luthier.errors import DataError
from luthier.evaluation.nearest import NearestExamples
from luthier.evaluation.rows import AskedRow
from luthier.evaluation.systems import Prompt
from luthier.models.chat import encode, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BETWEEN_COMPLETIONS = "\n\n"


@dataclass(frozen=True)
class PromptForm:
    """How a row is asked: what stands before every row, or before each with `nearest`."""

    task: Task
    instruction: str | None
    examples: tuple[AskedRow, ...] = ()
    nearest: NearestExamples | None = None

    def token_ids(self, tokenizer: "PreTrainedTokenizerBase", row: AskedRow) -> list[int]:
        """The whole prompt of one row."""
        if self.task == "completion":
            return self._plain(tokenizer, row)
        messages = self.messages(row)
        return encode(tokenizer, render(tokenizer, messages, add_generation_prompt=True))

    def messages(self, row: AskedRow) -> list[Message]:
        """The conversation that ends with one row's question; none for bare text."""
        return [] if self.task == "completion" else [*self._opening(row), *row.asked]

    def text(self, row: AskedRow) -> str:
        """The bare text that one row's reply goes on after; empty for conversations."""
        if self.task != "completion":
            return ""
        asked = "".join(message["content"] for message in row.messages[:-1])
        return f"{self._before(row)}{asked}"

    def examples_for(self, row: AskedRow) -> tuple[AskedRow, ...]:
        """The examples that stand before one row's question."""
        return self.examples if self.nearest is None else self.nearest.examples_for(row)

    def _opening(self, row: AskedRow) -> list[Message]:
        system = self.instruction or next(
            (message["content"] for message in row.messages if message["role"] == "system"), None
        )
        opening: list[Message] = [{"role": "system", "content": system}] if system else []
        for example in self.examples_for(row):
            opening += [*example.asked, example.messages[-1]]
        return opening

    def _plain(self, tokenizer: "PreTrainedTokenizerBase", row: AskedRow) -> list[int]:
        before = encode(tokenizer, self._before(row))
        bos = 1 if row.prompt_ids[:1] == (tokenizer.bos_token_id,) else 0
        return [*row.prompt_ids[:bos], *before, *row.prompt_ids[bos:]]

    def _before(self, row: AskedRow) -> str:
        blocks = [self.instruction] if self.instruction else []
        blocks += [
            "".join(m["content"] for m in example.messages) for example in self.examples_for(row)
        ]
        return "".join(f"{block}{_BETWEEN_COMPLETIONS}" for block in blocks)


def make_prompts(
    form: PromptForm, tokenizer: "PreTrainedTokenizerBase", rows: Sequence[AskedRow]
) -> list[Prompt]:
    """Every row asked in this form; free-text tasks bring their reference reply."""
    return [
        Prompt(
            row.id,
            tuple(form.token_ids(tokenizer, row)),
            _reference(form.task, row),
            tuple(form.messages(row)),
            form.text(row),
        )
        for row in rows
    ]


def trained_prompts(task: Task, rows: Sequence[AskedRow]) -> list[Prompt]:
    """Every row asked with the very tokens that training saw before the reply."""
    form = PromptForm(task, None)
    return [
        Prompt(
            row.id,
            row.prompt_ids,
            _reference(task, row),
            tuple(row.messages[:-1]) if task != "completion" else (),
            form.text(row),
        )
        for row in rows
    ]


def label_instruction(info: DatasetInfo) -> str | None:
    """The task's system prompt with the labels to choose from; None for tasks without labels."""
    if info.task != "classification":
        return None
    choice = f"Answer with exactly one of: {', '.join(info.labels)}."
    return f"{info.system_prompt}\n{choice}" if info.system_prompt else choice


def choose_examples(rows: Sequence[AskedRow], count: int, seed: int) -> tuple[AskedRow, ...]:
    """`count` training rows, the classes taking turns in an order drawn by the seed.

    Raises:
        DataError: there are fewer rows than examples asked for.
    """
    if count > len(rows):
        raise DataError(
            f"baseline.few_shot is {count}, but the dataset has {len(rows)} train rows. Lower it."
        )
    generator = random.Random(seed)
    by_class: dict[str, list[AskedRow]] = {}
    for row in rows:
        by_class.setdefault(row.label or "", []).append(row)
    classes = sorted(by_class)
    generator.shuffle(classes)
    for label in classes:
        generator.shuffle(by_class[label])
    turns = range(max(map(len, by_class.values()), default=0))
    taken = [
        by_class[label][turn] for turn in turns for label in classes if turn < len(by_class[label])
    ]
    return tuple(taken[:count])


def label_tokens(
    tokenizer: "PreTrainedTokenizerBase", info: DatasetInfo, row: AskedRow
) -> tuple[tuple[int, ...], ...]:
    """Each label as the tokens that follow a prompt, without the stop token.

    A label is tokenised where it stands, as the reply to `row`, since a template may put a blank
    before it.
    """
    found = []
    for label in info.labels:
        messages = [*row.messages[:-1], {"role": "assistant", "content": label}]
        ids = encode(tokenizer, render(tokenizer, messages, add_generation_prompt=False))
        reply = ids[len(row.prompt_ids) :]
        end = next(
            (i for i, token in enumerate(reply) if token in info.stop_token_ids), len(reply)
        )
        found.append(tuple(reply[:end]))
    return tuple(found)


def _reference(task: Task, row: AskedRow) -> tuple[int, ...]:
    return () if task == "classification" else row.reference
