"""When a row is from, for splits by time."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime

from luthier.data.rows import RawRow, RowError


def seconds_of(raw: RawRow, columns: Mapping[str, str]) -> float:
    """Seconds since 1970 of a record's `time` column: a number of seconds, or an ISO 8601 text.

    A text without a time zone is taken as UTC. NaN when rows have no time.

    Raises:
        RowError: the column is missing, or is neither.
    """
    if "time" not in columns:
        return math.nan
    name = columns["time"]
    if name not in raw.values:
        raise RowError("column-missing", f"no '{name}', which rows are ordered by")
    value = raw.values[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise RowError("time-unknown", f"'{name}' is beyond what a double can hold") from error
    if not isinstance(value, str):
        raise RowError("time-unknown", f"'{name}' is neither a number of seconds nor a text")
    try:
        found = datetime.fromisoformat(value.strip())
    except ValueError as error:
        raise RowError("time-unknown", f"'{name}' is {value[:40]!r}, not ISO 8601") from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
