"""The Modelfile of an Ollama bundle.

How Ollama reads one: https://github.com/ollama/ollama/blob/5dbb81b/parser/parser.go. There are no
escapes in a quoted value, characters that do not print are dropped, and a value ends at the first
line end where its quotes look closed; so every quoted value is read back before it is written.
"""

from collections.abc import Sequence
from pathlib import Path

from luthier.errors import ServingError

_QUOTE = '"""'
_SHOWN_CHARACTERS = 60
_LICENCE_NAMES = ("LICENSE", "LICENCE")


def modelfile(
    gguf_name: str,
    *,
    stop_tokens: Sequence[str],
    context_tokens: int,
    system_prompt: str | None,
    licence: str | None = None,
    template: str | None = None,
) -> str:
    """The Modelfile for a GGUF beside it: greedy, with the run's stops, context, system prompt.

    Greedy is temperature 0 and top_k 1. The second is for clients of Ollama's OpenAI API: it sets
    temperature and top_p to 1 where a request has none (ollama issue 17744, v0.35), over what the
    Modelfile says. Older versions' default repeat_penalty of 1.1 would bend greedy decoding.

    A reply may be as long as the context, not longer: the default num_predict of -1 lets a model
    that never stops go on while Ollama drops the beginning of the conversation.

    Args:
        gguf_name: file name, in the Modelfile's own folder.
        stop_tokens: the spelling of each; Ollama ends a reply at any of them.
        context_tokens: of prompt and reply together.
        system_prompt: the one of training. Ollama puts it before messages that have none.
        licence: text or name of the base's licence, see `base_licence`.
        template: Go template, see `luthier.serving.chat_families`; None: Ollama uses the GGUF's.

    Raises:
        ServingError: Ollama cannot read back a stop token, the system prompt or the template.
    """
    lines = [
        f"FROM ./{gguf_name}",
        *(f"PARAMETER stop {quoted(token, 'the stop token')}" for token in stop_tokens),
        f"PARAMETER num_ctx {context_tokens}",
        f"PARAMETER num_predict {context_tokens}",
        "PARAMETER temperature 0",
        "PARAMETER top_k 1",
        "PARAMETER repeat_penalty 1.0",
    ]
    if template:
        lines.append(f"TEMPLATE {quoted(template, 'the template')}")
    if system_prompt:
        lines.append(f"SYSTEM {quoted(system_prompt, 'the system prompt')}")
    if licence:
        lines.append(f"LICENSE {quoted(_printable(licence), 'the licence')}")
    return "\n".join(lines) + "\n"


def base_licence(folder: Path, name: str | None = None) -> str | None:
    """The texts of the licence files in a model's folder, else `name`, else None."""
    texts = [
        path.read_text("utf-8", errors="replace").strip()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name.upper().startswith(_LICENCE_NAMES)
    ]
    return "\n\n".join(text for text in texts if text) or name or None


def _printable(text: str) -> str:
    """A licence's text as a Modelfile can hold it: what does not print becomes a space."""
    lines = text.replace(_QUOTE, "'''").splitlines()
    return "\n".join(
        "".join(char if char.isprintable() or char == "\t" else " " for char in line)
        for line in lines
    )


def quoted(value: str, what: str) -> str:
    """`value` in quotes that Ollama reads back as it is.

    Raises:
        ServingError: there are no such quotes.
    """
    for quote in ('"', _QUOTE):
        text = f"{quote}{value}{quote}"
        if read_value(f"{text}\n") == value:
            return text
    hidden = next(
        (char for char in value if not char.isprintable() and char not in "\n\t\r"), None
    )
    reason = f"Ollama drops U+{ord(hidden):04X}" if hidden else f"a line of it ends in {_QUOTE}"
    raise ServingError(
        f"ollama: {what} {value[:_SHOWN_CHARACTERS]!r} cannot be written in a Modelfile: "
        f"{reason}. Change it in prepare.system_prompt, or leave ollama out of export.targets."
    )


def read_value(text: str) -> str | None:
    """What Ollama takes from `text`, which follows a command; None when quotes stay open."""
    read = ""
    for char in text:
        if char in "\r\n":
            value = _unquoted(read.strip())
            if value is not None:
                return value
            read += char
        elif char.isprintable() or char == "\t":
            read += char
    return _unquoted(read.strip())


def _unquoted(text: str) -> str | None:
    for quote in (_QUOTE, '"'):
        if text.startswith(quote):
            closed = len(text) >= 2 * len(quote) and text.endswith(quote)
            return text[len(quote) : -len(quote)] if closed else None
    return text
