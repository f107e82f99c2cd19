"""Replies kept as they come: one line a finished chunk, so that a killed run goes on after it."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from luthier.evaluation.systems import Prompt, Reply, System
from luthier.store.artifact import Workspace
from luthier.store.files import fsync_folder


@dataclass(frozen=True)
class Collected:
    """All replies in row order, and what this process spent on its part of them."""

    replies: list[Reply]
    seconds: float
    rows_done_here: int

    @property
    def rows_per_second(self) -> float:
        """0 when an earlier run had done everything."""
        return self.rows_done_here / self.seconds


def collect(system: System, prompts: Sequence[Prompt], workspace: Workspace) -> Collected:
    """Ask a system everything, going on after what an earlier run of this workspace got.

    Raises:
        InterruptedRunError: a stop was requested; the finished chunks are kept.
    """
    path = workspace.scratch / f"replies-{system.name}.jsonl"
    replies = _read(path)
    done = len(replies)
    started = time.monotonic()
    with (
        path.open("ab") as journal,
        workspace.reporter.task(system.name, len(prompts), "rows") as task,
    ):
        fsync_folder(path.parent)
        task.advance(done)
        for chunk in system.replies(prompts, done):
            journal.write(json.dumps([asdict(reply) for reply in chunk]).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
            replies += chunk
            task.advance(len(chunk))
            workspace.raise_if_stopped()
    assert [reply.id for reply in replies] == [prompt.id for prompt in prompts]
    return Collected(replies, time.monotonic() - started, len(replies) - done)


def _read(path: Path) -> list[Reply]:
    """The chunks that were written whole; a torn last line is cut off the file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as stream:
            stream.truncate(len(whole))
    return [_reply(found) for line in whole.splitlines() for found in json.loads(line)]


def _reply(found: dict[str, object]) -> Reply:
    scores = found.pop("label_log_p")
    return Reply(**found, label_log_p=None if scores is None else tuple(scores))  # type: ignore[arg-type]
