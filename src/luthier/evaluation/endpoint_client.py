"""One request to a server that speaks the OpenAI API, and what came of it."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from luthier.errors import ConfigError, ServingError
from luthier.evaluation.endpoint_reply import (
    Answered,
    error_text,
    parse,
    plain_text,
    retry_after,
)
from luthier.evaluation.endpoint_section import Endpoint
from luthier.evaluation.systems import Prompt
from luthier.store.canonical import sha256_json

if TYPE_CHECKING:
    import httpx

_CONNECT_SECONDS = 10.0
_LONGEST_REPLY_BYTES = 16 * 2**20
_DETAIL_CHARACTERS = 200
_SECRET_CHARACTERS = 16  # a shorter key ("EMPTY", "ollama") may be a word of an answer
# openai-python retries 408, 409, 429 and 5xx (_base_client.py); 425 is "too early", RFC 8470.
_RETRIED_STATUSES = {408, 409, 425, 429}
_SAME_FOR_ALL_ROWS = {401, 404}


@dataclass(frozen=True)
class Question:
    """One row's request; `digest` is the SHA-256 of route and body."""

    id: str
    route: str
    body: Mapping[str, Any]
    digest: str

    @property
    def identity(self) -> tuple[str, str]:
        """As the log knows it."""
        return self.id, self.digest


@dataclass(frozen=True)
class Failed:
    """No answer. `then`: ask again, give this row up, or end, for no row can be answered so."""

    reason: str
    detail: str
    then: Literal["retry", "refused", "end"]
    status: int | None = None
    wait_seconds: float = 0.0


def question_of(endpoint: Endpoint, max_new_tokens: int, prompt: Prompt) -> Question:
    """A prompt as a greedy request: its conversation, or its bare text."""
    route = "chat/completions" if prompt.messages else "completions"
    asked: dict[str, Any] = (
        {"messages": [_message(message) for message in prompt.messages]}
        if prompt.messages
        else {"prompt": prompt.text}
    )
    ours = {"model": endpoint.model, **asked, "temperature": 0, "max_tokens": max_new_tokens}
    merged = ours | {"seed": 0} | endpoint.extra_body
    body = {name: value for name, value in merged.items() if value is not None}
    return Question(prompt.id, route, body, sha256_json([route, body]))


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """As the API has it: arguments of tool calls as JSON text, where templates want objects."""
    found = dict(message)
    if "tool_calls" in found:
        found["tool_calls"] = [
            {
                **call,
                "function": {
                    **call["function"],
                    "arguments": json.dumps(call["function"]["arguments"]),
                },
            }
            for call in found["tool_calls"]
        ]
    return found


def read_key(endpoint: Endpoint) -> str | None:
    """The key of `api_key_env`, None where there is no such variable to read.

    Raises:
        ConfigError: the variable is not set, or holds what no header can.
    """
    name = endpoint.api_key_env
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(
            f"{endpoint.name}: the environment variable {name} is not set. Put the key of "
            f"{endpoint.url} there (export {name}=...), or set api_key_env: null for none."
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            f"{endpoint.name}: the environment variable {name} holds blanks, control characters "
            "or letters outside ASCII, which no key has. Set it to the key alone."
        )
    return key


@dataclass(frozen=True)
class Fetched:
    """JSON that a server sent with a status from 200 to 299."""

    status: int
    content: Any


class EndpointClient:
    """Sends requests, from several threads if need be; a context manager.

    The key is in the request's header and nowhere else: what the server says is quoted without it.

    Raises:
        ServingError: on entering, when the environment's proxy settings cannot be used.
    """

    def __init__(self, endpoint: Endpoint, key: str | None) -> None:
        self._endpoint = endpoint
        self._key = key
        self._client: httpx.Client | None = None

    def __enter__(self) -> "EndpointClient":
        import httpx

        one = self._endpoint
        try:
            httpx.URL(one.url)
        except httpx.InvalidURL as error:
            raise ServingError(f"{one.url} is no address ({error}). Correct url.") from error
        try:
            self._client = httpx.Client(
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                timeout=httpx.Timeout(
                    one.timeout_seconds, connect=min(one.timeout_seconds, _CONNECT_SECONDS)
                ),
                limits=httpx.Limits(
                    max_connections=one.concurrency, max_keepalive_connections=one.concurrency
                ),
                # The environment's proxy is not for an address on this machine.
                trust_env=not is_loopback(one.url),
            )
        except (ValueError, ImportError, httpx.InvalidURL) as error:  # quotes a proxy's password
            raise ServingError(
                f"{one.url}: the proxy settings of the environment cannot be used "
                f"({type(error).__name__}). Correct HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and "
                f"NO_PROXY; a SOCKS proxy needs `python -m pip install 'httpx[socks]'`."
            ) from None
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._client is not None
        self._client.close()

    def send(self, question: Question) -> Answered | Failed:
        """Ask once. Takes at most about twice `timeout_seconds`, however the server trickles."""
        url = f"{self._endpoint.url}/{question.route}"
        came = self.fetch("POST", url, question.body)
        return came if isinstance(came, Failed) else self._answer(came)

    def fetch(
        self, method: Literal["GET", "POST"], url: str, body: Mapping[str, Any] | None = None
    ) -> Fetched | Failed:
        """The JSON at any address of the server, asked for once."""
        import httpx

        try:
            status, headers, content = self._exchange(method, url, body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return Failed("no connection", self._quoted(str(error)), "retry")
        except httpx.TimeoutException:
            limit = self._endpoint.timeout_seconds
            return Failed(f"no answer within {limit:g} s", "", "retry")
        except httpx.TransportError as error:
            return Failed("connection lost", self._quoted(str(error)), "retry")
        except httpx.HTTPError as error:
            return Failed("garbage", self._quoted(str(error)), "retry")
        if len(content) > _LONGEST_REPLY_BYTES:
            return Failed("garbage", f"more than {_LONGEST_REPLY_BYTES} bytes", "retry", status)
        if not 200 <= status < 300:
            return self._refusal(status, headers, content)
        try:
            return Fetched(status, json.loads(content))
        except (ValueError, RecursionError):
            return Failed("not JSON", self._quoted(plain_text(content)), "retry", status)

    def _exchange(
        self, method: str, url: str, body: Mapping[str, Any] | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body. httpx's own time limit is for each piece of the body."""
        import httpx

        assert self._client is not None
        deadline = time.monotonic() + self._endpoint.timeout_seconds
        content = bytearray()
        with self._client.stream(method, url, json=body) as response:
            for part in response.iter_bytes():
                content += part
                if len(content) > _LONGEST_REPLY_BYTES:
                    break
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the body did not end in time")
        return response.status_code, response.headers, bytes(content)

    def _refusal(self, status: int, headers: Mapping[str, str], content: bytes) -> Failed:
        reason, detail = f"HTTP {status}", self._quoted(error_text(content))
        if status in _RETRIED_STATUSES or status >= 500:
            wait_seconds = retry_after(headers.get("retry-after", ""))
            return Failed(reason, detail, "retry", status, wait_seconds)
        if status < 400:
            target = self._quoted(headers.get("location", "nowhere"))
            return Failed(reason, f"a redirect to {target}", "end", status)
        return Failed(reason, detail, "end" if status in _SAME_FOR_ALL_ROWS else "refused", status)

    def _answer(self, fetched: Fetched) -> Answered | Failed:
        answered = parse(fetched.content, fetched.status)
        if answered is None:
            detail = self._quoted(error_text(json.dumps(fetched.content).encode()))
            return Failed("JSON without an answer", detail, "retry", fetched.status)
        is_secret = self._key is not None and len(self._key) >= _SECRET_CHARACTERS
        return replace(
            answered,
            text=self._without_key(answered.text) if is_secret else answered.text,
            finish_reason=self._quoted(answered.finish_reason),
        )

    def _quoted(self, text: str) -> str:
        """What a server said, fit for a message: one line, short, without the key."""
        line = " ".join(self._without_key(text).split())
        shown = "".join(character for character in line if character.isprintable())
        return f"{shown[:_DETAIL_CHARACTERS]}…" if len(shown) > _DETAIL_CHARACTERS else shown

    def _without_key(self, text: str) -> str:
        if self._key is None:
            return text
        as_json = json.dumps(self._key)[1:-1]
        for spelling in (self._key, as_json, as_json.replace("/", "\\/")):
            text = text.replace(spelling, "[key]")
        return text


def is_loopback(url: str) -> bool:
    """Whether an address is on this machine by its spelling."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
