"""Which of two systems a judge prefers, row by row, asked in both orders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.evaluation.answers import Answer
from luthier.evaluation.judging import JudgeSection, ask_judge
from luthier.evaluation.pair_rules import Drawn
from luthier.evaluation.rows import AskedRow
from luthier.evaluation.statistics import mcnemar_p_value, paired_interval
from luthier.store.artifact import Workspace


@dataclass(frozen=True)
class WinRate:
    """The new system against the old one on the same rows.

    A row is won or lost where the judge prefers the same answer in both orders, by `min_margin`
    or more; all others are ties, `inconsistent` those where the order decided, `unread` those
    where a reply of the judge held no scores. `difference` is
    the share won less the share lost, with its 95 % interval (Tango 1998); the p-value is the
    exact sign test's.
    """

    rows: int
    won: int
    lost: int
    same_text: int
    inconsistent: int
    unread: int
    difference: float
    interval: tuple[float, float]
    p_value: float


def win_rate(
    judge: JudgeSection,
    rows: Sequence[AskedRow],
    new: Sequence[Answer],
    old: Sequence[Answer],
    workspace: Workspace,
) -> WinRate:
    """Ask the judge about every row whose two answers differ. Raises what `ask_judge` does."""
    pairs = [
        (row, after.answer.strip(), before.answer.strip())
        for row, after, before in zip(rows, new, old, strict=True)
    ]
    unlike = [pair for pair in pairs if pair[1] != pair[2]]
    won = lost = inconsistent = unread = 0
    for forth, back in _scored(judge, unlike, workspace):
        if forth is None or back is None:
            unread += 1
            continue
        first, second = forth[0] - forth[1], back[1] - back[0]
        if min(first, second) >= judge.min_margin:
            won += 1
        elif max(first, second) <= -judge.min_margin:
            lost += 1
        elif first * second < 0:
            inconsistent += 1
    return WinRate(
        rows=len(rows),
        won=won,
        lost=lost,
        same_text=len(pairs) - len(unlike),
        inconsistent=inconsistent,
        unread=unread,
        difference=(won - lost) / len(rows),
        interval=paired_interval(won, lost, len(rows)),
        p_value=mcnemar_p_value(won, lost),
    )


def _scored(
    judge: JudgeSection, pairs: Sequence[tuple[AskedRow, str, str]], workspace: Workspace
) -> list[tuple[Sequence[float] | None, Sequence[float] | None]]:
    """Of each pair the scores of (new, old), and those of (old, new)."""
    forth = [Drawn(row, (), (new, old), (1, 1)) for row, new, old in pairs]
    back = [Drawn(row, (), (old, new), (1, 1)) for row, new, old in pairs]
    asked = ask_judge(judge, [*forth, *back], "evaluate.judge", workspace)
    scores = [one.scores for one in asked]
    return list(zip(scores[: len(pairs)], scores[len(pairs) :], strict=True))


def describe_win_rate(found: Mapping[str, Any]) -> str:
    """A line for the terminal."""
    low, high = found["interval"]
    unread = f", {found['unread']} not scored" if found["unread"] else ""
    return (
        f"  judged against the baseline: {found['won']} of {found['rows']} rows won, "
        f"{found['lost']} lost, {found['inconsistent']} by their order alone{unread}; "
        f"{found['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
    )
