"""What a person sees while work goes on: bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_LINE_EVERY_SECONDS = 10.0


class Task(Protocol):
    """One piece of counted work."""

    def advance(self, count: int = 1, **facts: object) -> None:
        """Count `count` more units done; `facts` (loss=0.31) stand beside the count."""

    def resize(self, total: int, done: int = 0) -> None:
        """The work turned out to have `total` units, `done` of them done before this process."""


class Reporter:
    """Shows nothing; the other reporters say more."""

    def say(self, message: str) -> None:
        """One line that stays on the screen."""

    @contextmanager
    def task(
        self,
        label: str,  # noqa: ARG002, the other reporters show them
        total: int,  # noqa: ARG002
        unit: str = "",  # noqa: ARG002
    ) -> Iterator[Task]:
        """Counted work with `total` units; the block gets a task to advance."""
        yield _Silent()


class _Silent:
    def advance(self, count: int = 1, **facts: object) -> None:
        """Nothing to show."""

    def resize(self, total: int, done: int = 0) -> None:
        """Nothing to show."""


class PlainReporter(Reporter):
    """Lines on standard error, for logs: at most one every ten seconds, and one at the end."""

    def say(self, message: str) -> None:
        """One line on standard error."""
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()

    @contextmanager
    def task(self, label: str, total: int, unit: str = "") -> Iterator[Task]:
        """Counted work, a line now and then."""
        task = _PlainTask(self, label, total, unit)
        yield task
        task.close()


class _PlainTask:
    def __init__(self, reporter: PlainReporter, label: str, total: int, unit: str) -> None:
        self._reporter, self._label, self._total, self._unit = reporter, label, total, unit
        self._done, self._before, self._facts, self._printed = 0, 0, "", False
        self._start = self._last = time.monotonic()

    def advance(self, count: int = 1, **facts: object) -> None:
        """Count; print when the last line is old."""
        self._done += count
        self._facts = _spell(facts)
        self._printed = False
        if time.monotonic() - self._last >= PLAIN_LINE_EVERY_SECONDS:
            self._last = time.monotonic()
            self.line()

    def resize(self, total: int, done: int = 0) -> None:
        """A new total; what was done before does not count for the rate."""
        self._total, self._done, self._before = total, done, done

    def close(self) -> None:
        """Say where the task ended, unless the last line says so."""
        if not self._printed:
            self.line()

    def line(self) -> None:
        """Print where the task stands."""
        self._printed = True
        seconds = time.monotonic() - self._start
        rate = (self._done - self._before) / seconds if seconds > 0 else 0.0
        left = (self._total - self._done) / rate if rate > 0 else 0.0
        ending = (
            f"{seconds:.0f} s, {left:.0f} s left"
            if self._done < self._total
            else f"{seconds:.0f} s"
        )
        self._reporter.say(
            f"  {self._label}: {self._done}/{self._total} {self._unit} {self._facts} ({ending})"
        )


class RichReporter(Reporter):
    """Progress bars on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    def say(self, message: str) -> None:
        """One line, above any bar."""
        self._console.print(message, highlight=False, markup=False)

    @contextmanager
    def task(self, label: str, total: int, unit: str = "") -> Iterator[Task]:
        """Counted work with a bar, its rate, its facts and the time left."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = [
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[facts]}"),
        ]
        with Progress(*columns, console=self._console) as progress:
            task_id = progress.add_task(label, total=total, facts="")

            class _RichTask:
                def advance(self, count: int = 1, **facts: object) -> None:
                    progress.update(task_id, advance=count, facts=_spell(facts))

                def resize(self, total: int, done: int = 0) -> None:
                    progress.update(task_id, total=total, completed=done)

            yield _RichTask()


def _spell(facts: dict[str, object]) -> str:
    return " ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in facts.items()
    )


def reporter_for_stderr() -> Reporter:
    """Bars when standard error is a terminal, else plain lines."""
    return RichReporter() if sys.stderr.isatty() else PlainReporter()
