"""What a config says of a server that answers: address, model, key, patience, prices."""

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, AnyHttpUrl, JsonValue

from luthier.config import Field, Section, result_free
from luthier.config.run_config import NAME_PATTERN
from luthier.evaluation.systems import GGUF_PREFIX

# No user, password, query or fragment: an address is written into manifests and messages.
_URL = re.compile(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?")
# Upper case alone, as variables are named, so that a key put here by mistake is not taken for a
# name and shown.
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_OURS = ("model", "messages", "prompt", "stream")


def _checked_url(url: str) -> str:
    try:
        AnyHttpUrl(url)
        is_address = _URL.fullmatch(url) is not None
    except ValueError:
        is_address = False
    if not is_address:
        raise ValueError(
            "must be an address such as http://127.0.0.1:8000/v1, without name, password, ? and #"
        )
    if url.rstrip("/").endswith("/completions"):
        raise ValueError("must be what stands before /chat/completions, mostly .../v1")
    return url.rstrip("/")


def _checked_variable(name: str | None) -> str | None:
    if name is not None and not _VARIABLE.fullmatch(name):
        raise ValueError(
            "must be the name of an environment variable in capitals, such as OPENAI_API_KEY, "
            "never the key itself"
        )
    return name


def _checked_extra(fields: dict[str, JsonValue]) -> dict[str, JsonValue]:
    taken = [name for name in _OURS if name in fields]
    if taken:
        raise ValueError(f"must not set {', '.join(taken)}, which Luthier sets itself")
    return fields


class Endpoint(Section):
    """A server that speaks the OpenAI API: vLLM, Ollama, llama.cpp or a provider.

    Out of the key is what an interrupted run may change and go on: how many requests at once, how
    patiently, at which price, with whose key. The address is in the key, for another server may
    be another model; so is `max_missing_fraction`, which says what a result is.
    """

    name: str = Field(
        pattern=f"^{NAME_PATTERN}$", description="what answers, metrics and reports call it"
    )
    url: Annotated[str, AfterValidator(_checked_url)] = Field(
        description="its address without the route, e.g. http://127.0.0.1:8000/v1"
    )
    model: str = Field(min_length=1, description="the model's name there")
    api_key_env: Annotated[str | None, AfterValidator(_checked_variable)] = Field(
        None,
        json_schema_extra=result_free,
        description="environment variable that holds the key; null: no key",
    )
    extra_body: Annotated[dict[str, JsonValue], AfterValidator(_checked_extra)] = Field(
        default_factory=dict,
        description="more fields of each request, e.g. {top_k: 1}; null leaves one of Luthier's "
        "out: {seed: null}",
    )
    max_missing_fraction: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of rows that may stay without an answer"
    )
    concurrency: int = Field(
        4, ge=1, le=256, json_schema_extra=result_free, description="requests at once"
    )
    timeout_seconds: float = Field(
        120.0, gt=0.0, le=3600.0, json_schema_extra=result_free, description="of one request"
    )
    max_attempts: int = Field(
        6, ge=1, le=20, json_schema_extra=result_free, description="requests for one row, at most"
    )
    price_usd_per_million_input_tokens: float | None = Field(
        None, ge=0.0, json_schema_extra=result_free, description="null: not counted"
    )
    price_usd_per_million_output_tokens: float | None = Field(
        None, ge=0.0, json_schema_extra=result_free, description="null: not counted"
    )


def unique_names(endpoints: Sequence[Endpoint]) -> None:
    """Raises ValueError, for a section's validator, where two have one name, or one of ours."""
    names = [endpoint.name for endpoint in endpoints]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"endpoints: two are called {twice[0]}. Give each a name of its own")
    ours = [name for name in names if name == "merged" or name.startswith(GGUF_PREFIX)]
    if ours:
        raise ValueError(f"endpoints: {ours[0]} is a name of Luthier's own. Take another")
