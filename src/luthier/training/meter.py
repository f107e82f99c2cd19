"""What a training run does per second, and the memory that it takes."""

import ctypes
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

_M_MMAP_THRESHOLD, _MAPPED_BYTES = -3, 2**20  # mallopt(3), malloc.h of glibc


def map_tensors() -> None:
    """Let freed tensors on a CPU go back at once: those from 1 MiB on are mapped.

    Else glibc (2.36) keeps those of up to 32 MiB in a heap that it cannot fill again, and the
    process grows by up to half more than what is in use, which nobody can foretell
    (`benchmarks/cpu_memory.py`). Measured with `benchmarks/trainers.py`, it costs nothing on rows
    of 33 tokens and 15 to 30 % of the tokens a second on rows of hundreds.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


@dataclass(frozen=True)
class Counts:
    """What a batch holds, or all batches of an optimizer step: tokens without padding, those that
    are trained on; of pairs how many, and the tokens of their chosen replies."""

    real_tokens: int
    supervised_tokens: int
    pairs: int = 0
    chosen_tokens: int = 0


@dataclass
class Meter:
    """Tokens since the last reading, and the clock. Reading costs nothing on the device."""

    real_tokens: int = 0
    supervised_tokens: int = 0
    total_real_tokens: int = 0
    total_supervised_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def count(self, counts: Counts) -> None:
        """The batches of an optimizer step go through."""
        self.real_tokens += counts.real_tokens
        self.supervised_tokens += counts.supervised_tokens
        self.total_real_tokens += counts.real_tokens
        self.total_supervised_tokens += counts.supervised_tokens

    def restart(self) -> None:
        """Forget what was counted since the last reading: other work, such as an evaluation."""
        self.real_tokens, self.supervised_tokens = 0, 0
        self.started = time.monotonic()

    def read(self) -> dict[str, float]:
        """Rates since the last reading and peak memory so far; the next reading starts here."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        rates = {
            "tokens_per_second": round(self.real_tokens / seconds, 1),
            "supervised_tokens_per_second": round(self.supervised_tokens / seconds, 1),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        self.restart()
        return rates


def peak_memory_bytes() -> int:
    """Peak resident memory of this process; on CUDA the peak of the allocator."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_memory_bytes() -> int:
    """Resident memory of this process now."""
    import psutil  # type: ignore[import-untyped]

    return int(psutil.Process().memory_info().rss)


@dataclass(frozen=True)
class KeptRows:
    """The rows of a batch, closed to accelerate and transformers, which look for tensors in every
    list of a batch: two calls a token in every step."""

    rows: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class CountingCollator:
    """A collator whose batches also carry, as plain numbers, the `counts` of their rows.

    Counted here because on the device it would cost a synchronisation a step. `keep_rows`: the
    rows themselves go along as `KeptRows`, for the trainer to make smaller batches of.
    """

    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    count: Callable[[Sequence[dict[str, Any]]], Counts]
    keep_rows: bool = False

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch of `collate`, its `counts`, and `rows` where they are kept."""
        batch = self.collate(rows) | {"counts": self.count(rows)}
        return batch | ({"rows": KeptRows(rows)} if self.keep_rows else {})
