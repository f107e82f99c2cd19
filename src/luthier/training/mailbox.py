"""What the processes of one training leave for the process that started them: files, JSON each.

A folder holds the mail of one launch. Only plain values go through, so that an error of ours in a
rank is the same error, with the same exit code, in the process that a person looks at.
"""

import fcntl
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import luthier.errors
from luthier.errors import LuthierError
from luthier.gates import Gate
from luthier.store.files import write_atomically
from luthier.training.job import Outcome, TrainingJob

OUTCOME_NAME = "outcome.json"
STOPPED = "stopped"
# Written to the ranks' standard input: stop at this step's end.
STOP_BYTE = b"s"
# The same, as the wish of who watches.
END_BYTE = b"e"
_JOB_NAME = "job.json"
_DEATHS_NAME = "deaths.json"
_LOCK_NAME = "ranks.lock"
_LOOK_AGAIN_EVERY_SECONDS = 0.1
_LAST_LINES = 12


@dataclass(frozen=True)
class Failure:
    """An exception that ended a rank. `error` names a LuthierError's class, else it is None.
    `at` is when, in seconds since 1970."""

    rank: int
    error: str | None
    message: str
    at: float

    def as_error(self) -> LuthierError | None:
        """The same error; None when it was no error of ours."""
        kind = getattr(luthier.errors, self.error or "", None)
        return kind(self.message) if kind is not None else None


@dataclass(frozen=True)
class Mailbox:
    """The folder of one training's processes; `clear` makes it ready for a launch."""

    folder: Path

    def clear(self) -> None:
        """Make the folder, and delete what an earlier launch left; the lock stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if path.name != _LOCK_NAME:
                path.unlink()

    def log(self, rank: int) -> Path:
        """What a rank and its libraries printed."""
        return self.folder / f"rank-{rank}.log"

    @property
    def launch_log(self) -> Path:
        """What the launcher printed."""
        return self.folder / "launch.log"

    def last_lines(self, path: Path) -> str:
        """The end of a log, indented; empty when there is none."""
        if not path.exists():
            return ""
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        return "".join(f"\n  | {line}" for line in lines)

    def put_job(self, job: TrainingJob) -> None:
        """Tell the ranks what to train: what the config says, since a default is not always what
        somebody would be allowed to say."""
        write_atomically(self.folder / _JOB_NAME, job.model_dump_json(exclude_unset=True))

    def job(self) -> TrainingJob:
        """What to train."""
        return TrainingJob.model_validate_json((self.folder / _JOB_NAME).read_bytes())

    def put_outcome(self, outcome: Outcome | None) -> None:
        """What rank 0 measured; None when training was asked to end. NaN stays NaN."""
        values = None
        if outcome is not None:
            values = {
                "metrics": dict(outcome.metrics),
                "gates": [gate.model_dump() for gate in outcome.gates],
                "facts": dict(outcome.facts),
                "timings_seconds": dict(outcome.timings_seconds),
            }
        write_atomically(self.folder / OUTCOME_NAME, json.dumps(values))

    def has_outcome(self) -> bool:
        """Whether rank 0 came to its end."""
        return (self.folder / OUTCOME_NAME).exists()

    def outcome(self) -> Outcome | None:
        """What rank 0 said last."""
        values = json.loads((self.folder / OUTCOME_NAME).read_bytes())
        if values is None:
            return None
        gates = [Gate.model_validate(gate) for gate in values.pop("gates")]
        return Outcome(gates=gates, **values)

    def put_failure(self, rank: int, error: BaseException) -> None:
        """What ended a rank."""
        ours = type(error).__name__ if isinstance(error, LuthierError) else None
        message = str(error) if ours else f"{type(error).__name__}: {error}"
        content = json.dumps(asdict(Failure(rank, ours, message, time.time())))
        write_atomically(self.folder / f"failure-{rank}.json", content)

    def failures(self) -> list[Failure]:
        """Exceptions of ranks, the first first: the others lose that rank and fail by it."""
        paths = self.folder.glob("failure-*.json")
        failures = [Failure(**json.loads(path.read_bytes())) for path in paths]
        return sorted(failures, key=lambda failure: failure.at)

    def put_deaths(self, exit_codes: dict[int, int]) -> None:
        """Exit codes of the ranks that the launcher saw fail; -N: ended by signal N."""
        write_atomically(self.folder / _DEATHS_NAME, json.dumps(list(exit_codes.items())))

    def deaths(self) -> dict[int, int]:
        """Exit codes by rank; empty when the launcher saw no rank fail."""
        path = self.folder / _DEATHS_NAME
        return dict(json.loads(path.read_bytes())) if path.exists() else {}

    @contextmanager
    def rank_is_alive(self) -> Iterator[None]:
        """A rank holds it as long as it lives; the kernel releases it with the process."""
        with self._open_lock() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH)
            yield

    def wait_for_ranks(self, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait until no rank that writes here is alive; False when `give_up` said so before."""
        with self._open_lock() as stream:
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                except BlockingIOError:
                    if give_up():
                        return False
                    time.sleep(_LOOK_AGAIN_EVERY_SECONDS)

    def _open_lock(self) -> IO[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        return (self.folder / _LOCK_NAME).open("ab")


def spell_exit(code: int) -> str:
    """An exit code in words, as subprocess gives it."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed ({name})"
