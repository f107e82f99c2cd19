"""How each GGUF compared with the merged model: the tables of the bundle's README and card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from luthier.serving import markdown

NOT_MEASURED = "not measured"
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True)
class QuantizationParity:
    """One GGUF, and how what it serves compared with the merged model. None: not measured.

    Shares and scores are from 0 to 1; `file` and `modelfile` are relative to the bundle.
    KL is of the merged model's next-token distribution to the served one's, in nats, over
    positions; `token_agreement` the share of positions with the same likeliest token, near ties
    aside;
    `answer_agreement` that of whole greedy answers. `score_difference` is the 95 % interval of
    the served score less the merged one's. `told_apart` counts the rows on which base and tuned
    model differ, `served_as_tuned` the share of these that are served as the tuned model.
    `failed_gates` are ids of gates; where it is only `is_too_lossy`, `would_pass` names the
    smallest type that would pass, None where none is known.
    """

    quantization: str
    file: str
    size_bytes: int
    texts_compared: int
    text_mismatches: int
    answers_compared: int
    answer_agreement: float
    merged_score: float
    served_score: float
    stopped: float
    told_apart: int
    served_as_tuned: float
    chats_compared: int = 0
    chat_mismatches: int = 0
    positions_compared: int = 0
    mean_kl_nats: float | None = None
    p99_kl_nats: float | None = None
    token_agreement: float | None = None
    score_difference: tuple[float, float] | None = None
    modelfile: str | None = None
    failed_gates: tuple[str, ...] = ()
    is_too_lossy: bool = False
    would_pass: str | None = None

    @property
    def verdict(self) -> str:
        """A word for it: pass, too lossy (and which type would pass), or what failed."""
        if not self.failed_gates and not self.is_too_lossy:
            return "pass"
        if not self.is_too_lossy:
            return f"failed: {', '.join(self.failed_gates)}"
        return f"too lossy: {self.would_pass or 'no type tried'} would pass"


def parity_tables(parity: Sequence[QuantizationParity]) -> str:
    """Three tables: what each type comes to; text, chats and next tokens; whole answers."""
    return f"""{_verdicts(parity)}
Texts, and the prompts and next tokens of held-out rows, as llama.cpp sees them and as the model
was trained. KL: how far the next token's distribution is from the merged model's, in nats.

{_tokens(parity)}
Whole greedy answers to {_rows(parity)}, through llama.cpp and by the merged model in
float32. Score: share of answers that are the expected reply. Served as tuned: of the rows whose
answer tells base and tuned model apart.

{_answers(parity)}"""


def size(size_bytes: int) -> str:
    """Decimal units, as disks are sold: `19.5 MB`."""
    for unit_bytes, unit in _UNITS:
        if size_bytes >= unit_bytes:
            return f"{size_bytes / unit_bytes:.1f} {unit}"
    return f"{size_bytes} bytes"


def percent(share: float | None) -> str:
    """A share from 0 to 1: `83.3 %`."""
    return NOT_MEASURED if share is None else f"{100 * share:.1f} %"


def _rows(parity: Sequence[QuantizationParity]) -> str:
    counts = sorted({one.answers_compared for one in parity})
    return f"{' or '.join(f'{count:,}' for count in counts)} held-out rows"


def _verdicts(parity: Sequence[QuantizationParity]) -> str:
    rows = [
        (one.quantization, one.verdict, size(one.size_bytes), PurePosixPath(one.file).name)
        for one in parity
    ]
    return markdown.table(("type", "verdict", "size", "file"), rows, "llrl")


def _tokens(parity: Sequence[QuantizationParity]) -> str:
    header = ("type", "texts differing", "chats differing", "KL, mean", "KL, p99", "same token")
    rows = [
        (
            one.quantization,
            _differing(one.text_mismatches, one.texts_compared),
            _differing(one.chat_mismatches, one.chats_compared),
            _nats(one.mean_kl_nats),
            _nats(one.p99_kl_nats),
            percent(one.token_agreement),
        )
        for one in parity
    ]
    return markdown.table(header, rows, "lrrrrr")


def _answers(parity: Sequence[QuantizationParity]) -> str:
    header = (
        *("type", "same answer", "score, merged", "served", "difference, 95 %"),
        *("ended by a stop", "served as tuned"),
    )
    rows = [
        (
            one.quantization,
            percent(one.answer_agreement),
            percent(one.merged_score),
            percent(one.served_score),
            _points(one.score_difference),
            percent(one.stopped),
            f"{percent(one.served_as_tuned)} of {one.told_apart:,}",
        )
        for one in parity
    ]
    return markdown.table(header, rows, "lrrrrrr")


def _differing(mismatches: int, compared: int) -> str:
    return f"{mismatches:,} of {compared:,}" if compared else NOT_MEASURED


def _nats(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2g}"


def _points(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return NOT_MEASURED
    low, high = (100 * end for end in interval)
    return f"{low:+.1f} to {high:+.1f} points"
