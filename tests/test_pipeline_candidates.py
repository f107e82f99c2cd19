"""Choosing between candidates: evaluations on validation rows, seeds of training alone."""

import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import yaml

from luthier.cli import call
from luthier.errors import ConfigError, PrunedRunError
from luthier.evaluation.answers import read_answers
from luthier.pipeline import Pipeline, load_run
from luthier.planning import Planner
from luthier.promoting import newest_evaluation
from luthier.stages import discover
from luthier.store import Artifact, Store
from luthier.training.checkpoints import sealed_steps
from project import write_project
from test_store_making import identity, make
from training_cases import Following

VALIDATION = "evaluate.split=validation"


@pytest.fixture(scope="module")
def project(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project up to `evaluate`, which asked the validation rows."""
    folder = tmp_path_factory.mktemp("candidates")
    path = write_project(folder, tiny_base)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name in ("baseline", "merge", "export", "accept"):
        del config[name]
    config["sft"]["epochs"] = 1
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call(["run", "run.yaml", "--set", VALIDATION, "--json"]) == 0
    return folder


@pytest.fixture
def store(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Store:
    monkeypatch.chdir(project)
    capsys.readouterr()
    return Store.default()


def made(store: Store, *changes: str) -> dict[str, Artifact]:
    """What a config has made, by stage."""
    steps = Planner(load_run("run.yaml", list(changes)), store).plan()
    return {step.stage: step.artifact for step in steps if step.artifact is not None}


def test_the_validation_rows_are_asked(store: Store) -> None:
    found = made(store, VALIDATION)
    summary = json.loads((found["evaluate"].path / "evaluation.json").read_bytes())
    [path] = found["prepare"].path.glob("validation-*.parquet")
    rows = parquet.read_table(path, columns=["id"])["id"].to_pylist()
    assert (summary["split"], summary["rows"]) == ("validation", len(rows))
    for answers in read_answers(found["evaluate"].path).values():
        assert [answer.id for answer in answers] == rows
    assert "evaluate" not in made(store), "on test rows it is another evaluation"


def test_the_closing_says_whose_rows_they_are(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "evaluate" in made(store, VALIDATION)
    assert call(["run", "run.yaml", "--set", VALIDATION]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "on validation rows, by which candidates are chosen; the test rows were not" in said
    assert call(["report", "run.yaml", "--set", VALIDATION]) == 0


def test_it_is_no_verdict_on_the_adapter(store: Store) -> None:
    assert newest_evaluation(store, made(store, VALIDATION)["sft"]) is None


@pytest.mark.parametrize("section", ["baseline", "merge", "accept"])
def test_what_reads_answers_to_test_rows_is_refused(section: str, store: Store) -> None:
    config = yaml.safe_load(Path("run.yaml").read_text(encoding="utf-8"))
    config["evaluate"]["split"] = "validation"
    config |= {"merge": {}, section: {}} if section == "accept" else {section: {}}
    Path("more.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    planner = Planner(load_run("more.yaml", []), store)
    with pytest.raises(ConfigError, match=rf"evaluate\.split: validation.* {section}"):
        planner.stages()
    if section != "baseline":
        assert [stage.name for stage in planner.stages("evaluate")][-1] == "evaluate"


def test_production_is_not_asked(store: Store, tmp_path: Path) -> None:
    elsewhere = Store(tmp_path)
    make(elsewhere, identity("merge"), kind="model", name="tiny-router")
    elsewhere.tag("tiny-router/model@v1", "production", "")
    slots = {}
    for changes in ((), (VALIDATION,)):
        planner = Planner(load_run("run.yaml", list(changes)), elsewhere)
        inputs, missing = planner.inputs(discover()["evaluate"], made(store, VALIDATION))
        assert not missing
        slots[changes] = set(inputs)
    assert slots[()] - slots[(VALIDATION,)] == {"production"}


def keys(store: Store, *changes: str) -> dict[str, str]:
    """The keys that a config's stages have as far as their inputs exist."""
    planner = Planner(load_run("run.yaml", list(changes)), store)
    found, artifacts = {}, made(store, *changes)
    for stage in planner.stages():
        inputs, missing = planner.inputs(stage, artifacts)
        if not missing:
            found[stage.name] = planner.ingredients(stage, inputs).recipe.key
    return found


def test_a_seed_of_training_leaves_the_dataset_as_it_is(store: Store) -> None:
    plain = keys(store)
    said_twice, other = keys(store, "sft.seed=7"), keys(store, "sft.seed=8")
    assert said_twice == plain
    assert other["prepare"] == plain["prepare"]
    assert other["sft"] != plain["sft"]
    assert keys(store, "seed=8", "sft.seed=7")["prepare"] != plain["prepare"]


def test_the_key_is_that_of_the_runs_own_seed(store: Store) -> None:
    """Of equal inputs; those of a run of another seed are others."""
    inputs = made(store)
    ways = (("seed=8",), ("sft.seed=8",), ("seed=9", "sft.seed=8"))
    found = set()
    for changes in ways:
        planner = Planner(load_run("run.yaml", list(changes)), store)
        given, _ = planner.inputs(discover()["sft"], inputs)
        found.add(planner.ingredients(discover()["sft"], given).recipe.key)
    assert len(found) == 1


def test_seeds_of_training_alone_are_compared_as_seeds(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    first = made(store, VALIDATION)
    assert call(["run", "run.yaml", "--set", VALIDATION, "--set", "sft.seed=8", "--json"]) == 0
    second = made(store, VALIDATION, "sft.seed=8")
    assert [second[name].digest == first[name].digest for name in ("prepare", "sft")] == [
        True,
        False,
    ]
    assert second["sft"].manifest.seed == 8
    assert second["evaluate"].manifest.seed == 7
    capsys.readouterr()
    assert call(["compare", "tiny-router", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    [group] = found["groups"]
    assert (group["seeds"], found["split"]) == ([7, 8], "validation")
    assert call(["compare", "tiny-router"]) == 0
    assert "validation rows that all answered" in " ".join(capsys.readouterr().out.split())


def test_a_pruned_training_makes_nothing_and_goes_on_as_if_it_had_not_been(
    store: Store, tmp_path: Path
) -> None:
    config = load_run("run.yaml", ["sft.evaluate_every_fraction=0.25"])
    whole = Pipeline(config, Store(tmp_path)).run("sft")[-1].artifact
    key, follows = whole.key, Following(end_after=2)
    with pytest.raises(PrunedRunError, match="Ended by who watched it"):
        Pipeline(config, store, watch=follows).run("sft")
    assert [progress for progress, _ in follows.seen] == [0.25, 0.5]
    assert store.find(key) is None
    assert sealed_steps(store.scratch("sft", key) / "checkpoints")[0] == 4
    assert not [one.digest for one in store.artifacts() if one.digest == whole.digest]
    resumed = Pipeline(config, store, watch=Following()).run("sft")[-1]
    assert (resumed.state, resumed.artifact.digest) == ("resume", whole.digest)


def test_a_pruned_training_can_be_discarded(store: Store) -> None:
    config = load_run("run.yaml", ["sft.learning_rate=0.003"])
    pipeline = Pipeline(config, store, watch=Following(end_after=1))
    with pytest.raises(PrunedRunError):
        pipeline.run("sft")
    [left] = [one for one in store.unfinished() if one.recipe.stage == "sft"]
    assert store.discard("sft", left.recipe.key)
    assert store.unfinished() == []
    assert Pipeline(config, store).plan("sft")[-1].state == "run"
