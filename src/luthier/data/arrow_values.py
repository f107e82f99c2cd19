"""Arrow's values as JSON would hold them: which types fit, sound buffers, what stands for a fault.

A column of a type that JSON does not know (times, bytes, decimals) and a float that is no number
are a fault only for a row format that asks for that column: files from pandas are full of such
columns that nobody needs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.data.rows import RowError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a value cannot be had: stands in its place in a row."""

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"<{self.detail}>"


class FaultyRow(dict[str, object]):
    """A row with columns that cannot be had. Ask by `row[name]` or `row.get(name)`: it raises."""

    def __getitem__(self, name: str) -> object:
        """The value of a column.

        Raises:
            RowError: its type is none of JSON's, or it is no number.
        """
        value = super().__getitem__(name)
        if isinstance(value, Fault):
            raise RowError(value.kind, value.detail)
        return value

    def get(self, name: str, default: object = None) -> object:
        """As `row[name]`, with a default for a column that is not there."""
        if name not in self:
            return default
        return self[name]


def is_json(kind: "pa.DataType") -> bool:
    """Whether every value of a type has exactly one form in JSON."""
    import pyarrow as pa
    from pyarrow import types

    if isinstance(kind, pa.BaseExtensionType) or types.is_map(kind):
        return False
    if types.is_dictionary(kind):
        return is_json(kind.value_type)
    if types.is_nested(kind) and not types.is_union(kind):
        inner = [kind.field(number) for number in range(kind.num_fields)]
        return len({field.name for field in inner}) == len(inner) and all(
            is_json(field.type) for field in inner
        )
    plain: Sequence[Callable[[Any], bool]] = (
        types.is_null,
        types.is_boolean,
        types.is_integer,
        types.is_floating,
        types.is_string,
        types.is_large_string,
        types.is_string_view,
    )
    return any(is_kind(kind) for is_kind in plain)


def check(batch: "pa.RecordBatch") -> None:
    """That its buffers are sound. Texts that are not UTF-8 are left to their rows.

    Raises:
        pa.ArrowInvalid: offsets or indices that point out of their buffers.
    """
    import pyarrow as pa

    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        for column in batch.columns:
            column.view(_as_bytes(column.type)).validate(full=True)


def _as_bytes(kind: "pa.DataType") -> "pa.DataType":
    """The type with every text as bytes."""
    import pyarrow as pa

    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_as_bytes(kind.value_type)))
    return kind


def marked(
    values: dict[str, object], floats: Sequence[str], faults: Mapping[str, Fault]
) -> dict[str, object]:
    """A row with its faults: `faults` of whole columns, and of `floats` those not finite here."""
    found = dict(faults)
    for name in floats:
        if not _is_finite(values[name]):
            found[name] = Fault("not-a-number", f"'{name}' holds NaN or an infinity")
    return FaultyRow({**values, **found}) if found else values


def may_be_nan(column: "pa.Array") -> bool:
    """Whether any float in a column, at any depth, is not finite."""
    import pyarrow as pa
    import pyarrow.compute as compute

    kind = column.type
    if pa.types.is_floating(kind):
        return bool(compute.any(compute.invert(compute.is_finite(column))).as_py())
    if pa.types.is_struct(kind):
        return any(may_be_nan(inner) for inner in column.flatten())
    if pa.types.is_dictionary(kind):
        return may_be_nan(column.dictionary)
    if pa.types.is_nested(kind):
        return may_be_nan(column.flatten())
    return False


def _is_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_is_finite(inner) for inner in value.values())
    return not isinstance(value, list) or all(_is_finite(inner) for inner in value)
