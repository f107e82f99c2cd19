"""One writer a key: waiting, stopping while waiting, taking over from the dead."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from luthier.errors import InterruptedRunError
from luthier.interrupts import StopFlag
from luthier.progress import Reporter
from luthier.store import Store, compute_key
from test_store_making import identity, make

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = compute_key(identity())
HOLD = """
import sys, time
from pathlib import Path
from luthier.interrupts import StopFlag
from luthier.progress import Reporter
from luthier.store import Store
with Store(Path(sys.argv[1])).workspace("prepare", sys.argv[2], Reporter(), StopFlag()):
    print("held", flush=True)
    time.sleep(60)
"""
MAKE = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_store_making import make
from luthier.store import Store
print(make(Store(Path(sys.argv[1]))).manifest.created_at)
"""


class Listening(Reporter):
    def __init__(self, stop: StopFlag | None = None, kill: int | None = None) -> None:
        self.said: list[str] = []
        self._stop, self._kill = stop, kill

    def say(self, message: str) -> None:
        self.said.append(message)
        if self._stop is not None:
            self._stop.requested = True
        if self._kill is not None:
            os.kill(self._kill, signal.SIGKILL)


@pytest.fixture
def holder(tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), KEY], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_waits_says_so_and_can_be_stopped(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    stop = StopFlag()
    reporter = Listening(stop=stop)
    waiting = Store(tmp_path).workspace("prepare", KEY, reporter, stop)
    with pytest.raises(InterruptedRunError), waiting:
        pass
    assert len(reporter.said) == 1
    assert f"process {holder.pid} since 20" in reporter.said[0]
    assert f"prepare {KEY[:16]}" in reporter.said[0]


def test_the_lock_of_a_killed_run_is_free_at_once(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    reporter = Listening(kill=holder.pid)
    start = time.monotonic()
    with Store(tmp_path).workspace("prepare", KEY, reporter, StopFlag()) as workspace:
        assert workspace.path.is_dir()
        assert (workspace.scratch / "resumed").read_text() == "1"
    assert time.monotonic() - start < 5
    silent = Listening()
    with Store(tmp_path).workspace("prepare", KEY, silent, StopFlag()):
        assert silent.said == []


def test_two_processes_with_one_key_make_one_artifact(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKE, str(tmp_path), str(Path(__file__).parent)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    made = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(made) == 1
    store = Store(tmp_path)
    assert [artifact.ref for artifact in store.artifacts()] == ["demo/dataset@v1"]
    assert len(store.versions()) == 1
    store.verify(make(store))


def test_what_somebody_works_in_is_not_discarded(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    store = Store(tmp_path)
    (store.scratch("prepare", KEY) / "half").write_text("work")
    assert not store.discard("prepare", KEY)
    assert store.has_workspace("prepare", KEY)
    holder.kill()
    holder.wait()
    assert store.discard("prepare", KEY)
    assert not store.has_workspace("prepare", KEY)
    assert store.discard("prepare", KEY), "nothing is left, which is what was asked for"
    assert make(store).path.is_dir()
