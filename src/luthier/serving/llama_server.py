"""llama.cpp's HTTP server in a child process, and the client for it.

`LlamaServer` starts `python -m luthier.serving.llama_child`, which runs `xllamacpp.Server`: a
crash in native code, or its log, never reaches the parent. The child ends when its standard input
closes, so it cannot outlive the parent, even one killed with SIGKILL.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from luthier.children import Child, end_child, start_child
from luthier.errors import ServingError

if TYPE_CHECKING:
    import httpx

START_TIMEOUT_SECONDS = 300.0
REQUEST_TIMEOUT_SECONDS = 600.0
_POLL_SECONDS = 0.05
_TEXTS_OF_A_REQUEST = 256  # to be tokenised
_NO_TOKEN = -1  # stands between the ids of two texts
_LOG_TAIL_CHARACTERS = 1500


@dataclass(frozen=True)
class Completion:
    """A served reply: its token ids, the one that ended it included, and its text without that.

    `stopped` is False when the token limit cut the reply. `prompt_tokens` counts what the server
    read, so that a doubled BOS shows. Log-probabilities are natural logarithms, one a token.
    """

    text: str
    token_ids: tuple[int, ...]
    stopped: bool
    prompt_tokens: int
    token_log_probabilities: tuple[float, ...]


class LlamaServer:
    """A context manager: llama.cpp serving one GGUF file on 127.0.0.1, greedy decoding.

    Every reply depends on its prompt alone: one slot, no prompt cache, so nothing of an earlier
    request changes the batches in which a later one is computed.

    Args:
        gguf_path: the model.
        context_tokens: prompt and reply together, at most.
        threads: of the computation, without influence on replies; None takes $OMP_NUM_THREADS,
            else the cores this process may use. More than are idle is slow: on two busy cores a
            reply took 1.1 s with two threads and 0.3 s with one (SmolLM2, 2026-11).
        port: to listen on; 0 takes a free one.
        model_name: what clients ask for; given, requests that do not say how are greedy too.

    Raises:
        ServingError: `xllamacpp` is missing, the file cannot be served, or it does not start in
            time; on any method, when the server refuses a request or is gone.
    """

    def __init__(
        self,
        gguf_path: Path,
        *,
        context_tokens: int = 2048,
        threads: int | None = None,
        port: int = 0,
        model_name: str | None = None,
    ) -> None:
        self.gguf_path = gguf_path
        self._port, self._model_name = port, model_name
        self._context_tokens = context_tokens
        self._threads = threads or default_threads()
        self._client: httpx.Client | None = None

    def __enter__(self) -> "LlamaServer":
        import httpx

        require_llama_cpp()
        self._folder = tempfile.TemporaryDirectory(prefix="luthier-llama-")
        self._address_path = Path(self._folder.name) / "address"
        self._log_path = Path(self._folder.name) / "log"
        try:
            self._process = self._start()
            self._address = self._wait_for_address()
            # The proxy of the environment is not for an address on this machine.
            self._client = httpx.Client(
                base_url=self._address, timeout=REQUEST_TIMEOUT_SECONDS, trust_env=False
            )
            self._wait_until_healthy()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the server and remove its log; may be called again."""
        if self._client is not None:
            self._client.close()
            self._client = None
        process = getattr(self, "_process", None)
        if process is not None:
            end_child(process)
        self._folder.cleanup()

    @property
    def url(self) -> str:
        """Where it speaks the OpenAI API; `GREEDY` must be in each request."""
        return f"{self._address}/v1"

    def wait(self) -> None:
        """Until the server ends by itself, which is an error."""
        self._process.wait()
        raise ServingError(self._failure("llama.cpp ended"))

    @property
    def process_id(self) -> int:
        """Of the server process."""
        return self._process.pid

    def tokenize(
        self, texts: Sequence[str], *, parse_special: bool = True, add_special: bool = False
    ) -> list[list[int]]:
        """Token ids of each text; `add_special`: with the BOS that prompts of this model begin by.

        `parse_special=False` takes the spelling of a special token for plain text.
        """
        options = {"add_special": add_special, "parse_special": parse_special}
        # A BOS stands before the first text of a request alone.
        count = 1 if add_special else _TEXTS_OF_A_REQUEST
        return [
            token_ids
            for start in range(0, len(texts), count)
            for token_ids in self._tokenize(texts[start : start + count], options)
        ]

    def _tokenize(self, texts: Sequence[str], options: Mapping[str, bool]) -> Iterator[list[int]]:
        """Of one request. The server takes text and token ids in turn, gives ids back as they are,
        and tokenises each text by itself (llama.cpp, server-common.cpp, `tokenize_mixed`)."""
        content = [part for text in texts for part in (text, _NO_TOKEN)]
        found = self._post("/tokenize", {"content": content, **options})["tokens"]
        start = 0
        for _ in texts:
            end = found.index(_NO_TOKEN, start)
            yield found[start:end]
            start = end + 1

    def apply_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for `messages` as the server's own template engine writes it, without the BOS
        where it adds one."""
        reply = self._post(
            "/apply-template", {"messages": [dict(message) for message in messages]}
        )
        return str(reply["prompt"])

    def complete(self, prompt_ids: Sequence[int], max_new_tokens: int) -> Completion:
        """Go on after token ids, as they are."""
        request = {"prompt": list(prompt_ids), "n_predict": max_new_tokens, "return_tokens": True}
        reply = self._post("/completion", {**request, **GREEDY, "n_probs": 1})
        return Completion(
            text=reply["content"],
            token_ids=tuple(reply["tokens"]),
            stopped=reply["stop_type"] != "limit",
            prompt_tokens=reply["tokens_evaluated"],
            token_log_probabilities=tuple(
                step["logprob"] for step in reply.get("completion_probabilities", [])
            ),
        )

    def chat(self, messages: Sequence[Mapping[str, str]], max_new_tokens: int) -> Completion:
        """Answer messages as a client of the OpenAI API gets it: the server renders the prompt."""
        request = {
            "messages": [dict(message) for message in messages],
            "max_tokens": max_new_tokens,
            "logprobs": True,
            "top_logprobs": 1,
        }
        reply = self._post("/v1/chat/completions", {**request, **GREEDY})
        choice = reply["choices"][0]
        steps = (choice.get("logprobs") or {}).get("content") or []
        return Completion(
            text=choice["message"]["content"] or "",
            token_ids=tuple(step["id"] for step in steps),
            stopped=choice["finish_reason"] != "length",
            prompt_tokens=reply["usage"]["prompt_tokens"],
            token_log_probabilities=tuple(step["logprob"] for step in steps),
        )

    def properties(self) -> Mapping[str, Any]:
        """What the server says of the model: template, EOS, default sampling (`/props`)."""
        properties: Mapping[str, Any] = self._reply("GET", "/props", None)
        return properties

    def _post(self, route: str, body: Mapping[str, Any]) -> Any:
        return self._reply("POST", route, body)

    def _reply(self, method: str, route: str, body: Mapping[str, Any] | None) -> Any:
        import httpx

        assert self._client is not None
        try:
            response = self._client.request(method, route, json=body)
        except httpx.HTTPError as error:
            raise ServingError(self._failure(f"no answer to {route} ({error!r})")) from error
        if response.status_code != httpx.codes.OK:
            raise ServingError(
                f"{self.gguf_path}: llama.cpp refused {route}: "
                f"{response.status_code} {response.text[:300]}"
            )
        return response.json()

    def _start(self) -> Child:
        command = ["-m", "luthier.serving.llama_child", str(self.gguf_path)]
        command += ["--address-path", str(self._address_path), "--port", str(self._port)]
        command += ["--context-tokens", str(self._context_tokens), "--threads", str(self._threads)]
        command += ["--model-name", self._model_name] if self._model_name else []
        with self._log_path.open("wb") as log:
            return start_child(command, stdout=log, stderr=subprocess.STDOUT)

    def _wait_for_address(self) -> str:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._address_path.exists():
            if self._process.poll() is not None:
                raise ServingError(self._failure("llama.cpp cannot serve this file"))
            if time.monotonic() > deadline:
                raise ServingError(
                    self._failure(f"not served within {START_TIMEOUT_SECONDS:.0f} s")
                )
            time.sleep(_POLL_SECONDS)
        return self._address_path.read_text("utf-8")

    def _wait_until_healthy(self) -> None:
        import httpx

        assert self._client is not None
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while self._client.get("/health").status_code != httpx.codes.OK:
            if time.monotonic() > deadline:
                raise ServingError(self._failure("not healthy in time"))
            time.sleep(_POLL_SECONDS)

    def _failure(self, what: str) -> str:
        log = self._log_path.read_text("utf-8", errors="replace").strip()
        ending = f" Its last lines:\n{log[-_LOG_TAIL_CHARACTERS:]}" if log else ""
        status = self._process.poll()
        exited = f" (exit status {status})" if status is not None else ""
        return f"{self.gguf_path}: {what}{exited}.{ending}"


# Of every request. top_k 1 besides the temperature: greedy whatever the file's metadata sets.
GREEDY: Mapping[str, Any] = {
    "temperature": 0.0,
    "top_k": 1,
    "repeat_penalty": 1.0,
    "cache_prompt": False,
}


def default_threads() -> int:
    """$OMP_NUM_THREADS, else the cores this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(wanted) if wanted.isdecimal() else len(os.sched_getaffinity(0))


def require_llama_cpp() -> None:
    """Raises ServingError, with the command that installs it, when llama.cpp is not here."""
    import importlib.util

    if importlib.util.find_spec("xllamacpp") is None:
        raise ServingError(
            "xllamacpp (llama.cpp for Python) is not installed. Install it with\n"
            "  python -m pip install xllamacpp"
        )
