"""Texts with a label."""

from collections.abc import Mapping

from luthier.data.formats.options import FormatOptions, fill
from luthier.data.formats.registry import row_format
from luthier.data.formats.values import kind_of, text
from luthier.data.rows import Parsed, RowError, message


@row_format("classification", task="classification", needs=("text", "label"))
def classification(values: Mapping[str, object], options: FormatOptions) -> Parsed:
    """`text`, put into the template, is the user's message, `label` the reply."""
    asked, label = text(values, "text"), values["label"]
    if isinstance(label, int | float):
        raise RowError(
            "label-not-text",
            f"'label' is {kind_of(label)}, and a reply is text: write the name of the class",
        )
    label = text(values, "label")
    if label != label.strip():
        raise RowError("label-whitespace", f"{label!r} begins or ends with white space")
    template = options.classification.template
    if template != "{text}":
        asked = fill(template, text=asked)
    return Parsed([message("user", asked), message("assistant", label)], label=label)
