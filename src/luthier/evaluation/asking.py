"""What both evaluating stages do: ask one prompt form, read the replies as one or two systems."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.data.summary import DatasetInfo
from luthier.evaluation.answers import Answer, Reading, Scoring, generated, likeliest
from luthier.evaluation.engine import Asked
from luthier.evaluation.journal import Collected, collect
from luthier.evaluation.rows import AskedRow
from luthier.evaluation.speed import Speed, measure_speed, spread
from luthier.evaluation.systems import LocalSystem, Prompt, System
from luthier.store.artifact import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Plan:
    """The dataset's rows, how they are scored, and how long an answer may be; `all_labels`: see
    `Asked`."""

    info: DatasetInfo
    rows: Sequence[AskedRow]
    scoring: Sequence[Scoring]
    max_new_tokens: int
    reading: Reading
    all_labels: bool = False

    def asked(self, labels: Sequence[tuple[int, ...]]) -> Asked:
        """The engine's orders; free-text tasks are always generated and never scored by label."""
        return Asked(
            stop_token_ids=tuple(self.info.stop_token_ids),
            max_new_tokens=self.max_new_tokens if "generation" in self.scoring else 0,
            labels=tuple(labels) if "likelihood" in self.scoring else (),
            all_labels=self.all_labels,
        )


def local_speed(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    plan: Plan,
    prompts: Sequence[Prompt],
    spent: Collected,
    rows: int,
) -> Speed | None:
    """How fast a model in this process gives free answers; None for no rows or none given."""
    if not rows or "generation" not in plan.scoring:
        return None

    def make(max_new_tokens: int) -> LocalSystem:
        asked = Asked(tuple(plan.info.stop_token_ids), max_new_tokens)
        return LocalSystem("alone", model, tokenizer, asked)

    return measure_speed(make, spread(prompts, rows), plan.max_new_tokens, spent, tokenizer)


def usable_scoring(info: DatasetInfo, wanted: Sequence[Scoring]) -> list[Scoring]:
    """The wanted ways, without likelihood where there are no labels; never none."""
    ways = [way for way in wanted if way == "generation" or info.labels]
    return ways or ["generation"]


def longest_reply(rows: Sequence[AskedRow]) -> int:
    """Tokens of the longest expected reply, its stop token included."""
    return max(len(row.reference) for row in rows)


def ask(
    system: System, prompts: Sequence[Prompt], plan: Plan, workspace: Workspace
) -> tuple[dict[str, list[Answer]], Collected]:
    """All answers of one prompt form, by system `form/way`, and what it took."""
    collected = collect(system, prompts, workspace)
    labels, answers = plan.info.labels, dict[str, list[Answer]]()
    for way in plan.scoring:
        name = f"{system.name}/{way}"
        if way == "generation":
            answers[name] = generated(
                name,
                plan.rows,
                collected.replies,
                labels,
                plan.reading,
                answer_regex=plan.info.answer_regex,
            )
        else:
            answers[name] = likeliest(name, plan.rows, collected.replies, labels)
    return answers, collected
