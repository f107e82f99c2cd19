"""Tokens of a request and of its answer: of the tuned model, and of the prompted API."""

from dataclasses import dataclass

from luthier.costing.ground import Ground
from luthier.costing.known import Known
from luthier.stages.baseline import BaselineSection
from luthier.training.prediction import RowNumbers, numbers_of


@dataclass(frozen=True)
class Lengths:
    """In tokens, means over requests."""

    prompt: Known
    answer: Known
    api_prompt: Known
    api_answer: Known

    @property
    def task_tokens(self) -> float:
        """Of a request to the tuned model: what volumes are counted in."""
        return self.prompt.value + self.answer.value


def find_lengths(ground: Ground) -> Lengths:
    """What the section says, else what was measured, else what follows from that.

    Raises:
        ConfigError: the tuned model's lengths are neither given nor measured.
    """
    section = ground.section
    rows = None
    if section.prompt_tokens is None or section.answer_tokens is None:
        rows = _rows(ground)
    prompt = _tuned(ground, "prompt_tokens", rows)
    answer = _tuned(ground, "answer_tokens", rows)
    if section.api.answer_tokens is not None:
        api_answer = Known(section.api.answer_tokens, "yours")
    else:
        api_answer = Known(answer.value, answer.origin, "as the tuned model's")
    return Lengths(prompt, answer, _api_prompt(ground, prompt, answer), api_answer)


def _rows(ground: Ground) -> RowNumbers | None:
    dataset = ground.artifacts.get("prepare")
    return None if dataset is None else numbers_of(dataset.path)


def _tuned(ground: Ground, name: str, rows: RowNumbers | None) -> Known:
    said = getattr(ground.section, name)
    if said is not None:
        return Known(said, "yours")
    measured = ground.tuned.get(f"{name}_mean") if ground.tuned else None
    if measured is not None and ground.tuned is not None:
        return Known(measured, "measured", ground.tuned.where)
    if rows is not None:
        answer = rows.supervised_mean
        value = answer if name == "answer_tokens" else rows.mean - answer
        return Known(value, "measured", f"mean of {rows.rows:,} training rows")
    raise ground.unknown(
        f"cost.{name} is not known. Give it (tokens, the mean over your requests), or let it be "
        f"measured: luthier prepare {ground.config.path}, better luthier evaluate "
        f"{ground.config.path}"
    )


def _api_prompt(ground: Ground, prompt: Known, answer: Known) -> Known:
    said = ground.section.api.prompt_tokens
    if said is not None:
        return Known(said, "yours")
    measured = ground.prompted.get("prompt_tokens_mean") if ground.prompted else None
    if measured is not None and ground.prompted is not None:
        return Known(measured, "measured", ground.prompted.where)
    baseline = ground.config.sections.get("baseline")
    examples = baseline.few_shot if isinstance(baseline, BaselineSection) else 0
    value = prompt.value + examples * (prompt.value + answer.value)
    words = f"with {examples} examples of the mean length" if examples else "without examples"
    return Known(value, "predicted", f"the tuned model's prompt {words}")
