"""A program in a process of its own: a crash in native code, or its memory, is not ours."""

import subprocess
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from luthier.children import Child, end_child, start_child
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
        running(
            start_child(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                environment={"PYTHONIOENCODING": "utf-8", **environment},
            )
        ) as process,
        workspace.reporter.task(steps.label, steps.total, steps.unit) as task,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            workspace.raise_if_stopped()
            told = line.decode("utf-8", errors="replace").rstrip()
            last_lines.append(told)
            if steps.mark in told:
                task.advance()
        if process.wait() != 0:
            ending = "\n  ".join(last_lines)
            raise ServingError(
                f"{failure} (exit status {process.returncode}). Its last lines:\n  {ending}"
            )


@contextmanager
def running(child: Child) -> Iterator[Child]:
    """Kill a child at the end of the block, whatever happened, and close its output."""
    try:
        yield child
    finally:
        end_child(child)
        assert child.stdout is not None
        child.stdout.close()
