"""The artifact store: the only writer of results and manifests."""

from luthier.store.artifact import Artifact, Workspace
from luthier.store.environment import package_versions
from luthier.store.history import Lineage
from luthier.store.keys import Identity, compute_key, hash_files
from luthier.store.manifest import ExternalFile, InputRef, Manifest, ManifestDraft, Recipe
from luthier.store.refs import Version
from luthier.store.resolving import Contents
from luthier.store.store import Store
from luthier.store.tags import Tagged
from luthier.store.unfinished import Unfinished, note_recipe

__all__ = [
    "Artifact",
    "Contents",
    "ExternalFile",
    "Identity",
    "InputRef",
    "Lineage",
    "Manifest",
    "ManifestDraft",
    "Recipe",
    "Store",
    "Tagged",
    "Unfinished",
    "Version",
    "Workspace",
    "compute_key",
    "hash_files",
    "note_recipe",
    "package_versions",
]
