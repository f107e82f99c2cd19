"""Processes that prepare rows: results in order, bounded memory, the same bytes for any number.

Processes are spawned, not forked: the parent may have run torch, whose threads a fork breaks.
"""

import gc
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import TracebackType
from typing import Any, Self, TypeVar

from luthier.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2  # tasks in flight a process: one worked on, one waiting


def cores() -> int:
    """CPU cores that this process may use."""
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


class Workers:
    """`count` processes, each set up once by `setup(*arguments)`; with one, all stays in here."""

    def __init__(self, count: int, setup: Callable[..., None], *arguments: Any) -> None:
        self._count = count
        self._setup = setup
        self._arguments = arguments
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self._count == 1:
            self._setup(*self._arguments)
            return self
        self._pool = ProcessPoolExecutor(
            self._count, get_context("spawn"), _quiet_setup, (self._setup, *self._arguments)
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of each item, in order. `items` are drawn only as fast as they are worked on.

        Raises:
            DataError: a process was killed, mostly for want of memory.
        """
        if self._pool is None:
            yield from map(function, items)
            return
        flight: deque[Future[Result]] = deque()
        try:
            for item in items:
                flight.append(self._pool.submit(function, item))
                if len(flight) >= _AHEAD * self._count:
                    yield flight.popleft().result()
            while flight:
                yield flight.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "prepare: a worker process was killed, most often for want of memory. "
                "Run again with fewer: prepare.workers: 1."
            ) from error


def _quiet_setup(setup: Callable[..., None], *arguments: Any) -> None:
    """Ctrl-C reaches every process of a terminal; the parent alone decides what it means."""
    import signal

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core is enough
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setup(*arguments)
    gc.freeze()  # what is set up stays: collections need not look at it
