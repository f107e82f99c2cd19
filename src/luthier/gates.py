"""Gates: measured checks with a threshold. Every id that exists stands in `GATES`."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

_ORDERS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}

GateStatus = Literal["pass", "warn", "fail"]
Comparison = Literal["==", "!=", "<=", "<", ">=", ">"]
Measured = float | int | str

GATES: Mapping[str, str] = {
    "tokenizer-parity": "F29: the imported tokenizer gives the ids that llama.cpp gives",
    "stop-token-supervised": "F01: every trained reply ends with a supervised stop token",
    "answer-truncated": "F02: no reply is cut by the length limit",
    "supervised-tokens": "F03: every row has at least one supervised token",
    "prompt-is-prefix": "F04: the tokenised prompt is a prefix of the tokenised row",
    "single-bos": "F05: beginning-of-sequence tokens as often as the template asks",
    "template-renders": "F06: every message's text stands in the rendered row",
    "template-parity": "F07: rows are tokenised here as transformers tokenises them",
    "split-leakage": "F08: no text of one split appears in another",
    "label-hygiene": "F10: every label that is asked about has train rows",
    "label-noise": "F10: the estimated share of wrong labels in train is within the limit",
    "label-shift": "F10: the splits are labelled by one convention",
    "quarantine-share": "F12: the share of rows that could not be used is within the limit",
    "vocabulary-grows": "F13: every token is one that the base has",
    "adapter-dtype": "F14: trainable weights are fp32",
    "adapter-moved": "F15: the adapter learned: its B matrices moved, without NaN or inf",
    "loss-is-real": "F16: every logged loss is finite and not zero",
    "packing-isolated": "F17: packed rows give the logits that they give alone",
    "validation-improves": "F26: training lowered the validation loss",
    "overfit": "F26: the kept weights are not far from the best ones seen",
    "pairs-made": "the adapter's own answers gave enough pairs",
    "dpo-start": "F23: training began with the SFT adapter",
    "dpo-reference": "F23: the stored reference is the model as it was at its start",
    "dpo-first-step": "F23: the first step's margin is 0, and its loss that of no margin",
    "reply-truncated": "F24: no reply of a pair is cut",
    "likelihood-displacement": "F25: held-out chosen replies stay as likely as they were",
    "reward-accuracy": "held-out pairs are told apart better than by chance",
    "task-score-kept": "dpo did not lose what sft had learned of the task",
    "over-refusal": "held-out requests that are to be answered are not refused",
    "length-bias": "dpo did not make answers longer than the chosen replies and those before",
    "worth-tuning": "the best prompt is far enough from the target to fine-tune",
    "beats-baseline": "F33: better than the best prompted baseline on the same rows",
    "retention": "F34: the loss on general text rose no more than the limit",
    "retention-questions": "F34: general questions are answered as well as before",
    "harness-kept": "F34: no task of lm-evaluation-harness is surely answered worse than before",
    "as-tuned": "F29: what is served is not surely worse than the tuned model on the same rows",
    "ship": "every rule by which the model is to be shipped holds",
    "merge-parity": "F27: merged logits equal base + adapter",
    "merge-changed": "F27: merged logits differ from the base's",
    "merge-rounding": "F28: rounding to 16 bits moves logits far less than the adapter does",
    "merge-tokenizer": "F07: the merged model's tokenizer files are the base's",
    "gguf-ids": "F29: llama.cpp tokenises as training did",
    "gguf-chats": "F07: the server renders conversations as the model's own template does",
    "gguf-kl": "F29: llama.cpp's next-token distributions are near the merged model's",
    "gguf-tokens": "F29: llama.cpp's likeliest tokens are the merged model's",
    "gguf-answers": "F29: llama.cpp answers as the merged model",
    "gguf-score": "F29: the task score through llama.cpp is within the limit",
    "served-is-tuned": "F30: what is served is the tuned model, not the base",
    "stop-at-serve": "F31: served answers end by a stop token",
    "served-name": "F30: the server knows the model by the name that the bundle gives it",
    "served-is-ours": "F30: a running server answers as the merged model",
    "served-logprobs": "F30: a running server's log-probabilities are the merged model's",
    "served-template": "F07: a running server makes the prompts that training made",
    "served-tokenizer": "F29: a running server tokenises as training did",
    "served-stops": "F31: a running server's answers end as the merged model's do",
    "served-context": "F31: a running server keeps the context that the bundle promises",
    "served-sampling": "F31: a running server is greedy when a request does not say how",
    "vllm-folder": "F32: the folder has what vLLM demands and nothing that it refuses",
    "vllm-adapter": "F32: vLLM takes the adapters as they were trained, and all of each",
}


class Gate(BaseModel):
    """One measured check, as the manifest keeps it."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    id: str
    status: GateStatus
    measured: Measured
    comparison: Comparison
    threshold: Measured
    detail: str = ""


def check(
    gate_id: str, measured: Measured, comparison: Comparison, threshold: Measured, detail: str = ""
) -> Gate:
    """Compare and record. NaN fails every comparison.

    Raises:
        KeyError: `gate_id` is not in `GATES` (a bug of ours).
    """
    GATES[gate_id]
    holds = _compare(measured, comparison, threshold)
    return Gate(
        id=gate_id,
        status="pass" if holds else "fail",
        measured=measured,
        comparison=comparison,
        threshold=threshold,
        detail=detail,
    )


def _compare(measured: Measured, comparison: Comparison, threshold: Measured) -> bool:
    if isinstance(measured, float) and math.isnan(measured):
        return False
    if comparison in ("==", "!="):
        return (measured == threshold) is (comparison == "==")
    if isinstance(measured, str) or isinstance(threshold, str):
        return False  # manifests spell NaN and infinity, which no order holds for
    return _ORDERS[comparison](measured, threshold)


def judged(gates: Sequence[Gate], policy: Mapping[str, Literal["warn"]]) -> list[Gate]:
    """The same measurements with the status that they have under `policy`.

    A failing gate that `policy` names is a warning. One that was lowered when its artifact was
    made fails again under a policy that does not name it.
    """
    return [
        gate.model_copy(update={"status": _status(gate, policy.get(gate.id, "fail"))})
        for gate in gates
    ]


def _status(gate: Gate, when_it_fails: GateStatus) -> GateStatus:
    holds = _compare(gate.measured, gate.comparison, gate.threshold)
    return "pass" if holds else when_it_fails


def failures(gates: Sequence[Gate]) -> list[Gate]:
    """The gates that stop a pipeline."""
    return [gate for gate in gates if gate.status == "fail"]


def spell(gate: Gate) -> str:
    """A gate on one line."""
    detail = f"  ({gate.detail})" if gate.detail else ""
    return (
        f"{gate.id}: measured {gate.measured}, wanted {gate.comparison} {gate.threshold}{detail}"
    )
