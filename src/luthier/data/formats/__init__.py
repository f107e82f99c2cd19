"""Row formats: how the columns of one record become a conversation, or say why they cannot.

A module here with a function under `@row_format` adds a format; nothing else registers it.
"""

import importlib
import pkgutil

from luthier.data.formats.detection import detect, named_format
from luthier.data.formats.grounded import compose, with_distractors
from luthier.data.formats.options import (
    ClassificationOptions,
    ExtractionOptions,
    FormatOptions,
    GroundedOptions,
    label_list,
    options_of,
)
from luthier.data.formats.registry import ROW_FORMATS, RowFormat, formats_of, parse, row_format

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "ROW_FORMATS",
    "ClassificationOptions",
    "ExtractionOptions",
    "FormatOptions",
    "GroundedOptions",
    "RowFormat",
    "compose",
    "detect",
    "formats_of",
    "label_list",
    "named_format",
    "options_of",
    "parse",
    "row_format",
    "with_distractors",
]
