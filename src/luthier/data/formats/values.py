"""Checks of single values that several formats share."""

from collections.abc import Mapping
from typing import Any

from luthier.data.rows import RowError
from luthier.data.strict_json import json_value


def text(values: Mapping[str, object], column: str) -> str:
    """A column's text, which must not be empty or white space alone.

    Raises:
        RowError: it is.
    """
    value = values[column]
    if not isinstance(value, str):
        raise RowError(f"{column}-not-text", f"'{column}' is {kind_of(value)}")
    if is_blank(value):
        raise RowError(f"{column}-empty", f"'{column}' is empty")
    return value


def optional_text(values: Mapping[str, object], column: str) -> str | None:
    """A column's text; None where the column is absent, null or empty.

    Raises:
        RowError: it is something else than text.
    """
    if values.get(column) in (None, ""):
        return None
    return text(values, column)


def is_blank(value: str) -> bool:
    """Whether there is nothing but white space."""
    return not value or value.isspace()


def kind_of(value: object) -> str:
    """What JSON calls the type of a value, with its article."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value)) or (
        "an object" if isinstance(value, dict) else f"of type {type(value).__name__}"
    )


def decode_json(spelled: str, kind: str) -> Any:
    """The value that a JSON text inside a column spells, read as strictly as whole records are.

    Raises:
        RowError: of this kind; the text is not JSON, or is JSON that cannot be kept exactly.
    """
    try:
        return json_value(spelled)
    except RowError as error:
        raise RowError(kind, str(error).removeprefix(f"{error.kind}: ")) from error
