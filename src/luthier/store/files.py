"""Files that survive a crash: atomic writes, fsync, SHA-256."""

import hashlib
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_WRITE_BITS = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
_MAX_THREADS = 8  # one disk feeds no more
_TEMPORARY_SUFFIX = ".luthier-tmp"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Args:
        path: the file; its folder must exist, an old file is replaced.
        content: text is written as UTF-8.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def temporary_path(path: Path) -> Path:
    """Where to write a file, in its folder, before `Path.replace` gives it its name.

    What a killed process leaves there is deleted when its workspace is opened again.
    """
    return path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY_SUFFIX}")


def remove_temporaries(folder: Path) -> None:
    """Delete what killed processes left at a `temporary_path` anywhere below a folder."""
    for path in folder.rglob(f".*{_TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


def entries_below(folder: Path) -> list[Path]:
    """All that is below a folder and not itself a folder, sorted; links are not followed."""
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        found += [here / name for name in files]
        found += [here / name for name in folders if (here / name).is_symlink()]
    return sorted(found)


def fsync_file(path: Path) -> None:
    """Bring a file's content to the disk."""
    _fsync(path, os.O_RDONLY)


def fsync_folder(path: Path) -> None:
    """Bring a folder's list of names to the disk."""
    _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_files(paths: Iterable[Path]) -> list[str]:
    """SHA-256 of several files at once, in their order; hashlib lets go of the GIL."""
    with ThreadPoolExecutor(max_workers=min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(sha256_file, paths))


def make_read_only(path: Path) -> None:
    """Take the write permission off a file (`chmod a-w`)."""
    path.chmod(stat.S_IMODE(path.stat().st_mode) & ~_WRITE_BITS)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
