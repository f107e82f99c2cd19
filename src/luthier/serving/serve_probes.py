"""`probes.json` of a bundle: all that is needed to check any server that serves its model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from luthier.errors import ServingError
from luthier.evaluation.rows import evenly
from luthier.serving.closeness import log_softmax
from luthier.serving.parity import parity_texts, training_ids
from luthier.serving.reference import Reference
from luthier.store.files import write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

PROBES_NAME = "probes.json"
_TEXTS = 400
_LIKELIEST = 5


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


def _steps(reference: Reference) -> list[Steps]:
    """For each probe and each of its answer's first tokens: (id, log-probability in nats) of that
    token and of the likeliest others, by the merged model in float32; last those of the stop."""
    import numpy as np

    found = []
    for path, answer in zip(reference.logits, reference.merged, strict=True):
        logs_PV = log_softmax(np.load(path))
        taken = list(answer.token_ids[: len(logs_PV)])
        if answer.stopped and len(taken) < len(logs_PV):
            taken.append(int(logs_PV[len(taken)].argmax()))
        steps = zip(logs_PV, taken, strict=False)
        found.append([_candidates(logs_V, token) for logs_V, token in steps])
    return found


def _candidates(logs_V: "NDArray[np.float64]", token: int) -> list[tuple[int, float]]:
    likeliest = [int(other) for other in logs_V.argsort()[::-1][:_LIKELIEST]]
    ids = [token, *(other for other in likeliest if other != token)]
    return [(one, round(float(logs_V[one]), 5)) for one in ids]


def build_probes(reference: Reference, served: Served) -> ServeProbes:
    """The probes of a bundle: `reference`'s questions and answers, and what servers are told."""
    tokenizer, probes = reference.tokenizer, reference.probes
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
        for probe, theirs, ours, found in zip(
            probes.probes, reference.base, reference.merged, _steps(reference), strict=True
        )
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
