"""What a person sees while work goes on."""

import io
import re
import sys
import time

import pytest
from rich.console import Console

from luthier.progress import Pace, PlainReporter, RichReporter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that `time.monotonic` says; write the next to [0]."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_measured_rate_takes_over_from_the_foretold(clock: list[float]) -> None:
    pace = Pace(50, seconds=100.0)
    assert pace.seconds_left() == 100.0
    clock[0] += 16
    pace.advance(4)
    assert pace.seconds_left() == pytest.approx(46 * (0.5 * 4 + 0.5 * 2))
    clock[0] += 1
    assert pace.seconds_left() == pytest.approx(46 * (0.5 * 4 + 0.5 * 2) - 1)
    clock[0] += 36 * 4 - 1
    pace.advance(36)
    assert pace.seconds_left() == pytest.approx(10 * 4, rel=0.05)


def test_what_was_done_before_is_not_this_rate(clock: list[float]) -> None:
    pace = Pace(0)
    clock[0] += 30
    pace.resize(100, done=90)
    assert pace.seconds_left() is None
    assert pace.spell() == "30 s"
    clock[0] += 2
    pace.advance(1)
    assert pace.seconds_left() == pytest.approx(18)
    assert pace.spell() == "32 s, 18 s left"
    pace.advance(9)
    assert pace.spell() == "32 s"


def test_plain_lines_say_the_time_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with PlainReporter().task("training", 0, "steps", 40.0) as task:
        task.resize(4)
        for _ in range(4):
            clock[0] += 11
            task.advance(loss=0.51234)
    assert capsys.readouterr().err.splitlines() == [
        "  training: 1/4 steps loss 0.5123 (11 s, 31 s left)",
        "  training: 2/4 steps loss 0.5123 (22 s, 21 s left)",
        "  training: 3/4 steps loss 0.5123 (33 s, 10 s left)",
        "  training: 4/4 steps loss 0.5123 (44 s)",
    ]


def test_a_bar_says_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    reporter = RichReporter()
    reporter._console = Console(file=written, force_terminal=True, width=100)
    with reporter.task("training", 0, "steps", 4000.0) as task:
        task.resize(4)
        task.advance(loss=0.5)
    assert "steps loss 0.5" in written.getvalue()
    assert re.search(r"\d s, 0:\d\d:\d\d left", written.getvalue())


def test_a_training_bar_is_one_line_of_80_columns(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    reporter = RichReporter()
    reporter._console = Console(file=written, force_terminal=True, width=80)
    with reporter.task("training", 1094, "steps", 700.0) as task:
        clock[0] += 246
        task.advance(453, loss=0.56754, lr=0.00094382)
    screen = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", screen) if line.strip()]
    assert lines
    assert all("training" in line and len(line.rstrip()) <= 80 for line in lines), lines
    assert any(line.rstrip().endswith(" left") for line in lines), lines
