"""The tuned model's tasks of lm-evaluation-harness against its base's: what is surely worse."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from luthier.evaluation.harness import Metric, TaskScores
from luthier.evaluation.harness_section import DISTRIBUTION, HarnessSection
from luthier.evaluation.statistics import PairedMeans, PairedTest, compare, compare_means, holm
from luthier.gates import Gate, check


def compare_harness(
    before: Sequence[TaskScores], after: Sequence[TaskScores], *, alpha: float
) -> dict[str, Any]:
    """The part `harness` of evaluation.json.

    Each metric that documents have values of is tested on the same documents: right or wrong by
    the exact McNemar test, other numbers by the paired t test. The verdicts allow for the number
    of tests (Holm), so that one false find among all is as rare as alpha.
    """
    tasks = {}
    for old, new in zip(before, after, strict=True):
        assert (old.task, old.asked) == (new.task, new.asked), "both are asked the same"
        tasks[old.task] = {
            "documents": old.documents,
            "num_fewshot": old.num_fewshot,
            "metrics": {
                one.name: _compare(one, other, alpha)
                for one, other in zip(old.metrics, new.metrics, strict=True)
            },
        }
    tested = [one for _, one in _tested(tasks)]
    for one, p_value in zip(tested, holm([one["test"]["p_value"] for one in tested]), strict=True):
        one["test"] |= {"p_adjusted": p_value, "verdict": _verdict(one, p_value, alpha)}
    return {"lm_eval": version(DISTRIBUTION), "tasks": tasks}


def _compare(old: Metric, new: Metric, alpha: float) -> dict[str, Any]:
    test: PairedTest | PairedMeans | None = None
    is_share = False
    if old.values is not None and new.values is not None:
        values = {*old.values, *new.values}
        is_share = min(values) >= 0 and max(values) <= 1
        if values <= {0.0, 1.0}:
            test = compare(
                [value == 1 for value in new.values],
                [value == 1 for value in old.values],
                alpha=alpha,
            )
        else:
            test = compare_means(new.values, old.values)
    return {
        "base": old.value,
        "tuned": new.value,
        "higher_is_better": old.higher_is_better,
        "is_share": is_share,
        "test": asdict(test) if test is not None else None,
    }


def _tested(tasks: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, task in tasks.items():
        for metric, one in task["metrics"].items():
            if one["test"] is not None:
                yield f"{name} {metric}", one


def _drop(one: dict[str, Any]) -> float:
    """By how much the tuned model is worse; negative where it is better."""
    difference = float(one["test"]["difference"])
    return -difference if one["higher_is_better"] else difference


def _verdict(one: dict[str, Any], p_adjusted: float, alpha: float) -> str:
    if p_adjusted >= alpha or _drop(one) == 0:
        return "cannot tell"
    return "worse" if _drop(one) > 0 else "better"


def harness_gates(found: dict[str, Any], section: HarnessSection) -> list[Gate]:
    """One gate: the largest drop among the metrics that are surely worse.

    Only shares count: max_drop says nothing of a metric on another scale.
    """
    shares = {name: one for name, one in _tested(found["tasks"]) if one["is_share"]}
    if not shares:
        detail = "no metric is a share with a value of each document: nothing was compared"
        return [check("harness-kept", 0.0, "<=", section.max_drop, detail)]
    sure = {name: one for name, one in shares.items() if one["test"]["verdict"] == "worse"}
    worst = max(sure or shares, key=lambda name: _drop(shares[name]))
    one = shares[worst]
    detail = (
        f"{worst}: {100 * one['tuned']:.1f} %, base {100 * one['base']:.1f} %, p "
        f"{one['test']['p_adjusted']:.2g} of {one['test']['rows']} documents; surely worse "
        f"{len(sure)} of {len(shares)}"
    )
    lost = _drop(one) if sure else 0.0
    return [check("harness-kept", round(lost, 6), "<=", section.max_drop, detail)]


def describe_harness(found: dict[str, Any]) -> list[str]:
    """A line a task and metric for the terminal."""
    lines = []
    for name, task in found["tasks"].items():
        for metric, one in task["metrics"].items():
            line = f"  {name}: {metric} {one['tuned']:.3f}, base {one['base']:.3f}"
            if one["test"]:
                low, high = one["test"]["interval"]
                line += f"; {one['test']['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
            lines.append(f"{line}, {task['documents']} documents")
    return lines
