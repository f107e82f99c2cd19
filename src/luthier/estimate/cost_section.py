"""The `cost:` section of a run config: prices with their date, and what is known of the use.

No stage: it makes nothing, and nothing that a stage makes depends on it.
"""

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import model_validator

from luthier.config import Field, Section
from luthier.estimate.cost import HOURS_PER_MONTH, MONTHS_PER_YEAR
from luthier.estimate.hardware import GPUS

# The framework's own, implausible, price is 11,485 USD for a million tokens: it can be tried.
_DEAREST_MILLION_USD = 100_000
# Eight of the dearest GPUs an hour are below 100 USD.
_DEAREST_HOUR_USD = 1000
# What is below it is a price of one token, or of a thousand, not of a million.
_CHEAPEST_MILLION_USD = 1e-3

TokenPrice = Annotated[float, Field(ge=0, le=_DEAREST_MILLION_USD)]
Tokens = Annotated[float, Field(gt=0)]
Money = Annotated[float, Field(ge=0)]


class ApiSection(Section):
    """A prompted model that is paid by the token."""

    price_usd_per_million_input_tokens: TokenPrice = Field(
        description="US dollars for a million tokens of prompts, as your provider bills them"
    )
    price_usd_per_million_output_tokens: TokenPrice = Field(
        description="US dollars for a million tokens of answers, as your provider bills them"
    )
    prompt_tokens: Tokens | None = Field(
        None,
        description="of a request, instruction and examples included; null: of the baseline's "
        "best prompt, measured, or foretold from baseline.few_shot",
    )
    answer_tokens: Tokens | None = Field(
        None, description="of an answer, reasoning included; null: as the tuned model's"
    )

    @model_validator(mode="after")
    def _is_for_a_million(self) -> Self:
        prices = (
            self.price_usd_per_million_input_tokens,
            self.price_usd_per_million_output_tokens,
        )
        if not any(prices):
            raise ValueError(
                "both prices are 0, so no volume would ever pay for a model of your own. Give "
                "what you pay for a million tokens"
            )
        small = [price for price in prices if 0 < price < _CHEAPEST_MILLION_USD]
        if small:
            raise ValueError(
                f"{small[0]:g} USD for a million tokens looks like the price of one token. "
                "Prices are for a million: multiply by 1,000,000"
            )
        return self


class RetrievalSection(Section):
    """What retrieval adds to prompting the API."""

    extra_input_tokens: Annotated[float, Field(ge=0)] = Field(
        0.0, description="retrieved text in a request's prompt"
    )
    price_usd_per_month: Money = Field(
        0.0, description="of the index and its server, whatever the volume"
    )

    @model_validator(mode="after")
    def _adds_something(self) -> Self:
        if not self.extra_input_tokens and not self.price_usd_per_month:
            raise ValueError(
                "must have extra_input_tokens or price_usd_per_month; without either it costs "
                "what the API alone costs"
            )
        return self


class OwnSection(Section):
    """The tuned model on GPUs that are paid by the hour."""

    # In the order of advice.questions.HardwareName: typing takes two unions for one that differ in
    # nothing but the order of a Literal, and gives whichever was made first.
    gpu: Literal[("cpu", *GPUS)] | None = Field(  # type: ignore[valid-type]
        None,
        description="what the price is of; null: of the GPU that measurements were made on",
    )
    price_usd_per_gpu_hour: Annotated[float, Field(gt=0, le=_DEAREST_HOUR_USD)] | None = Field(
        None, description="US dollars for one GPU for one hour, as you pay it"
    )
    price: Literal["example-table"] | None = Field(
        None, description="instead of your price: an example of what that GPU was rented for"
    )
    gpu_hours_per_month: Annotated[float, Field(ge=0, le=100 * HOURS_PER_MONTH)] = Field(
        HOURS_PER_MONTH,
        description="paid for whether used or not; 730: one GPU always on; 0: only use is paid",
    )
    whole_gpus: bool = Field(
        False,
        description="beyond gpu_hours_per_month as many hours again are paid at once, as where a "
        "second GPU is always on too",
    )
    utilisation: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the full load that your traffic reaches in the hours that are paid",
    )
    requests_per_second: Annotated[float, Field(gt=0)] | None = Field(
        None, description="of one GPU under full load, as you measured it; null: as measured here"
    )
    training_usd: Money | None = Field(
        None,
        description="all of making the model, labels and trials too if you like; null: training "
        "time, measured or foretold, at the price of a GPU hour",
    )
    amortisation_months: Annotated[float, Field(gt=0)] = Field(
        float(MONTHS_PER_YEAR), description="over which the training is paid off"
    )
    retrainings_per_year: Annotated[float, Field(ge=0)] = Field(
        0.0, description="each costs what the training costs"
    )

    @model_validator(mode="after")
    def _has_one_price(self) -> Self:
        if (self.price_usd_per_gpu_hour is None) == (self.price is None):
            raise ValueError(
                "must have price_usd_per_gpu_hour, what you pay, or price: example-table with "
                f"the name of a GPU (gpu: {', '.join(GPUS)}); one of the two"
            )
        if self.price is not None and self.gpu not in GPUS:
            raise ValueError(
                "price: example-table needs the name of the GPU. "
                f"Write gpu: one of {', '.join(GPUS)}"
            )
        if self.whole_gpus and not self.gpu_hours_per_month:
            raise ValueError(
                "whole_gpus says that gpu_hours_per_month are paid at once, and they are 0. "
                "Give the hours of one GPU, or remove whole_gpus"
            )
        return self


class CostSection(Section):
    """What `luthier cost` reckons with. It ships no prices: give yours, and their date."""

    priced_on: date = Field(description="day on which your prices held, such as 2026-11-01")
    api: ApiSection
    retrieval: RetrievalSection | None = None
    own: OwnSection
    prompt_tokens: Tokens | None = Field(
        None, description="of a request to the tuned model; null: as measured"
    )
    answer_tokens: Tokens | None = Field(
        None, description="of the tuned model's answer; null: as measured"
    )
    requests_per_month: Tokens | None = Field(None, description="your volume, if you know it")
    tokens_per_month: Tokens | None = Field(
        None, description="your volume in tokens of the tuned model's prompts and answers"
    )

    @model_validator(mode="after")
    def _has_one_volume(self) -> Self:
        if self.requests_per_month is not None and self.tokens_per_month is not None:
            raise ValueError(
                "must have requests_per_month or tokens_per_month, not both. Keep one"
            )
        return self
