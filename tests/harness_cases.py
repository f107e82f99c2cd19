"""Task YAMLs for the tests of lm-evaluation-harness."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from luthier.evaluation.harness_section import HarnessSection

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "data" / "harness"
QUESTIONS = ROOT / "data" / "retention" / "questions.jsonl"
TASK: dict[str, Any] = yaml.safe_load((SHIPPED / "general_questions.yaml").read_text())
MakeTasks = Callable[..., Path]


def task_maker(folder: Path) -> MakeTasks:
    """Writes the shipped task into a folder, changed, with lines of text after it."""

    def call(text: str = "", **changes: Any) -> Path:
        folder.mkdir(exist_ok=True)
        content = yaml.safe_dump({**TASK, **changes}, sort_keys=False)
        (folder / "mine.yaml").write_text(content + text)
        return folder

    return call


def section(folder: Path = SHIPPED, **options: Any) -> HarnessSection:
    return HarnessSection(tasks=["general_questions"], include_path=folder, **options)
