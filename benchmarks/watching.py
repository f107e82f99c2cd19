"""A command watched from outside: wall time, and the memory of it and all its children."""

import itertools
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.1
SLOW_SAMPLE_EVERY = 10  # the kernel walks every page to tell PSS


@dataclass
class Peaks:
    """Largest sums over a process and its children, in bytes."""

    rss: int = 0
    pss: int = 0
    anonymous: int = 0
    processes: int = 0

    def sample(self, root: psutil.Process, *, slow: bool) -> None:
        tree = [root, *root.children(recursive=True)]
        self.processes = max(self.processes, len(tree))
        self.rss = max(self.rss, sum(_rss(process) for process in tree))
        if slow:
            pss, anonymous = map(sum, zip(*(_rollup(process) for process in tree), strict=True))
            self.pss, self.anonymous = max(self.pss, pss), max(self.anonymous, anonymous)


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has just ended
        return 0


def _rollup(process: psutil.Process) -> tuple[int, int]:
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0, 0
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE))
    return 1024 * int(kilobytes.get("Pss", 0)), 1024 * int(kilobytes.get("Anonymous", 0))


def watched(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, Peaks]:
    """Run a command to its end; its wall time in seconds and its peaks of memory."""
    peaks, log = Peaks(), folder / "output.log"
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | environment, stdout=output, stderr=output
        )
        root = psutil.Process(process.pid)
        for number in itertools.count():
            try:
                process.wait(SAMPLE_SECONDS)
                break
            except subprocess.TimeoutExpired:
                peaks.sample(root, slow=number % SLOW_SAMPLE_EVERY == 0)
        seconds = time.perf_counter() - started
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {log.read_text(encoding='utf-8')[-3000:]}")
    return seconds, peaks
