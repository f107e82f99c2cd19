"""One training run in a process of its own, which may be killed or asked to stop at a moment."""

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from luthier.errors import InterruptedRunError, ModelError
from luthier.interrupts import StopFlag
from luthier.progress import Reporter
from luthier.store.files import remove_temporaries
from luthier.training.job import TrainingJob

ENDED = "ended.json"
KILLED_AT = "killed_at.txt"
CHANGES = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "open")


@dataclass(frozen=True)
class Moment:
    """When a run was killed: some seconds after its start, or before a change of the disk, counted
    from 1, which would have been `what`. Of several processes a `victim` is killed, some seconds
    after training began: most of their time they start, which is the least telling."""

    seconds: float | None = None
    change: int | None = None
    what: str | None = None
    victim: str | None = None

    def __str__(self) -> str:
        if self.change is not None:
            return f"before change {self.change} of the disk: {self.what}"
        if self.victim is not None:
            return f"the {self.victim}, {self.seconds:.3f} s after training began"
        return f"{self.seconds:.3f} s after its start"


class _Said(Reporter):
    """Keeps what is said, and kills one of several processes some time into the training."""

    def __init__(self, killed_at: Moment | None) -> None:
        self.lines: list[str] = []
        self._killed_at = killed_at

    def say(self, message: str) -> None:
        self.lines.append(message)

    @contextmanager
    def task(self, *_: object) -> Iterator["_Said"]:
        yield self

    def resize(self, *_: object, **__: object) -> None:
        moment = self._killed_at
        if moment is not None and moment.victim is not None:
            timer = threading.Timer(moment.seconds or 0, _kill_one, (moment.victim,))
            timer.daemon = True
            timer.start()

    def advance(self, *_: object, **__: object) -> None:
        pass


def _kill_one(victim: str) -> None:
    own = psutil.Process()
    if victim == "starter":
        own.kill()
    ranks = [p for p in own.children(recursive=True) if "luthier.training.rank" in p.cmdline()]
    if ranks:  # or training was over before
        random.choice(ranks).kill()


def train_here(
    job: TrainingJob,
    *,
    killed_at: Moment | None = None,
    signal_after: tuple[int, signal.Signals] | None = None,
) -> None:
    """Train in this process; `signal_after` (n, signal): send it here at the n-th step's end."""
    from luthier.training.launch import train_in_processes
    from luthier.training.session import train

    folder, said = job.outputs.parent, _Said(killed_at)
    remove_temporaries(folder)  # as the store does when it opens a workspace again
    changes = _count_changes(folder, killed_at.change if killed_at else None)
    start = train if job.section.processes == 1 else train_in_processes
    try:
        outcome = start(job, said, _asked_to_stop(signal_after))
    except InterruptedRunError:
        outcome = None
    except ModelError:
        if killed_at is None:
            raise
        # It saw a rank die, and told the user so.
        os.kill(os.getpid(), signal.SIGKILL)
    gates = [gate.model_dump() for gate in outcome.gates] if outcome else []
    ended = {
        "outcome": asdict(outcome) | {"gates": gates} if outcome else None,
        "said": said.lines,
        "changes": changes(),
    }
    (folder / ENDED).write_text(json.dumps(ended))


def _asked_to_stop(signal_after: tuple[int, signal.Signals] | None) -> Callable[[], bool]:
    flag, asked = StopFlag(), 0
    flag.install()

    def asked_to_stop() -> bool:
        nonlocal asked
        asked += 1
        if signal_after is not None and asked == signal_after[0]:
            signal.raise_signal(signal_after[1])
        return flag.requested

    return asked_to_stop


def _count_changes(folder: Path, kill_before: int | None) -> Callable[[], int]:
    """Count the calls that change the disk; die before one of them."""
    import torch

    count = 0

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == kill_before:
                what = str(args[1] if name == "torch.save" else args[0])
                (folder / KILLED_AT).write_text(f"{name} {what.replace(str(folder), '')}")
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    for name in CHANGES:
        setattr(os, name, wrap(name, getattr(os, name)))
    torch.save = wrap("torch.save", torch.save)
    return lambda: count
