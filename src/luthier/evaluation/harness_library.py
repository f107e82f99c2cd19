"""lm-eval as a library: silent, its templates in a sandbox, its errors as errors of a task."""

import importlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from io import StringIO
from typing import Any

from luthier.errors import DataError
from luthier.progress import Task
from luthier.store.artifact import Workspace

# What lm-eval, its templates and datasets raise when a task does not fit its data. A RuntimeError
# is none of those: it is torch's.
_TASK_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, TypeError,
    ValueError,
)  # fmt: skip


@contextmanager
def explained(task: str) -> Iterator[None]:
    """What a task that does not fit its data raises, as an error that names the task."""
    import jinja2
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (*_TASK_ERRORS, jinja2.TemplateError, DatasetsError) as error:
        known = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
        reason = str(known).strip().partition("\n")[0].rstrip(".") or "no reason is given"
        advice = "Correct the task's YAML or its data."
        if isinstance(error, ConnectionError):
            advice = "It needs its data set from the hub once; datasets keeps it."
        raise DataError(
            f"evaluate.harness: lm-eval cannot use the task {task}: {type(known).__name__}: "
            f"{reason}. {advice}"
        ) from error


class Bars:
    """Stands for tqdm in lm-eval: requests count for our own progress, the rest shows nothing."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace, self._total, self._done = workspace, 0, 0
        self._shown: Task | None = None

    @property
    def shown(self) -> Task | None:
        """Where progress shows."""
        return self._shown

    @shown.setter
    def shown(self, task: Task) -> None:
        self._shown, self._total, self._done = task, 0, 0

    def __call__(self, iterable: Iterable[Any] | None = None, **options: Any) -> Any:
        """As `tqdm(...)`: around an iterable, or with a `total` that is counted by `update`."""
        if iterable is not None:
            return iterable
        self._total += int(options.get("total") or 0)
        if self._shown is not None:
            self._shown.resize(self._total, self._done)
        return self

    def update(self, count: int = 1) -> None:
        """So many requests were answered."""
        self._done += count
        if self._shown is not None:
            self._shown.advance(count)
        self._workspace.raise_if_stopped()

    def close(self) -> None:
        """The requests of one kind are done."""


@contextmanager
def lm_eval_quietly(workspace: Workspace, is_local: bool) -> Iterator[Bars]:
    """lm-eval, silent, with sandboxed templates, and with copies of local data in the workspace.

    lm-eval 0.4.13 renders the templates of a task without a sandbox; they could reach Python.
    """
    import datasets
    import jinja2.sandbox
    import lm_eval.utils

    datasets.disable_progress_bars()

    class Sandbox(jinja2.sandbox.SandboxedEnvironment):
        """Of a document only what is text, number, list or mapping: a picture could be saved."""

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            known = type(obj).__module__.partition(".")[0] in ("builtins", "datetime", "jinja2")
            return known and super().is_safe_attribute(obj, attr, value)

    own, bars = lm_eval.utils.env, Bars(workspace)
    sandbox = Sandbox(undefined=own.undefined, keep_trailing_newline=own.keep_trailing_newline)
    sandbox.filters |= {"regex_replace": own.filters["regex_replace"]}
    with ExitStack() as stack:
        stack.callback(datasets.logging.set_verbosity, datasets.logging.get_verbosity())
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs, it raises too
        stack.enter_context(_replaced(lm_eval.utils, "env", sandbox))
        for name in ("lm_eval.models.huggingface", "lm_eval.api.model", "lm_eval.api.task"):
            stack.enter_context(_replaced(importlib.import_module(name), "tqdm", bars))
        if is_local:
            cache = workspace.scratch / "harness-data"
            stack.enter_context(_replaced(datasets.config, "HF_DATASETS_CACHE", cache))
        stack.enter_context(redirect_stdout(stack.enter_context(closing(StringIO()))))
        yield bars


@contextmanager
def _replaced(module: Any, name: str, value: object) -> Iterator[None]:
    own = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, own)
