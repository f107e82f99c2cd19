"""Data sets of the Hugging Face hub: data files alone, at a pinned commit."""

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from luthier.data.compressed import PACKINGS
from luthier.data.readers import READERS
from luthier.data.records import SourceFile
from luthier.data.sources import HUB_PREFIX, inside
from luthier.errors import DataError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch(repo_id: str, revision: str | None, patterns: Sequence[str]) -> list[SourceFile]:
    """The files of a data set that match, sorted, from the local cache or else from the hub.

    Patterns end in the suffix of a reader, so that no script is fetched. The files are called
    `hub:owner/name/path` in messages and counts.

    Args:
        repo_id: owner/name.
        revision: the commit, 40 hexadecimal digits.
        patterns: paths in the repository, with wildcards: `data/train-*.parquet`. They say which
            split is meant, so there is no default.

    Raises:
        DataError: no commit, no pattern of data files, nothing that matches them, or no way to
            the hub.
    """
    where = f"{HUB_PREFIX}{repo_id}"
    _check(where, repo_id, revision, patterns)
    folder = _download(where, repo_id, str(revision), patterns)
    found = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()
    )
    files = [
        SourceFile(folder / path, f"{where}/{path}")
        for path in found
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
    ]
    if not files:
        raise DataError(
            f"{where} at {revision}: no file matches {', '.join(patterns)}. "
            "Look at its files on the hub."
        )
    # The cache keeps content in blobs/ next to snapshots/, and links to it.
    return inside(files, folder.parent.parent)


def _check(where: str, repo_id: str, revision: str | None, patterns: Sequence[str]) -> None:
    if not _HUB_ID.fullmatch(repo_id):
        raise DataError(f"{where}: not the id of a data set. Write hub:owner/name.")
    if revision is None or not _COMMIT.fullmatch(revision):
        raise DataError(
            f"{where}: not pinned. Set the source's revision to a commit (40 hexadecimal digits), "
            "so that the same config means the same rows tomorrow."
        )
    if not patterns:
        raise DataError(
            f"{where}: say which of its files are meant, e.g. data/train-*.parquet, so that no "
            "other split is read with them."
        )
    for pattern in patterns:
        if not _is_data(pattern):
            raise DataError(
                f"{where}: the pattern {pattern} may mean files that are no data. End it in one "
                f"of {', '.join(sorted(READERS))}."
            )


def _is_data(pattern: str) -> bool:
    path = PurePosixPath(pattern)
    return (path.with_suffix("") if path.suffix in PACKINGS else path).suffix in READERS


def _download(where: str, repo_id: str, revision: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repo_id, repo_type="dataset", revision=revision, allow_patterns=list(patterns)
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(f"{where} at {revision} cannot be fetched: {error}") from error
