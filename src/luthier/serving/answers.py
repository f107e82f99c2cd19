"""Greedy answers to probes, by transformers and by llama.cpp, in one form that can be compared."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.dataset import load_split, split_files
from luthier.data.final_answer import same_answer
from luthier.data.rows import Split
from luthier.errors import ServingError
from luthier.evaluation.rows import evenly
from luthier.models.loading import load_model
from luthier.models.parity import check_device
from luthier.serving.llama_server import Completion, LlamaServer
from luthier.store.artifact import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MARGIN_TOKENS = 8  # beyond the longest trained reply: a model that rambles must be seen to ramble
_BATCH_ROWS = 16
_PROBE_SPLITS: tuple[Split, ...] = ("test", "validation", "train")


@dataclass(frozen=True)
class Answer:
    """A reply without the token that ended it; `stopped` says that one of the stop ids did."""

    token_ids: tuple[int, ...]
    stopped: bool


@dataclass(frozen=True)
class Probe:
    """A held-out row: the question as messages and as training's ids, and the reply expected."""

    messages: tuple[dict[str, str], ...]
    prompt_ids: tuple[int, ...]
    expected: str


@dataclass(frozen=True)
class ProbeSet:
    """Probes of one dataset, and the facts of it that serving needs.

    `from_messages` is False where the task has no chat template. `max_new_tokens` is the longest
    trained reply plus a margin. `texts` are messages as users write them, for tokenizer parity.
    """

    probes: tuple[Probe, ...]
    texts: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    system_prompt: str | None
    from_messages: bool
    max_new_tokens: int
    answer_regex: str | None = None

    def is_expected(self, text: str, probe: Probe) -> bool:
        """Whether an answer is the expected reply; where the task has a regex, has its answer."""
        if self.answer_regex is not None:
            return same_answer(self.answer_regex, text, probe.expected)
        return text.strip() == probe.expected.strip()

    @property
    def context_tokens(self) -> int:
        """The room that the longest probe and its answer take."""
        return max(len(probe.prompt_ids) for probe in self.probes) + self.max_new_tokens


def read_probes(dataset_folder: Path, count: int, text_count: int) -> ProbeSet:
    """`count` rows spread over the test split (validation or training where there is none).

    Raises:
        ServingError: the dataset has no rows.
    """
    info = json.loads((dataset_folder / "dataset.json").read_text("utf-8"))
    splits = [split for split in _PROBE_SPLITS if split_files(dataset_folder, split)]
    if not splits:
        raise ServingError(f"{dataset_folder}: no rows to probe the exported model with.")
    columns = ["messages", "input_ids", "prompt_length"]
    probes = load_split(dataset_folder, splits[0], columns)
    texts = load_split(dataset_folder, splits[-1], ["messages"])
    rows = probes.select(evenly(len(probes), count)).to_list()
    text_rows = texts.select(evenly(len(texts), text_count)).to_list()
    return ProbeSet(
        probes=tuple(_probe(row) for row in rows),
        texts=tuple(
            message["content"]
            for row in text_rows
            for message in row["messages"][-2:]
            if message["content"]
        ),
        stop_token_ids=tuple(info["stop_token_ids"]),
        system_prompt=info["system_prompt"] or None,
        from_messages=info["task"] != "completion",
        max_new_tokens=_longest_reply(dataset_folder, splits) + MARGIN_TOKENS,
        answer_regex=info.get("answer_regex"),
    )


def _longest_reply(dataset_folder: Path, splits: Sequence[Split]) -> int:
    """Tokens of the longest last reply, looked for a stretch of rows at a time."""
    import pyarrow.compute as pc
    import pyarrow.parquet as parquet

    longest = 0
    for path in (path for split in splits for path in split_files(dataset_folder, split)):
        for batch in parquet.ParquetFile(path).iter_batches(
            columns=["input_ids", "prompt_length"]
        ):
            replies = pc.subtract(pc.list_value_length(batch["input_ids"]), batch["prompt_length"])
            longest = max(longest, pc.max(replies).as_py() or 0)
    return longest


def _probe(row: dict[str, Any]) -> Probe:
    *prompt, reply = row["messages"]
    return Probe(
        messages=tuple({"role": item["role"], "content": item["content"]} for item in prompt),
        prompt_ids=tuple(row["input_ids"][: row["prompt_length"]]),
        expected=reply["content"],
    )


def transformers_answers(
    model_folder: Path, probes: ProbeSet, workspace: Workspace, label: str
) -> list[Answer]:
    """The greedy answers of a model folder, computed in float32."""
    model = load_model(model_folder, device=check_device(model_folder))
    prompts = [probe.prompt_ids for probe in probes.probes]
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    answers: dict[int, Answer] = {}
    with workspace.reporter.task(label, len(prompts), "answers") as task:
        for start in range(0, len(order), _BATCH_ROWS):
            workspace.raise_if_stopped()
            rows = order[start : start + _BATCH_ROWS]
            replies = _generate(model, [prompts[row] for row in rows], probes)
            answers.update(zip(rows, replies, strict=True))
            task.advance(len(rows))
    return [answers[row] for row in range(len(prompts))]


def _generate(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], probes: ProbeSet
) -> Iterator[Answer]:
    # B rows, T tokens of the longest prompt
    import torch
    from transformers import GenerationConfig

    stop_ids = list(probes.stop_token_ids)
    pad_id = stop_ids[0]  # masked wherever it pads
    longest = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), longest), pad_id)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, longest - len(prompt) :] = 1
    # Nothing of the folder's own generation_config (a repetition penalty, say) may come in.
    model.generation_config = GenerationConfig()
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=probes.max_new_tokens,
        eos_token_id=stop_ids,
        pad_token_id=pad_id,
    )
    with torch.inference_mode():
        output_BT = model.generate(
            ids_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            generation_config=greedy,
        )
    return (until_stop(row[longest:].tolist(), probes.stop_token_ids) for row in output_BT)


def until_stop(token_ids: Sequence[int], stop_token_ids: Sequence[int]) -> Answer:
    """The reply up to the first stop id."""
    end = next((i for i, token in enumerate(token_ids) if token in stop_token_ids), None)
    return Answer(tuple(token_ids[:end]), stopped=end is not None)


@dataclass(frozen=True)
class ServedAnswers:
    """llama.cpp's answers to the probes: given their ids, and given their messages.

    `by_messages` is None where the task has no chat template. `miscounted` counts the chats whose
    prompt was not as long for the server as in training: another template, or a doubled BOS.
    """

    by_ids: list[Answer]
    by_messages: list[Answer] | None
    miscounted: int


def served_answers(server: LlamaServer, probes: ProbeSet, workspace: Workspace) -> ServedAnswers:
    """Ask a running server every probe, greedily."""

    def answer(reply: Completion) -> Answer:
        return until_stop(reply.token_ids, probes.stop_token_ids)

    by_ids: list[Answer] = []
    by_messages: list[Answer] = []
    miscounted = 0
    with workspace.reporter.task("Asking llama.cpp", len(probes.probes), "probes") as task:
        for probe in probes.probes:
            workspace.raise_if_stopped()
            by_ids.append(answer(server.complete(probe.prompt_ids, probes.max_new_tokens)))
            if probes.from_messages:
                chat = server.chat(probe.messages, probes.max_new_tokens)
                by_messages.append(answer(chat))
                miscounted += chat.prompt_tokens != len(probe.prompt_ids)
            task.advance()
    return ServedAnswers(by_ids, by_messages if probes.from_messages else None, miscounted)
