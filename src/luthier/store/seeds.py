"""Artifacts that differ in their random seeds alone, and what tells others apart."""

from collections.abc import Iterator

from luthier.errors import StoreError
from luthier.store.artifact import Artifact
from luthier.store.canonical import sha256_json
from luthier.store.history import Find, own_differences
from luthier.store.keys import identity_of
from luthier.store.manifest import InputRef, Manifest


def seedless_digest(manifest: Manifest, find: Find) -> str:
    """SHA-256 over all that made an artifact but the seeds, its own and those of its inputs.

    Inputs count by what they were made from, not by their bytes, which depend on the seed. One
    that is no longer in the store counts by its bytes.
    """
    identity = identity_of(manifest)
    inputs: dict[str, str] = {}
    for ref in manifest.inputs:
        made = _made(ref, find)
        inputs[ref.slot] = seedless_digest(made.manifest, find) if made else ref.digest
    return sha256_json(
        {
            "stage": identity.stage,
            "stage_version": identity.stage_version,
            "fields": dict(identity.fields),
            "inputs": inputs,
            "files": [file.sha256 for file in identity.files],
            "packages": dict(identity.packages),
        }
    )


def seeds_of(manifest: Manifest, find: Find) -> list[int]:
    """The seeds by which the adapters that an artifact comes of were trained, sorted; where none
    was, those of all that it comes of. One where they agree."""
    made = list(_ancestry(manifest, find).values())
    adapters = [one for one in made if one.kind == "adapter"]
    return sorted({one.seed for one in adapters or made if one.seed is not None})


def ancestral_differences(old: Manifest, new: Manifest, find: Find) -> list[str]:
    """What differs in the ingredients of two artifacts and of all that they were made from."""
    before, after = _ancestry(old, find), _ancestry(new, find)
    found = [
        line
        for stage in before
        if stage in after
        for line in own_differences(before[stage], identity_of(after[stage]))
    ]
    found += [f"stage {stage} added" for stage in after if stage not in before]
    found += [f"stage {stage} left out" for stage in before if stage not in after]
    return list(dict.fromkeys(found))


def _ancestry(manifest: Manifest, find: Find) -> dict[str, Manifest]:
    """An artifact and what it was made from, by stage; those that are in the store."""
    found = {manifest.stage: manifest}
    for one in _inputs(manifest, find):
        found = _ancestry(one.manifest, find) | found
    return found


def _inputs(manifest: Manifest, find: Find) -> Iterator[Artifact]:
    for ref in manifest.inputs:
        if made := _made(ref, find):
            yield made


def _made(ref: InputRef, find: Find) -> Artifact | None:
    try:
        return find(ref.key)
    except StoreError:  # damaged: as good as gone
        return None
