"""Columns of the data that are kept with each row, for the score to be broken down by."""

import difflib
import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from luthier.data.rows import RawRow
from luthier.errors import DataError


def slices_of(raw: RawRow, columns: Sequence[str]) -> str | None:
    """The record's values of these columns, as JSON text of texts; None where it has none.

    What is no text is kept as the JSON that it is, null as a missing value.
    """
    found = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name in columns
        if (value := raw.values.get(name)) is not None
    }
    return json.dumps(found, ensure_ascii=False, sort_keys=True) if found else None


def read_slices(text: str | None) -> Mapping[str, str]:
    """What `slices_of` kept."""
    found: Mapping[str, str] = json.loads(text) if text else {}
    return found


def refuse_unknown(columns: Sequence[str], seen: AbstractSet[str]) -> None:
    """Columns must be in the first records of some file.

    Raises:
        DataError: one is in none of them.
    """
    for name in columns:
        if name not in seen:
            near = difflib.get_close_matches(name, sorted(seen), n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise DataError(
                f"prepare.slice_by: no source has the column {name} in its first records; they "
                f"have {', '.join(sorted(seen))}.{hint}"
            )
