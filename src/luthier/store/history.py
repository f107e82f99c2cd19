"""Where an artifact comes from, and why a run cannot reuse an earlier one."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.errors import StoreError
from luthier.store.artifact import Artifact
from luthier.store.canonical import canonical_json
from luthier.store.keys import Identity
from luthier.store.manifest import ExternalFile, InputRef, Manifest, Recipe

Find = Callable[[str], Artifact | None]
_QUOTE = '"'
LineageState = Literal["present", "missing", "damaged", "remade"]


@dataclass(frozen=True)
class Lineage:
    """One artifact and what it was made from.

    `slot` is None at the root. `remade`: the key is there, but with other bytes than were used.
    """

    slot: str | None
    ref: str
    key: str
    state: LineageState
    artifact: Artifact | None
    inputs: list["Lineage"]


def trace(artifact: Artifact, find: Find) -> Lineage:
    """The tree of an artifact through the inputs in the manifests."""
    inputs = [_trace_input(ref, find) for ref in artifact.manifest.inputs]
    return Lineage(None, artifact.ref, artifact.key, "present", artifact, inputs)


def _trace_input(ref: InputRef, find: Find) -> Lineage:
    try:
        artifact = find(ref.key)
    except StoreError:
        return Lineage(ref.slot, ref.ref, ref.key, "damaged", None, [])
    if artifact is None:
        return Lineage(ref.slot, ref.ref, ref.key, "missing", None, [])
    state: LineageState = "present" if artifact.digest == ref.digest else "remade"
    inputs = [_trace_input(earlier, find) for earlier in artifact.manifest.inputs]
    return Lineage(ref.slot, ref.ref, ref.key, state, artifact, inputs)


def differences(old: Manifest | Recipe, new: Identity, find: Find) -> list[str]:
    """What in the ingredients of the key changed, one line each; empty for the same key."""
    return own_differences(old, new, _changed_inputs(old, new, find))


def own_differences(
    old: Manifest | Recipe, new: Identity, of_inputs: Iterable[str] = ()
) -> list[str]:
    """As `differences`, with these lines instead of those of the inputs."""
    changes = []
    if old.stage_version != new.stage_version:
        changes.append(f"stage {old.stage}: version {old.stage_version} -> {new.stage_version}")
    changes += _changed_values(_fields(old.stage, old.key_fields), _fields(new.stage, new.fields))
    changes += of_inputs
    changes += _changed_files(old.external_files, new.files)
    changes += _changed_values({"seed": old.seed}, {"seed": new.seed})
    changes += _changed_values(_flat("package", old.key_packages), _flat("package", new.packages))
    return changes


def _fields(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return _flat(prefix, values) if values else {}


def _flat(path: str, value: Any) -> dict[str, Any]:
    """Leaves by dotted path; a list of plain values is a leaf."""
    children: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        children = [(f"{path}.{name}", item) for name, item in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        children = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    if not children:
        return {path: value}
    return {leaf: item for child in children for leaf, item in _flat(*child).items()}


def _changed_values(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for path in sorted({*old, *new}):
        before, after = (
            canonical_json(values[path]) if path in values else "absent" for values in (old, new)
        )
        if before != after:
            yield f"{path}: {before.strip(_QUOTE)} -> {after.strip(_QUOTE)}"


def _changed_inputs(old: Manifest | Recipe, new: Identity, find: Find) -> Iterator[str]:
    refs = {ref.slot: ref for ref in old.inputs}
    for slot in sorted({*refs, *new.inputs}):
        if slot not in refs:
            yield f"input {slot} added"
        elif slot not in new.inputs:
            yield f"input {slot} removed"
        elif refs[slot].digest != new.inputs[slot]:
            yield f"input {slot} changed ({_maker(refs[slot], find)})"


def _maker(ref: InputRef, find: Find) -> str:
    """The stage that made an input; its name and version when it is gone."""
    try:
        artifact = find(ref.key)
    except StoreError:
        artifact = None
    return artifact.manifest.stage if artifact else ref.ref


def _changed_files(old: Sequence[ExternalFile], new: Sequence[ExternalFile]) -> Iterator[str]:
    if [file.sha256 for file in old] == [file.sha256 for file in new]:
        return  # moved files are the same files
    before = {file.path: file.sha256 for file in old}
    after = {file.path: file.sha256 for file in new}
    changes = [
        *(
            f"file {path} changed"
            for path in before
            if after.get(path, before[path]) != before[path]
        ),
        *(f"file {path} added" for path in after if _is_new(path, after, before)),
        *(f"file {path} removed" for path in before if _is_new(path, before, after)),
    ]
    yield from sorted(changes) or ["the order of the files changed"]


def _is_new(path: str, here: Mapping[str, str], there: Mapping[str, str]) -> bool:
    """Whether neither the path nor, under another path, the content is there."""
    return path not in there and here[path] not in there.values()
