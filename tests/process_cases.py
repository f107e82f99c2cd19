"""Watching a training in several processes from outside: its progress, its processes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.progress import Reporter, Task
from luthier.training.mailbox import Mailbox


class Watching(Reporter):
    """Calls `at_step` with the number of steps done, in the process that a person started."""

    def __init__(self, at_step: Callable[[int], None] = lambda _: None) -> None:
        self.at_step, self.said, self.steps = at_step, list[str](), list[int]()

    def say(self, message: str) -> None:
        self.said.append(message)

    @contextmanager
    def task(
        self, label: str, total: int, unit: str = "", seconds: float | None = None
    ) -> Iterator[Task]:
        assert (label, total, unit) == ("training", 0, "steps")
        assert seconds, "the time is foretold"
        reporter, self.steps = self, [0]

        class Counting:
            def advance(self, count: int = 1, **facts: object) -> None:
                assert facts.keys() == {"loss", "lr"}
                reporter.steps.append(reporter.steps[-1] + count)
                reporter.at_step(reporter.steps[-1])

            def resize(self, total: int, done: int = 0) -> None:
                assert total == 8
                reporter.steps = [done]

        yield Counting()


def processes_of(folder: Path) -> dict[int, int | None]:
    """Living processes that a training in `folder` started: pid to rank, None for the launcher."""
    found: dict[int, int | None] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text().split("\0")
            surroundings = (process / "environ").read_text().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if str(Mailbox(folder / "scratch" / "processes").folder) in command:
            ranks = [text[5:] for text in surroundings if text.startswith("RANK=")]
            found[int(process.name)] = int(ranks[0]) if ranks else None
    return found


def ranks_at_work(folder: Path) -> list[int]:
    """Ranks that have come as far as loading torch, long after they looked for their starter."""
    found = [pid for pid, rank in processes_of(folder).items() if rank is not None]
    return [pid for pid in found if "libtorch" in Path(f"/proc/{pid}/maps").read_text()]


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
