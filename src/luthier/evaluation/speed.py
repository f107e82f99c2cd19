"""How fast a system answers: one request at a time, and as many at once as it takes.

Rates differ between machines and runs, so they lie below `measured/`, which is no part of an
artifact's digest.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.evaluation.journal import Collected
from luthier.evaluation.rows import evenly
from luthier.evaluation.systems import Prompt, Reply, System
from luthier.store.files import write_atomically
from luthier.store.keys import MEASURED_FOLDER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPEED_NAME = f"{MEASURED_FOLDER}/speed.json"


@dataclass(frozen=True)
class Percentiles:
    """The median and the 95th percentile (nearest rank) of seconds."""

    p50: float
    p95: float


@dataclass(frozen=True)
class Speed:
    """One system on this machine. Tokens are counted with the base's tokenizer.

    `first_token_seconds` and `request_seconds` are of `requests` asked one after another,
    `output_tokens_per_second` their rate; the batched rates are those of the whole evaluation,
    in which a task with labels also scores them. None where an earlier run had asked everything.
    """

    requests: int
    first_token_seconds: Percentiles
    request_seconds: Percentiles
    output_tokens_per_second: float
    batched_requests_per_second: float | None
    batched_output_tokens_per_second: float | None
    prompt_tokens_mean: float
    answer_tokens_mean: float


def measure_speed(
    make: Callable[[int], System],
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    collected: Collected,
    tokenizer: "PreTrainedTokenizerBase",
) -> Speed:
    """Ask `prompts`, spread over those of `collected`, one at a time.

    Args:
        make: the system that answers with at most so many tokens. The first token's time is that
            of a request for one token.
    """
    whole, first = make(max_new_tokens), make(1)
    _timed(first, prompts[0])  # what is set up once is no request's time
    first_seconds = [_timed(first, prompt)[0] for prompt in prompts]
    timed = [_timed(whole, prompt) for prompt in prompts]
    seconds = [spent for spent, _ in timed]
    tokens = sum(_tokens(tokenizer, [reply]) for _, reply in timed)
    answer_tokens = _tokens(tokenizer, collected.replies) / len(collected.replies)
    rate = collected.rows_per_second or None
    return Speed(
        requests=len(prompts),
        first_token_seconds=_percentiles(first_seconds),
        request_seconds=_percentiles(seconds),
        output_tokens_per_second=tokens / sum(seconds),
        batched_requests_per_second=rate,
        batched_output_tokens_per_second=rate and rate * answer_tokens,
        prompt_tokens_mean=sum(len(prompt.token_ids) for prompt in prompts) / len(prompts),
        answer_tokens_mean=answer_tokens,
    )


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` prompts at even distances, all of them where there are fewer."""
    return [prompts[place] for place in evenly(len(prompts), count)]


def write_speeds(folder: Path, speeds: Mapping[str, Speed | None]) -> None:
    """Write measured/speed.json of an artifact, by system that gives free answers."""
    path = folder / SPEED_NAME
    path.parent.mkdir(exist_ok=True)
    found = {f"{name}/generation": asdict(speed) for name, speed in speeds.items() if speed}
    write_atomically(path, json.dumps(found, indent=2) + "\n")


def read_speeds(folder: Path) -> dict[str, Speed]:
    """What `write_speeds` wrote; empty where nothing was measured."""
    path = folder / SPEED_NAME
    if not path.exists():
        return {}
    return {name: _speed(found) for name, found in json.loads(path.read_bytes()).items()}


def _speed(found: dict[str, object]) -> Speed:
    for name in ("first_token_seconds", "request_seconds"):
        found[name] = Percentiles(**found[name])  # type: ignore[arg-type]
    return Speed(**found)  # type: ignore[arg-type]


def _timed(system: System, prompt: Prompt) -> tuple[float, Reply]:
    started = time.perf_counter()
    replies = [reply for chunk in system.replies([prompt], 0) for reply in chunk]
    return time.perf_counter() - started, replies[0]


def _tokens(tokenizer: "PreTrainedTokenizerBase", replies: Sequence[Reply]) -> int:
    """Tokens of the replies, their stop tokens included."""
    texts = tokenizer([reply.text for reply in replies], add_special_tokens=False)["input_ids"]
    return sum(
        len(ids) + (reply.stop_reason == "stop") for ids, reply in zip(texts, replies, strict=True)
    )


def _percentiles(seconds: Sequence[float]) -> Percentiles:
    ordered = sorted(seconds)
    return Percentiles(nearest_rank(ordered, 50), nearest_rank(ordered, 95))


def nearest_rank(ordered: Sequence[float], percent: int) -> float:
    """The least of some ordered values that `percent` of them do not exceed."""
    return ordered[-(-len(ordered) * percent // 100) - 1]
