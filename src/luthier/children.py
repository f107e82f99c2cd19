"""Children of ours: Python programs in processes of their own."""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from subprocess import PIPE, Popen, TimeoutExpired
from typing import IO, TypeAlias

Child: TypeAlias = "Popen[bytes]"


def start_child(
    arguments: Sequence[str],
    *,
    stdin: int | IO[bytes] = PIPE,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Start `python ARGUMENTS`, such as `-m luthier.training.spawn`.

    It is in a session of its own: Ctrl-C is the parent's to handle. Its standard input, unless it
    is given another, ends with the parent, whatever ends that. What it imports are modules of ours
    and of our libraries, never files that lie in the current folder.

    Args:
        arguments: what stands behind `python`.
        stdin: the child's; by default a pipe, as with `Popen`.
        stdout: the child's; by default that of this process.
        stderr: the child's; by default that of this process.
        environment: variables set besides those of this process.
    """
    return Popen(
        [sys.executable, *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        env=os.environ | {"PYTHONSAFEPATH": "1"} | dict(environment or {}),
    )


def end_child(child: Child, within_seconds: float = 0.0) -> int:
    """Close its standard input, kill it if it does not end by that in time; its exit code."""
    if child.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
    try:
        child.wait(within_seconds)
    except TimeoutExpired:
        child.kill()
    return child.wait()
