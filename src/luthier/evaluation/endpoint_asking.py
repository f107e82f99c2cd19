"""Asking patiently: several rows at once, each until it is answered or given up."""

import hashlib
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from luthier.evaluation.endpoint_client import EndpointClient, Failed, Question
from luthier.evaluation.endpoint_log import AskedOnce, Attempt, RequestLog
from luthier.evaluation.endpoint_reply import Answered
from luthier.evaluation.endpoint_section import Endpoint
from luthier.store.artifact import Workspace

# openai-python waits 0.5 s, twice as long each time, at most 8 s (_constants.py).
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 8.0
_POLL_SECONDS = 0.1
# Failures in a row after which nobody is there: at first few, so that a wrong address shows within
# seconds; later as many as a server has while it starts anew.
_FIRST_FAILURES = 12
_LATER_ROUNDS = 2


class Asker:
    """Asks rows of one system and logs each when it is done with.

    It stops asking on its own when requests fail one after another, and when a failure is one for
    all rows (`ended_by`).
    """

    def __init__(
        self, endpoint: Endpoint, client: EndpointClient, log: RequestLog, workspace: Workspace
    ) -> None:
        self._has_given_up = False
        self.ended_by: Failed | None = None
        self._endpoint, self._client = endpoint, client
        self._log, self._workspace = log, workspace
        self._lock = threading.Lock()
        self._halt = threading.Event()
        self._failures_in_a_row = 0
        self._has_answered = False

    def ask(self, questions: Sequence[Question]) -> Generator[AskedOnce | None, None, None]:
        """What came of each, in order; None for those that were not asked any more.

        Closing it early, or a requested stop, waits for the requests that are under way.

        Raises:
            InterruptedRunError: a stop was requested; what was answered is in the log.
        """
        with ThreadPoolExecutor(self._endpoint.concurrency, "endpoint") as pool:
            try:
                futures = [pool.submit(self._ask, question) for question in questions]
                for future in futures:
                    yield self._result(future)
            finally:
                self._halt.set()

    def _result(self, future: Future[AskedOnce | None]) -> AskedOnce | None:
        while not future.done():
            self._workspace.raise_if_stopped()
            wait([future], timeout=_POLL_SECONDS)
        self._workspace.raise_if_stopped()  # what was not asked for that reason is not missing
        return future.result()

    def _ask(self, question: Question) -> AskedOnce | None:
        """In a thread of the pool."""
        attempts: list[Attempt] = []
        came: Answered | Failed | None = None
        started = time.monotonic()
        for number in range(1, self._endpoint.max_attempts + 1):
            if self._is_halted():
                break
            sent = time.monotonic()
            came = self._client.send(question)
            attempts.append(_attempt(came, time.monotonic() - sent))
            self._judge(came)
            if isinstance(came, Answered) or came.then != "retry":
                break
            if number < self._endpoint.max_attempts:
                self._pause(max(came.wait_seconds, wait_seconds(question.id, number)))
        if not attempts:
            return None
        line = _line(question, attempts, came, time.monotonic() - started)
        with self._lock:
            self._log.append(line)
        return line

    def _judge(self, came: Answered | Failed) -> None:
        """Whether to go on asking at all."""
        with self._lock:
            if isinstance(came, Answered):
                self._has_answered, self._failures_in_a_row = True, 0
                return
            if came.then == "end" and self.ended_by is None:
                self.ended_by = came
            if came.then == "retry" or not self._has_answered:  # a refusal is a sign of life
                self._failures_in_a_row += 1
            if self._failures_in_a_row >= self._limit():
                self._has_given_up = True
            if self._has_given_up or self.ended_by:
                self._halt.set()

    def _limit(self) -> int:
        at_once = self._endpoint.concurrency
        if not self._has_answered:
            return max(_FIRST_FAILURES, 3 * at_once)
        return self._endpoint.max_attempts * max(_FIRST_FAILURES, _LATER_ROUNDS * at_once)

    def _is_halted(self) -> bool:
        return self._halt.is_set() or self._workspace.stop.requested

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._is_halted() and (left := end - time.monotonic()) > 0:
            self._halt.wait(min(left, _POLL_SECONDS))


def wait_seconds(row_id: str, attempt: int) -> float:
    """Before the attempt after `attempt`: longer each time, other rows at other times.

    Half of it to all of it, by a hash of row and attempt: the same in every run.
    """
    longest = min(_FIRST_WAIT_SECONDS * 2.0 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
    digest = hashlib.sha256(f"{row_id}:{attempt}".encode()).digest()
    return longest * (1 + int.from_bytes(digest[:8]) / 2**64) / 2


def _attempt(came: Answered | Failed, seconds: float) -> Attempt:
    if isinstance(came, Answered):
        return Attempt(came.status, None, "", seconds)
    return Attempt(came.status, came.reason, came.detail, seconds)


def _line(
    question: Question,
    attempts: Sequence[Attempt],
    came: Answered | Failed | None,
    seconds: float,
) -> AskedOnce:
    found = came if isinstance(came, Answered) else None
    return AskedOnce(
        id=question.id,
        question=question.digest,
        attempts=tuple(attempts),
        text=found.text if found else None,
        finish_reason=found.finish_reason if found else None,
        input_tokens=found.input_tokens if found else None,
        output_tokens=found.output_tokens if found else None,
        seconds=seconds,
    )
