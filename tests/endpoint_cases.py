"""What the endpoint tests share: a proxy that fails as it is told, prompts, a way to ask."""

import hashlib
import http.client
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar
from urllib.parse import urlsplit

from luthier.evaluation.endpoint_section import Endpoint
from luthier.evaluation.endpoints import EndpointSystem
from luthier.evaluation.journal import Collected, collect
from luthier.evaluation.systems import Prompt
from luthier.serving.llama_server import GREEDY
from luthier.store.artifact import Workspace

KEY = "sk-test/a+very-secret-key-0123456789"
KEY_VARIABLE = "LUTHIER_TEST_KEY"
MAX_NEW_TOKENS = 3
TIMEOUT_SECONDS = 30.0  # of a request; a healthy one takes some hundredths
STALL_SECONDS = 60.0  # ended early when the proxy is
TRICKLED_BYTES = 1000

# What comes of a question's request number `time`, from 1: a fault, or None to pass it on.
Plan = Callable[[str, int], str | None]

PAGES: dict[str, tuple[int, dict[str, str], bytes]] = {
    "html": (200, {}, b"<html><body>Gateway says hello</body></html>"),
    "truncated": (200, {}, b'{"choices": [{"message": {"content": "ga'),
    "shape": (200, {}, b'{"object": "chat.completion", "answer": "x"}'),
    "list": (200, {}, b"[1, 2]"),
    "empty": (200, {}, b'{"choices": [], "usage": {}}'),
    "nothing": (200, {}, b""),
    "nested": (200, {}, b"[" * 200_000),
    "error200": (200, {}, b'{"error": {"message": "upstream is down"}}'),
    "aborted": (200, {}, b'{"choices": [{"text": "", "finish_reason": "abort"}]}'),
    "500": (500, {}, b'{"error": {"message": "something broke"}}'),
    "503": (503, {}, b"<html><h1>Service Unavailable</h1></html>"),
    "429": (429, {"Retry-After": "0"}, b'{"error": {"message": "slower, please"}}'),
    "429-late": (429, {"Retry-After": "1"}, b""),
    "400": (400, {}, b'{"error": {"message": "the prompt is too long"}}'),
    "401": (401, {}, b'{"error": {"message": "Incorrect API key provided"}}'),
    "404": (404, {}, b'{"error": {"message": "no such model"}}'),
    "redirect": (308, {"Location": "https://elsewhere.invalid/v1"}, b""),
}


class FaultyProxy:
    """A context manager: an HTTP server on 127.0.0.1 before a healthy one, failing by a plan.

    `asked` counts the requests for each question (the last message, or the text), `most_at_once`
    is how many of them were under way together, `keys` are the Authorization headers seen. What
    the healthy server said to a request is remembered for the next proxy, for it takes a while.
    """

    _remembered: ClassVar[dict[tuple[str, bytes], tuple[int, bytes]]] = {}

    def __init__(self, target: str, plan: Plan = lambda _question, _time: None) -> None:
        self.asked: Counter[str] = Counter()
        self.most_at_once = 0
        self.keys: set[str | None] = set()
        self.plan = plan
        self.over = threading.Event()
        self.pair = threading.Barrier(2)
        self._target = urlsplit(target)
        self._at_once, self._lock = 0, threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "FaultyProxy":
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def begin(self, question: str, key: str | None) -> str | None:
        with self._lock:
            self.keys.add(key)
            self.asked[question] += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            return self.plan(question, self.asked[question])

    def end(self) -> None:
        with self._lock:
            self._at_once -= 1

    def forward(self, path: str, body: bytes) -> tuple[int, bytes]:
        if (path, body) not in self._remembered:
            self._remembered[path, body] = self._fetch(path, body)
        return self._remembered[path, body]

    def _fetch(self, path: str, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._target.netloc, timeout=60)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultyProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        found = json.loads(body)
        question = found["messages"][-1]["content"] if "messages" in found else found["prompt"]
        fault = self.server.proxy.begin(question, self.headers["Authorization"])
        try:
            self._act(fault, body)
        finally:
            self.server.proxy.end()

    def _act(self, fault: str | None, body: bytes) -> None:
        proxy, key = self.server.proxy, self.headers["Authorization"]
        if fault is None:
            status, content = proxy.forward(self.path, body)
            self._send(status, {}, content)
        elif fault.startswith("{"):
            self._send(200, {}, fault.encode())
        elif fault in PAGES:
            self._send(*PAGES[fault])
        elif fault == "echo":
            self._send(500, {}, json.dumps({"error": f"what is {key}?"}).encode())
        elif fault == "echo-answer":
            said = json.dumps(answer(f"I was sent {key}"))
            self._send(200, {}, said.replace("/", "\\/").encode())
        elif fault == "pair":
            proxy.pair.wait(timeout=20)
            self._send(200, {}, json.dumps(answer("we are two")).encode())
        else:
            self._break_off(fault)

    def _break_off(self, fault: str) -> None:
        proxy, self.close_connection = self.server.proxy, True
        match fault:
            case "drop":
                pass
            case "stall":
                proxy.over.wait(STALL_SECONDS)
            case "trickle":  # blanks, as a server sends that wants to keep the connection
                self.send_response(200)
                self.send_header("Content-Length", str(TRICKLED_BYTES))
                self.end_headers()
                for _ in range(TRICKLED_BYTES):
                    if proxy.over.wait(0.05):
                        break
                    self.wfile.write(b" ")
            case _:
                raise AssertionError(fault)

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_said: object) -> None:
        """Nothing on standard error."""


def answer(text: str | None, finish_reason: str | None = "stop", **more: Any) -> dict[str, Any]:
    """A chat completion as OpenAI writes it."""
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": finish_reason}], **more}


def one_in_five(question: str, time: int) -> bool:
    """Whether this request is one of the 20 % that fail: the same ones in every run."""
    return hashlib.sha256(f"{question}:{time}".encode()).digest()[0] < 256 // 5


def endpoint(url: str, **changes: Any) -> Endpoint:
    fields = {"name": "served", "url": url, "model": "tiny", "extra_body": dict(GREEDY)}
    return Endpoint(**fields | {"timeout_seconds": TIMEOUT_SECONDS} | changes)


def ask(
    one: Endpoint, prompts: Sequence[Prompt], folder: Path
) -> tuple[Collected, EndpointSystem]:
    """As a stage asks, in a workspace that may have been used before."""
    folder.mkdir(exist_ok=True)
    workspace = Workspace(folder)
    system = EndpointSystem(one, MAX_NEW_TOKENS, workspace)
    return collect(system, prompts, workspace), system
