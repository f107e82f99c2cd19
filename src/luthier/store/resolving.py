"""From what a user types to one artifact."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from luthier.errors import StoreError
from luthier.store.artifact import Artifact
from luthier.store.checking import load
from luthier.store.history import Find
from luthier.store.manifest import MANIFEST_NAME
from luthier.store.refs import Version

_REF = re.compile(r"(?P<name>[^/@\s]+)/(?P<kind>[a-z]+)(@(latest|v(?P<number>\d+)))?")
_KEY_PREFIX = re.compile(r"[0-9a-f]{6,64}")
_SHOWN_AT_MOST = 20


@dataclass(frozen=True)
class Contents:
    """All that is in a store: artifacts, newest first; versions; what is not in order; and the
    tags that name each key now."""

    artifacts: list[Artifact]
    versions: list[Version]
    problems: list[str]
    tags: Mapping[str, list[str]] = field(default_factory=dict)


def resolve_text(text: str, find: Find, contents: Callable[[], Contents]) -> Artifact:
    """See `Store.resolve`."""
    folder = Path(text)
    if (folder / MANIFEST_NAME).exists() and folder.suffix != ".partial":
        return load(folder)
    there = contents()
    ref = _REF.fullmatch(text)
    if ref is not None:
        named = [v for v in there.versions if (v.name, v.kind) == (ref["name"], ref["kind"])]
        wanted = [v for v in named if ref["number"] in (None, str(v.number))]
        if wanted:
            return _newest(wanted, text, find)
    elif _KEY_PREFIX.fullmatch(text):
        matching = [artifact for artifact in there.artifacts if artifact.key.startswith(text)]
        if len(matching) > 1:
            raise StoreError(f"{text} begins several keys:{_listing(matching)}\nType more digits.")
        if matching:
            return matching[0]
    raise StoreError(_unknown(text, there))


def _newest(versions: list[Version], text: str, find: Find) -> Artifact:
    for version in sorted(versions, key=lambda v: v.number, reverse=True):
        artifact = find(version.key)
        if artifact is not None:
            return artifact
    raise StoreError(
        f"{text} is no longer in the store: its artifact {versions[-1].key[:16]} was removed or "
        "never finished. The config it was made with makes it again."
    )


def _unknown(text: str, there: Contents) -> str:
    kept = {artifact.key for artifact in there.artifacts}
    exact = [version.ref for version in there.versions if version.key in kept]
    known = {*exact, *(ref.partition("@")[0] for ref in exact), *(key[:16] for key in kept)}
    if Path(text).is_dir():
        reason = f"{text} is a folder, but not an artifact: it has no {MANIFEST_NAME}."
    else:
        reason = f"{text} is no artifact."
    close = difflib.get_close_matches(text, sorted(known), n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    damage = "".join(f"\nNot in order: {problem}" for problem in there.problems)
    if not exact:
        return f"{reason}{hint} The store is empty: `luthier run CONFIG` fills it.{damage}"
    shown = "".join(f"\n  {ref}" for ref in exact[:_SHOWN_AT_MOST])
    more = len(exact) - _SHOWN_AT_MOST
    rest = f"\n  and {more} more" if more > 0 else ""
    return f"{reason}{hint} There are:{shown}{rest}{damage}"


def _listing(artifacts: list[Artifact]) -> str:
    shown = artifacts[:_SHOWN_AT_MOST]
    return "".join(f"\n  {artifact.key[:16]} {artifact.ref}" for artifact in shown)
