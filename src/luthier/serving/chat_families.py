"""Chat templates as Go templates, for Ollama's TEMPLATE, by family.

A model's family is not guessed from its name. Its own Jinja template renders the golden
conversations; the family is the one whose stored renderings are the same, letter for letter, also
in what is refused. The stored renderings (`chat_renderings.json`, `null`: refused) were made with
the Jinja templates named there, with an empty BOS token. A real Go text/template renders the Go
templates below to the same strings: tests/test_serving_chat_families.py.

What Ollama hands to a template: https://github.com/ollama/ollama/blob/b79067b/template/template.go
(`Execute`). It writes no BOS token in templates, its tokenizer adds one where the GGUF says so.
Functions of Go templates: https://pkg.go.dev/text/template. There is none that trims, so "trim"
below calls itself.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from luthier.errors import ServingError
from luthier.serving.golden import Renderer, golden_conversations

_SHOWN_CHARACTERS = 40
_SHOWN_BEFORE = 16  # of the characters shown, up to where two prompts differ

Renderings = Mapping[str, str | None]  # of golden conversations, by name; None when refused

# Python's str.strip, which is Jinja's trim: all that str.isspace holds for, by its bytes in UTF-8.
_WHITE = (
    (1, r'eq . " " "\t" "\n" "\v" "\f" "\r" "\x1c" "\x1d" "\x1e" "\x1f"'),
    (2, r'eq . "\u0085" "\u00a0"'),
    (
        3,
        r'or (and (ge . "\u2000") (le . "\u200a")) '
        r'(eq . "\u1680" "\u2028" "\u2029" "\u202f" "\u205f" "\u3000")',
    ),
)


def _white(edge: str) -> str:
    """Set $n to the bytes of the white character at an edge of `.`, 0 when there is none."""
    tests = "".join(
        f"{{{{ if ge (len .) {size} }}}}{{{{ with {edge % size} }}}}{{{{ if {is_white} }}}}"
        f"{{{{ $n = {size} }}}}{{{{ end }}}}{{{{ end }}}}{{{{ end }}}}"
        for size, is_white in _WHITE
    )
    return "{{ $n := 0 }}" + tests


_TRIM = (
    '{{ define "trim" }}'
    + _white("slice . 0 %d")
    + '{{ if $n }}{{ template "trim" (slice . $n) }}{{ else }}{{ template "end" . }}{{ end }}'
    + '{{ end -}}\n{{ define "end" }}'
    + _white("slice . (len (slice . %d))")
    + '{{ if $n }}{{ template "end" (slice . 0 (len (slice . $n))) }}{{ else }}{{ . }}{{ end }}'
    + "{{ end -}}\n"
)
_TRIMMED = '{{ template "trim" .Content }}'
_SYSTEM = "{{ (index $.Messages 0).Content }}"
_IF_SYSTEM_FIRST = '{{ if eq (index $.Messages 0).Role "system" }}'
_END = "{{ end }}"


@dataclass(frozen=True)
class ChatFamily:
    """One way to write a conversation; `template` is a Go template over Ollama's values."""

    name: str
    template: str


def _turns(turn: str) -> str:
    return "{{ range $i, $_ := .Messages }}" + turn + _END


def _chatml(default_system: str | None = None, begin_reply: str = "") -> str:
    """ChatML; `default_system` is what the template says when no system message comes first."""
    begin = ""
    if default_system:
        default = "<|im_start|>system\n" + default_system + "<|im_end|>\n"
        begin = _IF_SYSTEM_FIRST + "{{ else }}" + default + _END
    turns = _turns("<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n")
    return begin + turns + "<|im_start|>assistant\n" + begin_reply


_LLAMA_3_TURN = "<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n" + _TRIMMED + "<|eot_id|>"
_LLAMA_3_REPLY = "<|start_header_id|>assistant<|end_header_id|>\n\n"
_LLAMA_3_1_SYSTEM = (
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    + _IF_SYSTEM_FIRST
    + '{{ template "trim" (index .Messages 0).Content }}{{ end }}<|eot_id|>'
)
# The system message stands before the last user's message.
_MISTRAL_V3 = "{{ $last := len (slice .Messages 1) }}" + _turns(
    '{{ if eq .Role "user" }}[INST] {{ if eq $i $last }}'
    + (_IF_SYSTEM_FIRST + _SYSTEM + "\n\n" + _END + _END)
    + '{{ .Content }}[/INST]{{ else if eq .Role "assistant" }} '
    + (_TRIMMED + "</s>" + _END)
)
_GEMMA_ROLE = '<start_of_turn>{{ if eq .Role "assistant" }}model{{ else }}{{ .Role }}{{ end }}\n'
_GEMMA_TEXT = _TRIMMED + "<end_of_turn>\n"
_GEMMA_REPLY = "<start_of_turn>model\n"
# The system message stands before the first user's message.
_GEMMA_3 = _turns(
    '{{ if ne .Role "system" }}'
    + _GEMMA_ROLE
    + ("{{ if eq $i 1 }}" + _IF_SYSTEM_FIRST + _SYSTEM + "\n\n" + _END + _END)
    + (_GEMMA_TEXT + _END)
)
_PHI_3_TURN = "<|{{ .Role }}|>\n{{ .Content }}<|end|>\n"
_PHI_4_TURN = "<|im_start|>{{ .Role }}<|im_sep|>{{ .Content }}<|im_end|>"
_PHI_4_MINI_TURN = "<|{{ .Role }}|>{{ .Content }}<|end|>"

_QWEN_2_5 = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_SMOLLM_2 = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

FAMILIES = (
    ChatFamily("chatml", _chatml()),  # also Qwen3, thinking or 2507
    ChatFamily("qwen3-no-thinking", _chatml(begin_reply="<think>\n\n</think>\n\n")),
    ChatFamily("qwen2.5", _chatml(_QWEN_2_5)),
    ChatFamily("qwen2", _chatml("You are a helpful assistant.")),
    ChatFamily("smollm2", _chatml(_SMOLLM_2)),
    ChatFamily("llama-3", _TRIM + _turns(_LLAMA_3_TURN) + _LLAMA_3_REPLY),
    ChatFamily(
        "llama-3.1",
        _TRIM
        + _LLAMA_3_1_SYSTEM
        + _turns('{{ if or $i (ne .Role "system") }}' + _LLAMA_3_TURN + _END)
        + _LLAMA_3_REPLY,
    ),
    ChatFamily("mistral-v0.3", _TRIM + _MISTRAL_V3),
    ChatFamily("gemma", _TRIM + _turns(_GEMMA_ROLE + _GEMMA_TEXT) + _GEMMA_REPLY),
    ChatFamily("gemma-3", _TRIM + _GEMMA_3 + _GEMMA_REPLY),
    ChatFamily("phi-3", _turns(_PHI_3_TURN) + "<|assistant|>\n"),
    ChatFamily(
        "phi-3.5",
        _turns('{{ if or .Content (ne .Role "system") }}' + _PHI_3_TURN + _END)
        + "<|assistant|>\n",
    ),
    ChatFamily("phi-4", _turns(_PHI_4_TURN) + "<|im_start|>assistant<|im_sep|>"),
    ChatFamily("phi-4-mini", _turns(_PHI_4_MINI_TURN) + "<|assistant|>"),
)


@cache
def stored_renderings() -> Mapping[str, Renderings]:
    """By family: the prompt of each golden conversation that reaches Ollama's templates."""
    text = files(__package__).joinpath("chat_renderings.json").read_text("utf-8")
    return {name: family["prompts"] for name, family in json.loads(text).items()}


def renderings(renderer: Renderer, bos_token: str | None = None) -> dict[str, str | None]:
    """The prompts of the conversations that reach Ollama's templates, without a BOS at the start.

    Args:
        renderer: renders messages with the generation prompt; None when it refuses them.
        bos_token: its spelling; Ollama's tokenizer adds it, so no Go template may write it.
    """
    prompts: dict[str, str | None] = {}
    for one in golden_conversations():
        if one.reaches_ollama_templates:
            prompt = renderer(one.messages)
            prompts[one.name] = prompt and prompt.removeprefix(bos_token or "")
    return prompts


def ollama_template(renderer: Renderer, bos_token: str | None = None) -> str:
    """The Go template that renders all golden conversations as the model's own template does.

    Args:
        renderer: the model's own template, `luthier.serving.golden.template_renderer`.
        bos_token: the tokenizer's, None when it has none.

    Raises:
        ServingError: no family's template does; the message shows where the nearest differs.
    """
    found = renderings(renderer, bos_token)
    nearest = min(FAMILIES, key=lambda family: _distance(family, found))
    stored = stored_renderings()[nearest.name]
    wrong = [name for name, prompt in found.items() if stored[name] != prompt]
    if not wrong:
        return nearest.template
    own, other = found[wrong[0]], stored[wrong[0]]
    start = max(0, _common(own, other) - _SHOWN_BEFORE)
    raise ServingError(
        "ollama: there is no Go template for this model's chat template. The nearest, of "
        f"{nearest.name}, differs in {len(wrong)} of {len(found)} conversations; in {wrong[0]!r} "
        f"it has {_shown(other, start)} where the model's own has {_shown(own, start)}. Leave out "
        "export.ollama_template: Ollama then uses the template inside the GGUF file."
    )


def _distance(family: ChatFamily, found: Renderings) -> tuple[int, int]:
    """How many prompts differ; among equals, the more characters in common, the nearer."""
    pairs = [(found[name], prompt) for name, prompt in stored_renderings()[family.name].items()]
    wrong = sum(own != prompt for own, prompt in pairs)
    return wrong, -sum(_common(own, prompt) for own, prompt in pairs)


def _common(own: str | None, other: str | None) -> int:
    """Characters that two prompts begin with alike; 0 when one is a refusal."""
    pairs = enumerate(zip(own or "", other or "", strict=False))
    alike = min(len(own or ""), len(other or ""))
    return next((place for place, (left, right) in pairs if left != right), alike)


def _shown(prompt: str | None, start: int) -> str:
    if prompt is None:
        return "a refusal"
    return repr(prompt[start : start + _SHOWN_CHARACTERS])
