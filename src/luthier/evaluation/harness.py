"""Tasks of lm-evaluation-harness on a model that is already loaded: its own `HFLM` and metrics.

What lm-eval decides is the score of each document; intervals and tests are made of those here.
"""

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from luthier.evaluation.harness_library import explained, lm_eval_quietly
from luthier.evaluation.harness_section import HarnessSection, task_manager
from luthier.store.artifact import Workspace
from luthier.store.journal import Journal

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH_ROWS = 8  # a constant: how rows are padded together can change the last digits


@dataclass(frozen=True)
class Metric:
    """One metric of a task: lm-eval's own figure, and each document's value where that figure is
    their mean."""

    name: str
    value: float
    higher_is_better: bool
    values: list[float] | None


@dataclass(frozen=True)
class TaskScores:
    """One model on one task. `asked` is a digest of all prompts."""

    task: str
    documents: int
    num_fewshot: int
    asked: str
    metrics: list[Metric]


class Harness:
    """The tasks of a section, loaded once and asked of every model."""

    def __init__(self, section: HarnessSection, seed: int, workspace: Workspace) -> None:
        """Load the tasks and their data.

        Raises:
            ConfigError, DataError: as `HarnessSection.check`; a task does not fit its data.
        """
        section.check()
        self._section, self._seed, self._workspace = section, seed, workspace
        with lm_eval_quietly(workspace, is_local=section.include_path is not None):
            self._tasks = self._load()

    def _load(self) -> "dict[str, ConfigurableTask]":
        tasks: dict[str, ConfigurableTask] = {}
        manager, wanted = task_manager(self._section.include_path), self._section.num_fewshot
        for name in self._section.tasks:
            with explained(name):
                tasks |= manager.load([name])["tasks"]
        for task in tasks.values():  # as lm_eval.simple_evaluate has it
            own = task.get_config("num_fewshot")
            if wanted is not None and own != 0:
                task.set_config(key="num_fewshot", value=wanted)
            elif own is None:
                task.set_config(key="num_fewshot", value=0)
        return tasks

    def ask(
        self, name: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
    ) -> list[TaskScores]:
        """Every task's scores; those that an interrupted run had finished are not asked again.

        Raises:
            DataError: a task does not fit its data.
            InterruptedRunError: a stop was requested; finished tasks are kept.
        """
        journal = Journal(self._workspace.scratch / f"harness-{name}.jsonl")
        scores = [_read(found) for found in journal.read()]
        left = list(self._tasks.items())[len(scores) :]
        if not left:
            return scores
        with lm_eval_quietly(self._workspace, self._section.include_path is not None) as bars:
            from lm_eval.models.huggingface import HFLM

            # HFLM gives its tokenizer a padding token, which is not for the other measures.
            lm = HFLM(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),
                backend="causal",
                batch_size=_BATCH_ROWS,
            )
            for leaf, task in left:
                with self._workspace.reporter.task(f"{name}: {leaf}", 0, "requests") as shown:
                    bars.shown = shown
                    found = self._ask_task(leaf, task, lm)
                journal.append(asdict(found))
                scores.append(found)
                self._workspace.raise_if_stopped()
        return scores

    def _ask_task(self, name: str, task: "ConfigurableTask", lm: Any) -> TaskScores:
        from lm_eval import evaluate
        from transformers import set_seed

        set_seed(self._seed)
        task.set_fewshot_seed(seed=self._seed)
        with explained(name):
            found = evaluate(
                lm=lm,
                task_dict={"tasks": {name: task}, "groups": {}},
                limit=self._section.limit,
                bootstrap_iters=0,
                log_samples=True,
                confirm_run_unsafe_code=self._section.trust_task_code,
            )
        return _scores(name, found)


def _scores(name: str, found: dict[str, Any]) -> TaskScores:
    """What is kept of lm-eval's result: a metric is called as lm-eval calls it, `acc`, and with
    its filter where the task has one, `exact_match,strict`."""
    samples, higher = found["samples"][name], found["higher_is_better"].get(name, {})
    metrics = []
    for key, value in found["results"][name].items():
        metric, comma, filter_ = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        values = [one.get(metric) for one in samples if one["filter"] == filter_]
        metrics.append(
            Metric(
                metric if filter_ == "none" else key,
                float(value),
                higher.get(metric) is not False,
                _numbers(values, float(value)),
            )
        )
    asked = _digest([(one["doc_hash"], one["prompt_hash"]) for one in samples])
    documents = len({one["doc_id"] for one in samples})
    return TaskScores(name, documents, int(found["n-shot"].get(name) or 0), asked, metrics)


def _digest(value: Sequence[Sequence[str]]) -> str:
    """SHA-256 of pairs of digests."""
    return hashlib.sha256("\n".join(map(" ".join, value)).encode()).hexdigest()


def _numbers(values: list[Any], mean: float) -> list[float] | None:
    """Each document's value, where there are such and the metric is their mean: a perplexity or an
    F1 over all documents is not."""
    if not values or not all(isinstance(value, int | float) for value in values):
        return None
    numbers = [float(value) for value in values]
    return numbers if math.isclose(fmean(numbers), mean, abs_tol=1e-9) else None


def _read(found: dict[str, Any]) -> TaskScores:
    return TaskScores(**{**found, "metrics": [Metric(**one) for one in found["metrics"]]})
