"""A journal: JSON lines of finished work, so that a killed stage goes on after the last one."""

import json
import os
from pathlib import Path
from typing import Any

from luthier.store.files import fsync_folder


class Journal:
    """A file that only grows, in a workspace's scratch folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Any]:
        """The values that were written whole; from a torn or damaged line on, the file is cut."""
        if not self._path.exists():
            return []
        values: list[Any] = []
        kept = 0
        for line in self._path.read_bytes().splitlines(keepends=True):
            try:
                values.append(json.loads(line if line.endswith(b"\n") else b""))
            except ValueError:
                break
            kept += len(line)
        self._cut_at(kept)
        return values

    def keep(self, count: int) -> None:
        """Forget all but the first `count` values."""
        if self._path.exists():
            lines = self._path.read_bytes().splitlines(keepends=True)
            self._cut_at(sum(map(len, lines[:count])))

    def _cut_at(self, size_bytes: int) -> None:
        if size_bytes < self._path.stat().st_size:
            with self._path.open("r+b") as stream:
                stream.truncate(size_bytes)

    def append(self, value: Any) -> None:
        """Write one value; it is on the disk when this returns."""
        is_new = not self._path.exists()
        with self._path.open("ab") as stream:
            stream.write(json.dumps(value).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        if is_new:
            fsync_folder(self._path.parent)
