"""Replies kept as they come: one line a finished chunk, so that a killed run goes on after it."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from luthier.evaluation.systems import Prompt, Reply, Sample, System
from luthier.store.artifact import Workspace
from luthier.store.journal import Journal


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
    journal = Journal(workspace.scratch / f"replies-{system.name}.jsonl")
    replies = [_reply(found) for chunk in journal.read() for found in chunk]
    done = len(replies)
    started = time.monotonic()
    with (
        workspace.reporter.task(system.name, len(prompts), "rows") as task,
        closing(system.replies(prompts, done)) as chunks,
    ):
        task.advance(done)
        for chunk in chunks:
            journal.append([asdict(reply) for reply in chunk])
            replies += chunk
            task.advance(len(chunk))
            workspace.raise_if_stopped()
    assert [reply.id for reply in replies] == [prompt.id for prompt in prompts]
    return Collected(replies, time.monotonic() - started, len(replies) - done)


def _reply(found: dict[str, Any]) -> Reply:
    scores, samples = found.pop("label_log_p"), found.pop("samples")
    return Reply(
        **found,
        label_log_p=None if scores is None else tuple(scores),
        samples=tuple(Sample(**one) for one in samples),
    )
