"""Trials as tasks of a real Ray cluster on this machine, one of whose nodes dies."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import call
from luthier.store import Store
from luthier.sweeping.on_ray import import_ray
from luthier.sweeping.state import read_state
from project import start
from sweep_cases import read, rewrite, study_of, write_sweep

NODES = 3


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three nodes, each with a CPU and so with room for one trial."""
    import_ray()
    from ray.cluster_utils import Cluster

    # Workers of the nodes take these from them.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    for _ in range(NODES - 1):
        nodes.add_node(num_cpus=1)
    yield nodes
    nodes.shutdown()


def write(folder: Path, base: Path, address: str) -> Path:
    path = write_sweep(
        folder,
        base,
        executor="ray",
        ray={"address": address, "gpus_per_trial": 0, "cpus_per_trial": 1},
        sampler="random",
    )
    config = read(path)
    config["sft"] |= {"epochs": 24}
    rewrite(path, config)
    return path


def busy_node(cluster: Any, folder: Path) -> Any:
    """A node that trains, and whose training has a checkpoint; not the head."""
    import psutil

    for owner in folder.glob("artifacts/sft/*.owner"):
        if not any(owner.with_suffix(".partial").glob("_scratch/checkpoints/sealed-*")):
            continue
        try:
            worker = psutil.Process(json.loads(owner.read_text())["pid"])
            parents = [parent.pid for parent in worker.parents()]
        except (OSError, ValueError, psutil.Error):  # it has just begun, or just ended
            continue
        for node in cluster.worker_nodes:
            if node.all_processes["raylet"][0].process.pid in parents:
                return node
    return None


@pytest.mark.slow
def test_a_node_dies_and_every_trial_ends_once(
    cluster: Any, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, tiny_base, cluster.address)
    process = start(tmp_path, "sweep", path.name)
    deadline = time.monotonic() + 300
    node = None
    while node is None:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        node = busy_node(cluster, tmp_path)
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, output + errors

    monkeypatch.chdir(tmp_path)
    state = read_state(study_of(path))
    assert [trial.state for trial in state.trials] == ["done"] * 4
    assert state.tested is not None
    adapters = [one for one in Store(Path("artifacts")).artifacts() if one.kind == "adapter"]
    assert len(adapters) == len({one.key for one in adapters}) == 4
    assert not list(Path("artifacts").glob("*/*.partial"))
    # The dead node's trial went on from its checkpoint.
    assert any(one.manifest.facts["training"]["resumed_at"] > 0 for one in adapters)
    [journal] = Path("artifacts").glob(".sweeps/*/*/journal.log")
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    assert set(Counter(one["trial_id"] for one in lines if one["op_code"] == 6).values()) == {1}


def test_no_cluster_is_said(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, tiny_base, "127.0.0.1:1")
    assert call(["sweep", str(path)]) == 2
    said = capsys.readouterr().err
    assert "sweep.ray.address: 127.0.0.1:1: no Ray cluster answers there" in said
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
