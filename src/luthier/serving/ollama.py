"""The Modelfile of an Ollama bundle.

How Ollama reads one: https://github.com/ollama/ollama/blob/5dbb81b/parser/parser.go. There are no
escapes in a quoted value, characters that do not print are dropped, and a value ends at the first
line end where its quotes look closed; so every quoted value is read back before it is written.
"""

from collections.abc import Sequence

from luthier.errors import ServingError

_QUOTE = '"""'


def modelfile(
    gguf_name: str, *, stop_tokens: Sequence[str], context_tokens: int, system_prompt: str | None
) -> str:
    """The Modelfile for a GGUF beside it: greedy, with the run's stops, context, system prompt.

    The chat template is the GGUF's own. Ollama's default repeat_penalty of 1.1 would bend greedy
    decoding, so it is set to none.

    Raises:
        ServingError: Ollama cannot read back a stop token or the system prompt.
    """
    lines = [
        f"FROM ./{gguf_name}",
        *(f"PARAMETER stop {quoted(token, 'a stop token')}" for token in stop_tokens),
        f"PARAMETER num_ctx {context_tokens}",
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1.0",
    ]
    if system_prompt:
        lines.append(f"SYSTEM {quoted(system_prompt, 'the system prompt')}")
    return "\n".join(lines) + "\n"


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
        f"ollama: {what} {value[:60]!r} cannot be written in a Modelfile: {reason}. "
        "Change it in prepare.system_prompt, or leave ollama out of export.targets."
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
