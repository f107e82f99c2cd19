"""A running server that speaks the OpenAI API, asked greedily: vLLM, Ollama, llama.cpp, others."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from pydantic import ValidationError

from luthier.errors import ServingError
from luthier.evaluation.endpoint_asking import wait_seconds
from luthier.evaluation.endpoint_client import EndpointClient, Failed, Fetched, read_key
from luthier.evaluation.endpoint_reply import parse
from luthier.evaluation.endpoint_section import Endpoint

_API = "/v1"
_ATTEMPTS = 4
_OPTIONS: Mapping[str, str] = {
    "url": "--endpoint",
    "api_key_env": "--api-key-env",
    "timeout_seconds": "--timeout-seconds",
}
_REFUSED_STATUSES = (400, 404, 413, 422)
_DENIED_STATUSES = (401, 403)
# Greedy whatever the server's own defaults; servers that know a field otherwise refuse it.
_STRONGLY_GREEDY: Mapping[str, Any] = {"top_k": 1, "repetition_penalty": 1.0}
_LLAMA_CPP: Mapping[str, Any] = {"top_k": 1, "repeat_penalty": 1.0, "cache_prompt": False}
_AS_IDS: Mapping[str, Any] = {"return_tokens_as_token_ids": True}  # vLLM: token_id:7 for a token
_ID_PREFIX = "token_id:"
# What is asked for beside the answer, until the server takes it: 20 is the most that OpenAI, vLLM
# and Ollama give, 5 the most of TGI and of OpenAI's completions.
_LEVELS: Sequence[tuple[int, Mapping[str, Any]]] = (
    (20, {**_STRONGLY_GREEDY, **_LLAMA_CPP, **_AS_IDS}),
    (20, _STRONGLY_GREEDY),
    (20, {}),
    (5, {}),
    (0, {}),
)


@dataclass(frozen=True)
class ServedToken:
    """A token that the server names: its log-probability in nats; `id` where it gives one."""

    id: int | None
    text: str
    log_probability: float
    others: tuple["ServedToken", ...] = ()


@dataclass(frozen=True)
class ServedReply:
    """An answer; `tokens` is empty and `prompt_tokens` None where the server does not say."""

    text: str
    finish_reason: str
    prompt_tokens: int | None
    tokens: tuple[ServedToken, ...]


@dataclass(frozen=True)
class Question:
    """A conversation, or where there is none, the text to go on from."""

    messages: Sequence[Mapping[str, str]]
    prompt: str


class ServedEndpoint:
    """A server and the model asked there; a context manager, usable by several threads.

    Args:
        url: with or without /v1.
        api_key_env: the environment variable with the key, None for no key.
        timeout_seconds: of one request.

    Raises:
        ServingError: the address is none; on entering, nobody answers there in the OpenAI API; on
            any method, the connection is lost for good or the key is refused.
        ConfigError: the key's variable is not set.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key_env: str | None = None,
        timeout_seconds: float = 120.0,
    ) -> None:
        bare = url.strip().rstrip("/").removesuffix(_API)
        try:
            endpoint = Endpoint(
                name="endpoint",
                url=bare,
                model="-",
                api_key_env=api_key_env,
                timeout_seconds=timeout_seconds,
            )
        except ValidationError as error:
            first = error.errors()[0]
            told = first["msg"].removeprefix("Value error, ")
            raise ServingError(f"{_OPTIONS[str(first['loc'][0])]} {told}.") from None
        self.root, self.api = endpoint.url, f"{endpoint.url}{_API}"
        self.model = ""
        self.listed: list[Mapping[str, Any]] = []
        self._level, self._is_settled = 0, False
        self._client = EndpointClient(endpoint, read_key(endpoint))

    def __enter__(self) -> "ServedEndpoint":
        self._client.__enter__()
        try:
            self.listed = self._models()
        except BaseException:
            self._client.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.__exit__(exc_type, exc, traceback)

    @property
    def names(self) -> list[str]:
        """The models that the server lists."""
        return [str(entry.get("id")) for entry in self.listed]

    def _models(self) -> list[Mapping[str, Any]]:
        found: Fetched | Failed | None = None
        for api in (self.api, self.root):  # some providers' address does not end in /v1
            found = self.request("GET", f"{api}/models")
            match found:
                case Fetched(content={"data": [*entries]}):
                    self.api = api
                    return [entry for entry in entries if isinstance(entry, dict)]
                case Failed(status=None):
                    break
        told = f"{found.reason} {found.detail}".strip() if isinstance(found, Failed) else "no list"
        raise ServingError(
            f"{self.api}/models: no server that speaks the OpenAI API answers here ({told}). "
            "Start the server, or correct --endpoint, such as http://127.0.0.1:8000/v1."
        )

    def request(
        self,
        method: Literal["GET", "POST"],
        url: str,
        body: Mapping[str, Any] | None = None,
        *,
        attempts: int = _ATTEMPTS,
    ) -> Fetched | Failed:
        """Ask any address of the server, again while it is busy (429, 503) or the line is bad.

        Raises:
            ServingError: the key is refused.
        """
        for attempt in range(1, attempts + 1):
            came = self._client.fetch(method, url, body)
            if isinstance(came, Failed) and came.status in _DENIED_STATUSES:
                raise ServingError(
                    f"{url}: {came.reason} {came.detail}. Name the variable that holds the key "
                    "with --api-key-env."
                )
            if isinstance(came, Fetched) or came.then != "retry" or attempt == attempts:
                return came
            time.sleep(max(came.wait_seconds, wait_seconds(url, attempt)))
        raise AssertionError("unreachable")

    def extra(
        self, method: Literal["GET", "POST"], route: str, body: Mapping[str, Any] | None = None
    ) -> Any:
        """The JSON of a route that only some servers have, None where this one has not."""
        found = self.request(method, f"{self.root}{route}", body, attempts=2)
        return found.content if isinstance(found, Fetched) else None

    def ask(
        self, question: Question, max_new_tokens: int, *, greedy: bool = True
    ) -> ServedReply | Failed:
        """The answer; `Failed` when the server refuses this question.

        With `greedy` False the request says nothing of sampling: the server's defaults hold.

        Raises:
            ServingError: no connection, or the key is refused.
        """
        if not greedy:
            return self._ask_once(question, {"max_tokens": max_new_tokens})
        came: ServedReply | Failed
        for level in range(self._level, len(_LEVELS)):
            wanted, extras = _LEVELS[level]
            limits = {"max_tokens": max_new_tokens, "temperature": 0, **extras}
            logs: dict[str, Any] = {}
            if wanted and question.messages:
                logs = {"logprobs": True, "top_logprobs": wanted}
            elif wanted:
                logs = {"logprobs": wanted}
            came = self._ask_once(question, limits | logs)
            if isinstance(came, ServedReply):
                self._level, self._is_settled = level, True
                return came
            if self._is_settled or came.status not in _REFUSED_STATUSES:
                return came
        return came

    def _ask_once(self, question: Question, fields: Mapping[str, Any]) -> ServedReply | Failed:
        route = "chat/completions" if question.messages else "completions"
        asked: Mapping[str, Any] = (
            {"messages": [dict(message) for message in question.messages]}
            if question.messages
            else {"prompt": question.prompt}
        )
        came = self.request(
            "POST", f"{self.api}/{route}", {"model": self.model, **asked, **fields}
        )
        if isinstance(came, Failed):
            if came.status is None:
                raise ServingError(f"{self.api}/{route}: {came.reason} {came.detail}".rstrip())
            return came
        answered = parse(came.content, came.status)
        if answered is None:
            return Failed("JSON without an answer", str(came.content)[:200], "refused", 200)
        return ServedReply(
            answered.text,
            answered.finish_reason,
            answered.input_tokens,
            tuple(_tokens(came.content["choices"][0].get("logprobs"))),
        )


def _tokens(logs: Any) -> Sequence[ServedToken]:
    """Log-probabilities as chat completions give them, or completions."""
    match logs:
        case {"content": [*steps]}:
            return [_token(step, step.get("top_logprobs") or []) for step in steps]
        case {"tokens": [*texts], "token_logprobs": [*values]}:
            tops = logs.get("top_logprobs") or [{}] * len(texts)
            return [
                _token(
                    {"token": text, "logprob": value},
                    [{"token": other, "logprob": log} for other, log in (top or {}).items()],
                )
                for text, value, top in zip(texts, values, tops, strict=False)
                if value is not None
            ]
    return []


def _token(step: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> ServedToken:
    text = str(step.get("token"))
    own = step.get("id")
    if own is None and text.startswith(_ID_PREFIX):
        own = int(text.removeprefix(_ID_PREFIX))
    return ServedToken(
        own, text, float(step["logprob"]), tuple(_token(other, []) for other in others)
    )
