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
        """The values that were written whole; a torn last line is cut off the file."""
        if not self._path.exists():
            return []
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with self._path.open("r+b") as stream:
                stream.truncate(len(whole))
        return [json.loads(line) for line in whole.splitlines()]

    def append(self, value: Any) -> None:
        """Write one value; it is on the disk when this returns."""
        is_new = not self._path.exists()
        with self._path.open("ab") as stream:
            stream.write(json.dumps(value).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        if is_new:
            fsync_folder(self._path.parent)
