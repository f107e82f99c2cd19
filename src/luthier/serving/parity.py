"""Whether what is served is what was trained: token ids, answers, score, stops, template."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import ServingError
from luthier.gates import Gate, check
from luthier.serving.answers import Answer, ProbeSet, ServedAnswers
from luthier.serving.corpus import nasty_texts
from luthier.serving.llama_server import LlamaServer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN_MISMATCHES = 3
_SHOWN_CHARACTERS = 60
_TOKENIZE_CONTEXT_TOKENS = 512


@dataclass(frozen=True)
class IdComparison:
    """One text and its token ids by two tokenizers; `how` says in which mode."""

    text: str
    how: str
    expected: tuple[int, ...]
    found: tuple[int, ...]

    @property
    def holds(self) -> bool:
        """Whether the two agree."""
        return self.expected == self.found


@dataclass(frozen=True)
class AnswerLimits:
    """Limits of the answer gates: shares from 0 to 1, `max_score_drop` in accuracy."""

    min_greedy_agreement: float
    max_score_drop: float


def parity_texts(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str] = ()) -> list[str]:
    """The nasty corpus with every special token of `tokenizer`, and `texts`."""
    specials = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    return list(dict.fromkeys([*nasty_texts(specials), *texts]))


def reference_ids(
    gguf_path: Path, texts: Sequence[str], *, parse_special: bool = True
) -> list[list[int]]:
    """llama.cpp's token ids of `texts` under the tokenizer that a GGUF file carries.

    Raises:
        ServingError: llama.cpp is not installed or cannot load the file.
    """
    with LlamaServer(gguf_path, context_tokens=_TOKENIZE_CONTEXT_TOKENS) as server:
        return server.tokenize(texts, parse_special=parse_special)


def training_ids(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, parse_special: bool = True
) -> list[list[int]]:
    """Token ids of `texts` as training makes them, nothing added.

    Training encodes rendered conversations with `parse_special=True`: a special token's spelling
    is the token. `False` is for text that must not be able to spell one.
    """
    batch = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=not parse_special
    )
    return [list(ids) for ids in batch["input_ids"]]


def compare_texts(
    tokenizer: "PreTrainedTokenizerBase", server: LlamaServer, texts: Sequence[str]
) -> list[IdComparison]:
    """Each text by both tokenizers, special tokens parsed and not."""
    comparisons = []
    for parse_special in (True, False):
        how = "special tokens parsed" if parse_special else "special tokens as text"
        expected = training_ids(tokenizer, texts, parse_special=parse_special)
        found = server.tokenize(texts, parse_special=parse_special)
        comparisons += [
            IdComparison(text, how, tuple(left), tuple(right))
            for text, left, right in zip(texts, expected, found, strict=True)
        ]
    return comparisons


def compare_prompts(server: LlamaServer, probes: ProbeSet) -> list[IdComparison]:
    """Each probe's stored prompt ids against the server's own, made from the messages."""
    if not probes.from_messages:
        return []
    rendered = [server.apply_template(probe.messages) for probe in probes.probes]
    return [
        IdComparison(text, "rendered by the server", probe.prompt_ids, tuple(found))
        for probe, text, found in zip(
            probes.probes, rendered, server.tokenize(rendered), strict=True
        )
    ]


def tokenizer_parity(tokenizer: "PreTrainedTokenizerBase", gguf_path: Path) -> Gate:
    """The gate of an imported base: `tokenizer` against llama.cpp on the GGUF it came from.

    Raises:
        ServingError: llama.cpp is not installed or cannot load the file.
    """
    with LlamaServer(gguf_path, context_tokens=_TOKENIZE_CONTEXT_TOKENS) as server:
        return ids_gate(
            "tokenizer-parity", compare_texts(tokenizer, server, parity_texts(tokenizer))
        )


def ids_gate(gate_id: str, comparisons: Sequence[IdComparison], what: str = "") -> Gate:
    """No text may differ; the detail shows the first that do.

    Raises:
        ServingError: nothing was compared, which proves nothing.
    """
    if not comparisons:
        raise ServingError(f"{gate_id}: no texts to compare.")
    mismatches = [comparison for comparison in comparisons if not comparison.holds]
    shown = [_shown(mismatch) for mismatch in mismatches[:_SHOWN_MISMATCHES]]
    detail = "; ".join([f"{what}{len(comparisons)} texts compared", *shown])
    return check(gate_id, len(mismatches), "==", 0, detail)


def _shown(mismatch: IdComparison) -> str:
    at = next(
        (
            i
            for i, pair in enumerate(zip(mismatch.expected, mismatch.found, strict=False))
            if pair[0] != pair[1]
        ),
        min(len(mismatch.expected), len(mismatch.found)),
    )
    window = slice(max(0, at - 1), at + 4)
    return (
        f"{mismatch.text[:_SHOWN_CHARACTERS]!r} ({mismatch.how}) from token {window.start}: "
        f"trained {list(mismatch.expected[window])}, served {list(mismatch.found[window])}"
    )


@dataclass(frozen=True)
class AnswerParity:
    """What the answers of base, merged model and server come to, as shares of the probes.

    `told_apart` counts the probes on which base and merged model differ; `served_as_tuned` is the
    share of those that the server, asked as a client asks, answers as the merged model.
    """

    probes: int
    agreement: float
    merged_score: float
    served_score: float
    stopped: float
    told_apart: int
    served_as_tuned: float
    miscounted: int

    @property
    def score_drop(self) -> float:
        """Accuracy lost by serving; negative where serving gained. 0.81 less 0.79 is 0.02."""
        return round(self.merged_score - self.served_score, 9)


def measure_answers(
    tokenizer: "PreTrainedTokenizerBase",
    probes: ProbeSet,
    base: Sequence[Answer],
    merged: Sequence[Answer],
    served: ServedAnswers,
) -> AnswerParity:
    """Compare whole answers, and answers with the expected reply."""

    def score(answers: Sequence[Answer]) -> float:
        texts = tokenizer.batch_decode([list(answer.token_ids) for answer in answers])
        pairs = zip(texts, probes.probes, strict=True)
        return _share([text.strip() == probe.expected.strip() for text, probe in pairs])

    asked = served.by_ids if served.by_messages is None else served.by_messages
    told_apart = [row for row in range(len(merged)) if base[row] != merged[row]]
    return AnswerParity(
        probes=len(merged),
        agreement=_share(
            [left == right for left, right in zip(merged, served.by_ids, strict=True)]
        ),
        merged_score=score(merged),
        served_score=score(served.by_ids),
        stopped=_share([answer.stopped for answer in (*served.by_ids, *asked)]),
        told_apart=len(told_apart),
        served_as_tuned=_share([asked[row] == merged[row] for row in told_apart]),
        miscounted=served.miscounted,
    )


def _share(holds: Sequence[bool]) -> float:
    return sum(holds) / len(holds) if holds else 0.0


def answer_gates(parity: AnswerParity, limits: AnswerLimits, what: str = "") -> list[Gate]:
    """gguf-answers, gguf-score, served-is-tuned and stop-at-serve."""
    probes = f"{what}{parity.probes} probes"
    told_apart = f"{parity.told_apart} of them tell base and tuned model apart"
    lengths = f"; {parity.miscounted} prompts of another length" if parity.miscounted else ""
    scores = f"merged model {parity.merged_score:.4f}, served {parity.served_score:.4f}"
    limit = limits.min_greedy_agreement
    equal = f"{probes}, whole greedy answers equal to the merged model's"
    tuned = f"{probes}, {told_apart}; share of these served as tuned{lengths}"
    ended = f"{probes}, answers ended by a stop token"
    return [
        check("gguf-answers", parity.agreement, ">=", limit, equal),
        check("gguf-score", parity.score_drop, "<=", limits.max_score_drop, f"{probes}, {scores}"),
        check("served-is-tuned", parity.served_as_tuned, ">=", limit, tuned),
        check("stop-at-serve", parity.stopped, "==", 1.0, ended),
    ]
