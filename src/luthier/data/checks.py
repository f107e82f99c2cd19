"""Gates over tokenised rows: each measures the tokens themselves, not how they were made."""

from collections.abc import Callable, Collection, Iterator, Sequence

from luthier.data.cleaning import shared_identities
from luthier.data.rows import Ledger, Row
from luthier.data.tokens import IGNORE_INDEX, TokenizedRow
from luthier.gates import Gate, check

_EXAMPLES = 3


def stop_token_supervised(rows: Sequence[TokenizedRow], stop_token_ids: Collection[int]) -> Gate:
    """F01: every supervised stretch (one a trained turn) ends with a stop token in the loss."""
    stops = frozenset(stop_token_ids)

    def broken(row: TokenizedRow) -> bool:
        ends = list(_stretch_ends(row.labels))
        return len(ends) != len(row.prompts) or any(row.labels[end] not in stops for end in ends)

    return _count_rows(
        "stop-token-supervised",
        rows,
        broken,
        "a model trained on these never learns to stop: its template must end replies with one of "
        f"the stop tokens {sorted(stops)}, within max_length_tokens",
    )


def answer_truncated(rows: Sequence[TokenizedRow]) -> Gate:
    """F02: no row was cut by the length limit."""
    return _count_rows(
        "answer-truncated",
        rows,
        lambda row: len(row.input_ids) < row.full_length,
        "raise max_length_tokens, or set on_overlong: drop",
    )


def supervised_tokens(rows: Sequence[TokenizedRow]) -> Gate:
    """F03: every row has a token with a loss."""
    return _count_rows(
        "supervised-tokens",
        rows,
        lambda row: row.supervised == 0,
        "these rows teach nothing: the limit cuts the whole reply off",
    )


def prompt_is_prefix(rows: Sequence[TokenizedRow]) -> Gate:
    """F04: what a server will tokenise before a reply is what stands before it in training."""

    def broken(row: TokenizedRow) -> bool:
        ids = list(row.input_ids)
        return any(list(prompt)[: len(ids)] != ids[: len(prompt)] for prompt in row.prompts)

    return _count_rows(
        "prompt-is-prefix",
        rows,
        broken,
        "the mask would be shifted: the template renders earlier turns differently, or the "
        "tokenizer merges the prompt's end with the reply (completions: begin them with a space)",
    )


def single_bos(
    rows: Sequence[TokenizedRow], bos_token: str | None, bos_token_id: int | None
) -> Gate:
    """F05: as many BOS tokens in a row as its text spells. Rows must not be truncated yet."""

    def broken(row: TokenizedRow) -> bool:
        if bos_token is None or bos_token_id is None:
            return False
        return list(row.input_ids).count(bos_token_id) != row.text.count(bos_token)

    return _count_rows(
        "single-bos",
        rows,
        broken,
        f"the tokenizer adds {bos_token} to a text that has its own: set add_bos_token to false",
    )


def split_leakage(rows: Sequence[Row]) -> Gate:
    """F08: no text and no group stands in two splits."""
    shared = shared_identities(rows)
    detail = f"{shared['text']} texts and {shared['group']} groups in more than one split"
    if any(shared.values()):
        detail += "; on_leak: drop takes them out of train"
    return check("split-leakage", shared["text"] + shared["group"], "==", 0, detail)


def quarantine_share(ledger: Ledger, max_fraction: float) -> Gate:
    """F12: the share of records that could not be used is within the limit."""
    return check(
        "quarantine-share",
        round(ledger.quarantined_fraction, 6),
        "<=",
        max_fraction,
        f"{len(ledger.quarantined)} of {ledger.read} records, in quarantine.jsonl"
        + (f": {ledger.why()}" if ledger.quarantined else ""),
    )


def _count_rows(
    gate_id: str,
    rows: Sequence[TokenizedRow],
    broken: Callable[[TokenizedRow], bool],
    advice: str,
) -> Gate:
    bad = [row.row.where for row in rows if broken(row)]
    detail = f"{len(bad)} of {len(rows)} rows"
    if bad:
        more = ", ..." if len(bad) > _EXAMPLES else ""
        detail += f": {', '.join(bad[:_EXAMPLES])}{more}; {advice}"
    return check(gate_id, len(bad), "==", 0, detail)


def _stretch_ends(labels: Sequence[int]) -> Iterator[int]:
    """The last index of every run of supervised positions."""
    for index, label in enumerate(labels):
        is_last = index + 1 == len(labels) or labels[index + 1] == IGNORE_INDEX
        if label != IGNORE_INDEX and is_last:
            yield index
