"""Replies survive a kill: finished chunks are kept, a torn line is not, the rest is asked."""

from collections.abc import Iterator, Sequence

import pytest

from luthier.errors import InterruptedRunError
from luthier.evaluation.journal import collect
from luthier.evaluation.systems import Prompt, Reply
from luthier.store.artifact import Workspace

CHUNK = 3
PROMPTS = [Prompt(f"row{n}", (n,)) for n in range(8)]


class Echo:
    """A system that answers with the prompt's own tokens and notes what it was asked."""

    name = "echo"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def replies(self, prompts: Sequence[Prompt], done: int) -> Iterator[list[Reply]]:
        for start in range(done, len(prompts), CHUNK):
            chunk = prompts[start : start + CHUNK]
            self.asked += [prompt.id for prompt in chunk]
            yield [
                Reply(p.id, f"«{p.token_ids[0]}»\n", "stop", (-0.1 / 3, None), None) for p in chunk
            ]


def test_all_replies_in_row_order(workspace: Workspace) -> None:
    collected = collect(Echo(), PROMPTS, workspace)
    assert [reply.id for reply in collected.replies] == [prompt.id for prompt in PROMPTS]
    assert collected.rows_done_here == 8


def test_goes_on_after_the_finished_chunks(workspace: Workspace) -> None:
    whole = collect(Echo(), PROMPTS, workspace).replies
    path = workspace.scratch / "replies-echo.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for torn in (b"", lines[1][:20], lines[1].rstrip(b"\n")):
        path.write_bytes(lines[0] + torn)
        again = Echo()
        assert collect(again, PROMPTS, workspace).replies == whole
        assert again.asked == [prompt.id for prompt in PROMPTS[CHUNK:]]
        assert path.read_bytes() == b"".join(lines)


def test_nothing_is_asked_twice(workspace: Workspace) -> None:
    collect(Echo(), PROMPTS, workspace)
    again = Echo()
    collected = collect(again, PROMPTS, workspace)
    assert (again.asked, collected.rows_done_here) == ([], 0)


def test_a_requested_stop_keeps_the_chunk(workspace: Workspace) -> None:
    workspace.stop.requested = True
    with pytest.raises(InterruptedRunError):
        collect(Echo(), PROMPTS, workspace)
    workspace.stop.requested = False
    again = Echo()
    collect(again, PROMPTS, workspace)
    assert again.asked == [prompt.id for prompt in PROMPTS[CHUNK:]]
