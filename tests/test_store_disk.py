"""What the disk refuses becomes one message, and the workspace stays."""

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.errors import StoreError
from luthier.interrupts import StopFlag
from luthier.progress import Reporter
from luthier.store import Store, compute_key
from test_store_making import identity, make, write_outputs

KEY = compute_key(identity())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 256 KiB; needs the right to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this account cannot mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_explained_and_the_run_goes_on_later(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    with pytest.raises(StoreError, match=r"no space left on the disk .*LUTHIER_STORE") as raised:
        make(store, files={"a.txt": b"done", "b.txt": bytes(1 << 20)})
    assert str(store.root) in str(raised.value)
    assert (store.root / "prepare" / f"{KEY[:16]}.partial" / "a.txt").read_bytes() == b"done"
    artifact = make(store, files={"b.txt": b"small"})
    assert artifact.manifest.resumed == 1
    assert {file.path for file in artifact.manifest.outputs} == {"a.txt", "b.txt"}


def test_a_disk_that_is_full_at_any_size_leaves_nothing_half_sealed(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    filler = small_disk / "filler"
    refused = 0
    for free_pages in range(24):
        filler.write_bytes(b"")
        try:
            with filler.open("wb", buffering=0) as stream:
                while stream.write(bytes(4096)):
                    pass
        except OSError:
            os.truncate(filler, max(0, filler.stat().st_size - 4096 * free_pages))
        try:
            make(store)
            break
        except StoreError as error:
            assert "no space left" in str(error)  # noqa: PT017
            assert store.find(KEY) is None
            refused += 1
    assert refused > 3
    store.verify(make(store))


def test_a_file_size_limit_is_explained(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(StoreError, match="larger than allowed"):
            make(Store(tmp_path), files={"a": b"done", "b": bytes(1 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert make(Store(tmp_path)).manifest.resumed == 1


@pytest.mark.parametrize("below", ["", "deeper", "deeper/still"])
def test_a_store_path_that_is_a_file_is_named(tmp_path: Path, below: str) -> None:
    blocker = tmp_path / "artifacts"
    blocker.write_text("x")
    with pytest.raises(StoreError, match=f"{blocker} is a file where the store needs a folder"):
        make(Store(blocker / below))


def test_a_stage_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "prepare").write_text("x")
    with pytest.raises(StoreError, match=f"{tmp_path}/prepare is a file where"):
        make(Store(tmp_path))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EACCES, "no permission"),
        (errno.EPERM, "no permission"),
        (errno.EROFS, "read-only"),
        (errno.EDQUOT, "no space left"),
        (errno.EIO, "reports an error"),
    ],
)
@pytest.mark.parametrize("call", ["mkdir", "rename", "chmod"])
def test_a_refusal_names_the_place_and_the_work_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str, call: str
) -> None:
    store = Store(tmp_path / "store")

    def refuse(path: Path, *_args: object, **_kwargs: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(StoreError, match=message) as raised:
            make(store)
    assert str(store.root) in str(raised.value)
    assert store.find(KEY) is None
    store.verify(make(store))


def test_errors_that_are_not_of_the_disk_pass_unchanged(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def run(error: Exception) -> None:
        with store.workspace("prepare", KEY, Reporter(), StopFlag()) as workspace:
            write_outputs(workspace.path)
            raise error

    elsewhere = PermissionError(errno.EACCES, "Permission denied", "/data/train.jsonl")
    for error in (elsewhere, FileNotFoundError(errno.ENOENT, "x", str(tmp_path)), KeyError("x")):
        with pytest.raises(type(error)) as raised:
            run(error)
        assert raised.value is error
    with pytest.raises(StoreError, match="no space left"):
        run(RuntimeError("I/O error: No space left on device (os error 28)"))


def test_a_read_only_store_is_read_and_not_written(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    artifact = make(store)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store.verify(artifact)
    assert store.name(artifact, "demo") == "demo/dataset@v1"
    assert store.resolve("demo/dataset") == artifact
    with pytest.raises(StoreError, match="the file system is read-only"):
        make(store, identity(seed=8))
    with pytest.raises(StoreError, match="the file system is read-only"):
        store.name(artifact, "other")
