"""What a person sees while work goes on: bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
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
        seconds: float | None = None,  # noqa: ARG002
    ) -> Iterator[Task]:
        """Counted work with `total` units, foretold to take `seconds` in all; the block gets a
        task to advance."""
        yield _Silent()


class _Silent:
    def advance(self, count: int = 1, **facts: object) -> None:
        """Nothing to show."""

    def resize(self, total: int, done: int = 0) -> None:
        """Nothing to show."""


class Pace:
    """How far a task is, and how long it will take.

    The time left is that of the measured rate, and at first of the one foretold, the measured
    weighing more with every unit (half after four): first units are slower than those after them.
    """

    def __init__(self, total: int, seconds: float | None = None) -> None:
        self.total, self.done, self._before = total, 0, 0
        self._foretold = seconds
        self._start = self._since = self._last = time.monotonic()

    def advance(self, count: int) -> None:
        """Count units that were just done."""
        self.done += count
        self._last = time.monotonic()

    def resize(self, total: int, done: int) -> None:
        """A new total; what was done before does not count for the rate."""
        self.total, self.done, self._before = total, done, done
        self._since = self._last = time.monotonic()

    def seconds_left(self) -> float | None:
        """None when nothing is known yet."""
        own, left = self.done - self._before, self.total - self.done
        each = None
        if own > 0:
            each = (self._last - self._since) / own
        if self._foretold is not None and self.total > 0:
            weight = own / (own + 4)
            each = weight * (each or 0.0) + (1 - weight) * self._foretold / self.total
        since_last = time.monotonic() - self._last
        return None if each is None else max(0.0, each * left - since_last)

    def spell(self) -> str:
        """The time gone, and that left when there is any."""
        gone = _duration(time.monotonic() - self._start)
        left = self.seconds_left() if self.done < self.total else None
        return gone if left is None else f"{gone}, {_duration(left)} left"


class PlainReporter(Reporter):
    """Lines on standard error, for logs: at most one every ten seconds, and one at the end."""

    def say(self, message: str) -> None:
        """One line on standard error."""
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()

    @contextmanager
    def task(
        self, label: str, total: int, unit: str = "", seconds: float | None = None
    ) -> Iterator[Task]:
        """Counted work, a line now and then."""
        task = _PlainTask(self, label, unit, Pace(total, seconds))
        yield task
        task.close()


class _PlainTask:
    def __init__(self, reporter: PlainReporter, label: str, unit: str, pace: Pace) -> None:
        self._reporter, self._label, self._unit, self._pace = reporter, label, unit, pace
        self._facts, self._printed = "", False
        self._last = time.monotonic()

    def advance(self, count: int = 1, **facts: object) -> None:
        """Count; print when the last line is old."""
        self._pace.advance(count)
        self._facts = _spell(facts)
        self._printed = False
        if time.monotonic() - self._last >= PLAIN_LINE_EVERY_SECONDS:
            self._last = time.monotonic()
            self.line()

    def resize(self, total: int, done: int = 0) -> None:
        """A new total; what was done before does not count for the rate."""
        self._pace.resize(total, done)

    def close(self) -> None:
        """Say where the task ended, unless the last line says so."""
        if not self._printed:
            self.line()

    def line(self) -> None:
        """Print where the task stands."""
        self._printed = True
        pace = self._pace
        self._reporter.say(
            f"  {self._label}: {pace.done}/{pace.total} {self._unit} {self._facts} "
            f"({pace.spell()})"
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
    def task(
        self, label: str, total: int, unit: str = "", seconds: float | None = None
    ) -> Iterator[Task]:
        """Counted work with a bar, its facts, and the time gone and left."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
        )
        from rich.table import Column
        from rich.text import Text

        pace = Pace(total, seconds)

        class PaceColumn(ProgressColumn):
            def render(self, task: object) -> Text:  # noqa: ARG002, there is one task
                return Text(pace.spell())

        columns = [
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[facts]}"),
            # On a narrow terminal the bar gets shorter, and nothing wraps.
            PaceColumn(table_column=Column(no_wrap=True)),
        ]
        with Progress(*columns, console=self._console) as progress:
            task_id = progress.add_task(label, total=total, facts="")

            class _RichTask:
                def advance(self, count: int = 1, **facts: object) -> None:
                    pace.advance(count)
                    progress.update(task_id, advance=count, facts=_spell(facts))

                def resize(self, total: int, done: int = 0) -> None:
                    pace.resize(total, done)
                    progress.update(task_id, total=total, completed=done)

            yield _RichTask()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else str(timedelta(seconds=round(seconds)))


def _spell(facts: dict[str, object]) -> str:
    return " ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in facts.items()
    )


def reporter_for_stderr() -> Reporter:
    """Bars when standard error is a terminal, else plain lines."""
    return RichReporter() if sys.stderr.isatty() else PlainReporter()
