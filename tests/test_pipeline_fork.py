"""Interrupted training under other settings: refused with a diff, forked or left on purpose.

The stage that trains here is small enough to be read at once, and its steps are its result: what
it made says which step was taken with which learning rate, and from what.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import call
from luthier.config import Field, Section, result_free
from luthier.errors import ConfigError, InterruptedRunError, StoreError
from luthier.interrupts import StopFlag
from luthier.pipeline import Choices, DoneStep, Pipeline, load_run
from luthier.progress import Reporter
from luthier.report import lineage_json, lineage_tree
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.store import Store, Workspace
from luthier.training.checkpoints import newest_intact, seal_checkpoint, seed_checkpoint


class DataSection(Section):
    rows: int = Field(3, description="rows")


class FitSection(Section):
    learning_rate: float = Field(0.1, description="rate")
    steps: int = Field(6, description="steps")
    stop_after: int | None = Field(None, json_schema_extra=result_free, description="interrupt")
    start_from: str | None = Field(None, json_schema_extra=result_free, description="adapter")


def make_data(section: DataSection, _inputs: StageInputs, workspace: Workspace) -> StageResult:
    (workspace.path / "rows.txt").write_text("row\n" * section.rows)
    return StageResult(metrics={}, gates=[])


def fit(section: FitSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    root = workspace.scratch / "checkpoints"
    start = newest_intact(root, workspace.reporter.say)
    if start is None and inputs.fork is not None:
        start = seed_checkpoint(inputs.fork.checkpoint, root)
    trace = [] if start is None else json.loads((start / "trace.json").read_text())
    for step in range(len(trace) + 1, section.steps + 1):
        trace.append([step, section.learning_rate])
        unsealed = root / "unsealed"
        unsealed.mkdir(parents=True)
        (unsealed / "trace.json").write_text(json.dumps(trace))
        seal_checkpoint(unsealed, root, step, keep=2)
        if step == section.stop_after:
            raise InterruptedRunError("stopped")
    before = inputs.get("start")
    earlier = (before.path / "adapter.json").read_text() if before else "base"
    (workspace.path / "adapter.json").write_text(json.dumps([earlier, trace]))
    return StageResult(metrics={}, gates=[], facts={"training": {"steps": len(trace)}})


STAGES: dict[str, Stage[Any]] = {
    "data": Stage("data", 10, "make rows", "dataset", 1, DataSection, make_data),
    "fit": Stage(
        "fit",
        20,
        "fit",
        "adapter",
        1,
        FitSection,
        fit,
        slots=(
            Slot("dataset", "dataset", ("data",)),
            Slot("start", "adapter", optional=True, field="start_from"),
        ),
        uses_seed=True,
        packages=("torch",),
        checkpoints="checkpoints",
    ),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in ("planning", "pipeline"):
        monkeypatch.setattr(f"luthier.{module}.discover", lambda: STAGES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTHIER_STORE", "store")
    (tmp_path / "run.yaml").write_text("name: try\ndata: {}\nfit: {}\n", encoding="utf-8")
    return tmp_path


class Listening(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def pipeline(
    *overrides: str,
    fork: str | None = None,
    fresh: bool = False,
    pins: dict[str, str] | None = None,
) -> Pipeline:
    config = load_run("run.yaml", list(overrides))
    choices = Choices(pins or {}, fork, fresh)
    return Pipeline(config, Store(Path("store")), Listening(), StopFlag(), choices)


def run(*overrides: str, **choices: Any) -> DoneStep:
    return pipeline(*overrides, **choices).run()[-1]


def interrupt(step: int, *overrides: str, **choices: Any) -> str:
    """Run until the fit stops itself after a step; the first 16 digits of its key."""
    before = {path.name for path in Path("store").glob("fit/*.partial")}
    with pytest.raises(InterruptedRunError):
        run(f"fit.stop_after={step}", *overrides, **choices)
    (new,) = {path.name for path in Path("store").glob("fit/*.partial")} - before
    return new.removesuffix(".partial")


def trace(done: DoneStep) -> list[float]:
    """The learning rate of each step that an adapter took."""
    _, steps = json.loads((done.artifact.path / "adapter.json").read_text())
    assert [step for step, _ in steps] == list(range(1, 7))
    return [rate for _, rate in steps]


def refusal(*overrides: str, **choices: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        run(*overrides, **choices)
    return str(raised.value)


def checkpoint(key: str, step: int) -> Path:
    return Path(f"store/fit/{key}.partial/_scratch/checkpoints/sealed-{step:08d}")


def damage(folder: Path) -> None:
    (folder / "trace.json").write_text("[]")


def test_other_settings_than_an_interrupted_runs_are_refused_with_what_changed() -> None:
    key = interrupt(3)
    message = refusal("fit.learning_rate=0.2", "seed=8", "data.rows=4")
    assert f"fit: an interrupted run at step 3 (key {key[:8]})" in message
    for line in ("fit.learning_rate: 0.1 -> 0.2", "input dataset changed (data)", "seed: 7 -> 8"):
        assert f"\n  {line}\n" in message
    assert f"--fork {key[:8]}@3 " in message
    assert "--fresh" in message
    assert not [path for path in Path("store/fit").glob("*.partial") if path.stem != key]
    resumed = run()
    assert resumed.state == "resume"
    assert resumed.artifact.manifest.resumed == 1
    assert trace(resumed) == [0.1] * 6


def test_a_changed_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(3)
    monkeypatch.setattr("luthier.planning.package_versions", lambda _names: {"torch": "9.9"})
    assert "package.torch: " in refusal()


def test_plan_gives_the_refusal_as_a_reason_and_a_stage_command_refuses_too() -> None:
    key = interrupt(3)
    (step,) = (s for s in pipeline("fit.steps=7").plan() if s.stage == "fit")
    assert step.state == "run"
    assert f"key {key[:8]}) differs: fit.steps: 6 -> 7 (--fork {key[:8]}@3" in step.reasons[0]
    with pytest.raises(ConfigError, match=r"fit\.steps: 6 -> 7"):
        pipeline("fit.steps=7").run_stage("fit")
    (step,) = (s for s in pipeline().plan() if s.stage == "fit")
    assert step.reasons == ["an earlier run was interrupted after step 3"]


def test_fresh_begins_anew_and_the_interrupted_run_stays() -> None:
    key = interrupt(3)
    fresh = run("fit.learning_rate=0.2", fresh=True)
    assert fresh.state == "run"
    assert trace(fresh) == [0.2] * 6
    assert checkpoint(key, 3).is_dir()
    assert run("fit.learning_rate=0.2").state == "reuse"
    assert trace(run()) == [0.1] * 6


@pytest.mark.parametrize("case", ["another name", "no checkpoint", "being worked on"])
def test_what_is_no_interrupted_run_of_this_is_not_refused(case: str) -> None:
    key = interrupt(3)
    store = Store(Path("store"))
    wanted = "fit.learning_rate=0.2"
    if case == "another name":
        assert run(wanted, "name=other").state == "run"
    elif case == "no checkpoint":
        shutil.rmtree(checkpoint(key, 3).parent)
        assert run(wanted).state == "run"
    else:
        full = store.unfinished()[0].recipe.key
        with store.workspace("fit", full, Reporter(), StopFlag()):
            assert run(wanted).state == "run"


def test_the_nearest_of_two_interrupted_runs_is_named() -> None:
    interrupt(5, "fit.steps=9")
    near = interrupt(2, "fit.learning_rate=0.2", "fit.steps=8", fresh=True)
    assert f"step 2 (key {near[:8]})" in refusal("fit.learning_rate=0.2")


def test_a_fork_goes_on_with_new_settings_under_a_key_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    key = interrupt(3)
    text = f"{key[:8]}@3"
    done = run("fit.learning_rate=0.2", fork=text)
    assert trace(done) == [0.1] * 3 + [0.2] * 3
    fork = done.artifact.manifest.facts["fork"]
    assert fork["parent_key"] == key
    traced = Store(Path("store")).lineage(done.artifact)
    assert lineage_json(traced)["forked_from"] == f"{key}@3"
    lineage_tree(traced)
    assert f"forked from {key[:12]} at step 3" in capsys.readouterr().out
    assert fork["parent_step"] == 3
    assert fork["changes"] == ["fit.learning_rate: 0.1 -> 0.2"]
    assert len(fork["checkpoint_digest"]) == 64
    store = Store(Path("store"))
    store.verify(done.artifact)
    assert run("fit.learning_rate=0.2", fork=text).artifact.key == done.artifact.key
    assert run("fit.learning_rate=0.2", fresh=True).artifact.key != done.artifact.key
    assert run("fit.learning_rate=0.2", fork=f"{key}@2").artifact.key != done.artifact.key


@pytest.mark.parametrize("end", ["finished", "deleted"])
def test_a_fork_is_found_again_when_its_parent_is_gone(end: str) -> None:
    key = interrupt(3)
    text = key[:10]
    done = run("fit.learning_rate=0.2", fork=text)
    interrupted = interrupt(5, "fit.learning_rate=0.3", fork=text)
    if end == "finished":
        assert run().state == "resume"
    else:
        shutil.rmtree(f"store/fit/{key}.partial")
    again = run("fit.learning_rate=0.2", fork=text)
    assert (again.state, again.artifact.key) == ("reuse", done.artifact.key)
    resumed = run("fit.learning_rate=0.3", fork=f"{key}@3")
    assert (resumed.state, resumed.artifact.key[:16]) == ("resume", interrupted)
    assert trace(resumed) == [0.1] * 3 + [0.3] * 3
    assert resumed.artifact.manifest.facts["fork"]["changes"] == ["fit.learning_rate: 0.1 -> 0.3"]
    assert "that run is gone" in refusal("fit.learning_rate=0.4", fork=text)


def test_an_interrupted_fork_is_refused_without_its_fork() -> None:
    key = interrupt(3)
    fork = interrupt(5, "fit.learning_rate=0.2", fork=key)
    message = refusal("fit.learning_rate=0.2", fresh=False)
    assert f"an interrupted run at step 5 (key {fork[:8]})" in message
    assert f"fit.fork of: {key}@3 -> absent" in message


def test_a_fork_takes_the_newest_intact_checkpoint() -> None:
    key = interrupt(4)
    damage(checkpoint(key, 4))
    line = pipeline("fit.learning_rate=0.2", fork=key)
    done = line.run()[-1]
    assert trace(done) == [0.1] * 3 + [0.2] * 3
    assert any("step 4 is damaged: trace.json" in said for said in line.reporter.said)


def damaged(key: str) -> None:
    damage(checkpoint(key, 3))


def finished(_key: str) -> None:
    run()


def unchanged(_key: str) -> None:
    pass


@pytest.mark.parametrize(
    ("fork", "before", "message"),
    [
        ("KEY@x", unchanged, "write it as KEY or KEY@STEP"),
        ("abc", unchanged, "write it as KEY or KEY@STEP"),
        ("000000000000@3", unchanged, "step 3"),
        ("KEY@17", unchanged, "no such checkpoint. There are those of step 3, 2"),
        ("KEY@3", damaged, "trace.json: has 2 bytes instead of"),
        ("KEY", finished, "is finished, so its checkpoints are gone"),
    ],
)
def test_what_cannot_be_forked_is_explained(
    fork: str, before: Callable[[str], None], message: str
) -> None:
    key = interrupt(3)
    before(key)
    assert message in refusal("fit.learning_rate=0.2", fork=fork.replace("KEY", key))


def test_only_stages_with_checkpoints_are_forked_and_only_by_commands_that_run_them() -> None:
    key = interrupt(3)
    with pytest.raises(ConfigError, match="a run of fit, which this command does not run"):
        pipeline(fork=key).run("data")
    shutil.move(f"store/fit/{key}.partial", "kept")
    store = Store(Path("store"))
    folder = store.artifacts()[0].path
    recipe = json.loads((Path("kept") / "_scratch" / "identity.json").read_text())
    other = folder.with_name("0123456789abcdef.partial")
    (other / "_scratch").mkdir(parents=True)
    recipe |= {"stage": "data", "key": "0123456789abcdef" * 4}
    (other / "_scratch" / "identity.json").write_text(json.dumps(recipe))
    assert "a run of data, which makes no checkpoints" in refusal(fork="0123456789")


def test_a_run_that_goes_on_now_is_not_forked() -> None:
    interrupt(3)
    store = Store(Path("store"))
    key = store.unfinished()[0].recipe.key
    with store.workspace("fit", key, Reporter(), StopFlag()):
        assert store.unfinished()[0].is_busy
        assert "that run goes on now" in refusal("fit.learning_rate=0.2", fork=key[:8])
    assert not store.unfinished()[0].is_busy


def test_an_artifact_named_in_the_section_is_an_input() -> None:
    first = run()
    second = run("fit.start_from=try/adapter@v1")
    assert second.artifact.manifest.inputs[1].digest == first.artifact.digest
    assert json.loads((second.artifact.path / "adapter.json").read_text())[0] != "base"
    by_key = run(f"fit.start_from={first.artifact.key[:12]}")
    assert (by_key.state, by_key.artifact.key) == ("reuse", second.artifact.key)
    pinned = run(pins={"start": "try/adapter@v1"})
    assert pinned.artifact.key == second.artifact.key


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("try/dataset@v1", r"run.yaml: fit.start_from: try/dataset@v1: that is of kind dataset"),
        ("try/adapter@v7", r"run.yaml: fit.start_from: try/adapter@v7: .* is no artifact"),
    ],
)
def test_a_wrong_artifact_in_the_section_is_named_before_anything_runs(
    reference: str, message: str
) -> None:
    pipeline().run("data")
    with pytest.raises(ConfigError, match=message):
        run(f"fit.start_from={reference}", "data.rows=9")
    assert len(Store(Path("store")).artifacts()) == 1


def test_the_command_line_refuses_with_exit_2_and_knows_the_ways_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    key = interrupt(3)
    wanted = ["run.yaml", "--set", "fit.learning_rate=0.2"]
    assert call(["run", *wanted]) == 2
    error = capsys.readouterr().err
    assert "fit.learning_rate: 0.1 -> 0.2" in error
    assert "Traceback" not in error
    for option, reason in ((["--fresh"], "never made"), (["--fork", key], f"forked from {key}@3")):
        assert call(["plan", *wanted, *option, "--json"]) == 0
        steps = json.loads(capsys.readouterr().out)
        assert steps[1]["reasons"][0].startswith(reason)


def test_a_damaged_description_of_a_workspace_is_passed_over() -> None:
    key = interrupt(3)
    path = Path(f"store/fit/{key}.partial/_scratch/identity.json")
    path.write_text(path.read_text()[:-5])
    assert Store(Path("store")).unfinished() == []
    assert run().state == "resume"


def test_a_missing_checkpoint_of_the_parent_is_a_stores_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no longer there"):
        seed_checkpoint(tmp_path / "sealed-00000003", tmp_path / "own")
