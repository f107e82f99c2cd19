"""`probes.json` of a bundle: all that is needed to check any server that serves its model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from luthier.errors import ServingError
from luthier.evaluation.rows import evenly
from luthier.models.loading import load_model
from luthier.serving.answers import Answer, ProbeSet
from luthier.serving.parity import parity_texts, training_ids
from luthier.store.artifact import Workspace
from luthier.store.files import write_atomically

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBES_NAME = "probes.json"
_TEXTS = 400
_LIKELIEST = 5
_LONGEST_LOGGED_TOKENS = 64  # of a reply; keeps the file small
_LOGITS_AT_ONCE = 2**26  # 256 MB in float32
_BATCH_ROWS = 16


class Candidate(BaseModel):
    """A token that could come next: its text after other text, its log-probability in nats."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    id: int
    text: str
    log_probability: float


class ChatProbe(BaseModel):
    """A question, and the greedy answers of the merged model in float32 and of the base.

    `messages` is empty where the task has no chat template; `prompt` is then what to ask.
    `steps` has, for each of the first answer tokens and then for the stop, that token and the
    likeliest others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    messages: tuple[dict[str, str], ...]
    prompt: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    answer: str
    stopped: bool
    base_answer: str
    steps: tuple[tuple[Candidate, ...], ...]

    @property
    def tells_apart(self) -> bool:
        """Whether its answer shows which of base and tuned model gave it."""
        return same_text(self.answer) != same_text(self.base_answer)


class TextProbe(BaseModel):
    """A text and its token ids as training makes them: special tokens parsed, none added."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    text: str
    ids: tuple[int, ...]


class ServeProbes(BaseModel):
    """What a server of this bundle must do. `context_tokens` is prompt and reply together."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    schema_version: Literal[1] = 1
    served_name: str
    context_tokens: int
    stop_token_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    system_prompt: str | None
    max_new_tokens: int
    chats: tuple[ChatProbe, ...]
    texts: tuple[TextProbe, ...]


@dataclass(frozen=True)
class Served:
    """What the bundle tells servers: the model's name, and its context in tokens."""

    name: str
    context_tokens: int


Steps = list[list[tuple[int, float]]]


def same_text(text: str) -> str:
    """An answer as compared: servers differ in blanks at its ends and in a cut last character."""
    return text.strip().strip("\ufffd").strip()


def answer_steps(
    model_folder: Path, probes: ProbeSet, merged: Sequence[Answer], workspace: Workspace
) -> list[Steps]:
    """For each probe and each of its answer's first tokens: (id, log-probability in nats) of that
    token and of the likeliest others, by the model in float32; last those of the stop.

    Raises:
        ModelError: the folder holds no model.
        InterruptedRunError: stopped on request.
    """
    model = load_model(model_folder, dtype="float32")
    rows = [(probe.prompt_ids, one) for probe, one in zip(probes.probes, merged, strict=True)]
    order = sorted(
        range(len(rows)), key=lambda row: (len(rows[row][0]) + len(rows[row][1].token_ids), row)
    )
    vocabulary = model.get_output_embeddings().weight.shape[0]
    at_once = max(1, min(_BATCH_ROWS, _LOGITS_AT_ONCE // (_LONGEST_LOGGED_TOKENS * vocabulary)))
    found: dict[int, Steps] = {}
    with workspace.reporter.task("Probabilities of the answers", len(rows), "answers") as task:
        for start in range(0, len(order), at_once):
            workspace.raise_if_stopped()
            batch = order[start : start + at_once]
            found.update(zip(batch, _steps(model, [rows[row] for row in batch]), strict=True))
            task.advance(len(batch))
    return [found[row] for row in range(len(rows))]


def _steps(
    model: "PreTrainedModel", rows: Sequence[tuple[Sequence[int], Answer]]
) -> Iterator[Steps]:
    # B rows, T tokens of prompt and answer, padded on the left; R steps, V vocabulary
    import torch

    answers = [answer.token_ids[:_LONGEST_LOGGED_TOKENS] for _, answer in rows]
    wholes = [[*row[0], *answer] for row, answer in zip(rows, answers, strict=True)]
    longest = max(map(len, wholes))
    ids_BT = torch.zeros((len(rows), longest), dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, whole in enumerate(wholes):
        ids_BT[row, longest - len(whole) :] = torch.tensor(whole)
        mask_BT[row, longest - len(whole) :] = 1
    with torch.inference_mode():
        logits_BRV = model(
            input_ids=ids_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            position_ids=(mask_BT.cumsum(1) - 1).clamp(min=0).to(model.device),
            logits_to_keep=max(map(len, answers)) + 1,
        ).logits.float()
    for row, answer in enumerate(answers):
        logs_RV = logits_BRV[row, -1 - len(answer) :].log_softmax(-1).cpu()
        has_stop = rows[row][1].stopped and len(answer) == len(rows[row][1].token_ids)
        taken = [*answer, int(logs_RV[-1].argmax())] if has_stop else answer
        yield [_candidates(logs_V, token) for logs_V, token in zip(logs_RV, taken, strict=False)]


def _candidates(logs_V: "torch.Tensor", token: int) -> list[tuple[int, float]]:
    likeliest = [int(other) for other in logs_V.topk(_LIKELIEST).indices]
    ids = [token, *(other for other in likeliest if other != token)]
    return [(one, round(float(logs_V[one]), 5)) for one in ids]


def build_probes(
    tokenizer: "PreTrainedTokenizerBase",
    probes: ProbeSet,
    base: Sequence[Answer],
    merged: Sequence[Answer],
    steps: Sequence[Steps],
    served: Served,
) -> ServeProbes:
    """The probes of a bundle.

    Args:
        tokenizer: the base's.
        probes: the held-out rows asked.
        base: the base's greedy answers to them.
        merged: the merged model's.
        steps: of `answer_steps` for the merged model.
        served: what the bundle tells servers.
    """
    every = parity_texts(tokenizer, probes.texts)
    texts = [every[row] for row in evenly(len(every), _TEXTS)]

    def text_of(ids: Sequence[int], *, skip: bool = True) -> str:
        decoded = tokenizer.decode(
            list(ids), skip_special_tokens=skip, clean_up_tokenization_spaces=False
        )
        assert isinstance(decoded, str)
        return decoded

    chats = tuple(
        ChatProbe(
            messages=probe.messages if probes.from_messages else (),
            prompt="" if probes.from_messages else text_of(probe.prompt_ids, skip=False),
            prompt_ids=probe.prompt_ids,
            answer_ids=ours.token_ids,
            answer=text_of(ours.token_ids),
            stopped=ours.stopped,
            base_answer=text_of(theirs.token_ids),
            steps=tuple(
                tuple(
                    Candidate(id=one, text=_piece(tokenizer, one), log_probability=log)
                    for one, log in step
                )
                for step in found
            ),
        )
        for probe, theirs, ours, found in zip(probes.probes, base, merged, steps, strict=True)
    )
    return ServeProbes(
        served_name=served.name,
        context_tokens=served.context_tokens,
        stop_token_ids=probes.stop_token_ids,
        stop_strings=tuple(
            str(tokenizer.convert_ids_to_tokens(one)) for one in probes.stop_token_ids
        ),
        system_prompt=probes.system_prompt,
        max_new_tokens=probes.max_new_tokens,
        chats=chats,
        texts=tuple(
            TextProbe(text=text, ids=tuple(ids))
            for text, ids in zip(texts, training_ids(tokenizer, texts), strict=True)
        ),
    )


def _piece(tokenizer: "PreTrainedTokenizerBase", token: int) -> str:
    """A token's text within a text: alone, SentencePiece would lose its blank."""
    (anchor,) = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    before = str(tokenizer.decode([anchor]))
    return str(tokenizer.decode([anchor, token])).removeprefix(before)


def write_probes(bundle: Path, probes: ServeProbes) -> None:
    """Write `probes.json` at the bundle's root, whole or not at all."""
    write_atomically(bundle / PROBES_NAME, probes.model_dump_json(ensure_ascii=True) + "\n")


def read_serve_probes(bundle: Path) -> ServeProbes:
    """Read `probes.json` of a bundle's folder.

    Raises:
        ServingError: it is missing, or of another version of Luthier.
    """
    path = bundle / PROBES_NAME
    if not path.is_file():
        raise ServingError(
            f"{bundle}: no {PROBES_NAME} here, so there is nothing to check a server with. "
            "Export the model again with this version of Luthier."
        )
    try:
        return ServeProbes.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ServingError(
            f"{path}: {where}: {first['msg']}. It was written by another version of Luthier or "
            "was changed; export the model again."
        ) from error
