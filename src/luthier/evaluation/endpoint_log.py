"""What a server was asked and said, a line a row, and what that comes to."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.evaluation.endpoint_section import Endpoint
from luthier.evaluation.engine import StopReason
from luthier.evaluation.speed import nearest_rank
from luthier.store.journal import Journal
from luthier.store.keys import MEASURED_FOLDER

_NOT_ASKED = "not asked after too many failures in a row"
# `length` is OpenAI's word; Anthropic's and Mistral's servers also say these.
_CUT_BY_LENGTH = {"length", "max_tokens", "model_length"}
_MILLION = 1_000_000


@dataclass(frozen=True)
class Attempt:
    """One request: HTTP status (None without one), what was wrong (None: answered), seconds."""

    status: int | None
    reason: str | None
    detail: str
    seconds: float


@dataclass(frozen=True)
class AskedOnce:
    """One line of the log: a row, all its attempts in one run, and its answer.

    `question` is the SHA-256 of the request. `text` and `finish_reason` are None without an
    answer. `seconds` includes the waiting between attempts.
    """

    id: str
    question: str
    attempts: tuple[Attempt, ...]
    text: str | None
    finish_reason: str | None
    input_tokens: int | None
    output_tokens: int | None
    seconds: float

    @property
    def stop_reason(self) -> StopReason:
        """As a reply has it."""
        if self.text is None:
            return "missing"
        return "length" if self.finish_reason in _CUT_BY_LENGTH else "stop"

    @property
    def why_missing(self) -> str:
        """What was wrong with the last attempt, in words to group rows by."""
        return (self.attempts[-1].reason if self.attempts else None) or _NOT_ASKED


class RequestLog:
    """`measured/requests-<name>.jsonl`: what is answered is not asked again.

    It grows by a line when a row is done with, on the disk at once; a torn end is cut off. It is
    sealed with the artifact, below `measured/` since its times differ between equal runs.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / MEASURED_FOLDER / f"requests-{name}.jsonl"
        self.path.parent.mkdir(exist_ok=True)
        self._journal = Journal(self.path)
        self.lines = [_line(found) for found in self._journal.read()]

    def append(self, line: AskedOnce) -> None:
        """Keep one row's attempts."""
        self._journal.append(asdict(line))
        self.lines.append(line)

    def last(self) -> dict[tuple[str, str], AskedOnce]:
        """By (row id, question): the answer where there is one, else the last that was tried."""
        found: dict[tuple[str, str], AskedOnce] = {}
        for line in self.lines:
            known = found.get((line.id, line.question))
            if known is None or known.text is None:
                found[line.id, line.question] = line
        return found


def _line(found: dict[str, Any]) -> AskedOnce:
    attempts = tuple(Attempt(**attempt) for attempt in found.pop("attempts"))
    return AskedOnce(attempts=attempts, **found)


@dataclass(frozen=True)
class EndpointSummary:
    """What asking came to, over all runs that went on with one another; JSON values.

    `missing` are the ids of rows without an answer, `missing_reasons` count them. Tokens are the
    server's own count over the answers, None unless it counted each. `cost_usd` is those tokens
    at the endpoint's prices, None where prices or tokens are unknown; requests that were given up
    may have been charged too. `seconds` is the sum over requests; the percentiles are of answered
    requests alone, None without any.
    """

    rows: int
    missing: list[str]
    missing_reasons: dict[str, int]
    requests: int
    retries: int
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    seconds: float
    p50_request_seconds: float | None
    p95_request_seconds: float | None


def summarize(
    endpoint: Endpoint, questions: Sequence[tuple[str, str]], log: RequestLog
) -> EndpointSummary:
    """What asking these (row id, question) came to."""
    wanted, last = set(questions), log.last()
    asked = [line for line in log.lines if (line.id, line.question) in wanted]
    attempts = [attempt for line in asked for attempt in line.attempts]
    answers = [last[one] for one in questions if one in last and last[one].text is not None]
    missing = [last[one] for one in questions if one in last and last[one].text is None]
    tokens_in = _total(answer.input_tokens for answer in answers)
    tokens_out = _total(answer.output_tokens for answer in answers)
    times = sorted(attempt.seconds for attempt in attempts if attempt.reason is None)
    return EndpointSummary(
        rows=len(questions),
        missing=[line.id for line in missing],
        missing_reasons=dict(Counter(line.why_missing for line in missing)),
        requests=len(attempts),
        retries=len(attempts) - len({line.id for line in asked if line.attempts}),
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        cost_usd=_cost(endpoint, tokens_in, tokens_out),
        seconds=sum(attempt.seconds for attempt in attempts),
        p50_request_seconds=nearest_rank(times, 50) if times else None,
        p95_request_seconds=nearest_rank(times, 95) if times else None,
    )


def _total(counts: Iterable[int | None]) -> int | None:
    found = list(counts)
    known = [count for count in found if count is not None]
    return sum(known) if known and len(known) == len(found) else None


def _cost(endpoint: Endpoint, tokens_in: int | None, tokens_out: int | None) -> float | None:
    counted = (
        (tokens_in, endpoint.price_usd_per_million_input_tokens),
        (tokens_out, endpoint.price_usd_per_million_output_tokens),
    )
    priced = [(tokens, price) for tokens, price in counted if price is not None]
    if not priced or any(tokens is None for tokens, _ in priced):
        return None
    return sum((tokens or 0) * price for tokens, price in priced) / _MILLION
