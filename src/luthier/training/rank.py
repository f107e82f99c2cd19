"""One of several processes that train together: `python -m luthier.training.rank FOLDER`.

accelerate's launcher starts it (see `spawn.py`). Its standard input is a pipe whose other end only
the process that a person started holds: its end, for whatever reason, ends every rank at once, and
a byte in it asks for a stop, or for the end that who watches wants. Standard output of rank 0
carries progress and validation losses; all else that a rank prints goes to its log.
"""

import json
import os
import select
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from luthier.progress import Reporter, Task
from luthier.training.mailbox import END_BYTE, STOP_BYTE, Mailbox
from luthier.watching import Watch

_LIFELINE = 0  # file descriptors
_PROGRESS = 1
_ERRORS = 2

# By the byte that the starter writes: set when it did.
_Wishes = Mapping[bytes, threading.Event]


def main() -> None:
    """Train as one rank and leave what came of it in the mailbox."""
    mailbox, rank = Mailbox(Path(sys.argv[1])), int(os.environ["RANK"])
    reporter = _own_streams(mailbox.log(rank), rank)
    with mailbox.rank_is_alive():
        wishes = _watch_starter(rank)
        try:
            _train(mailbox, rank, reporter, wishes)
        except BaseException as error:  # noqa: BLE001, whatever it is, the starter must know it
            traceback.print_exc()
            mailbox.put_failure(rank, error)
            sys.stderr.flush()
            # Not sys.exit: the communication library would wait for ranks that wait for this one.
            os._exit(getattr(error, "exit_code", 1))


def _train(mailbox: Mailbox, rank: int, reporter: Reporter, wishes: _Wishes) -> None:
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    from luthier.training.processes import agreed
    from luthier.training.session import train

    # Joins the process group and takes this rank's GPU; the trainer finds both as they are.
    PartialState(cpu=not torch.cuda.is_available())
    stop, end = (agreed(wishes[byte].is_set) for byte in (STOP_BYTE, END_BYTE))
    outcome = train(mailbox.job(), reporter, stop, _RelayedWatch(reporter, end))
    if rank == 0:
        mailbox.put_outcome(outcome)
    dist.barrier()
    dist.destroy_process_group()


def _own_streams(log: Path, rank: int) -> Reporter:
    """Send what is printed here to the log; the reporter of this rank."""
    progress = os.fdopen(os.dup(_PROGRESS), "w")
    own = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(own, _PROGRESS)
    os.dup2(own, _ERRORS)
    return _Relayed(progress) if rank == 0 else Reporter()


def _watch_starter(rank: int) -> _Wishes:
    """End this process when its starter ends; an event is set when the starter asks for it."""
    wishes = {byte: threading.Event() for byte in (STOP_BYTE, END_BYTE)}
    lifeline = select.poll()
    # Each byte reaches one reader only, so only rank 0 reads; the end of the pipe reaches all.
    lifeline.register(_LIFELINE, select.POLLIN if rank == 0 else 0)
    # Before anything is written: the starter may have died while this process was starting.
    if _is_cut(lifeline.poll(0)):
        os._exit(1)

    def watch() -> None:
        while not _is_cut(lifeline.poll()):
            wish = wishes.get(os.read(_LIFELINE, 1))
            if wish is not None:
                wish.set()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return wishes


def _is_cut(events: list[tuple[int, int]]) -> bool:
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in events)


class _Relayed(Reporter):
    """Writes what there is to show as lines of JSON: see `launch.py` for who reads them."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def send(self, *event: object) -> None:
        """One line."""
        self._stream.write(json.dumps(event, default=str) + "\n")
        self._stream.flush()

    def say(self, message: str) -> None:
        """One line that stays on the screen."""
        self.send("say", message)

    @contextmanager
    def task(
        self, label: str, total: int, unit: str = "", seconds: float | None = None
    ) -> Iterator[Task]:
        """Counted work."""
        self.send("task", label, total, unit, seconds)
        yield _RelayedTask(self)
        self.send("close")


class _RelayedTask:
    def __init__(self, reporter: _Relayed) -> None:
        self._reporter = reporter

    def advance(self, count: int = 1, **facts: object) -> None:
        """Count."""
        self._reporter.send("advance", count, facts)

    def resize(self, total: int, done: int = 0) -> None:
        """A new total."""
        self._reporter.send("resize", total, done)


class _RelayedWatch(Watch):
    """Rank 0's losses reach who watches; the end that they want is agreed by all ranks, so that
    each must ask as often as the others."""

    def __init__(self, reporter: Reporter, end: Callable[[], bool]) -> None:
        self._reporter, self._end = reporter, end

    def validated(self, progress: float, loss: float) -> None:
        """A line, from rank 0."""
        if isinstance(self._reporter, _Relayed):
            self._reporter.send("validated", progress, loss)

    @property
    def wants_end(self) -> bool:
        """Collective."""
        return self._end()


if __name__ == "__main__":
    main()
