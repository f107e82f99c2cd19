"""Packed text files (.gz, .zst) as streams: bounded memory, and damage that nobody overlooks."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from luthier.errors import DataError

# A packed file that grows more than this is no data: real text stays far below 100 times.
BOMB_RATIO = 1000
BOMB_BYTES = 256 << 20

_GZIP_STEP_BYTES = 1 << 18  # unpacked at once
# Packed bytes given to zstd at once: its densest block makes 128 KiB of 4 bytes, 64 MiB of these.
_ZSTD_STEP_BYTES = 2048


class DamageError(Exception):
    """A packed file cannot be unpacked further."""


class Unpacked:
    """The content of a packed file. Everything before damage is read before it is raised."""

    def __init__(self, pieces: Iterator[bytes], packed_bytes: int, name: str) -> None:
        self._pieces = pieces
        self._packed_bytes = packed_bytes
        self._name = name
        self._ready = bytearray()
        self._made_bytes = 0
        self._made_lines = 0
        self._is_done = False
        self._error: DataError | None = None

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes, fewer at the end or before damage.

        Raises:
            DataError: the file is damaged here, or unpacks to a suspicious size.
        """
        self._fill(size)
        if self._error and not self._ready:
            raise self._error
        data = bytes(self._ready[:size])
        del self._ready[:size]
        return data

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, which `read` returns again."""
        self._fill(size)
        return bytes(self._ready[:size])

    def _fill(self, size: int) -> None:
        while len(self._ready) < size and not self._is_done:
            try:
                piece = next(self._pieces, None)
            except DamageError as error:
                self._stop(
                    f"is damaged after line {self._made_lines}, {self._made_bytes} bytes "
                    f"unpacked: {error}. Fetch or pack it again."
                )
                return
            if piece is None:
                self._is_done = True
                return
            self._made_bytes += len(piece)
            self._made_lines += piece.count(b"\n")
            self._ready += piece
            if self._made_bytes > max(BOMB_BYTES, BOMB_RATIO * self._packed_bytes):
                self._stop(
                    f"unpacks to more than {BOMB_RATIO} times its size, over "
                    f"{BOMB_BYTES >> 20} MiB: no text does. Unpack it by hand if it is meant so."
                )

    def _stop(self, why: str) -> None:
        self._error = DataError(f"{self._name}: the packed file {why}")
        self._is_done = True


def _gzip_pieces(file: BinaryIO) -> Iterator[bytes]:
    stream = gzip.GzipFile(fileobj=file)
    try:
        while piece := stream.read1(_GZIP_STEP_BYTES):
            yield piece
    except EOFError as error:
        raise DamageError("it ends too early") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DamageError(str(error)) from error


def _zstd_pieces(file: BinaryIO) -> Iterator[bytes]:
    """Frame by frame: zstandard's own stream reader takes a file cut short for a whole one."""
    import zstandard

    frame = zstandard.ZstdDecompressor().decompressobj()
    is_inside = False
    while step := file.read(_ZSTD_STEP_BYTES):
        while step:
            is_inside = True
            try:
                piece = frame.decompress(step)
            except zstandard.ZstdError as error:
                raise DamageError(str(error)) from error
            if piece:
                yield piece
            step = b""
            if frame.eof:
                step, is_inside = frame.unused_data, False
                frame = zstandard.ZstdDecompressor().decompressobj()
    if is_inside:
        raise DamageError("it ends too early")


PACKINGS: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    ".gz": _gzip_pieces,
    ".zst": _zstd_pieces,
}
