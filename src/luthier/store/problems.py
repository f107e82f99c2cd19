"""What the disk refuses, as one message that names the place and the way out."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.errors import LuthierError, StoreError

_KEPT = "run the same command again: what is done is kept"
_ELSEWHERE = "set LUTHIER_STORE to a folder elsewhere"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM)
_NOT_A_FOLDER = (errno.ENOTDIR, errno.EEXIST)


@contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission and the like, met while writing below `root`.

    What has nothing to do with the disk passes unchanged.

    Raises:
        StoreError: the disk refused.
    """
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:
        message = _explain(error, root)
        if message is None:
            raise
        raise StoreError(message) from error


def _explain(error: Exception, root: Path) -> str | None:
    place = _place(error, root)
    number = error.errno if isinstance(error, OSError) else None
    # safetensors and others written in Rust keep only the text of the error
    if number in _FULL or "No space left on device" in str(error):
        return (
            f"{place or root}: no space left on the disk ({_free(root)}). "
            f"Free some, or {_ELSEWHERE}, then {_KEPT}."
        )
    if number == errno.EFBIG:
        return (
            f"{place or root}: the file would be larger than allowed here. "
            f"Raise the limit (`ulimit -f`), or {_ELSEWHERE}, then {_KEPT}."
        )
    if number == errno.EROFS:
        return f"{place or root}: the file system is read-only. Make it writable, or {_ELSEWHERE}."
    if number == errno.EIO:
        return f"{place or root}: the disk reports an error. Check the disk, or {_ELSEWHERE}."
    if place is not None and number in _REFUSED:
        return f"{place}: no permission. Make it writable for this account, or {_ELSEWHERE}."
    blocker = _blocking_file(place) if place is not None else None
    if number in _NOT_A_FOLDER and blocker is not None:
        return f"{blocker} is a file where the store needs a folder. Move it, or {_ELSEWHERE}."
    return None


def _place(error: Exception, root: Path) -> Path | None:
    """The path that the error names, when it is of the store."""
    name = error.filename if isinstance(error, OSError) else None
    if not isinstance(name, str | os.PathLike):
        return None
    path, home = Path(name).absolute(), root.absolute()
    return Path(name) if path.is_relative_to(home) or home.is_relative_to(path) else None


def _blocking_file(place: Path) -> Path | None:
    ancestry = (place, *place.parents)
    return next((path for path in ancestry if path.exists() and not path.is_dir()), None)


def _free(root: Path) -> str:
    for folder in (root, *root.absolute().parents):
        if folder.is_dir():
            return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB free"
    return "free space unknown"
