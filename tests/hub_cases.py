"""A hub on this machine: the endpoints that an upload needs, as huggingface_hub 2.4 calls them.

`_commit_api.py` and `lfs.py` there: create, validate the card, ask how each file is to be sent,
take large files by git-LFS's batch API, take the commit.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "a" * 34


class LocalHub(ThreadingHTTPServer):
    """What was received: `files` by path, `requests` as (method, path), `created` repositories."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, str]] = []
        self.created: list[dict[str, Any]] = []
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.message = ""
        self.refuses_card = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and "/upload/" not in path:
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self._answer(200, {"url": f"{self.server.url}/someone/router"})
        if path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            if self.server.refuses_card:
                errors = [{"message": "license is not a licence"}]
                return self._answer(400, {"errors": errors, "warnings": []})
            return self._answer(200, {"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            return self._answer(
                200, {"files": [_mode(file) for file in json.loads(body)["files"]]}
            )
        if path.endswith("/info/lfs/objects/batch"):
            return self._answer(200, self._batch(json.loads(body)))
        if path.endswith("/commit/main"):
            return self._commit(body)
        return self._answer(404, {"error": f"no {path}"})

    def do_PUT(self) -> None:
        content = self._body()
        assert hashlib.sha256(content).hexdigest() == self.path.rpartition("/")[2]
        self.server.objects[self.path.rpartition("/")[2]] = content
        self._answer(200, {})

    def do_GET(self) -> None:
        self._body()
        self._answer(404, {"error": f"no {self.path}"})

    def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        def one(found: dict[str, Any]) -> dict[str, Any]:
            upload = {"href": f"{self.server.url}/upload/{found['oid']}"}
            return {**found, "authenticated": True, "actions": {"upload": upload}}

        return {"transfer": "basic", "objects": [one(found) for found in asked["objects"]]}

    def _commit(self, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    self.server.message = value["summary"]
                case "file":
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    self.server.files[value["path"]] = self.server.objects[value["oid"]]
        url = f"{self.server.url}/someone/router/commit/{COMMIT}"
        self._answer(200, {"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None})

    def _body(self) -> bytes:
        self.server.requests.append((self.command, self.path))
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silent."""


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    is_large = file["path"].endswith(".safetensors")
    return {
        "path": file["path"],
        "uploadMode": "lfs" if is_large else "regular",
        "shouldIgnore": False,
        "oid": None,
    }


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    hub = LocalHub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
