"""A bundle's GGUF served on this machine by llama.cpp, for trying it at once."""

import json
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import ServingError
from luthier.serving.serve_probes import PROBES_NAME, read_serve_probes
from luthier.store.artifact import Artifact

HOST = "127.0.0.1"
_ANY_QUESTION = "Who are you?"


@dataclass(frozen=True)
class Servable:
    """What to serve: a GGUF, the model's name, and its context, prompt and reply together.

    `example` is the body of a request such as the model was trained for, without the model's
    name; `route` where it goes.
    """

    name: str
    gguf_path: Path
    quantization: str
    context_tokens: int
    route: str
    example: Mapping[str, Any]

    def curl(self, url: str) -> str:
        """A command line that asks the server at `url` (with /v1) the example."""
        body = json.dumps({"model": self.name, **self.example}, ensure_ascii=False)
        return (
            f"curl {url}/{self.route} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
        )


def servable(
    bundle: Artifact, quantization: str | None = None, context_tokens: int | None = None
) -> Servable:
    """The GGUF of a bundle: of the type asked for, else its first.

    Raises:
        ServingError: the artifact is no bundle, has no GGUF, or none of that type.
    """
    facts = bundle.manifest.facts
    ggufs: Mapping[str, str] = facts.get("gguf") or {}
    if not ggufs:
        raise ServingError(
            f"{bundle.ref} has no GGUF for llama.cpp. Add ollama to export.targets and export "
            f"again, or serve its folder {bundle.path / 'vllm'} with vLLM."
        )
    chosen = quantization or next(iter(ggufs))
    if chosen not in ggufs:
        raise ServingError(
            f"{bundle.ref} has no GGUF of type {chosen}. There are: {', '.join(ggufs)}. "
            "Take one of them, or add it to export.gguf_quantization."
        )
    route, example = _example(bundle)
    return Servable(
        name=facts["served_name"],
        gguf_path=bundle.path / ggufs[chosen],
        quantization=chosen,
        context_tokens=context_tokens or facts["context_length_tokens"],
        route=route,
        example=example,
    )


def _example(bundle: Artifact) -> tuple[str, Mapping[str, Any]]:
    """The first held-out question; in bundles without probes any, after the system prompt."""
    if (bundle.path / PROBES_NAME).is_file():
        probes = read_serve_probes(bundle.path)
        if probes.chats:
            first = probes.chats[0]
            if first.messages:
                return "chat/completions", {"messages": list(first.messages)}
            limit = probes.max_new_tokens
            return "completions", {"prompt": first.prompt, "max_tokens": limit}
    messages = [{"role": "user", "content": _ANY_QUESTION}]
    system_prompt = bundle.manifest.facts.get("system_prompt")
    if system_prompt:
        messages.insert(0, {"role": "system", "content": system_prompt})
    return "chat/completions", {"messages": messages}


def require_free(port: int) -> None:
    """Raises ServingError when another program listens on a port of this machine."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise ServingError(
                f"Port {port} of {HOST} cannot be taken ({error.strerror}). End what listens "
                f"there, or take another: --port {port + 1}."
            ) from error
