"""`configs/cluster/`: what can be checked of files for Slurm and SkyPilot without either.

The Slurm scripts run for real under bash, between a `luthier` and an `scontrol` that write down
how they were called.
"""

import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from luthier.cli import app
from luthier.errors import InterruptedRunError

FOLDER = Path(__file__).parent.parent / "configs" / "cluster"
SCRIPTS = ["slurm_sweep.sbatch", "slurm_run_grid.sbatch"]
JOBS = ["skypilot_run.yaml", "skypilot_sweep.yaml"]
# skypilot-org/skypilot, docs/source/reference/yaml-spec.rst, and examples/managed-jobs.rst for
# job_recovery; read in 2026-12.
TASK_KEYS = {
    "name", "workdir", "num_nodes", "resources", "envs", "secrets", "api_server_access", "volumes",
    "file_mounts", "setup", "run", "config",
}  # fmt: skip
RESOURCE_KEYS = {
    "infra", "accelerators", "accelerator_args", "cpus", "memory", "instance_type", "use_spot",
    "disk_size", "ephemeral_storage", "disk_tier", "network_tier", "max_hourly_cost",
    "container_image", "image_id", "ports", "labels", "autostop", "any_of", "ordered",
    "job_recovery",
}  # fmt: skip
RECOVERY_KEYS = {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"}
# SchedMD/slurm, doc/man/man1/sbatch.1
SBATCH_OPTIONS = {
    "job-name", "array", "nodes", "ntasks", "gpus", "cpus-per-task", "mem", "time", "signal",
    "requeue", "open-mode", "output",
}  # fmt: skip

FAKE_LUTHIER = """\
#!/bin/bash
echo "$LUTHIER_STORE $*" >> called
trap 'echo TERM >> called; exit 4' TERM
touch started
for _ in $(seq 600); do [[ -e finish ]] && exit "$(cat finish)"; sleep 0.05; done
exit 99
"""
FAKE_SCONTROL = """\
#!/bin/bash
echo "$*" >> requeued
"""


def read(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return loaded


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def start(tmp_path: Path, script: str, task: int = 2) -> "subprocess.Popen[str]":
    """The batch script, once its `luthier` runs."""
    shutil.copytree(FOLDER, tmp_path / "configs" / "cluster")
    executable(tmp_path / ".venv" / "bin" / "luthier", FAKE_LUTHIER)
    executable(tmp_path / ".venv" / "bin" / "scontrol", FAKE_SCONTROL)
    environment = {
        "PATH": os.environ["PATH"], "CONFIG": "configs/x.yaml", "SLURM_CPUS_PER_TASK": "8",
        "SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": str(task),
    }  # fmt: skip
    job = subprocess.Popen(
        ["bash", f"configs/cluster/{script}"], cwd=tmp_path, env=environment, text=True
    )
    while not (tmp_path / "started").exists():
        assert job.poll() is None, "the script ended before its luthier began"
        time.sleep(0.01)
    return job


def ended(job: "subprocess.Popen[str]") -> int:
    return job.wait(timeout=30)


def called(tmp_path: Path) -> list[str]:
    return (tmp_path / "called").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("script", [*SCRIPTS, "resumable.sh"])
def test_bash_reads_it(script: str) -> None:
    done = subprocess.run(
        ["bash", "-n", str(FOLDER / script)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_time_limit_stops_the_run_and_queues_the_job_again(
    script: str, tmp_path: Path
) -> None:
    job = start(tmp_path, script)
    job.send_signal(signal.SIGUSR1)
    assert ended(job) == InterruptedRunError.exit_code
    assert called(tmp_path)[-1] == "TERM"
    assert (tmp_path / "requeued").read_text(encoding="utf-8") == "requeue 41_2\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_cancelled_job_stops_and_does_not_come_back(script: str, tmp_path: Path) -> None:
    job = start(tmp_path, script)
    job.send_signal(signal.SIGTERM)
    assert ended(job) == InterruptedRunError.exit_code
    assert called(tmp_path)[-1] == "TERM"
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize("code", [0, 2, 3])
def test_a_run_that_ended_by_itself_is_not_queued_again(code: int, tmp_path: Path) -> None:
    job = start(tmp_path, "slurm_sweep.sbatch")
    (tmp_path / "finish.new").write_text(str(code), encoding="utf-8")
    (tmp_path / "finish.new").rename(tmp_path / "finish")
    assert ended(job) == code
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize(
    ("task", "said"), [(0, ("lora", 7)), (2, ("lora", 9)), (3, ("qlora", 7)), (5, ("qlora", 9))]
)
def test_every_task_of_the_grid_has_its_own_values(
    task: int, said: tuple[str, int], tmp_path: Path
) -> None:
    job = start(tmp_path, "slurm_run_grid.sbatch", task)
    job.terminate()
    ended(job)
    method, seed = said
    assert called(tmp_path)[0] == (
        f"{tmp_path}/artifacts run configs/x.yaml --until evaluate --fresh "
        f"--set sft.method={method} --set seed={seed}"
    )


def test_the_array_of_the_grid_counts_its_combinations() -> None:
    text = (FOLDER / "slurm_run_grid.sbatch").read_text(encoding="utf-8")
    methods, seeds = (
        re.findall(rf"^{name}=\((.*)\)$", text, re.M) for name in ("METHODS", "SEEDS")
    )
    combinations = len(methods[0].split()) * len(seeds[0].split())
    assert f"#SBATCH --array=0-{combinations - 1}\n" in text


@pytest.mark.parametrize("script", SCRIPTS)
def test_slurm_knows_the_options_and_they_come_first(script: str) -> None:
    """sbatch stops reading its options at the first line that is a command."""
    lines = (FOLDER / script).read_text(encoding="utf-8").splitlines()
    options = [line for line in lines if line.startswith("#SBATCH")]
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert options == [line for line in lines[:first_command] if line.startswith("#SBATCH")]
    assert {re.split("[ =]+", line)[1].lstrip("-") for line in options} == SBATCH_OPTIONS
    assert "#SBATCH --signal=B:USR1@300" in options


@pytest.mark.parametrize("name", JOBS)
def test_skypilot_knows_the_keys(name: str) -> None:
    job = read(name)
    assert set(job) <= TASK_KEYS
    assert set(job["resources"]) <= RESOURCE_KEYS
    assert set(job["resources"]["job_recovery"]) <= RECOVERY_KEYS
    codes = job["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert codes == [InterruptedRunError.exit_code]


@pytest.mark.parametrize("name", JOBS)
def test_the_store_is_on_the_volume(name: str) -> None:
    job, volume = read(name), read("skypilot_volume.yaml")
    assert job["volumes"] == {job["envs"]["LUTHIER_STORE"]: volume["name"]}
    assert volume["config"]["access_mode"] == "ReadWriteMany"
    assert volume["infra"] == job["resources"]["infra"]
    assert set(re.findall(r"\$(\w+)", job["run"])) <= set(job["envs"])


def command_lines() -> list[list[str]]:
    """Every call of luthier in these files, comments included."""
    calls = re.compile(r"(?:^|[ /`])luthier ((?:run|sweep|compare) [^`\n#]*)", re.MULTILINE)
    texts = [path.read_text(encoding="utf-8") for path in sorted(FOLDER.iterdir())]
    return [
        shlex.split(line) for text in texts for line in calls.findall(text.replace("\\\n", " "))
    ]


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_commands_are_commands_with_these_options(words: list[str]) -> None:
    name, *rest = words
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {option for one in commands[name].params for option in one.opts}
    assert {word for word in rest if word.startswith("--")} <= options


def test_every_file_is_checked() -> None:
    known = {*SCRIPTS, *JOBS, "resumable.sh", "skypilot_volume.yaml"}
    assert {path.name for path in FOLDER.iterdir()} == known
    assert {words[0] for words in command_lines()} == {"run", "sweep", "compare"}
