"""The command line: exit codes, one message for a user's mistake, JSON where it is asked for."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from luthier import __version__
from luthier.cli import call
from luthier.pipeline import Pipeline

ROOT = Path(__file__).parent.parent

CONFIG = """\
name: try
base: {model: no-such-model}
prepare: {task: classification, sources: [{path: rows.jsonl, split: train}]}
sft: {per_device_batch_size: 4}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTHIER_STORE", "store")
    (tmp_path / "run.yaml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command"),
        (["run"], "CONFIG"),
        (["run", "missing.yaml"], "Did you mean run.yaml"),
        (["run", "run.yaml"], "no-such-model"),
        (["run", "run.yaml", "--until", "merge"], "there is no section merge"),
        (["run", "run.yaml", "--input", "adapter"], "write it as slot=version"),
        (["run", "run.yaml", "--set", "sft.learning_rat=1"], "Did you mean"),
        (["run", "run.yaml", "--set", "prepare=null"], "sft needs the section prepare"),
        (["show", "no/adapter@v1"], "is no artifact"),
        (["report", "run.yaml"], "no-such-model"),
        (["verify"], "or --all"),
    ],
)
def test_mistakes_exit_2_with_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.usefixtures("here")
def test_errors_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["show", "no/adapter@v1", "--json"]) == 2
    printed = json.loads(capsys.readouterr().out)
    assert printed["exit_code"] == 2
    assert "is no artifact" in printed["error"]


def test_missing_data_is_seen_before_the_base_is_imported(
    here: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["run", "run.yaml", "--set", f"base.model={tiny_base}"]) == 2
    assert "rows.jsonl" in capsys.readouterr().err
    assert not (here / "store").exists()


@pytest.mark.usefixtures("here")
def test_an_unexpected_error_is_our_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_self: Pipeline, _until: str | None = None) -> None:
        raise RuntimeError("no idea")

    monkeypatch.setattr(Pipeline, "plan", broken)
    assert call(["plan", "run.yaml"]) == 1
    assert "This is a bug of luthier: RuntimeError: no idea" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call([]) == 0
    assert "Usage: luthier" in capsys.readouterr().out
    assert call(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("given", [["--config", "run.yaml"], ["--config=run.yaml"], ["run.yaml"]])
def test_scripts_take_the_config_as_an_option(here: Path, given: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train_sft.py"), *given],
        cwd=here,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no-such-model" in done.stderr


WAITING = """
import time
from luthier.interrupts import StopFlag
stop = StopFlag()
stop.install()
print("ready", flush=True)
while not stop.requested:
    time.sleep(0.01)
print("asked", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_stops_at_once_with_exit_4(first: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)  # asks again, and does not cut the step off
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 4
    assert "Ctrl-C again stops at once" in errors


def test_no_library_draws_bars_of_its_own_whoever_loads_tqdm_first() -> None:
    script = (
        "from luthier.cli import call\ncall(['--help'])\nfrom tqdm.auto import tqdm\n"
        "from luthier.models.libraries import quiet_libraries\n"
        "quiet_libraries()\nfor _ in tqdm(range(3)):\n    pass"
    )
    environment = {name: os.environ[name] for name in os.environ if name != "TQDM_DISABLE"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert "3/3" not in done.stderr
