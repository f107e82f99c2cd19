"""One writer a key. The lock is the kernel's (flock): that of a dead process is free at once."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from luthier.interrupts import StopFlag
from luthier.progress import Reporter

_LOOK_AT_STOP_EVERY_SECONDS = 0.2


@contextmanager
def locked(path: Path, reporter: Reporter, stop: StopFlag) -> Iterator[None]:
    """Hold the lock; while another process has it, say who, and wait.

    Raises:
        InterruptedRunError: a stop was requested while waiting.
        OSError: the lock file cannot be made.
    """
    lock = FileLock(path)
    _acquire(lock, path, reporter, stop)
    owner = _owner_file(path)
    try:
        now = datetime.now(UTC).astimezone()
        since = now.isoformat(sep=" ", timespec="seconds")
        owner.write_text(json.dumps({"pid": os.getpid(), "since": since}))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, path: Path, reporter: Reporter, stop: StopFlag) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        what = f"{path.parent.name} {path.stem}"
        reporter.say(f"Another run{_owner(path)} is making {what}; waiting for it.")
    while not lock.is_locked:
        stop.raise_if_requested()
        try:
            lock.acquire(timeout=_LOOK_AT_STOP_EVERY_SECONDS)
        except Timeout:
            continue


def _owner_file(path: Path) -> Path:
    return path.with_suffix(".owner")


def _owner(path: Path) -> str:
    try:
        owner = json.loads(_owner_file(path).read_text())
        return f", process {owner['pid']} since {owner['since']},"
    except (OSError, ValueError, KeyError):  # it is just starting, or just ending
        return ""
