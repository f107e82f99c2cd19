"""What a config says about evaluating the tuned model."""

from typing import Literal

from luthier.config import Field, Section, result_free
from luthier.evaluation.answers import Scoring
from luthier.evaluation.harness_section import HarnessSection
from luthier.evaluation.judging import JudgeSection
from luthier.evaluation.retention import RetentionSection
from luthier.evaluation.shipping import ShipSection


class EvaluateSection(Section):
    """The base with its adapter on rows that it was not trained on."""

    split: Literal["test", "validation"] = Field(
        "test",
        description="rows of the dataset that are answered; on validation candidates are chosen, "
        "and nothing is said of shipping",
    )
    scoring: list[Scoring] = Field(
        ["generation", "likelihood"],
        min_length=1,
        description="free answers, and for classification the likeliest label; "
        "the first is what is compared with the baseline",
    )
    all_label_scores: bool = Field(
        False,
        description="score every label of a classification in full, also those that cannot be the "
        "likeliest: slower, for rankings and thresholds of your own",
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="of a free answer, stop token included; null: longest reply + 4"
    )
    retention: RetentionSection | None = Field(
        None, description="what is left of what the base could do; null: not measured"
    )
    harness: HarnessSection | None = Field(
        None, description="tasks of lm-evaluation-harness that must not be lost; null: none"
    )
    judge: JudgeSection | None = Field(
        None, description="says which answer is better, the tuned model's or the best baseline's"
    )
    ship: ShipSection = Field(
        default_factory=ShipSection, description="the rules by which the tuned model is shipped"
    )
    speed_rows: int = Field(
        8,
        ge=0,
        description="rows that are asked one at a time, for their seconds; 0: none",
        json_schema_extra=result_free,
    )
    alpha: float = Field(
        0.05, gt=0, lt=1, description="level of the paired test against the baseline"
    )
    limit_rows: int | None = Field(
        None, ge=1, description="evaluate a sample of this many rows; as baseline.limit_rows"
    )
    max_task_drop: float = Field(
        0.02,
        ge=0,
        le=1,
        description="by how much dpo may lower the share of rows answered as expected",
    )
    max_over_refusal: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of the held-out pairs' requests to be answered that dpo may have "
        "refused",
    )
    max_length_growth: float = Field(
        1.25,
        gt=0,
        description="how many times as long as before dpo, or as the chosen replies, the answers "
        "to the held-out pairs' prompts may be",
    )
