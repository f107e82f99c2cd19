"""A server that speaks the OpenAI API, as a system that is evaluated."""

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing

from luthier.errors import ServingError
from luthier.evaluation.endpoint_asking import Asker
from luthier.evaluation.endpoint_client import (
    EndpointClient,
    Failed,
    Question,
    question_of,
    read_key,
)
from luthier.evaluation.endpoint_log import (
    AskedOnce,
    EndpointSummary,
    RequestLog,
    summarize,
)
from luthier.evaluation.endpoint_section import Endpoint
from luthier.evaluation.systems import Prompt, Reply
from luthier.store.artifact import Workspace

_WINDOW_ROWS = 16
_SHOWN_IDS = 5
_HINTS = {
    "no connection": "Is the server running at {url}?",
    "HTTP 400": "Where it does not know a field, extra_body: {{<field>: null}} leaves that out.",
    "HTTP 422": "Where it does not know a field, extra_body: {{<field>: null}} leaves that out.",
    "HTTP 403": "The key may not use model {model!r}.",
    "HTTP 429": "It allows fewer requests: lower concurrency.",
}


class EndpointSystem:
    """Asks an endpoint greedily, goes on where an earlier run of the workspace ended.

    Each answer is kept in `measured/requests-<name>.jsonl` when it comes, and never asked for
    again. A row without an answer after all attempts holds back the replies of the rows behind
    it until all are asked: then too many missing rows are an error, and otherwise each of them is
    a reply without text, `stop_reason` missing. There are free answers only, no log-probabilities.

    Args:
        endpoint: whom to ask. Its name must be another for each set of prompts.
        max_new_tokens: of an answer, stop token included.
        workspace: keeps the log, says whether to stop.

    Raises:
        ConfigError: the variable of the key is not set.
    """

    def __init__(self, endpoint: Endpoint, max_new_tokens: int, workspace: Workspace) -> None:
        self.name = endpoint.name
        self._endpoint = endpoint
        self._max_new_tokens = max_new_tokens
        self._workspace = workspace
        self._key = read_key(endpoint)
        self._log = RequestLog(workspace.path, endpoint.name)
        self._questions: list[Question] = []

    def replies(self, prompts: Sequence[Prompt], done: int) -> Generator[list[Reply], None, None]:
        """Answer `prompts[done:]` in order, some rows at a time; closing it ends the asking.

        Raises:
            InterruptedRunError: a stop was requested; takes as long as a request.
            ServingError: more rows than `max_missing_fraction` have no answer, or the server
                refuses every row. All answers are kept.
        """
        self._questions = [
            question_of(self._endpoint, self._max_new_tokens, prompt) for prompt in prompts
        ]
        held: list[list[Reply]] = []
        with EndpointClient(self._endpoint, self._key) as client:
            asker = Asker(self._endpoint, client, self._log, self._workspace)
            with closing(self._windows(asker, self._questions[done:])) as windows:
                for window in windows:
                    if held or any(reply.stop_reason == "missing" for reply in window):
                        held.append(window)
                    else:
                        yield window
        self._demand_answers(asker.ended_by, done)
        yield from held

    def summary(self) -> EndpointSummary:
        """What the rows of the last `replies` came to; whole once those were read to the end."""
        return summarize(self._endpoint, [one.identity for one in self._questions], self._log)

    def _windows(
        self, asker: Asker, questions: Sequence[Question]
    ) -> Generator[list[Reply], None, None]:
        known = self._log.last()
        answers = {one: line for one, line in known.items() if line.text is not None}
        window: list[Reply] = []
        with closing(asker.ask([q for q in questions if q.identity not in answers])) as asked:
            for question in questions:
                line = answers.get(question.identity) or next(asked)
                window.append(_reply(question.id, line))
                if len(window) == _WINDOW_ROWS:
                    yield window
                    window = []
        if window:
            yield window

    def _demand_answers(self, ended_by: Failed | None, done: int) -> None:
        """Note the rows that stay without an answer, or raise the error about them."""
        last = self._log.last()
        never = [q for q in self._questions[done:] if q.identity not in last]
        lines = [last[q.identity] for q in self._questions if q.identity in last]
        missing = [line for line in lines if line.text is None] + list(map(_not_asked, never))
        if ended_by is not None:
            raise ServingError(f"{self._ending(ended_by)}\n{self._kept(missing)}")
        if missing and len(missing) / len(self._questions) > self._endpoint.max_missing_fraction:
            raise ServingError(f"{self._shortfall(missing)}\n{self._kept(missing)}")
        for question in never:
            self._log.append(_not_asked(question))

    def _ending(self, failed: Failed) -> str:
        one = self._endpoint
        said = f"{one.name}: {one.url} answers {failed.reason}"
        if failed.detail:
            said += f" ({failed.detail})"
        match failed.status:
            case 401 if one.api_key_env is None:
                advice = "It wants a key: name the environment variable with it in api_key_env."
            case 401:
                advice = f"Put a valid key into the environment variable {one.api_key_env}."
            case 404:
                advice = f"Correct url (mostly .../v1) or model ({one.model!r})."
            case _:
                advice = "Correct url."
        return f"{said}. {advice}"

    def _shortfall(self, missing: Sequence[AskedOnce]) -> str:
        one = self._endpoint
        ids = ", ".join(line.id for line in missing[:_SHOWN_IDS])
        more = f" and {len(missing) - _SHOWN_IDS} more" if len(missing) > _SHOWN_IDS else ""
        said = [
            f"{one.name}: {len(missing)} of {len(self._questions)} rows have no answer, more than "
            f"max_missing_fraction ({one.max_missing_fraction:g}): {ids}{more}."
        ]
        details = {line.why_missing: line.attempts[-1].detail for line in missing if line.attempts}
        for reason, count in Counter(line.why_missing for line in missing).most_common():
            detail, hint = details.get(reason), _HINTS.get(reason)
            said.append(
                f"  {count} x {reason}"
                + (f" ({detail})" if detail else "")
                + (f". {hint.format(url=one.url, model=one.model)}" if hint else "")
            )
        return "\n".join(said)

    def _kept(self, missing: Sequence[AskedOnce]) -> str:
        answered = len(self._questions) - len(missing)
        if not answered:
            return "No row has an answer so far."
        rows = "row is" if answered == 1 else "rows are"
        return f"{answered} answered {rows} kept; the same command asks only the missing ones."


def _reply(row_id: str, line: AskedOnce | None) -> Reply:
    if line is None or line.text is None:
        return Reply(row_id, "", "missing")
    return Reply(row_id, line.text, line.stop_reason)


def _not_asked(question: Question) -> AskedOnce:
    return AskedOnce(question.id, question.digest, (), None, None, None, None, 0.0)
