"""How far a GGUF may be from the merged model, by type; what is too lossy, and what would do.

Rounding grows as bits shrink, so each type has limits of its own. Small models lose most: of
SmolLM2-135M, on general text, llama.cpp's types cost a mean KL of 0.0003 nats (bf16), 0.006
(q8_0), 0.013 (q6_k), 0.08 (q5_k_m), 0.07 (q4_k_m) and 0.3 (q4_0); of Llama 3 8B a quarter of that
and less (llama.cpp, tools/perplexity/README.md). The limits let those pass, by some twice; what is
not the merged model is off by whole nats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from luthier.gates import Gate, check, failures
from luthier.serving.converter import GGUFType
from luthier.serving.parity_tables import QuantizationParity

# From the coarsest to the finest: where one is too lossy, the next ones are tried.
COARSEST_FIRST: Sequence[GGUFType] = (
    *("q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16", "bf16"),
)
LOSSY = ("gguf-kl", "gguf-tokens", "gguf-answers", "gguf-score")
_SERVED = "served-is-tuned"


@dataclass(frozen=True)
class Limits:
    """KL in nats, mean over positions; shares and the drop of the score from 0 to 1.

    A token or an answer that parts from the merged model's where that preferred its own by no more
    than `tie_nats` is no disagreement: free answers of many tokens pass such places all the time.
    """

    max_mean_kl_nats: float
    min_token_agreement: float
    min_greedy_agreement: float
    max_score_drop: float
    tie_nats: float


LIMITS: Mapping[GGUFType, Limits] = {
    "f16": Limits(0.005, 0.98, 0.95, 0.02, 0.25),
    "bf16": Limits(0.005, 0.98, 0.95, 0.02, 0.25),
    "q8_0": Limits(0.02, 0.95, 0.90, 0.02, 0.5),
    "q6_k": Limits(0.05, 0.92, 0.85, 0.02, 0.5),
    "q5_k_m": Limits(0.15, 0.85, 0.75, 0.03, 1.0),
    "q4_k_m": Limits(0.2, 0.85, 0.75, 0.03, 1.0),
    "q4_0": Limits(0.5, 0.75, 0.70, 0.04, 1.0),
}


def limits_for(quantization: GGUFType, **wanted: float | None) -> Limits:
    """The type's own limits, with those that a config sets in their place."""
    given = {name: value for name, value in wanted.items() if value is not None}
    return replace(LIMITS[quantization], **given)


def closeness_gates(parity: QuantizationParity, limits: Limits) -> list[Gate]:
    """gguf-kl and gguf-tokens on single tokens, gguf-answers and gguf-score on whole answers."""
    what = f"{parity.quantization}: "
    drop, scores = _drop(parity)
    tokens = f"{what}{parity.positions_compared:,} tokens of the merged model's replies"
    equal = f"{what}{parity.answers_compared} probes, whole greedy answers equal to the merged's"
    return [
        check(
            "gguf-kl",
            _known(parity.mean_kl_nats),
            "<=",
            limits.max_mean_kl_nats,
            f"{tokens}, mean KL in nats",
        ),
        check(
            "gguf-tokens",
            _known(parity.token_agreement),
            ">=",
            limits.min_token_agreement,
            f"{tokens}, share with the same likeliest token, near ties aside",
        ),
        check("gguf-answers", parity.answer_agreement, ">=", limits.min_greedy_agreement, equal),
        check("gguf-score", drop, "<=", limits.max_score_drop, scores),
    ]


def _drop(parity: QuantizationParity) -> tuple[float, str]:
    """The accuracy lost, 0 where the rows cannot tell that any was (F35), and how it is spelt."""
    drop = round(parity.merged_score - parity.served_score, 9)
    said = (
        f"{parity.quantization}: {parity.answers_compared} probes, merged model "
        f"{parity.merged_score:.4f}, served {parity.served_score:.4f}"
    )
    if parity.score_difference is None:
        return drop, said
    low, high = parity.score_difference
    said += f", 95 % interval of the change {low:+.4f} to {high:+.4f}"
    if drop > 0 and high >= 0:
        return 0.0, f"{said}: these rows cannot tell that it is worse"
    return drop, said


def _known(value: float | None) -> float:
    return float("nan") if value is None else value


def is_too_lossy(gates: Sequence[Gate]) -> bool:
    """Whether rounding explains all that failed: most answers are still the tuned model's."""
    failed = {gate.id: gate.measured for gate in failures(gates)}
    is_tuned = float(failed.pop(_SERVED, 1.0)) > 0.5
    return bool(failed) and failed.keys() <= set(LOSSY) and is_tuned


def finer(quantization: GGUFType) -> Sequence[GGUFType]:
    """The types with more bits, the coarsest first."""
    return COARSEST_FIRST[COARSEST_FIRST.index(quantization) + 1 :]


def advise(gates: Sequence[Gate], would_pass: GGUFType | None) -> list[Gate]:
    """The same gates; those that rounding failed say which type would pass."""
    advice = (
        f"too lossy: {would_pass} would pass (measured)"
        if would_pass
        else "too lossy: no finer type passes either, so it is not the rounding"
    )
    return [
        gate.model_copy(update={"detail": f"{advice}; {gate.detail}"})
        if gate.status == "fail" and gate.id in LOSSY
        else gate
        for gate in gates
    ]
