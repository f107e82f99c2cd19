"""Gates of a dataset: each measures the tokens themselves, not how they were made."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from luthier.data.index import Flag, RowIndex
from luthier.gates import Gate, check

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXAMPLES = 3

Where = Callable[[Sequence[int]], Sequence[str]]

_FLAG_GATES: Mapping[str, tuple[Flag, str]] = {
    "stop-token-supervised": (
        Flag.STOP_MISSING,
        "a model trained on these never learns to stop: its template must end replies with one of "
        "the stop tokens, within max_length_tokens",
    ),
    "answer-truncated": (
        Flag.TRUNCATED,
        "raise max_length_tokens, or set on_overlong: drop",
    ),
    "supervised-tokens": (
        Flag.NOTHING_SUPERVISED,
        "these rows teach nothing: the limit cuts the whole reply off",
    ),
    "prompt-is-prefix": (
        Flag.PROMPT_NOT_PREFIX,
        "the mask would be shifted: the template renders earlier turns differently, or the "
        "tokenizer merges the prompt's end with the reply (completions: begin them with a space)",
    ),
    "single-bos": (
        Flag.BOS_COUNT,
        "the tokenizer adds BOS to a text that has its own: set add_bos_token to false",
    ),
    "template-renders": (
        Flag.TEXT_LOST,
        "the chat template leaves a message out (many drop a system message): give the base a "
        "template that renders every role of the data",
    ),
}


def token_gates(index: RowIndex, where: Where) -> list[Gate]:
    """F01 to F06 over the kept rows; `where` gives `file:line` of rows."""
    return [
        _count(gate_id, index, index.kept & ((index.flags & flag) > 0), where, advice)
        for gate_id, (flag, advice) in _FLAG_GATES.items()
    ]


def vocabulary_grows(largest_id: int, embedding_rows: int) -> Gate:
    """F13: no token id is beyond the base's embedding, which nothing here resizes."""
    return check(
        "vocabulary-grows",
        largest_id,
        "<",
        embedding_rows,
        f"largest token id against {embedding_rows} embedding rows; a tokenizer with added tokens "
        "needs a base whose embedding has them",
    )


def template_parity(compared: int, different: Sequence[str]) -> Gate:
    """F07: rows rendered and tokenised here equal transformers' own `apply_chat_template`."""
    detail = f"{len(different)} of {compared} rows"
    if different:
        detail += f": {', '.join(different[:EXAMPLES])}; this is a bug of luthier, report it"
    return check("template-parity", len(different), "==", 0, detail)


def split_leakage(shared: Mapping[str, int]) -> Gate:
    """F08: no text, group or near copy stands in two splits, and no benchmark in any.

    `shared` counts what does; a text that is copied exactly is a near copy too, and counts once.
    """
    measured = sum(shared.values()) - min(shared.get("text", 0), shared.get("near copy", 0))
    detail = ", ".join(f"{count} {kind}" for kind, count in shared.items())
    detail += " in more than one split"
    if any(shared.values()):
        detail += "; on_leak: drop takes them out of train"
    return check("split-leakage", measured, "==", 0, detail)


def quarantine_share(quarantined: int, read: int, max_fraction: float, why: str) -> Gate:
    """F12: the share of records that could not be used is within the limit."""
    return check(
        "quarantine-share",
        round(quarantined / read, 6) if read else 0.0,
        "<=",
        max_fraction,
        f"{quarantined} of {read} records, in quarantine.jsonl" + (f": {why}" if why else ""),
    )


def _count(
    gate_id: str, index: RowIndex, broken: "NDArray[np.bool_]", where: Where, advice: str
) -> Gate:
    import numpy as np

    rows = np.flatnonzero(broken)
    detail = f"{len(rows)} of {int(index.kept.sum())} rows"
    if len(rows):
        more = ", ..." if len(rows) > EXAMPLES else ""
        detail += f": {', '.join(where(rows[:EXAMPLES].tolist()))}{more}; {advice}"
    return check(gate_id, len(rows), "==", 0, detail)
