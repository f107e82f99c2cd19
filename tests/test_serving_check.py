"""`luthier serve-check` and `luthier serve` with real servers, and what they say without one."""

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from luthier.cli import call
from luthier.gates import check
from luthier.interrupts import StopFlag
from luthier.models.loading import load_tokenizer
from luthier.progress import Reporter
from luthier.serving.answers import read_probes
from luthier.serving.llama_server import LlamaServer
from luthier.serving.reference import make_reference
from luthier.serving.serve_probes import (
    PROBES_NAME,
    Served,
    ServeProbes,
    build_probes,
    read_serve_probes,
    write_probes,
)
from luthier.store import Store
from luthier.store.artifact import Artifact, Workspace
from luthier.store.keys import Identity, compute_key
from luthier.store.manifest import ArtifactKind, ManifestDraft
from serving_cases import write_dataset

pytest_plugins = "serving_fixtures"

CONTEXT_TOKENS = 512
KEY, KEY_VARIABLE = "sk-a-very-secret-key-0123456789", "LUTHIER_TEST_KEY"
OPENAI_FIELDS = {"model", "messages", "prompt", "max_tokens", "temperature"}


@pytest.fixture(scope="module")
def server(tuned_gguf: Path) -> Iterator[LlamaServer]:
    with LlamaServer(tuned_gguf, context_tokens=CONTEXT_TOKENS, model_name="planted") as one:
        yield one


class Strict(ThreadingHTTPServer):
    """Before a real server: the OpenAI API and nothing else, 503 at each first request, a key."""

    daemon_threads = True

    def __init__(self, target: str, hides_usage: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.hides_usage = urlsplit(target).netloc, hides_usage
        self.seen: set[bytes] = set()
        self.keys: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Strict

    def do_GET(self) -> None:
        self._pass_on("GET", b"")

    def do_POST(self) -> None:
        self._pass_on("POST", self.rfile.read(int(self.headers["Content-Length"])))

    def _pass_on(self, method: str, body: bytes) -> None:
        server = self.server
        server.keys.add(self.headers["Authorization"])
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self._send(401, {"error": {"message": "Incorrect API key provided"}})
        elif self.path not in ("/v1/models", "/v1/chat/completions", "/v1/completions"):
            self._send(404, {"detail": "Not Found"})
        elif body and not set(json.loads(body)) <= OPENAI_FIELDS:
            self._send(400, {"error": {"message": "Unrecognized request argument"}})
        elif body and body not in server.seen:
            server.seen.add(body)
            self._send(503, {"error": {"message": "busy"}})
        else:
            self._ask(method, body)

    def _ask(self, method: str, body: bytes) -> None:
        connection = HTTPConnection(self.server.target, timeout=60)
        connection.request(method, self.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        found = json.loads(response.read())
        connection.close()
        if self.path == "/v1/models":
            found = {"data": [{"id": "planted", "object": "model", "owned_by": "someone"}]}
        if self.server.hides_usage:
            found.pop("usage", None)
        self._send(response.status, found)

    def _send(self, status: int, found: Any) -> None:
        content = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_said: object) -> None:
        """Nothing on standard error."""


@pytest.fixture(params=[False, True], ids=["counts", "hides-counts"])
def strict(
    request: pytest.FixtureRequest, server: LlamaServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Strict]:
    monkeypatch.setattr("luthier.serving.served_endpoint.wait_seconds", lambda *_: 0.0)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    one = Strict(server.url, request.param)
    thread = threading.Thread(target=one.serve_forever, args=(0.02,))
    thread.start()
    yield one
    one.shutdown()
    one.server_close()
    thread.join()


def json_of(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_probes_are_read_back_as_they_were(probes_bundle: Path, serve_probes: ServeProbes) -> None:
    assert read_serve_probes(probes_bundle) == serve_probes
    chat = serve_probes.chats[0]
    assert chat.answer == "games"
    assert [step[0].id for step in chat.steps] == [*chat.answer_ids, 2]
    assert all(step[0].log_probability > -0.5 for step in chat.steps)
    assert all(chat.tells_apart for chat in serve_probes.chats)
    assert 300 <= len(serve_probes.texts) <= 400


def test_the_right_server_passes_and_a_table_says_so(
    probes_bundle: Path, server: LlamaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.url.removesuffix("/v1")
    assert call(["serve-check", str(probes_bundle), "--endpoint", url]) == 0
    printed = capsys.readouterr().out
    assert "llama.cpp" in printed
    assert "served-is-ours    pass    1         >= 0.9" in printed
    assert printed.endswith("It serves what was measured.\n")


def test_a_model_under_another_name_is_a_warning(
    probes_bundle: Path, tuned_server: LlamaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["serve-check", str(probes_bundle), "--endpoint", tuned_server.url, "--json"]
    assert call([*arguments, "--probes", "2"]) == 3
    found = json_of(capsys)
    statuses = {gate["id"]: gate["status"] for gate in found["gates"]}
    assert statuses["served-name"] == statuses["served-sampling"] == "warn"
    assert [gate for gate, status in statuses.items() if status == "fail"] == ["served-context"]
    assert found["probes"] == 2


def test_a_task_without_a_chat_template_is_asked_for_completions(
    tiny_base: Path,
    tuned_dir: Path,
    server: LlamaServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workspace = Workspace(tmp_path)
    dataset = write_dataset(tmp_path / "plain", tiny_base, task="completion")
    asked = read_probes(dataset, count=8, text_count=2)
    made = make_reference(load_tokenizer(tiny_base), asked, tiny_base, tuned_dir, workspace)
    write_probes(tmp_path, build_probes(made, Served("planted", 512)))
    code = call(["serve-check", str(tmp_path), "--endpoint", server.url, "--json"])
    found = json_of(capsys)
    assert code == 0, found
    assert {gate["status"] for gate in found["gates"]} == {"pass"}
    assert len(found["gates"]) == 9


def test_a_server_with_the_bare_api_is_checked_as_far_as_it_goes(
    probes_bundle: Path, strict: Strict, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["serve-check", str(probes_bundle), "--endpoint", strict.url, "--json"]
    code = call([*arguments, "--api-key-env", KEY_VARIABLE])
    found = json_of(capsys)
    assert code == 0, found
    assert found["server"]["kind"] == "unknown"
    statuses = {gate["id"]: gate["status"] for gate in found["gates"]}
    unknown = {one["id"]: one["why"] for one in found["not_checked"]}
    assert set(statuses.values()) == {"pass"}
    assert {"served-is-ours", "served-is-tuned", "served-stops"} <= set(statuses)
    assert unknown["served-logprobs"] == "server gives no log-probabilities"
    counted = {"served-template", "served-tokenizer", "served-context"}
    assert counted <= set(unknown if strict.hides_usage else statuses)
    assert KEY not in json.dumps(found)


def test_without_the_key_it_says_how_to_give_it(
    probes_bundle: Path, strict: Strict, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["serve-check", str(probes_bundle), "--endpoint", strict.url]) == 2
    assert "--api-key-env" in capsys.readouterr().err


def test_the_proxy_of_the_environment_is_not_for_this_machine(
    probes_bundle: Path, server: LlamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    arguments = ["serve-check", str(probes_bundle), "--endpoint", server.url, "--probes", "1"]
    assert call(arguments) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoint": "http://127.0.0.1:9"}, "no server that speaks the OpenAI API answers here"),
        ({"endpoint": "127.0.0.1:8000"}, "--endpoint must be an address such as"),
        ({"model": "other"}, r"serves no model called other. There are: planted. Say which"),
        ({"reference": "nothing/bundle"}, "is no artifact"),
        ({"reference": "empty"}, "is a folder, but not an artifact"),
        ({"reference": "damaged"}, "probes.json: chats: Input should be"),
    ],
)
def test_what_cannot_be_checked_is_exit_code_2(
    changes: dict[str, str],
    message: str,
    probes_bundle: Path,
    server: LlamaServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("luthier.serving.served_endpoint.wait_seconds", lambda *_: 0.0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    content = json.loads((probes_bundle / PROBES_NAME).read_text()) | {"chats": 7}
    (tmp_path / "damaged" / PROBES_NAME).write_text(json.dumps(content))
    asked = {"reference": str(probes_bundle), "endpoint": server.url} | changes
    arguments = ["serve-check", asked.pop("reference")]
    for name, value in asked.items():
        arguments += [f"--{name}", value]
    assert call(arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


def sealed(store: Store, kind: ArtifactKind, fill: Callable[[Path], None], facts: Any) -> Artifact:
    stage = {"bundle": "export", "model": "merge"}[kind]
    made_from = Identity(
        stage=stage, stage_version=1, fields={}, inputs={}, files=[], seed=7, packages={}
    )
    key = compute_key(made_from)
    draft = ManifestDraft(
        stage=stage,
        stage_version=1,
        kind=kind,
        key=key,
        name="planted",
        inputs=[],
        external_files=[],
        config={},
        key_fields={},
        seed=7,
        key_packages={},
        metrics={},
        facts=facts,
        timings_seconds={},
        gates=[check("vllm-folder", 0, "==", 0)],
    )
    with store.workspace(stage, key, Reporter(), StopFlag()) as workspace:
        fill(workspace.path)
        return store.seal(workspace, draft)


@pytest.fixture(scope="module")
def store(
    tuned_gguf: Path, probes_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """A store with a bundle and a model."""
    root = tmp_path_factory.mktemp("store")

    def fill(folder: Path) -> None:
        (folder / "ollama").mkdir()
        (folder / "ollama" / "model-q8_0.gguf").write_bytes(tuned_gguf.read_bytes())
        (folder / PROBES_NAME).write_bytes((probes_bundle / PROBES_NAME).read_bytes())

    facts = {
        "served_name": "planted",
        "context_length_tokens": CONTEXT_TOKENS,
        "system_prompt": None,
        "gguf": {"q8_0": "ollama/model-q8_0.gguf"},
    }
    one = Store(root)
    sealed(one, "bundle", fill, facts)
    sealed(one, "model", lambda folder: (folder / "config.json").write_text("{}") and None, {})
    return one


def test_serve_serves_what_serve_check_wants_until_it_is_told_to_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_STORE", str(store.root))
    command = [sys.executable, "-m", "luthier", "serve", "planted/bundle@latest", "--json"]
    with subprocess.Popen(
        [*command, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = json.loads(line)
        asked = subprocess.run(
            ["sh", "-c", found["curl"]], capture_output=True, text=True, check=True
        )
        assert json.loads(asked.stdout)["choices"][0]["message"]["content"] == "games"
        url = found["url"]
        assert call(["serve-check", "planted/bundle", "--endpoint", url]) == 0
        port = str(urlsplit(url).port)
        assert call(["serve", "planted/bundle", "--port", port]) == 2
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["planted/model"], "is of kind model, not bundle. Export it (luthier export CONFIG)"),
        (["planted/bundle", "--quantization", "q4_0"], "no GGUF of type q4_0. There are: q8_0"),
    ],
)
def test_serve_says_what_it_can_serve(
    arguments: list[str],
    message: str,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LUTHIER_STORE", str(store.root))
    assert call(["serve", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_serve_does_not_take_a_port_that_is_taken(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LUTHIER_STORE", str(store.root))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert call(["serve", "planted/bundle", "--port", str(port)]) == 2
    assert f"Port {port} of 127.0.0.1 cannot be taken" in capsys.readouterr().err
