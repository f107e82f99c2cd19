"""Which server answers, and what it says of itself beyond the OpenAI API."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.serving.served_endpoint import ServedEndpoint

Kind = Literal["llama.cpp", "vLLM", "Ollama", "TGI", "SGLang", "unknown"]

_OWNERS: Mapping[str, Kind] = {"llamacpp": "llama.cpp", "vllm": "vLLM", "sglang": "SGLang"}
_CONTEXT_FIELDS = ("max_model_len", "context_length", "context_window")
_HALF_PRECISION_BITS = 16
# Of requests to /v1 without one, whatever the Modelfile says (openai/openai.go: FromChatRequest).
_OLLAMA_TEMPERATURE = 1.0
_OLLAMA_PARAMETER = re.compile(r"^(\S+)\s+(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class ServerFacts:
    """None and "" stand for what the server does not say.

    `weights` is how it spells their type (Q8_0), `eos_token` the text of the token that ends
    replies, `temperature` that of requests without one.
    """

    kind: Kind
    version: str = ""
    context_tokens: int | None = None
    context_from: str = ""
    weights: str = ""
    temperature: float | None = None
    eos_token: str | None = None

    @property
    def name(self) -> str:
        """As a message calls it."""
        known = "a server of unknown make" if self.kind == "unknown" else self.kind
        return f"{known} {self.version}".rstrip()

    @property
    def bits(self) -> int:
        """Of a weight; 16 where the type is not said to be a smaller one."""
        quantized = re.search(r"Q(\d)", self.weights.upper())
        return int(quantized[1]) if quantized else _HALF_PRECISION_BITS


def find_facts(endpoint: ServedEndpoint) -> ServerFacts:
    """Look at the routes that tell servers apart. Ask a question before: Ollama loads at one."""
    owner = next((str(one.get("owned_by")).lower() for one in endpoint.listed), "")
    match _OWNERS.get(owner):
        case "llama.cpp":
            return _llama_cpp(endpoint) or _unknown(endpoint)
        case "vLLM":
            return _listed(endpoint, "vLLM", _text(endpoint.extra("GET", "/version"), "version"))
        case "SGLang":
            said = endpoint.extra("GET", "/get_server_info")
            return _listed(endpoint, "SGLang", _text(said, "version"))
    for look in (_llama_cpp, _ollama, _tgi):
        found = look(endpoint)
        if found is not None:
            return found
    return _unknown(endpoint)


def _llama_cpp(endpoint: ServedEndpoint) -> ServerFacts | None:
    said = endpoint.extra("GET", "/props")
    match said:
        case {"default_generation_settings": {"n_ctx": int() as context, **settings}}:
            params = settings.get("params", settings)
            return ServerFacts(
                "llama.cpp",
                _text(said, "build_info"),
                context,
                "n_ctx of /props",
                _text(said, "model_ftype"),
                _number(params, "temperature"),
                said.get("eos_token"),
            )
    return None


def _ollama(endpoint: ServedEndpoint) -> ServerFacts | None:
    version = endpoint.extra("GET", "/api/version")
    if not (isinstance(version, dict) and "version" in version):
        return None
    shown = endpoint.extra("POST", "/api/show", {"model": endpoint.model})
    shown = shown if isinstance(shown, dict) else {}
    parameters = dict(_OLLAMA_PARAMETER.findall(str(shown.get("parameters") or "")))
    context, source = parameters.get("num_ctx", "").strip(), "num_ctx of /api/show"
    loaded = endpoint.extra("GET", "/api/ps")
    match loaded:
        case {"models": [*models]}:
            for model in models:
                if endpoint.model in (model.get("name"), model.get("model")):
                    context = str(model.get("context_length") or context)
                    source = "context_length of /api/ps"
    return ServerFacts(
        "Ollama",
        _text(version, "version"),
        int(context) if context.isdecimal() else None,
        source,
        _text(shown.get("details"), "quantization_level"),
        _OLLAMA_TEMPERATURE,
    )


def _tgi(endpoint: ServedEndpoint) -> ServerFacts | None:
    said = endpoint.extra("GET", "/info")
    match said:
        case {"model_id": str(), "max_total_tokens": int() as context}:
            source = "max_total_tokens of /info"
            weights = _text(said, "model_dtype")
            return ServerFacts("TGI", _text(said, "version"), context, source, weights)
    return None


def _unknown(endpoint: ServedEndpoint) -> ServerFacts:
    return _listed(endpoint, "unknown", "")


def _listed(endpoint: ServedEndpoint, kind: Kind, version: str) -> ServerFacts:
    """With the context that /v1/models gives."""
    own = [entry for entry in endpoint.listed if entry.get("id") == endpoint.model]
    # One engine serves them all: an adapter has the context of its base.
    others = endpoint.listed if kind in ("vLLM", "SGLang") else []
    for entry in (*own, *others):
        for field in _CONTEXT_FIELDS:
            if isinstance(entry.get(field), int):
                return ServerFacts(kind, version, entry[field], f"{field} of /v1/models")
    return ServerFacts(kind, version)


def tokenize(endpoint: ServedEndpoint, kind: Kind, text: str) -> list[int] | None:
    """Token ids of a text, nothing added; None where the server has no route for it."""
    match kind:
        case "llama.cpp":
            return _llama_ids(endpoint, text, add_special=False)
        case "vLLM" | "SGLang":
            asked = {"model": endpoint.model, "prompt": text, "add_special_tokens": False}
            return _ids(endpoint.extra("POST", "/tokenize", asked))
        case "TGI":
            asked = {"inputs": text, "add_special_tokens": False}
            said = endpoint.extra("POST", "/tokenize", asked)
            return _ids({"tokens": said})
    return None


def _llama_ids(endpoint: ServedEndpoint, text: str, *, add_special: bool) -> list[int] | None:
    body = {"content": text, "add_special": add_special, "parse_special": True}
    return _ids(endpoint.extra("POST", "/tokenize", body))


def chat_ids(
    endpoint: ServedEndpoint, kind: Kind, messages: Sequence[Mapping[str, str]]
) -> list[int] | None:
    """Token ids of a chat's prompt as the server makes it; None where it does not say."""
    plain = [dict(message) for message in messages]
    match kind:
        case "llama.cpp":
            rendered = endpoint.extra("POST", "/apply-template", {"messages": plain})
            if isinstance(rendered, dict) and isinstance(rendered.get("prompt"), str):
                # A BOS that the tokenizer adds is left out of the rendered text.
                return _llama_ids(endpoint, rendered["prompt"], add_special=True)
        case "vLLM" | "SGLang":
            body = {"model": endpoint.model, "messages": plain, "add_generation_prompt": True}
            return _ids(endpoint.extra("POST", "/tokenize", body))
        case "TGI":
            said = endpoint.extra("POST", "/chat_tokenize", {"model": "-", "messages": plain})
            return _ids({"tokens": said.get("tokenize_response")} if said else None)
    return None


def _ids(said: Any) -> list[int] | None:
    match said:
        case {"tokens": [*tokens]}:
            ids = [token["id"] if isinstance(token, dict) else token for token in tokens]
            return ids if all(isinstance(one, int) for one in ids) else None
    return None


def _text(said: Any, field: str) -> str:
    return str(said.get(field) or "") if isinstance(said, dict) else ""


def _number(said: Any, field: str) -> float | None:
    found = said.get(field) if isinstance(said, dict) else None
    return float(found) if isinstance(found, int | float) else None
