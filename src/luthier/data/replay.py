"""Replay: general rows among those of the task, so that the model forgets less of the rest.

The rows are the user's own, or the base answers a list of instructions itself. Rehearsal on data
that the model wrote keeps its abilities about as well as rehearsal on what it was trained on,
which nobody has (Huang et al. 2024, arXiv 2403.01244), and what the model itself would say pulls
it away from itself least (Yang et al. 2024, arXiv 2402.13669). Only that is taken from the two:
the first also lets the model invent the instructions and selects among them, the second rewrites
the replies of the task.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import model_validator

from luthier.config import Field, Section
from luthier.data.draws import draws
from luthier.data.formats.values import text
from luthier.data.rows import RawRow, Rejected, RowError, message
from luthier.data.summary import Advice
from luthier.errors import DataError
from luthier.models.chat import encode, render, stop_token_ids
from luthier.models.loading import load_model, load_tokenizer, pick_device
from luthier.store.artifact import Workspace
from luthier.store.files import write_atomically
from luthier.store.journal import Journal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

JOURNAL_NAME = "replay-answers.jsonl"
ORIGIN = "replay"

# Tokens in the cache of a batch, prompts and answers. A batch goes on until its last answer has
# ended. CPU: a token takes as long in 8 rows of SmolLM2 as in 23, and 3.5 times as long in 1
# (measured on 2 busy cores, 2026-11-23).
_BATCH_TOKENS = {"cpu": 2560, "cuda": 65536}

Text = Annotated[str, Field(min_length=1)]
Outcome = Literal["answered", "cut", "empty", "special-token", "not-text"]


class ReplaySection(Section):
    """General instruction data in train: rows from a file, or answers of the base itself."""

    path: Text | None = Field(
        None, description="rows of general instructions with answers, in any format of task: chat"
    )
    prompts: Text | None = Field(
        None,
        description="instructions (column `prompt`) that the base answers itself, such as "
        "data/general/prompts.jsonl",
    )
    fraction: float = Field(
        0.05, ge=0.0, le=0.5, description="share of the finished train rows that is replay"
    )
    max_new_tokens: int = Field(
        256,
        ge=1,
        description="longest answer to one of `prompts`, its stop token included; an answer that "
        "does not end by then is left out",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.path is None) == (self.prompts is None):
            raise ValueError("give either path (rows with answers) or prompts (the base answers)")
        return self


@dataclass(frozen=True, slots=True)
class ReplayPrompt:
    """One instruction, and where it stands."""

    text: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the base said to prompt `number`. Only `answered` ones become rows.

    `cut`: no stop token came; `special-token`: it wrote one that belongs to the template;
    `not-text`: the tokens are no whole characters.
    """

    number: int
    text: str
    outcome: Outcome


def read_prompts(
    records: Iterable[RawRow | Rejected],
) -> tuple[list[ReplayPrompt], list[Rejected]]:
    """The instructions of a file's records, and the records that are none."""
    prompts, rejected = [], []
    for record in records:
        if isinstance(record, Rejected):
            rejected.append(record)
            continue
        try:
            prompts.append(ReplayPrompt(_prompt(record), record.file, record.line))
        except RowError as error:
            rejected.append(Rejected(record.file, record.line, str(error), record.raw))
    return prompts, rejected


def _prompt(record: RawRow) -> str:
    if "prompt" not in record.values:
        raise RowError("column-missing", "no 'prompt', the column with the instruction")
    return text(record.values, "prompt")


def generate_answers(
    base: Path, prompts: Sequence[ReplayPrompt], section: ReplaySection, workspace: Workspace
) -> list[Answer]:
    """The base's greedy answers, one a prompt, in their order.

    Each batch is in the workspace's journal before the next begins. How prompts are cut into
    batches depends on the prompts alone, so an interrupted run that goes on says the same.

    Raises:
        DataError: a prompt with its answer is longer than the model's context.
        InterruptedRunError: a stop was requested; the finished batches are kept.
        ModelError: the base does not load or has no chat template.
    """
    tokenizer = load_tokenizer(base)
    token_ids = [_encoded(tokenizer, prompt.text) for prompt in prompts]
    batches = _batches([len(ids) for ids in token_ids], section.max_new_tokens)
    journal = Journal(workspace.scratch / JOURNAL_NAME)
    answers = {found[0]: Answer(*found) for batch in journal.read() for found in batch}
    left = [batch for batch in batches if batch[0] not in answers]
    with workspace.reporter.task("replay answers", len(prompts), "rows") as task:
        task.resize(len(prompts), done=len(answers))
        if left:
            speaker = _Speaker(base, tokenizer, section.max_new_tokens)
            speaker.check([len(ids) for ids in token_ids], prompts)
        for batch in left:
            workspace.raise_if_stopped()
            found = speaker.answer(batch, [token_ids[number] for number in batch])
            journal.append([[one.number, one.text, one.outcome] for one in found])
            answers |= {one.number: one for one in found}
            task.advance(len(batch))
    return [answers[number] for number in range(len(prompts))]


def write_rows(
    path: Path, prompts: Sequence[ReplayPrompt], answers: Sequence[Answer], base_digest: str
) -> None:
    """The answered prompts as chat rows, each with where its prompt stands and who answered."""
    rows = [
        {
            "messages": [message("user", prompt.text), message("assistant", answer.text)],
            "origin": ORIGIN,
            "prompt": f"{prompt.file}:{prompt.line}",
            "base": base_digest,
        }
        for prompt, answer in zip(prompts, answers, strict=True)
        if answer.outcome == "answered"
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_atomically(path, "".join(lines))


def wanted(count_train: int, fraction: float) -> int:
    """Replay rows, to the nearest, that are `fraction` of train beside `count_train` others."""
    return round(count_train * fraction / (1 - fraction))


def draw(
    count_train: int, keys: "NDArray[np.uint64]", fraction: float, seed: int
) -> "NDArray[np.int64]":
    """Positions, ascending, of the replay rows that go into train; all where there are too few.

    Args:
        count_train: train rows that are no replay, after every decision.
        keys: one of each replay row that may be taken; the order of rows plays no part.
    """
    import numpy as np

    order = np.argsort(draws(keys, seed, ORIGIN), kind="stable")
    return np.sort(order[: wanted(count_train, fraction)])


def shortage(count_train: int, available: int, fraction: float) -> Advice | None:
    """What to say when there are fewer replay rows than the fraction asks for."""
    missing = wanted(count_train, fraction) - available
    if missing <= 0:
        return None
    share = available / (count_train + available)
    return Advice(
        id="replay-short",
        level="warn",
        text=f"replay is {share:.1%} of train, not {fraction:.1%}: there are {available} replay "
        f"rows and {missing} more are needed. Give prepare.replay more of them, or lower its "
        "fraction.",
    )


def _encoded(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    conversation = [message("user", prompt)]
    return encode(tokenizer, render(tokenizer, conversation, add_generation_prompt=True))


def _batches(lengths: Sequence[int], max_new_tokens: int) -> list[list[int]]:
    """Prompts of nearly one length together, as many as the cache may hold."""
    limit = _BATCH_TOKENS[pick_device()]
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda place: (lengths[place], place)):
        rows = len(batches[-1]) + 1 if batches else 1
        if not batches or rows * (lengths[number] + max_new_tokens) > limit:
            batches.append([])
        batches[-1].append(number)
    return batches


class _Speaker:
    """The base, ready to answer. Letters: B rows of a batch, T tokens."""

    def __init__(
        self, base: Path, tokenizer: "PreTrainedTokenizerBase", max_new_tokens: int
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = frozenset(stop_token_ids(base, tokenizer))
        added = tokenizer.added_tokens_decoder.items()
        special = {token_id for token_id, token in added if token.special}
        self._special = (special | set(tokenizer.all_special_ids)) - self._stops
        self._model = _load(base)
        self._config = _greedy(sorted(self._stops), max_new_tokens)
        # generate() takes what a config leaves open (min_new_tokens) from the model's own
        self._model.generation_config = self._config
        self._max_new_tokens = max_new_tokens

    def check(self, lengths: Sequence[int], prompts: Sequence[ReplayPrompt]) -> None:
        """Raises DataError for a prompt whose answer might not fit into the context."""
        config = self._model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        for length, prompt in zip(lengths, prompts, strict=True):
            if limit is not None and length + self._max_new_tokens > limit:
                raise DataError(
                    f"{prompt.file}:{prompt.line}: the prompt has {length} tokens and its answer "
                    f"may have {self._max_new_tokens}, but the base's context is {limit}. Remove "
                    "the prompt, or lower prepare.replay.max_new_tokens."
                )

    def answer(self, numbers: Sequence[int], token_ids: Sequence[Sequence[int]]) -> list[Answer]:
        """Answer one batch; shorter prompts are padded and masked on the left."""
        import torch

        longest = max(len(ids) for ids in token_ids)
        padded = [[min(self._stops)] * (longest - len(ids)) + list(ids) for ids in token_ids]
        real = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in token_ids]
        device = self._model.device
        with torch.inference_mode():
            said_BT = self._model.generate(
                input_ids=torch.tensor(padded, device=device),
                attention_mask=torch.tensor(real, device=device),
                generation_config=self._config,
            )
        said = said_BT[:, longest:].tolist()
        return [self._read(number, ids) for number, ids in zip(numbers, said, strict=True)]

    def _read(self, number: int, ids: Sequence[int]) -> Answer:
        end = next((place for place, found in enumerate(ids) if found in self._stops), None)
        reply = ids[:end]
        spelled = str(self._tokenizer.decode(reply))
        outcome: Outcome = "answered"
        if end is None:
            outcome = "cut"
        elif not spelled.strip():
            outcome = "empty"
        elif not self._special.isdisjoint(reply):
            outcome = "special-token"
        elif "\ufffd" in spelled:
            outcome = "not-text"
        return Answer(number, spelled, outcome)


def _load(base: Path) -> "PreTrainedModel":
    device = pick_device()
    return load_model(base, dtype="bfloat16" if device == "cuda" else "float32", device=device)


def _greedy(stops: list[int], max_new_tokens: int) -> "GenerationConfig":
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops,
        pad_token_id=stops[0],
    )
