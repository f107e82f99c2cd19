"""What a reader yields and how one is registered, with the decoding that all readers share.

What other readers mend in silence (`datasets` accepts invalid UTF-8, NaN, duplicate keys and a
byte order mark) is a `Rejected` record here. A reader for another suffix is one more function
under `@reader`.
"""

from collections.abc import Callable, Iterator
from typing import BinaryIO

from luthier.data.rows import RawRow, Rejected, RowError, cap_raw

Record = RawRow | Rejected
Reader = Callable[[BinaryIO, str], Iterator[Record]]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

READERS: dict[str, Reader] = {}


def reader(*suffixes: str) -> Callable[[Reader], Reader]:
    """Register a function (open binary file, its name) -> records for these file suffixes."""

    def register(function: Reader) -> Reader:
        READERS.update(dict.fromkeys(suffixes, function))
        return function

    return register


def decode(data: bytes) -> str:
    """Strict UTF-8.

    Raises:
        RowError: a byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise RowError(
            "invalid-utf8", f"byte 0x{byte:02x} at byte {error.start + 1} of the record"
        ) from error


def escaped(data: bytes) -> str:
    """A bad record's bytes as text: what is not UTF-8 as \\xNN, a byte order mark visibly."""
    return cap_raw(data.decode("utf-8", "backslashreplace").replace("\ufeff", "\\ufeff"))
