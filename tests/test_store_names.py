"""Versions, resolving, lineage, and why nothing could be reused."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from luthier.errors import StoreError
from luthier.store import Artifact, ExternalFile, Store
from luthier.store.refs import assign_version
from test_store_making import identity, make


def _chain(store: Store, learning_rate: float = 0.001) -> tuple[Artifact, Artifact, Artifact]:
    base = make(store, identity("base", fields={}), kind="base", name="shared")
    dataset = make(store, identity(fields={"rows": 1}))
    adapter_identity = identity(
        "sft",
        fields={"learning_rate": learning_rate, "lora": {"r": 16}},
        inputs={"base": base.digest, "dataset": dataset.digest},
    )
    inputs = (("base", base), ("dataset", dataset))
    return base, dataset, make(store, adapter_identity, kind="adapter", inputs=inputs)


def test_versions_count_distinct_keys_of_a_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = [make(store, identity(seed=seed)) for seed in (1, 2, 1, 3)]
    assert [a.manifest.version for a in made] == [1, 2, 1, 3]
    assert store.name(made[1], "demo") == "demo/dataset@v2"
    assert store.name(made[1], "other") == "other/dataset@v1"
    assert store.resolve("other/dataset").key == made[1].key
    assert [v.ref for v in store.versions()] == [
        "demo/dataset@v1",
        "demo/dataset@v2",
        "demo/dataset@v3",
        "other/dataset@v1",
    ]
    with pytest.raises(StoreError, match="cannot name a run"):
        store.name(made[0], "../up")


def test_version_numbers_are_given_once_under_contention(tmp_path: Path) -> None:
    keys = [f"{index:064x}" for index in range(6)] * 2
    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(lambda key: assign_version(tmp_path, "n", "base", key), keys))
    assert sorted(numbers) == sorted([*range(1, 7), *range(1, 7)])
    assert numbers[:6] == numbers[6:]


def test_a_sealed_folder_without_its_version_gets_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = make(store)
    shutil.rmtree(tmp_path / "refs")
    assert store.name(artifact, "demo") == "demo/dataset@v1"
    assert store.resolve("demo/dataset@v1") == artifact


def test_resolve_finds_by_every_spelling(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, two = (make(store, identity(seed=seed)) for seed in (1, 2))
    for text in ("demo/dataset@v1", one.key[:6], one.key, one.key[:20], str(one.path)):
        assert store.resolve(text) == one
    for text in ("demo/dataset", "demo/dataset@latest", "demo/dataset@v2"):
        assert store.resolve(text) == two
    shutil.rmtree(two.path)
    assert store.resolve("demo/dataset") == one
    with pytest.raises(StoreError, match=r"demo/dataset@v2 is no longer in the store"):
        store.resolve("demo/dataset@v2")


@pytest.mark.parametrize(
    "text", ["demo/datase", "dmo/dataset", "demo/dataset@v7", "other/model", "abcdef", "what", "/"]
)
def test_resolve_lists_what_there_is(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    make(store)
    with pytest.raises(StoreError, match=r"(?s)There are:.*demo/dataset@v1") as raised:
        store.resolve(text)
    assert ("Did you mean demo/dataset" in str(raised.value)) == ("/dat" in text)


def test_resolve_in_an_empty_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="The store is empty"):
        Store(tmp_path / "none").resolve("a/base")


def test_ambiguous_key_prefix_lists_candidates(tmp_path: Path) -> None:
    from luthier.store import resolving
    from luthier.store.resolving import Contents

    store = Store(tmp_path)
    artifact = make(store)
    twin_manifest = artifact.manifest.model_copy(update={"key": artifact.key[:8] + "0" * 56})
    twin = Artifact(artifact.path, twin_manifest)
    contents = Contents([artifact, twin], store.versions(), [])
    with pytest.raises(StoreError, match="begins several keys") as raised:
        resolving.resolve_text(artifact.key[:8], store.find, lambda: contents)
    assert artifact.key[:16] in str(raised.value)
    assert twin.key[:16] in str(raised.value)


def test_artifacts_are_newest_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = [make(store, identity(seed=seed)).key for seed in range(4)]
    assert [artifact.key for artifact in store.artifacts()] == made[::-1]


def test_lineage_marks_what_is_missing_damaged_or_remade(tmp_path: Path) -> None:
    store = Store(tmp_path)
    base, dataset, adapter = _chain(store)
    tree = store.lineage(adapter)
    assert [(node.slot, node.state) for node in tree.inputs] == [
        ("base", "present"),
        ("dataset", "present"),
    ]
    assert tree.inputs[0].artifact == base
    shutil.rmtree(base.path)
    (dataset.path / "train.parquet").unlink()
    assert [node.state for node in store.lineage(adapter).inputs] == ["missing", "damaged"]
    shutil.rmtree(dataset.path)
    make(store, identity(fields={"rows": 1}), files={"train.parquet": b"not the same"})
    assert [node.state for node in store.lineage(adapter).inputs] == ["missing", "remade"]


def test_nearest_names_the_differences(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.nearest(identity("sft")) is None
    base, _, far = _chain(store, learning_rate=0.1)
    _, _, near = _chain(store, learning_rate=0.001)
    wanted = identity(
        "sft",
        fields={"learning_rate": 0.0005, "lora": {"r": 16}, "method": "lora"},
        inputs={"base": base.digest, "dataset": "changed"},
        files=[ExternalFile(path="data/x.jsonl", size_bytes=1, sha256="1")],
        packages={"trl": "1.17.0"},
    )
    found = store.nearest(wanted)
    assert found is not None
    artifact, changes = found
    assert artifact.key in (near.key, far.key)
    assert changes == [
        "sft.learning_rate: 0.001 -> 0.0005",
        "sft.method: absent -> lora",
        "input dataset changed (prepare)",
        "file data/x.jsonl added",
        "package.trl: 1.16.0 -> 1.17.0",
    ]


def test_nearest_takes_the_one_with_fewest_differences(tmp_path: Path) -> None:
    store = Store(tmp_path)
    near = make(store, identity(seed=1))
    make(store, identity(seed=2, stage_version=2, fields={"sources": [{"path": "b"}]}))
    found = store.nearest(identity(seed=3))
    assert found == (near, ["seed: 1 -> 3"])
    sources = identity(seed=2, stage_version=3, fields={"sources": [{"path": "c"}]})
    found = store.nearest(sources)
    assert found is not None
    assert found[1] == ["stage prepare: version 2 -> 3", "prepare.sources[0].path: b -> c"]


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({"a": "1"}, {"a": "2"}, ["file a changed"]),
        ({"a": "1", "b": "2"}, {"a": "1"}, ["file b removed"]),
        ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}, ["the order of the files changed"]),
        ({"a": "1", "b": "2"}, {"c": "1", "b": "3"}, ["file b changed"]),
        ({"a": "1"}, {"c": "1"}, []),
    ],
)
def test_differences_of_files(
    tmp_path: Path, old: dict[str, str], new: dict[str, str], lines: list[str]
) -> None:
    def files(of: dict[str, str]) -> list[ExternalFile]:
        return [ExternalFile(path=p, size_bytes=1, sha256=content) for p, content in of.items()]

    store = Store(tmp_path)
    make(store, identity(files=files(old)))
    found = store.nearest(identity(files=files(new)))
    assert found is not None
    assert found[1] == lines
