"""Terminal views at 80 columns, on a terminal and in a pipe."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.pipeline import PlannedStep
from luthier.report import (
    artifact_rows,
    artifact_table,
    closing_table,
    lineage_json,
    lineage_tree,
    plan_table,
    show_artifact,
    summarise,
)
from luthier.store import Store
from report_cases import Sample, finished, make_config, make_run, sample

__all__ = ["finished", "sample"]
PAGE = Path("artifacts/reports/package-router.html")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns, and no wish for colour from outside."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["pipe", "terminal"])
def output(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the views are printed."""
    if request.param == "terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
    return str(request.param)


def printed(capsys: pytest.CaptureFixture[str], output: str) -> str:
    text = capsys.readouterr().out
    if output == "terminal":
        assert "\x1b[" in text, "colour"
        text = _ESCAPE.sub("", text)
    else:
        assert "\x1b" not in text
        assert all(line == line.rstrip() for line in text.splitlines())
        assert not re.search("[─━│┃┏╇]", text), "box characters"
    assert "…" not in text, "something was cut off"
    for line in text.splitlines():
        assert len(line) <= 80, line
    return text


def test_closing_table(sample: Sample, capsys: pytest.CaptureFixture[str], output: str) -> None:
    closing_table(summarise(sample.config, sample.artifacts), PAGE)
    text = printed(capsys, output)
    words = re.sub(r"\s+", " ", text)
    bundle = sample.artifacts["export"].path
    for expected in (
        "package-router: better", "tuned, free answer 84.3 % 78.8 to 88.6 % 0.843 210",
        "GGUF q8_0 as served 82.0 % 73.3 to 88.3 %", "+54.8 points, 95 % interval +46.6 to +62.0",
        "280 rows, 94 steps, 812 tokens/s, 3 min 7 s", "merged 54.0 kB", "sft 3 min 16 s",
        "merge 2 of 2 passed", f"bundle {bundle}", f"page {PAGE}",
        f"vllm serve {bundle}/vllm \\ --config {bundle}/vllm/serve.yaml",
        f"ollama create package-router \\ -f {bundle}/ollama/Modelfile && \\ ollama run package-",
    ):  # fmt: skip
        assert expected in words, expected


def test_closing_table_until_sft(
    sample: Sample, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    closing_table(summarise(sample.config, sample.until("sft")), PAGE)
    text = printed(capsys, output)
    assert "not evaluated" in text
    assert "tuned," not in text
    assert "serve it" not in text
    assert "bundle" not in text


def test_closing_table_names_gates_that_warned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(Store(tmp_path / "s"), make_config(tmp_path), tuned=0.5, prompted=0.5)
    lowered = type(run.config)(**{**vars(run.config), "gates": {"beats-baseline": "warn"}})
    closing_table(summarise(lowered, run.until("merge")), PAGE)
    text = printed(capsys, "pipe")
    assert "evaluate 0 of 1 passed, beats-baseline warned" in text
    assert "cannot tell" in text


def test_plan_wraps_every_reason(
    sample: Sample, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    long = "prepare.sources[0].path: data/package_sections/train.jsonl -> data/other/[red].jsonl"
    plan_table(
        [
            PlannedStep("base", "reuse", [], sample.artifacts["base"]),
            PlannedStep("prepare", "run", ["input base changed (base)", long, "seed: 7 -> 8"]),
            PlannedStep("sft", "wait", ["after prepare"]),
        ]
    )
    text = printed(capsys, output)
    words = re.sub(r"\s+", " ", text)
    for expected in (long, "seed: 7 -> 8", "sft wait after prepare", "package-router/base@v1"):
        assert expected in words


def test_list(sample: Sample, capsys: pytest.CaptureFixture[str], output: str) -> None:
    sample.store.name(sample.artifacts["base"], "another-run")
    shutil.rmtree(sample.artifacts["merge"].path)
    contents = sample.store.contents()
    rows = artifact_rows(contents)
    json.dumps(rows)
    by_ref = {row["refs"][0]: row for row in rows}
    assert by_ref["another-run/base@v1"]["refs"] == [
        "another-run/base@v1",
        "package-router/base@v1",
    ]
    assert by_ref["package-router/model@v1"]["status"] == "gone"
    assert by_ref["package-router/adapter@v1"]["size_bytes"] > 19000
    artifact_table(contents)
    text = printed(capsys, output)
    assert "another-run/base@v1" in text
    assert re.search(r"package-router/model@v1\s+gone", text)


def test_list_of_an_empty_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact_table(Store(tmp_path).contents())
    assert "luthier run CONFIG" in printed(capsys, "pipe")


@pytest.mark.parametrize("stage", ["base", "prepare", "baseline", "sft", "evaluate", "export"])
def test_show(sample: Sample, stage: str, capsys: pytest.CaptureFixture[str], output: str) -> None:
    artifact = sample.artifacts[stage]
    show_artifact(artifact)
    text = printed(capsys, output)
    assert artifact.key in text
    assert artifact.digest in text
    for file in artifact.manifest.outputs:
        assert file.path in text
    for gate in artifact.manifest.gates:
        assert re.search(rf"{gate.id}\s+passed", text)


def test_lineage(sample: Sample, capsys: pytest.CaptureFixture[str], output: str) -> None:
    shutil.rmtree(sample.artifacts["base"].path)
    traced = sample.store.lineage(sample.artifacts["export"])
    lineage_tree(traced)
    text = printed(capsys, output)
    assert text.startswith("package-router/bundle@v1")
    assert "sft: package-router/adapter@v1" in text
    assert "base: package-router/base@v1" in text
    assert "missing" in text
    assert "as above" in text
    assert text.count("123.5 kB") == 1, "a dataset's files are shown once"
    tree = json.loads(json.dumps(lineage_json(traced)))
    assert tree["inputs"][0]["slot"] == "merge"
    assert tree["inputs"][2] == {
        "slot": "base", "ref": "package-router/base@v1", "key": sample.artifacts["base"].key,
        "state": "missing", "digest": None, "forked_from": None, "external_files": [],
        "inputs": [],
    }  # fmt: skip


def test_escape_sequences_of_users_stay_text(capsys: pytest.CaptureFixture[str]) -> None:
    plan_table([PlannedStep("prepare", "run", ["file \x1b[2Jx.jsonl changed"])])
    assert "file \\x1b[2Jx.jsonl changed" in printed(capsys, "pipe")


def test_import_is_cheap() -> None:
    heavy = ("plotly", "rich", "numpy", "torch", "jinja2", "pyarrow", "scipy", "transformers")
    code = f"import sys, luthier.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
