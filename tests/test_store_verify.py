"""Damage: every flipped byte is found and its file named."""

import json
import shutil
from pathlib import Path

import pytest

from luthier.errors import StoreError
from luthier.store import Artifact, Store, compute_key
from luthier.store.checking import damages
from test_store_making import FILES, identity, make


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make(Store(tmp_path / "store"))


@pytest.fixture
def store(artifact: Artifact) -> Store:
    return Store(artifact.path.parent.parent)


def _overwrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_each_flipped_byte_is_found(artifact: Artifact, store: Store, name: str) -> None:
    path = artifact.path / name
    whole = path.read_bytes()
    step = 1 if name == "manifest.json" else 37
    for position in range(0, len(whole), step):
        damaged = bytearray(whole)
        damaged[position] ^= 0x80 if position % 5 == 0 else 0x01
        _overwrite(path, bytes(damaged))
        found = damages(artifact.path)
        assert any(name in line for line in found), (position, damaged[position - 9 :][:20])
    with pytest.raises(StoreError, match=name.replace(".", r"\.")):
        store.verify(artifact)
    _overwrite(path, whole)
    store.verify(artifact)


def test_all_that_is_wrong_is_named_at_once(artifact: Artifact, store: Store) -> None:
    (artifact.path / "train.parquet").unlink()
    _overwrite(artifact.path / "vllm/model.safetensors", b"short")
    (artifact.path / "vllm/notes.txt").write_text("extra")
    (artifact.path / "link").symlink_to("/etc")
    with pytest.raises(StoreError) as raised:
        store.verify(artifact)
    message = str(raised.value)
    assert "train.parquet: is missing" in message
    assert "vllm/model.safetensors: has 5 bytes instead of 302" in message
    assert "vllm/notes.txt: is extra" in message
    assert "link: is extra" in message
    with pytest.raises(StoreError, match=r"train\.parquet: is missing"):
        store.find(artifact.key)


def test_a_file_replaced_by_a_link_to_its_copy_is_damage(
    artifact: Artifact, tmp_path: Path
) -> None:
    path = artifact.path / "train.parquet"
    shutil.move(path, tmp_path / "copy")
    path.symlink_to(tmp_path / "copy")
    assert damages(artifact.path) == ["train.parquet: is not a regular file"]


def test_the_digest_of_what_was_sealed_earlier_stays(artifact: Artifact) -> None:
    assert artifact.digest.startswith("4ca9517f0b1149dd")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {"rows": 4}}, "edited"),
        ({"seed": 8}, "key does not follow"),
        ({"key_fields": {}}, "key does not follow"),
        ({"outputs": []}, "digest does not follow"),
        ({"metrics": {"x": float("nan")}}, "edited"),
        ({"status": "fine"}, "damaged: status"),
        ({"surprise": 1}, "surprise"),
        ({"outputs": [{"path": "../x", "size_bytes": 1, "sha256": "0"}]}, "not a path inside"),
        ({"schema_version": 2}, "Update Luthier"),
    ],
)
def test_an_edited_manifest_is_found(
    artifact: Artifact, store: Store, change: dict[str, object], message: str
) -> None:
    path = artifact.path / "manifest.json"
    _overwrite(path, json.dumps({**json.loads(path.read_bytes()), **change}).encode())
    with pytest.raises(StoreError, match=message):
        store.verify(artifact)


def test_a_manifest_that_is_not_json_is_named(artifact: Artifact, store: Store) -> None:
    for content in (b"{", b"\xff\xfe", b"[]", b"", b'"x"'):
        _overwrite(artifact.path / "manifest.json", content)
        with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
            store.verify(artifact)
        with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
            store.find(artifact.key)


def test_contents_reports_what_is_foreign_and_goes_on(artifact: Artifact, store: Store) -> None:
    other = make(store, identity(seed=8))
    _overwrite(other.path / "manifest.json", b"{")
    (store.root / "notes" / "mine").mkdir(parents=True)
    (store.root / "readme.txt").write_text("x")
    (store.root / "refs/demo/dataset/v9").write_text("no key")
    shutil.copytree(artifact.path, store.root / "prepare" / "copy")
    contents = store.contents()
    assert [a.key for a in contents.artifacts] == [artifact.key]
    assert len(contents.problems) == 4
    report = "\n".join(contents.problems)
    for word in ("refs/demo/dataset/v9", "notes/mine", "manifest.json is damaged", "prepare/copy"):
        assert word in report


def test_a_folder_with_another_key_is_refused(artifact: Artifact, store: Store) -> None:
    key = compute_key(identity(seed=9))
    artifact.path.rename(artifact.path.with_name(key[:16]))
    with pytest.raises(StoreError, match="says that its key is"):
        store.find(key)
