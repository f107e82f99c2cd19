"""One GGUF against the model it was made from: texts, chats, next tokens, whole answers.

P positions of a row, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.evaluation.statistics import compare
from luthier.gates import Gate, check
from luthier.serving.answers import Answer, ServedAnswers, served_answers
from luthier.serving.closeness import ReplyRow, closeness
from luthier.serving.gguf_limits import Limits, closeness_gates
from luthier.serving.gguf_logits import gguf_logits
from luthier.serving.llama_server import LlamaServer
from luthier.serving.parity import (
    IdComparison,
    compare_chats,
    compare_prompts,
    compare_texts,
    ids_gate,
    parity_texts,
)
from luthier.serving.parity_tables import QuantizationParity
from luthier.serving.reference import Reference

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from luthier.store.artifact import Workspace

_ALPHA = 0.05


@dataclass(frozen=True)
class Measured:
    """One GGUF: its numbers and its gates."""

    parity: QuantizationParity
    gates: list[Gate]


@dataclass(frozen=True)
class AnswerShares:
    """Whole greedy answers of a server, as shares of the probes.

    `told_apart` counts the probes on which base and merged model differ; `served_as_tuned` is the
    share of those that the server, asked as a client asks, answers as the merged model.
    `difference` is the 95 % interval of the served score less the merged one's.
    """

    agreement: float
    merged_score: float
    served_score: float
    difference: tuple[float, float]
    stopped: float
    told_apart: int
    served_as_tuned: float
    miscounted: int


def measure_gguf(
    path: Path, quantization: str, reference: Reference, limits: Limits, workspace: "Workspace"
) -> Measured:
    """Serve a GGUF with llama.cpp and compare it with training and with the merged model."""
    probes, tokenizer = reference.probes, reference.tokenizer
    with LlamaServer(path, context_tokens=probes.context_tokens) as server:
        texts = compare_texts(tokenizer, server, parity_texts(tokenizer, probes.texts))
        chats = compare_prompts(server, probes)
        if probes.from_messages:
            chats += compare_chats(tokenizer, server)
        served = served_answers(server, probes, workspace)
    near = closeness(reference.logits, _served_logits(path, reference.rows), limits.tie_nats)
    shares = measure_answers(reference, served, limits.tie_nats)
    parity = QuantizationParity(
        quantization=quantization,
        file=path.name,
        size_bytes=path.stat().st_size,
        texts_compared=len(texts),
        text_mismatches=_mismatches(texts),
        chats_compared=len(chats),
        chat_mismatches=_mismatches(chats),
        positions_compared=near.positions,
        mean_kl_nats=near.mean_kl_nats,
        p99_kl_nats=near.p99_kl_nats,
        token_agreement=near.token_agreement,
        answers_compared=len(reference.merged),
        answer_agreement=shares.agreement,
        merged_score=shares.merged_score,
        served_score=shares.served_score,
        score_difference=shares.difference,
        stopped=shares.stopped,
        told_apart=shares.told_apart,
        served_as_tuned=shares.served_as_tuned,
    )
    what = f"{quantization}: "
    gates = [
        ids_gate("gguf-ids", texts, what),
        *([ids_gate("gguf-chats", chats, what)] if chats else []),
        *closeness_gates(parity, limits),
        *answer_gates(parity, limits, shares.miscounted),
    ]
    return Measured(parity, gates)


def _served_logits(path: Path, rows: Sequence[ReplyRow]) -> "Iterator[NDArray[np.float32]]":
    wanted = [range(row.first_position, len(row.token_ids)) for row in rows]
    return gguf_logits(path, [row.token_ids for row in rows], wanted)


def _mismatches(comparisons: Sequence[IdComparison]) -> int:
    return sum(not comparison.holds for comparison in comparisons)


def measure_answers(
    reference: Reference, served: ServedAnswers, tie_nats: float = 0.0
) -> AnswerShares:
    """Compare whole answers, and answers with the expected reply; see `Limits` for `tie_nats`."""
    probes, base, merged = reference.probes, reference.base, reference.merged

    def correct(answers: Sequence[Answer]) -> list[bool]:
        texts = reference.tokenizer.batch_decode([list(answer.token_ids) for answer in answers])
        pairs = zip(texts, probes.probes, strict=True)
        return [probes.is_expected(text, probe) for text, probe in pairs]

    asked = served.by_ids if served.by_messages is None else served.by_messages
    told_apart = [row for row in range(len(merged)) if base[row] != merged[row]]
    agrees = [reference.agrees(row, one, tie_nats) for row, one in enumerate(served.by_ids)]
    test = compare(correct(served.by_ids), correct(merged), alpha=_ALPHA)
    return AnswerShares(
        agreement=_share(agrees),
        merged_score=test.old_accuracy,
        served_score=test.new_accuracy,
        difference=test.interval,
        stopped=_share([answer.stopped for answer in (*served.by_ids, *asked)]),
        told_apart=len(told_apart),
        served_as_tuned=_share(
            [reference.agrees(row, asked[row], tie_nats) for row in told_apart]
        ),
        miscounted=served.miscounted,
    )


def _share(holds: Sequence[bool]) -> float:
    return sum(holds) / len(holds) if holds else 0.0


def answer_gates(parity: QuantizationParity, limits: Limits, miscounted: int = 0) -> list[Gate]:
    """served-is-tuned and stop-at-serve; `miscounted` prompts had another length when served."""
    probes = f"{parity.quantization}: {parity.answers_compared} probes"
    told_apart = f"{parity.told_apart} of them tell base and tuned model apart"
    lengths = f"; {miscounted} prompts of another length" if miscounted else ""
    tuned = f"{probes}, {told_apart}; share of these served as tuned{lengths}"
    ended = f"{probes}, answers ended by a stop token"
    wanted = limits.min_greedy_agreement
    return [
        check("served-is-tuned", parity.served_as_tuned, ">=", wanted, tuned),
        check("stop-at-serve", parity.stopped, "==", 1.0, ended),
    ]
