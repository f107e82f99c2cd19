"""What is resumed is bitwise what was never interrupted: kills, signals, damaged checkpoints."""

import json
import random
import re
from pathlib import Path

import pytest

from kill_cases import Runs, write_inputs

KILLED = ("dropout", "qlora-nf4", "packing", "early-stopping", "adamw-8bit", "dpo")
CHECKPOINT_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "seal.json",
    "trainer_state.json",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, dataset)"""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("case", KILLED)
def test_killed_training_ends_bitwise_as_if_it_had_not_been(
    case: str, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    """F19, F21, F22: losses, rates, evaluations, adapter, dtypes and gates."""
    runs = Runs(case, tmp_path, *inputs)
    assert runs.steps == len([line for line in runs.expected["log"] if "loss" in line])
    history = runs.killed("killed", random.Random(case), kills=2)
    assert history.result == runs.expected, history.kills


# A fork starts from step 7 and comes to its own end; it is not its parent's. The reference of dpo
# is computed in three batches, each of which is a place to stop too.
@pytest.mark.parametrize(("case", "stops"), [("dropout", 12), ("fork", 5), ("dpo", 15)])
def test_training_stopped_at_every_step_ends_bitwise_the_same(
    case: str, stops: int, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    """SIGTERM and SIGINT by turns, and every step resumed from."""
    runs = Runs(case, tmp_path, *inputs)
    assert runs.stopped_at_every_step("stopped") == (stops, runs.expected)


@pytest.fixture(scope="module")
def damaged_runs(
    inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Runs, Path]:
    """A training, and a folder where it was stopped with checkpoints of step 9 and 10."""
    runs = Runs("dropout", tmp_path_factory.mktemp("damage"), *inputs)
    return runs, runs.stopped("stopped", 10)


@pytest.mark.parametrize("how", ["flipped", "cut", "deleted"])
@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_damaged_checkpoint_is_passed_over_and_the_end_is_bitwise_the_same(
    damaged_runs: tuple[Runs, Path], name: str, how: str
) -> None:
    runs, stopped = damaged_runs
    folder = runs.copy(stopped, f"{name}-{how}")
    newest = max(folder.glob("scratch/checkpoints/sealed-*"))
    assert {path.name for path in newest.iterdir()} == set(CHECKPOINT_FILES)
    damage(newest / name, how)
    assert runs.run(folder.name) == runs.expected
    said = runs.ended(folder.name)["said"]
    assert re.search(rf"step 10 is damaged: .*{name}.*That of step 9 is taken instead", said[1])
    assert "resuming after step 9" in said[2]


def test_damaged_best_weights_are_made_again(
    damaged_runs: tuple[Runs, Path],
) -> None:
    """The newest checkpoint is whole, and the best weights so far are an older one's."""
    runs, stopped = damaged_runs
    folder = runs.copy(stopped, "best")
    checkpoints = folder / "scratch" / "checkpoints"
    state = json.loads((checkpoints / "sealed-00000010" / "trainer_state.json").read_text())
    best = checkpoints / f"sealed-{state['best_global_step']:08d}"
    assert best != checkpoints / "sealed-00000010"
    damage(best / "adapter_model.safetensors", "flipped")
    assert runs.run(folder.name) == runs.expected
    said = runs.ended(folder.name)["said"]
    assert f"the best weights up to it ({best.name}): adapter_model.safetensors" in said[1]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    if how == "deleted":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[:middle])
    else:
        flipped = bytes([content[middle] ^ 1])
        path.write_bytes(content[:middle] + flipped + content[middle + 1 :])
