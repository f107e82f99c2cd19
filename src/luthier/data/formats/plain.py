"""Text that no chat template touches: completions of a prompt, and full texts."""

from collections.abc import Mapping

from luthier.data.formats.options import FormatOptions
from luthier.data.formats.registry import row_format
from luthier.data.formats.values import text
from luthier.data.rows import Parsed, message


@row_format("prompt_completion", task="completion", needs=("prompt", "completion"))
def prompt_completion(values: Mapping[str, object], _options: FormatOptions) -> Parsed:
    """`prompt` and `completion`; what is between them, a space say, is part of either."""
    prompt, completion = text(values, "prompt"), text(values, "completion")
    return Parsed([message("user", prompt), message("assistant", completion)])


@row_format("text", task="text", needs=("text",))
def full_text(values: Mapping[str, object], _options: FormatOptions) -> Parsed:
    """`text`, all of which is learned."""
    return Parsed([message("assistant", text(values, "text"))])
