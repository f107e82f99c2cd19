"""Systems: what answers prompts. `System` is all that the rest of evaluation knows of one."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from luthier.data.rows import Message
from luthier.evaluation.engine import Asked, StopReason, answer_chunk
from luthier.evaluation.packing import SharedPrefix, common_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GGUF_PREFIX = "gguf-"  # of the name of a GGUF file's system
# A chunk's tokens lie in one sequence: attention grows with its square, the number of decoding
# steps with the number of chunks. CPU: measured on SmolLM2, 2 cores, 2026-11-23; 384, 768 and 1536
# tokens differ by a tenth (few-shot, 768 best) to a quarter (zero-shot, 384 best).
_CHUNK_TOKENS = {"cpu": 512, "cuda": 8192}
# Answers of many tokens take as many steps, each of which reads all weights: more rows at once.
# Measured on home_intents (27 tokens an answer), 2 cores, 2026-11-23: 70, 82 and 87 tokens/s with
# 512, 1024 and 2048.
_LONG_ANSWER_TOKENS = 16
_LONG_CHUNK_TOKENS = {"cpu": 2048, "cuda": 16384}


@dataclass(frozen=True)
class Prompt:
    """One row's question, as a model in this process and as a server is asked it.

    `token_ids` are those of the whole prompt, `messages` its conversation, `text` its text where
    the task has no conversation. `reference` is the reply whose likelihood is wanted.
    """

    id: str
    token_ids: tuple[int, ...]
    reference: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Sample:
    """A random answer, and how it ended."""

    text: str
    stop_reason: StopReason


@dataclass(frozen=True)
class Reply:
    """What a system said to one prompt; log-probabilities in nats, None where there is none.

    `samples` are random answers, where they were asked for.
    """

    id: str
    text: str
    stop_reason: StopReason
    label_log_p: tuple[float | None, ...] | None = None
    reference_log_p: float | None = None
    samples: tuple[Sample, ...] = ()


class System(Protocol):
    """Something that answers prompts."""

    @property
    def name(self) -> str:
        """How answers, metrics and reports call it."""

    def replies(self, prompts: Sequence[Prompt], done: int) -> Generator[list[Reply], None, None]:
        """Answer `prompts[done:]` in order, some rows at a time.

        How the rows are cut depends on `prompts` alone, never on `done`, so that an interrupted
        run that goes on gets the same answers. `done` is always at such a cut. Whoever stops
        before the end closes the generator.
        """


class LocalSystem:
    """A model in this process: a base, or a base with its adapter."""

    def __init__(
        self,
        name: str,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        asked: Asked,
    ) -> None:
        self.name = name
        self._model, self._tokenizer, self._asked = model, tokenizer, asked

    def replies(self, prompts: Sequence[Prompt], done: int) -> Generator[list[Reply], None, None]:
        """Answer chunk by chunk; what all prompts begin with goes through the model once."""
        shared = common_prefix([prompt.token_ids for prompt in prompts])
        is_long = self._asked.max_new_tokens > _LONG_ANSWER_TOKENS
        limit = (_LONG_CHUNK_TOKENS if is_long else _CHUNK_TOKENS)[self._model.device.type]
        cuts = _cuts(
            [len(prompt.token_ids) - shared + len(prompt.reference) for prompt in prompts], limit
        )
        assert done in cuts, f"{done} rows were done, which is no cut of {cuts}"
        if done == len(prompts):
            return
        prefix = SharedPrefix(self._model, prompts[0].token_ids[:shared])
        for start, end in pairwise(cuts[cuts.index(done) :]):
            yield self._answer(prefix, prompts[start:end], start)

    def _answer(
        self, prefix: SharedPrefix, prompts: Sequence[Prompt], first_row: int
    ) -> list[Reply]:
        results = answer_chunk(
            prefix,
            [prompt.token_ids[prefix.length :] for prompt in prompts],
            self._asked,
            [prompt.reference for prompt in prompts]
            if any(prompt.reference for prompt in prompts)
            else None,
            first_row,
        )
        texts = self._decoded([result.tokens for result in results])
        return [
            Reply(
                prompt.id,
                text,
                result.stop_reason,
                result.label_log_p,
                result.reference_log_p,
                tuple(
                    Sample(drawn, reason)
                    for drawn, (_, reason) in zip(
                        self._decoded([tokens for tokens, _ in result.samples]),
                        result.samples,
                        strict=True,
                    )
                ),
            )
            for prompt, text, result in zip(prompts, texts, results, strict=True)
        ]

    def _decoded(self, answers: Sequence[Sequence[int]]) -> list[str]:
        if not answers:  # of which batch_decode makes one empty text
            return []
        texts: list[str] = self._tokenizer.batch_decode(
            [list(tokens) for tokens in answers], skip_special_tokens=True
        )
        return texts


def _cuts(costs: Sequence[int], limit: int) -> list[int]:
    """Where chunks begin and end: 0 first, the number of rows last."""
    cuts, filled = [0], 0
    for row, cost in enumerate(costs):
        if filled and filled + cost > limit:
            cuts.append(row)
            filled = 0
        filled += cost
    return [*cuts, len(costs)] if costs else [0]
