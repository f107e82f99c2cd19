"""Sealed checkpoints: damage is passed over with a message, a kill loses nothing that was sealed.

As a script (`python test_training_checkpoints.py FOLDER`) this file seals checkpoints in forked
children. The n-th child kills itself before its n-th call that changes the disk.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.errors import StoreError
from luthier.training.checkpoints import (
    SEAL_NAME,
    checkpoint_damage,
    checkpoint_digest,
    checkpoint_step,
    newest_intact,
    seal_checkpoint,
    sealed_steps,
    seed_checkpoint,
)
from test_store_kill import killed_before

FILES = ("adapter_model.safetensors", "optimizer.pt", "rng/state_0.pth", "trainer_state.json")


def unsealed(root: Path, text: str) -> Path:
    """What a trainer leaves, with transformers' pickled arguments."""
    folder = root / "unsealed"
    for name in (*FILES, "training_args.bin"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} of {text}")
    return folder


def seal(root: Path, step: int, keep: int = 2, best: int | None = None, text: str = "") -> Path:
    folder = unsealed(root, text or f"step {step}")
    return seal_checkpoint(folder, root, step, keep, best)


def test_a_sealed_checkpoint_has_all_files_but_the_pickled_arguments(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    assert newest_intact(root, pytest.fail) is None
    assert sealed_steps(root) == []
    folder = seal(root, 120)
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {*FILES, SEAL_NAME}
    assert newest_intact(root, pytest.fail) == folder
    assert checkpoint_step(folder) == 120


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", [*FILES, SEAL_NAME])
def test_damage_of_any_file_is_named_and_the_one_before_is_taken(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    older, newest = seal(tmp_path, 100), seal(tmp_path, 120)
    damage(newest / name)
    said: list[str] = []
    assert newest_intact(tmp_path, said.append) == older
    assert len(said) == 1
    assert name in said[0]
    assert "step 120 is damaged" in said[0]
    assert "step 100 is taken instead" in said[0]


def test_every_flipped_byte_of_a_seal_is_found(tmp_path: Path) -> None:
    folder = seal(tmp_path, 1)
    path = folder / SEAL_NAME
    whole = path.read_bytes()
    for position in range(len(whole)):
        content = bytearray(whole)
        content[position] ^= 1 << (position % 8)
        path.write_bytes(content)
        assert checkpoint_damage(folder) is not None, position


def test_a_file_replaced_by_a_link_to_its_copy_is_damage(tmp_path: Path) -> None:
    path = seal(tmp_path, 3) / FILES[0]
    path.rename(tmp_path / "copy")
    path.symlink_to(tmp_path / "copy")
    assert checkpoint_damage(path.parent) == f"{FILES[0]}: is not a regular file"


def test_an_extra_file_is_damage(tmp_path: Path) -> None:
    (seal(tmp_path, 3) / "optimizer.bin").write_text("x")
    said: list[str] = []
    assert newest_intact(tmp_path, said.append) is None
    assert "optimizer.bin: is extra" in said[0]
    assert "training begins anew" in said[0]


def test_two_damaged_ones_are_both_named(tmp_path: Path) -> None:
    folders = [seal(tmp_path, step, keep=3) for step in (1, 2, 3)]
    for folder in folders[1:]:
        flip(folder / FILES[0])
    said: list[str] = []
    assert newest_intact(tmp_path, said.append) == folders[0]
    assert [("step 3 is", "step 2 is")[i] in line for i, line in enumerate(said)] == [True, True]
    assert all("step 1 is taken" in line for line in said)


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    kept = []
    for step, best in ((5, None), (10, 10), (15, 10), (20, 10), (25, 25), (30, 25)):
        seal(tmp_path, step, keep=2, best=best)
        kept.append(sealed_steps(tmp_path))
    assert kept == [[5], [10, 5], [15, 10], [20, 15, 10], [25, 20], [30, 25]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sealed-00000025", "sealed-00000030"]


def test_damaged_later_ones_do_not_push_out_the_good_ones(tmp_path: Path) -> None:
    """Training went back to step 1 for the damage of 2 and 3, and now has come to 2 again."""
    for step in (1, 2, 3):
        seal(tmp_path, step, keep=3)
    flip(tmp_path / "sealed-00000002" / FILES[0])
    flip(tmp_path / "sealed-00000003" / FILES[0])
    taken = seal(tmp_path, 2, keep=1)
    assert newest_intact(tmp_path, pytest.fail) == taken
    assert sealed_steps(tmp_path) == [2]


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    digests = [
        checkpoint_digest(seal(tmp_path / name, 7, text=text))
        for name, text in (("a", "x"), ("b", "x"), ("c", "y"))
    ]
    assert digests[0] == digests[1] != digests[2]
    truncate(tmp_path / "a" / "sealed-00000007" / SEAL_NAME)
    with pytest.raises(StoreError, match=r"seal\.json"):
        checkpoint_digest(tmp_path / "a" / "sealed-00000007")


def test_a_copied_checkpoint_is_whole_or_not_there(tmp_path: Path) -> None:
    original = seal(tmp_path / "parent", 40)
    (tmp_path / "child").mkdir()
    (tmp_path / "child" / ".copying-sealed-00000040").mkdir()  # a killed copy
    copy = seed_checkpoint(original, tmp_path / "child")
    assert newest_intact(tmp_path / "child", pytest.fail) == copy
    assert checkpoint_digest(copy) == checkpoint_digest(original)
    assert [path.name for path in (tmp_path / "child").iterdir()] == ["sealed-00000040"]
    flip(original / FILES[1])
    with pytest.raises(StoreError, match=r"optimizer\.pt: its content changed"):
        seed_checkpoint(original, tmp_path / "other")
    assert sealed_steps(tmp_path / "other") == []
    shutil.rmtree(original)
    with pytest.raises(StoreError, match="no longer there"):
        seed_checkpoint(original, tmp_path / "other")


def _kill_everywhere(folder: Path, step: int) -> int:
    """Kill the sealing of `step`, at each instant in turn, beside those of 1 (best), 2 and 3."""
    before = folder / "before"
    for earlier in (1, 2, 3):
        seal(before, earlier, keep=2, best=1)
    unsealed(before, "the new one")
    for count in range(1, 1000):
        root = folder / str(count)
        shutil.copytree(before, root)
        left = root / "unsealed"
        killed = killed_before(count, lambda left=left, root=root: seal_new(left, root, step))
        said: list[str] = []
        taken = newest_intact(root, said.append)
        assert said == [], (count, said)
        assert taken is not None
        assert checkpoint_step(taken) >= 3, (count, taken)
        assert 1 in sealed_steps(root)
        assert not [path for path in root.glob("sealed-*") if checkpoint_damage(path)], count
        shutil.rmtree(left, ignore_errors=True)  # as a trainer that begins does
        newest = seal(root, 5, keep=2, best=1)
        assert newest_intact(root, said.append) == newest
        names = [path.name for path in root.iterdir()]
        assert len(sealed_steps(root)) == len(names) == 3, (count, names)
        if not killed:
            return count
    raise AssertionError("never lived to the end")


def seal_new(left: Path, root: Path, step: int) -> None:
    seal_checkpoint(left, root, step, 2, 1)


def test_kill_at_every_instant_leaves_the_newest_of_before_or_the_new_one(tmp_path: Path) -> None:
    """Of a new step, and of a step that is sealed already."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    instants = [int(word) for word in done.stdout.split()]
    assert len(instants) == 2
    assert min(instants) > 20


if __name__ == "__main__":
    for new_step in (4, 3):
        print(_kill_everywhere(Path(sys.argv[1]) / str(new_step), new_step))  # noqa: T201
