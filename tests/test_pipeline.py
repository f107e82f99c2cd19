"""The whole pipeline through the command line, on a tiny random base: reuse, kills, damage."""

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from luthier.cli import call
from luthier.store.files import sha256_file
from project import luthier, start, write_project
from serving_cases import edit_json

STAGES = ["base", "prepare", "baseline", "sft", "evaluate", "merge", "export", "accept"]


@pytest.fixture(scope="module")
def project(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose pipeline has run once, uninterrupted."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder, tiny_base)
    done = luthier(folder, "run", "run.yaml", "--json")
    assert done.returncode == 0, done.stderr
    (folder / "first.json").write_text(done.stdout, encoding="utf-8")
    return folder


def digests(output: str) -> dict[str, str]:
    return {step["stage"]: step["digest"] for step in json.loads(output)["stages"]}


def states(output: str) -> dict[str, str]:
    return {step["stage"]: step["state"] for step in json.loads(output)["stages"]}


def test_every_stage_is_made_once_and_then_reused(project: Path) -> None:
    first = (project / "first.json").read_text(encoding="utf-8")
    assert states(first) == dict.fromkeys(STAGES, "run")
    again = luthier(project, "run", "run.yaml", "--json")
    assert again.returncode == 0, again.stderr
    assert states(again.stdout) == dict.fromkeys(STAGES, "reuse")
    assert digests(again.stdout) == digests(first)


def test_plan_names_the_field_that_differs(project: Path) -> None:
    done = luthier(project, "plan", "run.yaml", "--set", "sft.learning_rate=0.01", "--json")
    assert done.returncode == 0, done.stderr
    steps = {step["stage"]: step for step in json.loads(done.stdout)}
    assert [steps[s]["state"] for s in ("base", "prepare", "baseline")] == ["reuse"] * 3
    assert steps["sft"]["state"] == "run"
    assert any("learning_rate: 0.02 -> 0.01" in reason for reason in steps["sft"]["reasons"])
    assert [steps[s]["state"] for s in ("evaluate", "merge", "export", "accept")] == ["wait"] * 4


def test_fields_that_change_no_result_keep_everything(project: Path) -> None:
    done = luthier(project, "plan", "run.yaml", "--set", "sft.checkpoint_every_steps=5", "--json")
    assert {step["state"] for step in json.loads(done.stdout)} == {"reuse"}


def _mid_stage(folder: Path, stage: str) -> Callable[[], bool]:
    """Whether work that can be lost has begun in `stage`."""

    def partial() -> Iterator[Path]:
        return (folder / "killed" / stage).glob("*.partial")

    match stage:
        case "sft":
            return lambda: any(any(p.glob("_scratch/checkpoints/sealed-*")) for p in partial())
        case "baseline" | "evaluate":
            return lambda: any(any(f.is_file() for f in p.glob("_scratch/*")) for p in partial())
        case "export":
            return lambda: any(any(p.rglob("*.gguf*")) or any(p.glob("vllm/*")) for p in partial())
        case _:
            return lambda: any(any(f.is_file() for f in p.rglob("*")) for p in partial())


def _contents(stage: Path) -> dict[str, str]:
    """Output files by name: small texts as they are, to read the difference, else SHA-256."""
    folder = next(p for p in stage.iterdir() if p.is_dir())
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"):
        if path.parent.name == "measured":  # rates and memory, which no two runs share
            continue
        is_text = path.suffix in (".md", ".json", ".jsonl") and path.stat().st_size < 100_000
        found[str(path.relative_to(folder))] = (
            path.read_text(encoding="utf-8") if is_text else sha256_file(path)
        )
    return found


@pytest.mark.slow
def test_killed_in_every_stage_ends_with_the_same_bytes(project: Path) -> None:
    """kill -9 in each stage in turn; the run that goes on makes what an uninterrupted one made."""
    for stage in STAGES:
        process = start(project, "run", "run.yaml", store="killed")
        begun = _mid_stage(project, stage)
        while not begun():
            assert process.poll() is None, f"{stage} was over before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert list((project / "killed" / stage).glob("*.partial")), stage
    done = luthier(project, "run", "run.yaml", "--json", store="killed")
    assert done.returncode == 0, done.stderr
    for stage in STAGES:
        assert _contents(project / "killed" / stage) == _contents(project / "artifacts" / stage)
    assert digests(done.stdout) == digests((project / "first.json").read_text(encoding="utf-8"))
    manifest = next((project / "killed" / "sft").glob("*/manifest.json"))
    assert json.loads(manifest.read_text(encoding="utf-8"))["resumed"] >= 1


def test_interrupted_run_exits_4_and_goes_on(project: Path) -> None:
    store = "interrupted"
    process = start(project, "run", "run.yaml", "--until", "sft", store=store)
    while not any((project / store / "sft").glob("*.partial/_scratch/checkpoints/sealed-*")):
        assert process.poll() is None, "over before it could be interrupted"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 4, errors
    assert "Traceback" not in errors
    done = luthier(project, "run", "run.yaml", "--until", "sft", "--json", store=store)
    assert done.returncode == 0, done.stderr
    assert states(done.stdout)["sft"] == "resume"
    expected = digests((project / "first.json").read_text(encoding="utf-8"))
    assert digests(done.stdout)["sft"] == expected["sft"]


@pytest.mark.parametrize("stage", STAGES)
def test_one_flipped_byte_is_named_by_verify_and_stops_the_next_run(
    project: Path,
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("LUTHIER_STORE", "artifacts")
    folder = next(p for p in (project / "artifacts" / stage).iterdir() if p.is_dir())
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size):
        original = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        commands = [["verify", "--all"]]
        if path == _largest(folder):
            commands.append(["run", "run.yaml"])
        for command in commands:
            assert call(command) == 2
            errors = capsys.readouterr().err
            assert path.name in errors
            assert "Traceback" not in errors
        path.write_bytes(original)
    assert call(["verify", "--all"]) == 0


def _largest(folder: Path) -> Path:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]
    return max(files, key=lambda p: p.stat().st_size)


def test_cost_takes_what_the_run_measured(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Speed of what is served, lengths and training hours, of a real run on this processor."""
    monkeypatch.chdir(project)
    config = (project / "run.yaml").read_text(encoding="utf-8")
    prices = """cost:
  priced_on: 2026-11-01
  api: {price_usd_per_million_input_tokens: 3, price_usd_per_million_output_tokens: 15}
  own: {gpu: cpu, price_usd_per_gpu_hour: 0.1}
"""
    (project / "priced.yaml").write_text(config + prices, encoding="utf-8")
    assert call(["cost", "priced.yaml", "--json"]) == 0
    known = {one["what"]: one for one in json.loads(capsys.readouterr().out)["assumptions"]}
    served = next((project / "artifacts" / "accept").glob("*/measured/speed.json"))
    speed = json.loads(served.read_bytes())["merged/generation"]
    rate = known["requests of one GPU"]
    assert (rate["value"], rate["origin"]) == (speed["batched_requests_per_second"], "measured")
    trained = next((project / "artifacts" / "sft").glob("*/manifest.json"))
    seconds = json.loads(trained.read_bytes())["timings_seconds"]["stage"]
    training = known["training"]
    assert training["origin"] == "measured"
    assert training["value"] == pytest.approx(seconds / 3600 * 0.1)
    measured = {what for what, one in known.items() if one["origin"] == "measured"}
    assert {"prompt of the API", "prompt of the tuned model", "answer of the API"} <= measured


def test_stage_without_its_input_says_which_command_makes_it(project: Path) -> None:
    done = luthier(project, "sft", "run.yaml", store="empty")
    assert done.returncode == 2
    assert "luthier base run.yaml" in done.stderr
    assert "luthier run run.yaml --until sft" in done.stderr


def test_an_architecture_that_no_target_knows_is_refused_before_training(
    tiny_base: Path, tmp_path: Path
) -> None:
    """F32: the base is made, and what cannot be exported of it is said then."""
    shutil.copytree(tiny_base, tmp_path / "odd")
    edit_json(tmp_path / "odd" / "config.json", architectures=["OddForCausalLM"])
    write_project(tmp_path, tmp_path / "odd")
    done = luthier(tmp_path, "run", "run.yaml")
    assert done.returncode == 2, done.stderr
    assert "ollama: " in done.stderr
    assert "OddForCausalLM" in done.stderr
    assert not (tmp_path / "artifacts" / "prepare").exists()
    assert luthier(tmp_path, "run", "run.yaml", "--set", "export.targets=[vllm]", "--until",
                   "prepare").returncode == 0  # fmt: skip


def test_failed_gate_exits_3_keeps_the_artifact_and_stops(project: Path) -> None:
    config = (project / "run.yaml").read_text(encoding="utf-8").replace("beats-baseline: warn", "")
    (project / "strict.yaml").write_text(config, encoding="utf-8")
    done = luthier(project, "run", "strict.yaml", "--set", "sft.learning_rate=1e-6")
    assert done.returncode == 3, done.stderr
    assert "beats-baseline" in done.stderr
    assert "Traceback" not in done.stderr
    shown = luthier(project, "show", "tiny-router/evaluation@latest", "--json")
    assert json.loads(shown.stdout)["status"] == "failed"
    again = luthier(project, "run", "strict.yaml", "--set", "sft.learning_rate=1e-6")
    assert again.returncode == 3
    lowered = luthier(
        project, "run", "strict.yaml", "--set", "sft.learning_rate=1e-6", "--until", "evaluate",
        "--set", "gates.beats-baseline=warn",
    )  # fmt: skip
    assert lowered.returncode == 0, lowered.stderr


def test_other_data_makes_another_dataset(project: Path) -> None:
    """F11: the content of the data is in the key, not its name."""
    copy = project.parent / "edited"
    shutil.copytree(project, copy, symlinks=True)
    train = copy / "train.jsonl"
    train.write_text(
        train.read_text(encoding="utf-8").replace("game", "GAME", 1), encoding="utf-8"
    )
    steps = json.loads(luthier(copy, "plan", "run.yaml", "--json").stdout)
    by_stage = {step["stage"]: step for step in steps}
    assert by_stage["base"]["state"] == "reuse"
    assert by_stage["prepare"]["state"] == "run"
    assert any("train.jsonl" in reason for reason in by_stage["prepare"]["reasons"])
