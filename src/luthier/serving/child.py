"""A program in a process of its own: a crash in native code, or its memory, is not ours."""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from luthier.errors import ServingError
from luthier.store.artifact import Workspace

_LAST_LINES = 12


@dataclass(frozen=True)
class Steps:
    """What a child's progress is counted in: each line with `mark` in it is one of `total`."""

    label: str
    total: int
    unit: str
    mark: str


def run_child(
    arguments: Sequence[str], failure: str, steps: Steps, workspace: Workspace,
    environment: Mapping[str, str],
) -> None:  # fmt: skip
    """Run `python ARGUMENTS` to its end, with progress; a stop request ends it.

    Args:
        failure: the beginning of the error, before the child's last lines.
        environment: variables set besides those of this process.

    Raises:
        ServingError: the child failed.
        InterruptedRunError: stopped on request.
    """
    last_lines: deque[str] = deque(maxlen=_LAST_LINES)
    with (
        _running(arguments, environment) as process,
        workspace.reporter.task(steps.label, steps.total, steps.unit) as task,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            workspace.raise_if_stopped()
            last_lines.append(line.rstrip())
            if steps.mark in line:
                task.advance()
        if process.wait() != 0:
            told = "\n  ".join(last_lines)
            raise ServingError(
                f"{failure} (exit status {process.returncode}). Its last lines:\n  {told}"
            )


@contextmanager
def _running(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        start_new_session=True,  # Ctrl-C is ours to handle: it ends the step, not the child
    )
    with ended(process):
        yield process


@contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Kill a child at the end, whatever happened, and close its output."""
    try:
        yield
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
