"""`luthier advise` as people use it: files of answers, measured runs, a terminal, no terminal."""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation_cases import chat_records, class_records
from luthier.advice.leaves import LEAVES
from luthier.advice.questions import QUESTIONS
from luthier.cli import call
from luthier.config import load_config
from luthier.data.dataset import read_info
from luthier.stages import discover
from project import ROOT, luthier

NARROW = {
    "needs_external_knowledge": False,
    "narrow_task": "classification",
    "labelled_examples": 1800,
}
STYLE = {"needs_external_knowledge": False, "narrow_task": "none", "consistent_style": True}

Advise = Callable[..., dict[str, Any]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTHIER_STORE", "artifacts")
    return tmp_path


def write_answers(folder: Path, answers: Mapping[str, Any]) -> None:
    (folder / "answers.yaml").write_text(yaml.safe_dump(dict(answers)), encoding="utf-8")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What `luthier advise ... --json` prints."""
    assert call(["advise", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_text_says_why_what_would_change_it_and_what_is_a_rule_of_thumb(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_answers(here, NARROW | {"hardware": "rtx-4090"})
    assert call(["advise", "--answers", "answers.yaml"]) == 0
    text = capsys.readouterr().out
    for said in (
        "Advice: Fine-tune a small model",
        "1,800 (your answer)",
        "if fewer than 1,000: Collect labels first",
        "not decided (nothing was measured)",
        "rule of thumb  for classification or extraction: 1,000",
        "your answer    1,800 examples",
        "method (rule of thumb)",
        "->  QLoRA",
        "luthier plan configs/tuned.yaml --on rtx-4090",
    ):
        assert said in text, said
    assert "DPO" not in text


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("answers", "leaf"),
    [
        ({"needs_external_knowledge": True, "format_beyond_prompting": True}, "hybrid"),
        ({"needs_external_knowledge": True, "format_beyond_prompting": False}, "retrieval"),
        (NARROW, "fine-tune-small-model"),
        (NARROW | {"labelled_examples": 999}, "collect-labels"),
        (STYLE | {"prompting_suffices": True}, "prompting"),
        (STYLE | {"prompting_suffices": False}, "fine-tune-style"),
        (
            STYLE | {"consistent_style": False, "latency_under_50_ms": True},
            "fine-tune-latency",
        ),
        (
            STYLE | {"consistent_style": False, "latency_under_50_ms": False},
            "retrieval-and-prompting",
        ),
    ],
)
def test_every_advice_is_printed_and_exits_0(
    answers: dict[str, Any], leaf: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_answers(here, answers)
    found = printed(capsys, "--answers", "answers.yaml")
    assert found["advice"] == leaf
    assert call(["advise", "--answers", "answers.yaml"]) == 0
    text = capsys.readouterr().out
    assert f"Advice: {found['title']}" in text
    assert f"next: {found['title']}" in text
    assert max(map(len, text.splitlines())) <= 100


def test_mistakes_in_the_answers_are_told_as_in_a_config(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "answers.yaml").write_text(
        "needs_external_knowledge: no\n"
        "narow_task: none\n"
        "narrow_task: chat\n"
        "labelled_examples: -1\n"
        "hardware: rtx-4080\n"
        "hardware: cpu\n",
        encoding="utf-8",
    )
    assert call(["advise", "--answers", "answers.yaml"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for said in (
        "answers.yaml:1: needs_external_knowledge must be true or false, got the text 'no'. "
        "Write false",
        "answers.yaml:2: narow_task is unknown. Did you mean narrow_task?",
        "answers.yaml:3: narrow_task must be 'classification', 'extraction' or 'none'",
        "answers.yaml:4: labelled_examples must be at least 0, got -1",
        "answers.yaml:5: hardware must be",
        "Did you mean rtx-4090?",
        "answers.yaml:6: hardware is given twice, first in line 5. Keep one",
    ):
        assert said in captured.err, said
    assert call(["advise", "--answers", "answer.yaml"]) == 2
    assert "Did you mean answers.yaml?" in capsys.readouterr().err


def test_without_a_terminal_the_missing_answers_are_named(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_answers(here, STYLE)
    assert call(["advise", "--answers", "answers.yaml"]) == 2
    error = capsys.readouterr().err
    assert "prompting_suffices: true or false" in error
    assert "--answers answers.yaml" in error
    assert "latency" not in error
    assert call(["advise"]) == 2
    error = capsys.readouterr().err
    needed, may_follow = error.split("What may be needed then")
    assert "needs_external_knowledge: true or false" in needed
    assert "narrow_task: classification or extraction or none" in may_follow
    assert "labelled_examples: a whole number" in may_follow
    assert call(["advise", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


def test_write_makes_a_config_of_the_rows_that_plan_takes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_answers(here, NARROW)
    (here / "my rows.jsonl").write_text('{"text": "a", "label": "b"}\n', encoding="utf-8")
    wanted = ["--answers", "answers.yaml", "--write", "configs/Router One.yaml"]
    assert call(["advise", *wanted, "--data", "my rows.jsonl"]) == 2
    assert "hardware: cpu or rtx-4090" in capsys.readouterr().err
    write_answers(here, NARROW | {"hardware": "cpu"})
    found = printed(capsys, *wanted, "--data", "my rows.jsonl")
    assert found["written"] == "configs/Router One.yaml"
    assert found["next"][1]["command"] == (
        "luthier run 'configs/Router One.yaml' --until baseline"
    )
    sections = {name: stage.section for name, stage in discover().items()}
    config = load_config(here / "configs" / "Router One.yaml", sections)
    assert config.name == "router-one"
    assert call(["plan", "configs/Router One.yaml", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert [step["stage"] for step in steps] == [
        "base", "prepare", "baseline", "sft", "evaluate", "merge", "export",
    ]  # fmt: skip


def test_nothing_that_is_there_is_overwritten(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_answers(here, NARROW | {"hardware": "rtx-4090"})
    (here / "old.yaml").write_text("name: mine\n", encoding="utf-8")
    (here / "broken-link.yaml").symlink_to("nowhere.yaml")
    for taken in ("old.yaml", "broken-link.yaml", "."):
        assert call(["advise", "--answers", "answers.yaml", "--write", taken]) == 2
        assert "is there already" in capsys.readouterr().err
    assert (here / "old.yaml").read_text(encoding="utf-8") == "name: mine\n"
    assert not (here / "nowhere.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "rows.jsonl"], "Give --write too"),
        (["--write", "new.yaml", "--data", "rows.jsonl"], "rows.jsonl: no such file"),
        (["--write", "answers.yaml/new.yaml"], "answers.yaml is no folder to write in"),
        (["--config", "run.yaml"], "run.yaml does not exist"),
        (["answers.yaml"], "unexpected extra argument"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_answers(here, NARROW | {"hardware": "rtx-4090"})
    answers = ["--answers", "answers.yaml"] if arguments[0].startswith("--") else []
    assert call(["advise", *answers, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_no_config_is_written_where_nothing_is_trained(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_answers(here, NARROW | {"labelled_examples": 10})
    assert call(["advise", "--answers", "answers.yaml", "--write", "new.yaml"]) == 0
    assert "Nothing written to new.yaml" in capsys.readouterr().out
    assert not (here / "new.yaml").exists()


CONFIG: dict[str, Any] = {
    "name": "animals",
    "prepare": {
        "task": "classification",
        "sources": [{"path": f"{name}.jsonl", "split": name} for name in ("train", "test")],
    },
    "baseline": {"few_shot": 0, "scoring": ["likelihood"], "target": {"value": 0.99}},
    "sft": {"per_device_batch_size": 8},
}


@pytest.fixture(scope="module")
def measured(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with 1,010 labelled rows and a baseline far from its target."""
    folder = tmp_path_factory.mktemp("measured")
    for name, count, first in (("train", 1010, 0), ("test", 120, 5000)):
        lines = (json.dumps(record) for record in class_records(count, first))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_config(folder, base={"model": str(tiny_base)})
    done = luthier(folder, "run", "run.yaml", "--until", "baseline")
    assert done.returncode == 0, done.stderr
    return folder


def write_config(folder: Path, name: str = "run.yaml", **sections: Any) -> None:
    known = folder / "run.yaml"
    old = yaml.safe_load(known.read_text(encoding="utf-8")) if known.exists() else CONFIG
    text = yaml.safe_dump({**old, **sections}, sort_keys=False)
    (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def project(measured: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(measured)
    monkeypatch.setenv("LUTHIER_STORE", "artifacts")
    return measured


def test_what_a_run_measured_is_not_asked_and_its_source_is_shown(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["advise", "--config", "run.yaml"]) == 2
    error = capsys.readouterr().err
    assert "needs_external_knowledge" in error
    assert "narrow_task" not in error
    assert "labelled_examples" not in error
    write_answers(project, {"needs_external_knowledge": False, "labelled_examples": 5})
    found = printed(capsys, "--config", "run.yaml", "--answers", "answers.yaml")
    assert found["advice"] == "fine-tune-small-model"
    steps = {step["question"]: step for step in found["path"]}
    assert steps["narrow_task"]["source"] == "animals/dataset@v1, task classification"
    assert steps["labelled_examples"]["source"] == "animals/dataset@v1, 1,010 train rows"
    assert steps["labelled_examples"]["answer"] == 1010
    assert steps["labelled_examples"]["beside"] == ("your answer was 5; what was measured counts")
    baseline = steps["prompting_suffices"]
    assert baseline["answer"] is False
    assert baseline["measured"]
    assert re.fullmatch(
        r"animals/evaluation@v1, [\d.]+ % "
        r"\(95 % interval [\d.]+ to [\d.]+ %, 120 rows\), target 99.0 %",
        baseline["source"],
    )
    shown = {one["what"]: one["found"] for one in found["measured"]}
    assert list(shown) == ["data", "classical", "prompting"]
    assert shown["data"] == ("animals/dataset@v1: task classification, 2 labels, 1,010 train rows")
    assert "base zero-shot, likeliest label, accuracy" in shown["prompting"]
    assert "target 99.0 % accuracy: " in shown["prompting"]
    assert "20 points or more" in shown["prompting"]
    commands = [step["command"] for step in found["next"]]
    assert commands == ["luthier plan run.yaml", "luthier run run.yaml"]


def test_a_baseline_near_its_target_says_prompting(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the answers say: the tree would train, or combine, without it."""
    write_config(project, "near.yaml", baseline=CONFIG["baseline"] | {"target": {"value": 0.01}})
    assert call(["baseline", "near.yaml"]) == 0
    capsys.readouterr()
    write_answers(project, {"needs_external_knowledge": False, "prompting_suffices": False})
    found = printed(capsys, "--config", "near.yaml", "--answers", "answers.yaml")
    assert found["advice"] == "prompting"
    assert found["path"][-1]["beside"] == "your answer was no; what was measured counts"
    assert found["next"][0]["command"] == "luthier report near.yaml"
    write_answers(project, {"needs_external_knowledge": True, "format_beyond_prompting": True})
    found = printed(capsys, "--config", "near.yaml", "--answers", "answers.yaml")
    assert found["advice"] == "retrieval"
    assert found["path"][-1]["measured"]


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        ({"target": None}, "no target"),
        ({"limit_rows": 50}, "too few rows"),
    ],
)
def test_a_baseline_that_cannot_tell_decides_nothing(
    baseline: dict[str, Any], said: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(project, "open.yaml", baseline=CONFIG["baseline"] | baseline)
    assert call(["baseline", "open.yaml"]) == 0
    capsys.readouterr()
    write_answers(project, {"needs_external_knowledge": False})
    found = printed(capsys, "--config", "open.yaml", "--answers", "answers.yaml")
    assert found["advice"] == "fine-tune-small-model"
    assert found["path"][-1]["answer"] is None
    assert said in found["path"][-1]["source"]


def test_rows_that_a_limit_left_over_are_not_all_there_are(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limited = CONFIG["prepare"] | {"limit": {"train": 100}}
    write_config(project, "limited.yaml", prepare=limited)
    assert call(["prepare", "limited.yaml"]) == 0
    capsys.readouterr()
    write_answers(project, {"needs_external_knowledge": False})
    assert call(["advise", "--config", "limited.yaml", "--answers", "answers.yaml"]) == 2
    error = capsys.readouterr().err
    assert "labelled_examples: a whole number" in error
    assert "100 train rows, as many as prepare.limit lets through" in error


def test_replay_rows_are_no_labels(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (json.dumps(record) for record in chat_records(30, 0))
    (project / "general.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    replay = {"path": "general.jsonl", "fraction": 0.02}
    write_config(project, "replay.yaml", prepare=CONFIG["prepare"] | {"replay": replay})
    assert call(["prepare", "replay.yaml", "--json"]) == 0
    made = Path(json.loads(capsys.readouterr().out)["path"])
    assert read_info(made).splits["train"] > 1010
    write_answers(project, {"needs_external_knowledge": False})
    found = printed(capsys, "--config", "replay.yaml", "--answers", "answers.yaml")
    assert found["labelled_examples"] == 1010


def test_answers_from_documents_need_knowledge_from_outside(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ROOT / "data" / "grounded_example"
    sources = [{"path": str(rows / f"{s}.jsonl"), "split": s} for s in ("train", "validation")]
    section = {"task": "grounded", "sources": sources, "max_length_tokens": 4096}
    write_config(project, "grounded.yaml", prepare=section)
    assert call(["prepare", "grounded.yaml"]) == 0
    capsys.readouterr()
    write_answers(project, {"needs_external_knowledge": False, "format_beyond_prompting": True})
    found = printed(capsys, "--config", "grounded.yaml", "--answers", "answers.yaml")
    assert found["advice"] == "hybrid"
    assert "task grounded: answers from documents" in found["path"][0]["source"]


def test_a_trained_run_shows_how_it_compared(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(
        project,
        "tuned.yaml",
        sft={"per_device_batch_size": 8, "max_steps": 3, "learning_rate": 0.02},
        evaluate={"scoring": ["likelihood"]},
        gates={"beats-baseline": "warn", "adapter-moved": "warn"},
    )
    assert call(["run", "tuned.yaml"]) == 0
    capsys.readouterr()
    write_answers(project, {"needs_external_knowledge": False})
    arguments = ["--config", "tuned.yaml", "--answers", "answers.yaml"]
    found = printed(capsys, *arguments)
    assert found["measured"][-1]["what"] == "tuned"
    assert re.match(
        r"animals/evaluation@v\d+: .* the best prompted baseline, base zero-shot, likeliest "
        r"label: [+-][\d.]+ points, .* \(exact McNemar, 120 rows\)",
        found["measured"][-1]["found"],
    )
    assert [step["command"] for step in found["next"]] == ["luthier report tuned.yaml"]
    assert call(["advise", *arguments]) == 0
    text = capsys.readouterr().out
    assert "  tuned        animals/evaluation@" in text
    assert "  measured       1,010 examples (animals/dataset@v1, " in text


def test_a_config_that_has_made_nothing_knows_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LUTHIER_STORE", "nowhere")
    write_answers(project, NARROW)
    found = printed(capsys, "--config", "run.yaml", "--answers", "answers.yaml")
    assert found["measured"] == []
    assert found["next"][0]["command"] == "luthier run run.yaml --until baseline"
    assert not (project / "nowhere").exists()


class Terminal:
    """`luthier advise` behind a pseudo-terminal, its keys and its screen."""

    def __init__(self, master: int, process: "subprocess.Popen[bytes]") -> None:
        self.master, self.process, self.raw = master, process, b""
        self.seen = 0

    @property
    def text(self) -> str:
        """All that was shown, without colours and movements."""
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw.decode(errors="replace"))
        return text.replace("\r", "")

    def read(self) -> bool:
        """Take what has come; False at the end."""
        ready, _, _ = select.select([self.master], [], [], 0.05)
        if not ready:
            return self.process.poll() is None
        try:
            new = os.read(self.master, 65536)
        except OSError:  # Linux says so when the other end is closed
            return False
        self.raw += new
        if b"\x1b[6n" in new:
            os.write(self.master, b"\x1b[1;1R")  # a terminal says where its cursor is
        return bool(new)

    def wait_for(self, words: str) -> None:
        """Read until these words are there, after what was waited for before."""
        deadline = time.monotonic() + 120
        while words not in self.text[self.seen :]:
            assert self.read(), f"{words!r} never came:\n{self.text}"
            assert time.monotonic() < deadline, self.text
        self.seen = self.text.index(words, self.seen) + len(words)

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self.read():
            pass
        return self.process.wait(60)


DOWN, ENTER, CTRL_C, CTRL_D = "\x1b[B", "\r", "\x03", "\x04"


@contextmanager
def terminal(folder: Path, *arguments: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier", "advise", *arguments],
        cwd=folder,
        env=os.environ | {"LUTHIER_STORE": "artifacts", "TERM": "xterm-256color"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_asking_with_arrows_and_enter(tmp_path: Path) -> None:
    with terminal(tmp_path, "--write", "new.yaml") as shown:
        shown.wait_for("Does it need outside knowledge")
        shown.press(DOWN + ENTER)
        shown.wait_for("?  no\n")
        shown.wait_for("Is it a narrow task")
        shown.press(DOWN + ENTER)
        shown.wait_for("?  extraction\n")
        shown.wait_for("How many labelled examples")
        shown.press("12k" + ENTER)
        shown.wait_for("a whole number, such as 1500")
        shown.press("\x7f00" + ENTER)
        shown.wait_for("?  1,200\n")
        shown.wait_for("What can it be trained on?")
        shown.press(ENTER)
        shown.wait_for("Advice: Fine-tune a small model")
        assert shown.end() == 0
        text = shown.text
    keep = text[text.index("your answers, to keep in answers.yaml") :].split("\n\n")[0]
    kept = yaml.safe_load("\n".join(keep.splitlines()[1:]))
    assert kept == {
        "needs_external_knowledge": False, "narrow_task": "extraction",
        "labelled_examples": 1200, "hardware": "cpu",
    }  # fmt: skip
    assert "luthier advise --config new.yaml --answers answers.yaml" in text
    assert "Written: new.yaml" in text
    assert "task: extraction" in (tmp_path / "new.yaml").read_text(encoding="utf-8")


def test_in_a_terminal_only_what_is_not_known_is_asked(measured: Path) -> None:
    with terminal(measured, "--config", "run.yaml") as shown:
        shown.wait_for("animals/dataset@v1")
        shown.wait_for("Does it need outside knowledge")
        shown.press("j" + ENTER)
        shown.wait_for("What can it be trained on?")
        shown.press(DOWN + DOWN + ENTER)
        shown.wait_for("Advice: Fine-tune a small model")
        assert shown.end() == 0
        assert (
            "Is it a narrow task whose answers can be checked against labels? (" not in shown.text
        )
        assert "luthier plan run.yaml --on a100-40gb" in shown.text


@pytest.mark.parametrize("keys", [CTRL_C, DOWN + ENTER + CTRL_C, DOWN + ENTER + ENTER + CTRL_D])
def test_ctrl_c_ends_it_with_exit_4_and_one_line(keys: str, tmp_path: Path) -> None:
    with terminal(tmp_path, "--write", "new.yaml") as shown:
        questions = iter(("Does it need", "Is it a narrow task", "How many"))
        shown.wait_for(next(questions))
        for key in re.findall(r"\x1b\[B|.", keys, re.DOTALL):
            shown.press(key)
            if key == ENTER:
                shown.wait_for(next(questions))
        assert shown.end() == 4
        assert "error: Stopped. Nothing was advised, nothing written." in shown.text
        assert "Traceback" not in shown.text
    assert not (tmp_path / "new.yaml").exists()


def test_nobody_is_asked_for_json(tmp_path: Path) -> None:
    with terminal(tmp_path, "--json") as shown:
        assert shown.end() == 2
        assert "An answer is missing" in shown.text
        assert "Arrows choose" not in shown.text


def test_the_page_shows_what_is_printed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "advise.md").read_text(encoding="utf-8")
    (answers,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (shown,) = re.findall(r"```\n\$ (luthier .*?)```", page, re.DOTALL)
    command, output = shown.split("\n", 1)
    (here / "answers.yaml").write_text(answers, encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "80")
    assert call(command.split()[1:]) == 0
    assert capsys.readouterr().out == output
    for name in (*QUESTIONS, *LEAVES):
        assert f"`{name}`" in page or f"**{name}**" in page, name
