"""The key: every ingredient changes it, nothing else does. Hashing of outside files."""

import math
import re
from pathlib import Path

import pytest

from luthier.errors import DataError
from luthier.store import ExternalFile, compute_key, hash_files
from test_store_making import identity


def _file(path: str, content: str) -> ExternalFile:
    return ExternalFile(path=path, size_bytes=1, sha256=content * 64)


BASE = identity(files=[_file("a", "1"), _file("b", "2")], inputs={"base": "d1", "dataset": "d2"})


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "sft"},
        {"stage_version": 2},
        {"fields": {"learning_rate": 0.002, "lora": {"r": 16}}},
        {"fields": {"learning_rate": 0.001, "lora": {"r": 8}}},
        {"fields": {"learning_rate": 0.001, "lora": {"r": 16}, "epochs": 1}},
        {"inputs": {"base": "d1", "dataset": "d3"}},
        {"inputs": {"base": "d2", "dataset": "d1"}},
        {"inputs": {"base": "d1"}},
        {"files": [_file("a", "1"), _file("b", "3")]},
        {"files": [_file("a", "2"), _file("b", "1")]},
        {"files": [_file("a", "1")]},
        {"seed": 8},
        {"seed": None},
        {"packages": {"trl": "1.16.1"}},
        {"packages": {}},
    ],
)
def test_every_ingredient_changes_the_key(change: dict[str, object]) -> None:
    values = {**BASE.__dict__, **change}
    assert compute_key(identity(**values)) != compute_key(BASE)


def test_order_of_names_and_place_of_files_do_not_change_the_key() -> None:
    same = identity(
        fields={"lora": {"r": 16}, "learning_rate": 0.001},
        inputs={"dataset": "d2", "base": "d1"},
        files=[_file("/elsewhere/a", "1"), _file("c", "2")],
    )
    assert compute_key(same) == compute_key(BASE)
    assert re.fullmatch(r"[0-9a-f]{64}", compute_key(BASE))


def test_the_key_of_an_identity_stays_what_it_was() -> None:
    assert compute_key(BASE).startswith("acc34f25fe4e7391")


def test_nan_has_no_key() -> None:
    with pytest.raises(ValueError, match="JSON"):
        compute_key(identity(fields={"x": math.nan}))


def test_hash_files_keeps_order_and_relative_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("base")
    (folder / "sub").mkdir(parents=True)
    (folder / ".cache").mkdir()
    for name in ("b.txt", "sub/a.txt", "a.txt", ".cache/x", ".hidden"):
        (folder / name).write_text(name)
    Path("z.jsonl").write_text("{}\n")
    hashed = hash_files([Path("z.jsonl"), folder])
    assert [f.path for f in hashed] == ["z.jsonl", "base/a.txt", "base/b.txt", "base/sub/a.txt"]
    assert hashed[0].size_bytes == 3
    moved = hash_files([tmp_path / "z.jsonl", tmp_path / "base"])
    assert [f.sha256 for f in moved] == [f.sha256 for f in hashed]


def test_hash_files_explains_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"train\.json does not exist.*Did you mean .*train.jsonl"):
        hash_files([tmp_path / "train.json"])
    with pytest.raises(DataError, match=r"Its folder .*nowhere does not exist"):
        hash_files([tmp_path / "nowhere" / "x"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="folder without files"):
        hash_files([tmp_path / "empty"])
