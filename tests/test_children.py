"""Child processes: what they import, and how they end."""

import re
import signal
import subprocess
from pathlib import Path

import pytest

from luthier.children import end_child, start_child

SOURCE = Path(__file__).parent.parent / "src" / "luthier"
WAITS_FOR_ITS_INPUT = "import sys; sys.stdin.read(); sys.exit(7)"
SLEEPS = "import time; time.sleep(600)"


@pytest.fixture(autouse=True)
def warm_children() -> None:
    """None: what is tested here is how a process starts."""


def test_files_of_the_current_folder_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the current folder ran')")
    monkeypatch.chdir(tmp_path)
    child = start_child(["-m", "json.tool", "--help"], stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        assert b"usage" in child.stdout.read()
    assert child.returncode == 0


def test_the_end_of_its_input_tells_a_child_to_end() -> None:
    assert end_child(start_child(["-c", WAITS_FOR_ITS_INPUT]), within_seconds=60) == 7


def test_a_child_that_does_not_end_is_killed() -> None:
    assert end_child(start_child(["-c", SLEEPS])) == -signal.SIGKILL


def test_the_exit_code_of_a_child_that_ended_stays() -> None:
    child = start_child(["-c", "raise SystemExit(3)"])
    child.wait()
    assert end_child(child) == 3


def test_variables_come_on_top_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    script = "import os; print(os.environ['OURS'], os.environ['THEIRS'])"
    child = start_child(["-c", script], stdout=subprocess.PIPE, environment={"THEIRS": "2"})
    assert child.communicate()[0].split() == [b"1", b"2"]


def test_all_children_are_started_in_one_place() -> None:
    starting = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if re.search(r"\bPopen\(", path.read_text(encoding="utf-8"))
    }
    assert starting == {"children.py"}
