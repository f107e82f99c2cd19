"""Training in several processes, seen from the process that a person started.

That process trains nothing and needs no torch. It starts the ranks in a session of their own, so
that Ctrl-C reaches it alone; it shows what rank 0 has to show, hands a stop on, and says what went
wrong in a rank. Whatever ends it ends the ranks: they watch a pipe that it holds.
"""

import contextlib
import json
import os
import selectors
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from luthier.children import Child, end_child, start_child
from luthier.errors import LuthierError, ModelError
from luthier.progress import Reporter, Task
from luthier.training.job import Outcome, TrainingJob
from luthier.training.mailbox import END_BYTE, STOP_BYTE, Mailbox, spell_exit
from luthier.watching import UNWATCHED, Watch

_LOOK_EVERY_SECONDS = 0.1
_END_WITHIN_SECONDS = 10.0

# What may be wished of the ranks: the byte that says so, and whether it is wished now.
_Wishes = Mapping[bytes, Callable[[], bool]]


def train_in_processes(
    job: TrainingJob,
    reporter: Reporter,
    asked_to_stop: Callable[[], bool],
    watch: Watch = UNWATCHED,
) -> Outcome | None:
    """`session.train` in `job.section.processes` processes; None when it was asked to stop or who
    watches ended it.

    Two runs never write into the same workspace: the ranks of a run that died are waited for, and
    when this returns or raises, those that it started are gone.

    Raises:
        LuthierError: what a rank raised, or how it died.
    """
    mailbox = Mailbox(job.scratch / "processes")
    if not mailbox.wait_for_ranks(asked_to_stop):
        return None
    mailbox.clear()
    mailbox.put_job(job)
    wishes: _Wishes = {STOP_BYTE: asked_to_stop, END_BYTE: lambda: watch.wants_end}
    exit_code = _run(mailbox, job.section.processes, _Shown(reporter, watch), wishes)
    if exit_code == 0 and mailbox.has_outcome():
        return mailbox.outcome()
    raise failure_of(mailbox, job.section.processes, exit_code)


def _run(mailbox: Mailbox, processes: int, shown: "_Shown", wishes: _Wishes) -> int:
    """Start the ranks and wait for their end; the launcher's exit code."""
    with (
        mailbox.launch_log.open("wb") as log,
        start_child(
            ["-m", "luthier.training.spawn", str(mailbox.folder), str(processes)],
            stdout=subprocess.PIPE,
            stderr=log,
        ) as launcher,
    ):
        try:
            _follow(launcher, shown, wishes)
        finally:
            end_child(launcher, _END_WITHIN_SECONDS)  # the ranks watch a pipe that is cut here
            mailbox.wait_for_ranks()
            shown.close()
    return launcher.returncode


def _follow(launcher: Child, shown: "_Shown", wishes: _Wishes) -> None:
    """Show progress and hand each wish on once, until the launcher ends."""
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    waiting = dict(wishes)
    with selectors.DefaultSelector() as selector:
        selector.register(launcher.stdout, selectors.EVENT_READ)
        ended = False
        while not ended:
            # Looked at before the pipe is: what was written last is read after it.
            ended = launcher.poll() is not None
            while selector.select(0 if ended else _LOOK_EVERY_SECONDS):
                content = os.read(launcher.stdout.fileno(), 65536)
                shown.feed(content)
                if not content:
                    selector.unregister(launcher.stdout)
                if not ended:
                    break
            for byte in [byte for byte, is_wished in waiting.items() if is_wished()]:
                del waiting[byte]
                with contextlib.suppress(BrokenPipeError):
                    launcher.stdin.write(byte)
                    launcher.stdin.flush()


def failure_of(mailbox: Mailbox, processes: int, exit_code: int) -> LuthierError:
    """What to tell the user: an error of ours, else the death of a rank, else its exception."""
    failures = mailbox.failures()
    for failure in failures:
        error = failure.as_error()
        if error is not None:
            return error
    log = mailbox.launch_log
    what = f"The launcher of {processes} processes {spell_exit(exit_code)}."
    # The first rank that failed by itself: the others lose it and fail, or the launcher ends them.
    deaths = {rank: code for rank, code in mailbox.deaths().items() if code != -15}
    killed = [rank for rank, code in deaths.items() if code < 0]
    raised = [failure.rank for failure in failures]
    blamed = [*killed, *raised, *deaths]
    if blamed:
        rank, log = blamed[0], mailbox.log(blamed[0])
        what = f"Process {rank} of {processes} (counted from 0) {spell_exit(deaths.get(rank, 1))}."
    return ModelError(
        f"{what} No process is left. If memory ran out, use smaller batches; the same command "
        f"goes on from the newest checkpoint. The end of {log}:{mailbox.last_lines(log)}"
    )


class _Shown:
    """Does to a reporter and to who watches what rank 0 did to its own (`rank.py` writes the
    lines)."""

    def __init__(self, reporter: Reporter, watch: Watch) -> None:
        self._reporter, self._watch = reporter, watch
        self._tasks: list[tuple[ExitStack, Task]] = []
        self._rest = b""

    def feed(self, content: bytes) -> None:
        """Some bytes of rank 0's lines of JSON."""
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            name, *values = json.loads(line)
            getattr(self, f"_{name}")(*values)

    def close(self) -> None:
        """End what the ranks did not."""
        while self._tasks:
            self._close()

    def _say(self, message: str) -> None:
        self._reporter.say(message)

    def _task(self, label: str, total: int, unit: str, seconds: float | None) -> None:
        stack = ExitStack()
        task = self._reporter.task(label, total, unit, seconds)
        self._tasks.append((stack, stack.enter_context(task)))

    def _advance(self, count: int, facts: dict[str, Any]) -> None:
        self._tasks[-1][1].advance(count, **facts)

    def _resize(self, total: int, done: int) -> None:
        self._tasks[-1][1].resize(total, done)

    def _validated(self, progress: float, loss: float) -> None:
        self._watch.validated(progress, loss)

    def _close(self) -> None:
        self._tasks.pop()[0].close()
