"""Making an artifact, and the helpers that the other store tests share."""

import json
import math
import os
import stat
from pathlib import Path

import pytest

from luthier.errors import InterruptedRunError, StoreError
from luthier.gates import Gate, check
from luthier.interrupts import StopFlag
from luthier.progress import Reporter
from luthier.store import Artifact, Identity, InputRef, ManifestDraft, Store, compute_key
from luthier.store.files import sha256_file, write_atomically
from luthier.store.manifest import ArtifactKind

FILES = {"train.parquet": b"rows" * 50, "vllm/model.safetensors": b"\x80\x02" + bytes(300)}


def identity(stage: str = "prepare", **changes: object) -> Identity:
    values: dict[str, object] = {
        "stage": stage,
        "stage_version": 1,
        "fields": {"learning_rate": 0.001, "lora": {"r": 16}},
        "inputs": {},
        "files": [],
        "seed": 7,
        "packages": {"trl": "1.16.0"},
    }
    return Identity(**{**values, **changes})  # type: ignore[arg-type]


def draft(
    made_from: Identity,
    name: str = "demo",
    kind: ArtifactKind = "dataset",
    inputs: tuple[tuple[str, Artifact], ...] = (),
    gates: tuple[Gate, ...] = (),
    **changes: object,
) -> ManifestDraft:
    values: dict[str, object] = {
        "stage": made_from.stage,
        "stage_version": made_from.stage_version,
        "kind": kind,
        "key": compute_key(made_from),
        "name": name,
        "inputs": [
            InputRef(slot=slot, kind=a.kind, key=a.key, digest=a.digest, ref=a.ref)
            for slot, a in inputs
        ],
        "external_files": list(made_from.files),
        "config": dict(made_from.fields),
        "key_fields": dict(made_from.fields),
        "seed": made_from.seed,
        "key_packages": dict(made_from.packages),
        "metrics": {"rows": 3, "share": 0.25},
        "facts": {"counts": {"read": 3}, "note": "häß"},
        "timings_seconds": {"read": 1},
        "gates": list(gates),
    }
    return ManifestDraft.model_validate({**values, **changes})


def write_outputs(folder: Path, files: dict[str, bytes] | None = None) -> None:
    for name, content in (FILES if files is None else files).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


def make(
    store: Store,
    made_from: Identity | None = None,
    files: dict[str, bytes] | None = None,
    **changes: object,
) -> Artifact:
    """Make and seal an artifact as the pipeline does."""
    made_from = made_from or identity()
    key = compute_key(made_from)
    with store.workspace(made_from.stage, key, Reporter(), StopFlag()) as workspace:
        found = store.find(key)
        if found is not None:
            return found
        write_outputs(workspace.path, files)
        (workspace.scratch / "checkpoint").write_text("half")
        return store.seal(workspace, draft(made_from, **changes))  # type: ignore[arg-type]


def test_sealed_artifact_is_found_and_verifies(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    artifact = make(store)
    assert artifact.path == store.root / "prepare" / artifact.key[:16]
    assert artifact.ref == "demo/dataset@v1"
    assert artifact.manifest.status == "complete"
    assert [file.path for file in artifact.manifest.outputs] == sorted(FILES)
    for file in artifact.manifest.outputs:
        assert file.sha256 == sha256_file(artifact.path / file.path)
    assert store.find(artifact.key) == artifact
    store.verify(artifact)
    assert not list(store.root.rglob("*.partial"))
    assert not list(store.root.rglob("*.owner"))
    assert not (artifact.path / "_scratch").exists()


def test_sealed_files_are_read_only(tmp_path: Path) -> None:
    artifact = make(Store(tmp_path))
    modes = [stat.S_IMODE(p.stat().st_mode) for p in artifact.path.rglob("*") if p.is_file()]
    assert len(modes) == 3
    assert not any(mode & 0o222 for mode in modes)
    assert os.access(artifact.path, os.W_OK)


def test_digest_depends_on_outputs_alone(tmp_path: Path) -> None:
    one = make(Store(tmp_path / "a"), name="one")
    two = make(Store(tmp_path / "b"), identity(seed=8), name="two", metrics={"rows": 9})
    other = make(Store(tmp_path / "c"), files={"train.parquet": b"other"})
    assert one.digest == two.digest != other.digest
    assert one.key != two.key


def test_measurements_are_sealed_and_not_in_the_digest(tmp_path: Path) -> None:
    """Rates and memory differ between runs that make the same."""
    stores = [Store(tmp_path / name) for name in "abcd"]
    plain, *others = (
        make(store, files=FILES | files)
        for store, files in zip(
            stores,
            (
                {},
                {"measured/rates.json": b"1"},
                {"measured/rates.json": b"22", "measured/gpu/memory.json": b"3"},
                {"unmeasured/measured/x": b"1"},
            ),
            strict=True,
        )
    )
    assert plain.digest == others[0].digest == others[1].digest != others[2].digest
    stores[1].verify(others[0])
    listed = [file.path for file in others[1].manifest.outputs]
    assert "measured/gpu/memory.json" in listed
    path = others[1].path / "measured" / "rates.json"
    assert not path.stat().st_mode & 0o222
    path.chmod(0o644)
    path.write_bytes(b"23")
    with pytest.raises(StoreError, match=r"measured/rates\.json: its content changed"):
        stores[2].verify(others[1])


def test_failed_gate_makes_a_failed_artifact_that_keeps_nan(tmp_path: Path) -> None:
    gate = check("adapter-moved", math.nan, ">", 0.0)
    artifact = make(Store(tmp_path), gates=(gate,), metrics={"loss": [math.inf, {"x": math.nan}]})
    assert artifact.manifest.status == "failed"
    assert artifact.manifest.failed_gates[0].measured == "nan"
    assert artifact.manifest.metrics == {"loss": ["inf", {"x": "nan"}]}
    Store(tmp_path).verify(artifact)


def test_interrupted_run_goes_on_in_the_same_folder_and_is_counted(tmp_path: Path) -> None:
    store, key = Store(tmp_path), compute_key(identity())
    stop = StopFlag()

    def run(attempt: int) -> None:
        with store.workspace("prepare", key, Reporter(), stop) as workspace:
            assert (workspace.scratch / "step").exists() == (attempt > 0)
            (workspace.scratch / "step").write_text("1")
            (workspace.path / ".rows.jsonl.17.luthier-tmp").write_text("half")
            stop.requested = True
            workspace.raise_if_stopped()

    for attempt in range(2):
        assert store.has_workspace("prepare", key) == (attempt > 0)
        with pytest.raises(InterruptedRunError):
            run(attempt)
    assert make(store).manifest.resumed == 2
    assert not store.has_workspace("prepare", key)
    assert not list(store.root.rglob("*.luthier-tmp"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("optimizer.pt", b"x"),
        ("state.pkl", b"x"),
        ("training_args.bin", b"x"),
        ("pytorch_model.bin", b"PK\x03\x04rest"),
        ("scheduler.bin", b"\x80\x04\x95"),
        ("manifest.json", b"{}"),
    ],
)
def test_seal_refuses_pickles_and_a_foreign_manifest(
    tmp_path: Path, name: str, content: bytes
) -> None:
    with pytest.raises(AssertionError, match=name):
        make(Store(tmp_path), files={"sub/fine.bin": b"weights", name: content})


def test_seal_refuses_links_nothing_and_a_wrong_key(tmp_path: Path) -> None:
    store, made_from = Store(tmp_path), identity()
    key = compute_key(made_from)
    with store.workspace("prepare", key, Reporter(), StopFlag()) as workspace:
        with pytest.raises(AssertionError, match="no outputs"):
            store.seal(workspace, draft(made_from))
        write_outputs(workspace.path)
        with pytest.raises(AssertionError, match="key"):
            store.seal(workspace, draft(made_from, seed=8))
        (workspace.path / "link").symlink_to(workspace.path / "train.parquet")
        with pytest.raises(AssertionError, match="link is not a regular file"):
            store.seal(workspace, draft(made_from))
        (workspace.path / "link").unlink()
        with pytest.raises(ValueError, match="object"):
            store.seal(workspace, draft(made_from, facts={"x": object()}))
        artifact = store.seal(workspace, draft(made_from))
    store.verify(artifact)


def test_manifest_is_readable_json_with_the_environment(tmp_path: Path) -> None:
    artifact = make(Store(tmp_path))
    values = json.loads((artifact.path / "manifest.json").read_text())
    assert values["facts"]["note"] == "häß"
    assert values["environment"]["packages"]["transformers"]
    assert values["schema_version"] == 1


def test_write_atomically_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, "old")
    write_atomically(path, "nöw")
    assert path.read_text() == "nöw"
    assert list(tmp_path.iterdir()) == [path]
