"""SFT, dpo and both evaluated, through the command line on a tiny random base."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.cli import call
from luthier.evaluation.answers import Answer
from luthier.evaluation.held_out_pairs import (
    HeldOutPair,
    behaviour,
    describe_pairs,
    load_pairs,
    pair_gates,
    summarise_pairs,
)
from luthier.evaluation.rows import AskedRow
from project import add_preferences, luthier, read_dpo_config, write_project

REFUSAL = "Sorry, I can only help with your home."
ANSWER = '{"intent": "HassTurnOn", "slots": {"area": "kitchen"}}'


@pytest.fixture(scope="module")
def project(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has run once: 24 pairs of the scope policy after SFT on three classes."""
    folder = tmp_path_factory.mktemp("dpo")
    path = write_project(folder, tiny_base)
    config = read_dpo_config(path)
    add_preferences(config, folder, {"train": 24, "validation": 12, "test": 12})
    config["dpo"] = {
        "learning_rate": 1e-3,
        "epochs": 2,
        "per_device_batch_size": 6,
        "checkpoint_every_steps": 2,
    }
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    done = luthier(folder, "run", "run.yaml", "--json")
    assert done.returncode == 0, done.stderr
    (folder / "first.json").write_text(done.stdout, encoding="utf-8")
    return folder


def facts_of(artifact: Path) -> dict[str, Any]:
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    return dict(manifest["facts"])


def steps_of(output: str) -> dict[str, Any]:
    return {step["stage"]: step for step in json.loads(output)["stages"]}


def test_it_is_sft_then_dpo_then_both_evaluated(project: Path) -> None:
    said = (project / "first.json").read_text(encoding="utf-8")
    first, steps = json.loads(said), steps_of(said)
    assert list(steps) == ["base", "prepare", "preferences", "sft", "dpo", "evaluate"]
    gates = {gate["id"]: gate["status"] for gate in steps["dpo"]["gates"]}
    assert {gates[name] for name in ("dpo-start", "dpo-reference", "dpo-first-step")} == {"pass"}
    sorted_by_length = {
        stage: facts_of(project / steps[stage]["path"])["training"]["performance"]["length_sorted"]
        for stage in ("sft", "dpo")
    }
    assert sorted_by_length["sft"]["on"]
    assert not sorted_by_length["dpo"]["on"]
    evaluation = json.loads((project / steps["evaluate"]["path"] / "evaluation.json").read_bytes())
    assert set(evaluation["systems"]) == {
        f"{who}/{way}" for who in ("sft", "tuned") for way in ("generation", "likelihood")
    }
    assert evaluation["best_system"].startswith("tuned/")
    assert evaluation["kept"]["whole"]["rows"] == 16
    assert evaluation["pairs"]["rows"] == 12
    assert evaluation["pairs"]["systems"]["tuned"]["refused"]["rows"] == 6
    assert {effect["what"] for effect in first["summary"]["effects"]} >= {
        "task: accuracy", "task: macro-F1", "out of scope: refused", "in scope: refused",
    }  # fmt: skip
    page = Path(project / first["report"]).read_text(encoding="utf-8")
    for shown in ("Before and after dpo", "Rewards while training (dpo)", "KL to the reference"):
        assert shown in page


def test_a_second_run_reuses_all_and_a_trial_the_reference(project: Path) -> None:
    again = luthier(project, "run", "run.yaml", "--json")
    assert {step["state"] for step in steps_of(again.stdout).values()} == {"reuse"}
    trial = luthier(project, "dpo", "run.yaml", "--set", "dpo.beta=0.3", "--json")
    assert trial.returncode == 0, trial.stderr
    facts = facts_of(project / json.loads(trial.stdout)["path"])
    assert facts["reference"]["reused"] is True
    assert "those of an earlier run" in trial.stderr
    assert luthier(project, "verify", "--all").returncode == 0


def test_plan_foretells_both_trainings(project: Path) -> None:
    done = luthier(project, "plan", "run.yaml", "--json")
    estimates = {
        step["stage"]: step["estimate"] for step in json.loads(done.stdout) if "estimate" in step
    }
    assert set(estimates) == {"sft", "dpo"}
    shown = luthier(project, "plan", "run.yaml").stdout
    assert "sft, memory on" in shown
    assert "dpo, memory on" in shown


def test_without_an_adapter_it_refuses_before_anything_runs(project: Path, tmp_path: Path) -> None:
    for name in ("run.yaml", *(f"pairs-{s}.jsonl" for s in ("train", "validation", "test"))):
        shutil.copy(project / name, tmp_path)
    config = yaml.safe_load((tmp_path / "run.yaml").read_text(encoding="utf-8"))
    for name in ("sft", "evaluate", "prepare"):
        del config[name]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    done = luthier(tmp_path, "run", "run.yaml")
    assert done.returncode == 2
    assert "there is none: the config has no section sft" in done.stderr
    assert not (tmp_path / "artifacts" / "base").exists()
    shutil.copy(tmp_path / "run.yaml", project / "on-base.yaml")
    on_base = luthier(project, "run", "on-base.yaml", "--set", "dpo.reference=base", "--json")
    assert on_base.returncode == 0, on_base.stderr
    states = {name: step["state"] for name, step in steps_of(on_base.stdout).items()}
    assert states == {"base": "reuse", "preferences": "reuse", "dpo": "run"}


def test_full_fine_tuning_before_it_is_refused(project: Path) -> None:
    config = yaml.safe_load((project / "run.yaml").read_text(encoding="utf-8"))
    del config["sft"]["lora"]
    config["sft"]["method"] = "full"
    (project / "full.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    done = luthier(project, "plan", "full.yaml")
    assert done.returncode == 2
    assert "sft.method: full makes a whole model" in done.stderr


def test_the_test_split_is_asked(project: Path) -> None:
    preferences = project / steps_of((project / "first.json").read_text())["preferences"]["path"]
    pairs = load_pairs(preferences, "test")
    assert len(pairs) == 12
    assert [pair.is_to_be_refused for pair in pairs] == [
        pair.chosen.startswith("Sorry") for pair in pairs
    ]
    assert all(pair.is_to_be_refused != pair.is_to_be_answered for pair in pairs)


def pair(row: int, *, refuse: bool) -> HeldOutPair:
    chosen, rejected = (REFUSAL, ANSWER) if refuse else (ANSWER, REFUSAL)
    asked = AskedRow(f"test-{row}", (), chosen, None, (1, 2), (3,) * 10)
    return HeldOutPair(asked, chosen, rejected, rejected_tokens=12)


def answered(system: str, texts: list[str], pairs: list[HeldOutPair]) -> list[Answer]:
    return [
        Answer(
            f"{system}/pairs", one.row.id, one.chosen, text, text, text == one.chosen, "stop",
            None, None, None,
        )
        for one, text in zip(pairs, texts, strict=True)
    ]  # fmt: skip


def summary_of(texts: dict[str, list[str]], tokens: dict[str, int]) -> dict[str, Any]:
    """Of 10 requests to refuse and 20 to answer."""
    pairs = [pair(row, refuse=row < 10) for row in range(30)]
    answers = {name: answered(name, said, pairs) for name, said in texts.items()}
    found = {
        name: behaviour(pairs, answers[name], answers[name][10:], [tokens[name]] * 30)
        for name in texts
    }
    return summarise_pairs(pairs, found, answers)


def test_refusals_are_counted_where_they_are_wanted_and_where_not() -> None:
    summary = summary_of(
        {"sft": [ANSWER] * 30, "tuned": [REFUSAL] * 8 + [ANSWER] * 21 + [REFUSAL]},
        {"sft": 20, "tuned": 11},
    )
    tuned = summary["systems"]["tuned"]
    assert (tuned["refused"]["count"], tuned["refused"]["rows"]) == (8, 10)
    assert tuned["over_refused"]["share"] == 0.05
    assert tuned["task_refused"]["count"] == 1
    assert tuned["as_chosen"]["count"] == 8 + 19
    assert summary["refusal_change"]["difference"] == 0.8
    assert summary["refusal_change"]["verdict"] == "better"
    gates = pair_gates(summary, max_over_refusal=0.05, max_length_growth=1.25)
    assert {gate.id: gate.status for gate in gates} == {
        "over-refusal": "pass",
        "length-bias": "pass",
    }
    assert "refused 0.800 [0.490, 0.943]" in describe_pairs(summary)[1]


def test_over_refusal_and_longer_answers_fail() -> None:
    summary = summary_of(
        {"sft": [ANSWER] * 30, "tuned": [REFUSAL] * 13 + [ANSWER] * 17},
        {"sft": 20, "tuned": 26},
    )
    gates = pair_gates(summary, max_over_refusal=0.05, max_length_growth=1.25)
    assert {gate.id: gate.status for gate in gates} == {
        "over-refusal": "fail",
        "length-bias": "fail",
    }


def test_a_sweep_over_dpo_shares_the_sft_adapter(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(project, tmp_path / "swept"))
    monkeypatch.chdir(folder)
    config = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    config["sweep"] = {
        "objective": {"metric": "evaluate.accuracy"},
        "parameters": {"dpo.beta": {"choice": [0.05, 0.1]}},
        "sampler": "grid",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    before = {path.name: len(made_of(path)) for path in Path("artifacts").iterdir()}
    assert call(["sweep", "run.yaml", "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert [trial["state"] for trial in state["trials"]] == ["done", "done"]
    after = {path.name: len(made_of(path)) for path in Path("artifacts").iterdir()}
    # 0.1 is the default, so that one was made before; both are evaluated on validation rows.
    assert after["sft"] == before["sft"] == 1
    assert after["dpo"] == before["dpo"] + 1
    tested = 0 if state["winner"] == 1 else 1
    assert after["evaluate"] == before["evaluate"] + 2 + tested


def made_of(stage: Path) -> list[Path]:
    return list(stage.glob("????????????????"))
