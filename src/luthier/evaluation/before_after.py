"""The adapter before preference optimisation and after it, on the task and on held-out pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from luthier.evaluation.answers import Answer, generated
from luthier.evaluation.engine import Asked
from luthier.evaluation.held_out_pairs import HeldOutPair
from luthier.evaluation.journal import collect
from luthier.evaluation.metrics import Answered, key_hits, macro_f1_change
from luthier.evaluation.statistics import PairedTest, compare
from luthier.evaluation.systems import LocalSystem, Prompt
from luthier.gates import Gate, check
from luthier.store.artifact import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def ask_pairs(
    name: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: Sequence[HeldOutPair],
    asked: Asked,
    workspace: Workspace,
) -> tuple[list[Answer], list[int]]:
    """One system's answers to the pairs' prompts, and how many tokens each has with its stop."""
    system = LocalSystem(f"{name}-pairs", model, tokenizer, asked)
    rows = [pair.row for pair in pairs]
    prompts = [Prompt(row.id, row.prompt_ids) for row in rows]
    replies = collect(system, prompts, workspace).replies
    texts = tokenizer([reply.text for reply in replies], add_special_tokens=False)["input_ids"]
    answers = generated(f"{name}/pairs", rows, replies, [], "exact")
    return answers, [len(ids) + 1 for ids in texts]


def compare_task(
    before: Sequence[Answer],
    after: Sequence[Answer],
    labels: Sequence[str],
    *,
    alpha: float,
    seed: int,
) -> dict[str, Any]:
    """The part `kept` of evaluation.json: the paired test on the task's rows, of a task with
    labels the change of macro-F1, and of one that answers with JSON objects a test for each of
    their keys."""

    def paired(new: Sequence[bool], old: Sequence[bool]) -> PairedTest:
        return compare(new, old, alpha=alpha)

    whole = paired([one.correct for one in after], [one.correct for one in before])
    old, new = key_hits(before), key_hits(after)
    kept: dict[str, Any] = {
        "whole": asdict(whole),
        "keys": {key: asdict(paired(new[key], old[key])) for key in new},
    }
    if labels:
        kept["macro_f1"] = macro_f1_change(
            Answered(before, labels, seed), Answered(after, labels, seed)
        )
    return kept


def kept_gate(kept: Mapping[str, Any], max_task_drop: float) -> Gate:
    """Whether the score on the task's rows is not lost, of `compare_task`."""
    test = kept["whole"]
    low, high = test["interval"]
    return check(
        "task-score-kept",
        round(test["difference"], 6),
        ">=",
        -max_task_drop,
        f"change of the share of {test['rows']} task rows answered as expected, "
        f"{test['old_accuracy']:.3f} with the SFT adapter and {test['new_accuracy']:.3f} after "
        f"dpo; 95 % interval {low:+.3f} to {high:+.3f}",
    )


def describe_task(kept: Mapping[str, Any]) -> list[str]:
    """Lines for the terminal."""
    changes = [
        (name, test["old_accuracy"], test["new_accuracy"], test)
        for name, test in (("task", kept["whole"]), *kept["keys"].items())
    ]
    if change := kept.get("macro_f1"):
        changes.append(("macro-F1", change["old"], change["new"], change))
    return [
        f"  {name} after dpo: {new:.3f}, before {old:.3f}; {found['difference']:+.3f} "
        "[{:+.3f}, {:+.3f}]".format(*found["interval"])
        for name, old, new, found in changes
    ]
