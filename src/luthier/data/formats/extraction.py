"""Texts with what they say as JSON."""

from collections.abc import Mapping

from luthier.data.formats.json_target import target_of
from luthier.data.formats.options import FormatOptions
from luthier.data.formats.registry import row_format
from luthier.data.formats.values import text
from luthier.data.rows import Parsed, message


@row_format("extraction", task="extraction", needs=("text", "output"))
def extraction(values: Mapping[str, object], options: FormatOptions) -> Parsed:
    """`text` is the user's message; `output`, JSON text or an object, respelled, is the reply."""
    asked = text(values, "text")
    output = target_of(options.schema).spell(values["output"])
    return Parsed([message("user", asked), message("assistant", output)], output=output)
