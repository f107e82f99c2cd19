"""What a config says of the tasks of lm-evaluation-harness, and what can be seen before a run."""

import difflib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.config import Field, Section
from luthier.errors import ConfigError, DataError
from luthier.evaluation.harness_files import data_files, refuse_code
from luthier.models.libraries import quiet_libraries

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Entry

DISTRIBUTION = "lm-eval"


class HarnessSection(Section):
    """Tasks of lm-evaluation-harness, asked of the tuned model and of its base."""

    tasks: list[str] = Field(min_length=1, description="names of tasks, groups or tags")
    include_path: Path | None = Field(
        None, description="folder with task YAMLs of your own; null: the tasks of lm-eval itself"
    )
    num_fewshot: int | None = Field(
        None,
        ge=0,
        description="examples before each question; null: as the task says. A task that says 0 "
        "keeps it",
    )
    limit: int | None = Field(
        None, ge=1, description="documents of each task, the first ones; null: all"
    )
    max_drop: float = Field(
        0.05, ge=0, le=1, description="share by which a task may surely be below the base"
    )
    trust_task_code: bool = Field(
        False,
        description="whether task YAMLs of include_path may run Python, and tasks what a model "
        "wrote",
    )

    def files(self) -> list[Path]:
        """What is read from outside the store: the folder, and the data that its tasks name."""
        if self.include_path is None:
            return []
        return [self.include_path, *data_files(self.include_path)]

    def check(self) -> None:
        """Find now what would stop the measurement later.

        Raises:
            ConfigError: lm-eval is not installed, or has no task of a name.
            DataError: a task YAML cannot be read, or a task would run code and is not trusted to.
        """
        require_lm_eval()
        if self.include_path is not None and not self.trust_task_code:
            refuse_code(self.include_path)
        manager = task_manager(self.include_path)
        known = set(manager.all_tasks)
        unknown = [name for name in self.tasks if name not in known]
        if unknown:
            raise ConfigError("\n".join(self._unknown(name, known) for name in unknown))
        unsafe = sorted(one for name in self.tasks for one in _unsafe(name, manager.task_index))
        if unsafe and not self.trust_task_code:
            raise DataError(
                f"evaluate.harness.tasks: {', '.join(unsafe)} would run what the model writes on "
                "this machine. Remove it, or set evaluate.harness.trust_task_code: true."
            )

    def _unknown(self, name: str, known: set[str]) -> str:
        where = f"in {self.include_path}" if self.include_path else "of lm-eval"
        close = difflib.get_close_matches(name, known, n=1)
        if close:
            hint = f"Did you mean {close[0]}?"
        elif self.include_path:
            hint = f"There are: {', '.join(sorted(known)) or 'none'}."
        else:
            hint = "`lm-eval ls tasks` lists them; tasks of your own need include_path."
        return f"evaluate.harness.tasks: there is no task {name} {where}. {hint}"


def require_lm_eval() -> None:
    """Raises ConfigError, with the command that installs it, when lm-eval is not here."""
    import importlib.util

    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "evaluate.harness needs lm-eval, which is not installed. Install it with\n"
            "  pip install 'luthier[harness]'\n"
            "or remove evaluate.harness."
        )


def _unsafe(name: str, index: "dict[str, Entry]") -> set[str]:
    """The tasks of a name that run what a model wrote."""
    entry = index.get(name)
    if entry is None:
        return set()
    config = entry.cfg or {}
    if config.get("unsafe_code"):
        return {name}
    parts = config["task"] if isinstance(config.get("task"), list) else []
    if entry.cfg is None:  # a tag
        parts = sorted(entry.tags)
    names = [one if isinstance(one, str) else one.get("task") for one in parts]
    return {found for one in names if isinstance(one, str) for found in _unsafe(one, index)}


@lru_cache(maxsize=1)
def _own_tasks() -> "TaskManager":
    """14,000 tasks, whose YAMLs are read in 6 s."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def task_manager(include_path: Path | None) -> "TaskManager":
    """The tasks of a folder, or those of lm-eval; lm-eval passes over what it cannot read."""
    quiet_libraries()
    if include_path is None:
        return _own_tasks()
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path, include_defaults=False)
