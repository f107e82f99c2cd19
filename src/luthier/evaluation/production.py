"""The tuned model against the version that is in production, on the same rows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from luthier.evaluation.answers import Answer
from luthier.evaluation.asking import Plan, ask
from luthier.evaluation.journal import Collected
from luthier.evaluation.prompts import PromptForm, label_tokens, make_prompts
from luthier.evaluation.shipping import Rule, against
from luthier.evaluation.statistics import PairedTest
from luthier.evaluation.systems import LocalSystem
from luthier.evaluation.versus import compare_rows
from luthier.models.loading import load_model, load_tokenizer
from luthier.store.artifact import Artifact, Workspace

NAME = "production"


def ask_production(
    model: Artifact, plan: Plan, workspace: Workspace
) -> tuple[dict[str, list[Answer]], Collected]:
    """What the production model answers; the rows are rendered by its own template and tokenizer,
    and end where it ends."""
    tokenizer = load_tokenizer(model.path)
    prompts = make_prompts(PromptForm(plan.info.task, None), tokenizer, plan.rows)
    stops = model.manifest.facts["stop_token_ids"]
    of_its_own = replace(plan, info=plan.info.model_copy(update={"stop_token_ids": stops}))
    labels = label_tokens(tokenizer, of_its_own.info, plan.rows[0])
    system = LocalSystem(NAME, load_model(model.path), tokenizer, of_its_own.asked(labels))
    return ask(system, prompts, of_its_own, workspace)


def compare_production(
    new: Sequence[Answer],
    old: Sequence[Answer],
    ref: str,
    *,
    max_drop: float,
    alpha: float,
) -> tuple[dict[str, Any], Rule]:
    """The part `production` of evaluation.json, and the rule."""
    test = compare_rows(new, old, old_name="The production model", alpha=alpha)
    pairs = list(zip(new, old, strict=True))
    found = {
        "ref": ref,
        "test": asdict(test),
        "gained": [after.id for after, before in pairs if after.correct and not before.correct],
        "lost": [after.id for after, before in pairs if before.correct and not after.correct],
    }
    return found, against("not-worse-than-production", f"production ({ref})", test, max_drop)


def describe_production(found: Mapping[str, Any]) -> str:
    """A line for the terminal."""
    test = PairedTest(**found["test"])
    return (
        f"  against production {found['ref']}: {test.verdict}, {test.difference:+.3f} "
        "[{:+.3f}, {:+.3f}], ".format(*test.interval)
        + f"{len(found['gained'])} rows gained, {len(found['lost'])} lost"
    )
