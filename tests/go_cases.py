"""Runs `tests/go_template` with a real Go: the Go templates as Ollama executes them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from luthier.serving.golden import Conversation

PROGRAM = Path(__file__).parent / "go_template" / "main.go"


def go_prompts(
    templates: Sequence[str], conversations: Sequence[Conversation]
) -> list[dict[str, str]]:
    """For each template, the prompt of each conversation by its name."""
    wanted = {
        "templates": list(templates),
        "conversations": [
            [{"Role": message["role"], "Content": message["content"]} for message in one.messages]
            for one in conversations
        ],
    }
    done = subprocess.run(
        [_go(), "run", str(PROGRAM)],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "GO111MODULE": "off", "GOPROXY": "off", "GOTOOLCHAIN": "local"},
    )
    assert done.returncode == 0, done.stderr
    names = [one.name for one in conversations]
    return [dict(zip(names, row, strict=True)) for row in json.loads(done.stdout)]


def _go() -> str:
    beside = Path(sys.executable).parent / "go"  # of requirements/go.txt
    found = str(beside) if beside.exists() else shutil.which("go")
    assert found, "These tests need Go: make test installs it, so does apt-get install golang-go."
    return found
