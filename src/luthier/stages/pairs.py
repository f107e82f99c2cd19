"""Stage `pairs`: the SFT adapter's own answers to training prompts become pairs for `dpo`."""

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from luthier.config import Field, Section
from luthier.data.dataset import read_info
from luthier.errors import ConfigError
from luthier.evaluation.asking import longest_reply
from luthier.evaluation.engine import Asked, Sampling
from luthier.evaluation.journal import collect
from luthier.evaluation.judging import JudgeSection, ask_judge
from luthier.evaluation.pair_rules import (
    RULES,
    Drawn,
    MadePair,
    Rule,
    Why,
    drawn_from,
    judged,
)
from luthier.evaluation.rows import load_rows
from luthier.evaluation.systems import LocalSystem, Prompt
from luthier.gates import check
from luthier.models.loading import load_tokenizer
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.stages.training import load_trained
from luthier.store.artifact import Workspace
from luthier.store.files import write_atomically

PAIRS_NAME = "pairs.jsonl"


class PairsSection(Section):
    """How many answers are drawn, and what makes one better than another."""

    rule: Rule = Field(
        "gold",
        description="gold: the expected reply against a wrong answer; valid_json: JSON against "
        "what is none; shorter: the shortest right answer against the longest; judge: by scores",
    )
    samples: int = Field(4, ge=1, le=64, description="random answers to each prompt")
    temperature: float = Field(1.0, gt=0, description="of drawing: higher is more varied")
    top_k: int = Field(50, ge=1, description="draw from so many of the likeliest tokens")
    max_new_tokens: int | None = Field(
        None, ge=1, description="of an answer, stop token included; null: longest reply + 8"
    )
    limit_rows: int | None = Field(None, ge=1, description="prompts, a sample of the train rows")
    min_pairs: int = Field(32, ge=1, description="fewer pairs fail the gate pairs-made")
    judge: JudgeSection | None = Field(None, description="of rule: judge")


_MARGIN_TOKENS = 8


def run(section: PairsSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Draw answers, make pairs of them by the rule, and write these with their provenance."""
    dataset, adapter = inputs["dataset"].path, inputs["adapter"]
    info = read_info(dataset)
    rows = load_rows(dataset, "train", section.limit_rows, inputs.seed)
    tokens = section.max_new_tokens or longest_reply(rows) + _MARGIN_TOKENS
    sampling = Sampling(section.samples, section.temperature, section.top_k, inputs.seed)
    base = inputs["base"]
    system = LocalSystem(
        "pairs",
        load_trained(base, adapter),
        load_tokenizer(base.path),
        Asked(tuple(info.stop_token_ids), tokens, sampling=sampling),
    )
    collected = collect(system, [Prompt(row.id, row.prompt_ids) for row in rows], workspace)
    drawn = [
        drawn_from(row, reply, info.labels, info.answer_regex)
        for row, reply in zip(rows, collected.replies, strict=True)
    ]
    made = _made(section, drawn, workspace)
    provenance = {
        "rule": section.rule,
        "adapter_digest": adapter.digest,
        "sampling": asdict(sampling),
    }
    lines = [
        _line(one, pair, provenance)
        for one, pair in zip(drawn, made, strict=True)
        if isinstance(pair, MadePair)
    ]
    write_atomically(workspace.path / PAIRS_NAME, "".join(lines))
    dropped = Counter(pair for pair in made if not isinstance(pair, MadePair))
    drawn_answers = len(rows) * (section.samples + 1)
    kept = sum(sum(one.counts) for one in drawn)
    workspace.reporter.say(
        f"  {len(lines)} pairs of {len(rows)} prompts; "
        + ", ".join(f"{why} {count}" for why, count in dropped.most_common())
    )
    return StageResult(
        metrics={
            "prompts": len(rows),
            "pairs": len(lines),
            "no_pair": dict(dropped),
            "answers": drawn_answers,
            "answers_cut_off_or_empty": drawn_answers - kept,
        },
        gates=[
            check(
                "pairs-made",
                len(lines),
                ">=",
                section.min_pairs,
                f"pairs made of {len(rows)} prompts with {section.samples} answers each",
            )
        ],
        facts={"max_new_tokens": tokens},
        timings_seconds={"drawing": collected.seconds},
    )


def _made(section: PairsSection, drawn: list[Drawn], workspace: Workspace) -> list[MadePair | Why]:
    if section.rule != "judge":
        return [RULES[section.rule](one) for one in drawn]
    assert section.judge is not None, "the check looked"
    several = [one for one in drawn if len(one.answers) > 1]
    judge = section.judge
    scored = iter(ask_judge(judge, several, "pairs.judge", workspace))
    return [
        judged(next(scored) if len(one.answers) > 1 else one, judge.min_margin) for one in drawn
    ]


def _line(drawn: Drawn, pair: MadePair, provenance: dict[str, Any]) -> str:
    row = {
        "prompt": list(drawn.row.messages[:-1]),
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "row": drawn.row.id,
        "provenance": provenance | dict(pair.facts),
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def _check(section: PairsSection, _filled: frozenset[str]) -> None:
    if (section.rule == "judge") != (section.judge is not None):
        raise ConfigError("pairs.rule: judge and pairs.judge belong together; give both or none.")


STAGE = Stage(
    name="pairs",
    order=45,
    summary="make pairs of the SFT adapter's own answers",
    makes="pairs",
    version=2,
    section=PairsSection,
    run=run,
    slots=(
        Slot("base", "base", ("base",)),
        Slot("dataset", "dataset", ("prepare",)),
        Slot("adapter", "adapter", ("sft",)),
    ),
    uses_seed=True,
    packages=("torch", "transformers", "peft", "bitsandbytes"),
    check=_check,
)
