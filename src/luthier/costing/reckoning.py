"""From a run config and what it has made to the approaches whose costs are compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from luthier.config import RunConfig
from luthier.costing.ground import Ground
from luthier.costing.known import Assumption, Known, is_priced
from luthier.costing.lengths import Lengths, find_lengths
from luthier.costing.training import training_cost
from luthier.errors import ConfigError
from luthier.estimate.cost import Asked, Own, crossover
from luthier.estimate.cost_section import CostSection, OwnSection
from luthier.estimate.hardware import GPUS
from luthier.estimate.throughput import predict_throughput
from luthier.planning import PlannedStep

API, RETRIEVAL, OWN = "API", "retrieval + API", "own model"
_VOLUMES_TOKENS = (1e6, 5e6, 10e6, 50e6, 100e6)
# From half a year on the reader is told how old the prices are.
_OLD_DAYS = 180


@dataclass(frozen=True)
class Costing:
    """The approaches, what they were made of, and what a reader must know of that."""

    name: str
    priced_on: date
    asked: tuple[Asked, ...]
    own: Own
    task_tokens: float
    """Of a request to the tuned model, prompt and answer."""
    requests_per_month: float | None
    """The user's volume."""
    assumptions: tuple[Assumption, ...]
    notes: tuple[str, ...]

    @property
    def approaches(self) -> tuple[Asked | Own, ...]:
        """All that are compared, the own model last."""
        return (*self.asked, self.own)

    @property
    def volumes(self) -> list[float]:
        """Requests a month worth a line: round token counts, the user's, around crossovers."""
        found = {tokens / self.task_tokens for tokens in _VOLUMES_TOKENS}
        for asked in self.asked:
            for end in crossover(self.own, asked).ends[:1]:
                found |= {end / 2, end, 2 * end}
        if self.requests_per_month is not None:
            found.add(self.requests_per_month)
        return sorted(found)


def reckon(config: RunConfig, steps: Sequence[PlannedStep], today: date) -> Costing:
    """What a config's `cost:` section and its artifacts say.

    Raises:
        ConfigError: there is no such section, or a number is neither given nor known.
        ModelError: a prediction is needed, and none is known for this kind of model.
    """
    section = config.sections.get("cost")
    if not isinstance(section, CostSection):
        raise ConfigError(
            f"{config.path}: there is no section cost, and luthier ships no prices. Write one "
            "with priced_on, api and own; docs/cost.md has an example"
        )
    ground = Ground(config, section, steps)
    price = _price(section)
    lengths = find_lengths(ground)
    requests_per_second = _throughput(ground, lengths)
    training = training_cost(ground, price.value)
    own = _own(section.own, price, requests_per_second, training)
    volume = section.requests_per_month
    if section.tokens_per_month is not None:
        volume = section.tokens_per_month / lengths.task_tokens
    return Costing(
        name=config.name,
        priced_on=section.priced_on,
        asked=_asked(section, lengths),
        own=own,
        task_tokens=lengths.task_tokens,
        requests_per_month=volume,
        assumptions=(
            *_assumed_of_asked(section, lengths),
            Assumption("price of a GPU hour", "USD", price),
            Assumption("requests of one GPU", "a second", requests_per_second),
            Assumption("training", "USD", training),
            *_assumed_of_use(section.own),
        ),
        notes=(*_notes(section, price, today), *ground.notes),
    )


def _asked(section: CostSection, lengths: Lengths) -> tuple[Asked, ...]:
    api = Asked(
        name=API,
        input_tokens=lengths.api_prompt.value,
        output_tokens=lengths.api_answer.value,
        price_usd_per_million_input_tokens=section.api.price_usd_per_million_input_tokens,
        price_usd_per_million_output_tokens=section.api.price_usd_per_million_output_tokens,
    )
    if section.retrieval is None:
        return (api,)
    retrieval = Asked(
        name=RETRIEVAL,
        input_tokens=api.input_tokens + section.retrieval.extra_input_tokens,
        output_tokens=api.output_tokens,
        price_usd_per_million_input_tokens=api.price_usd_per_million_input_tokens,
        price_usd_per_million_output_tokens=api.price_usd_per_million_output_tokens,
        price_usd_per_month=section.retrieval.price_usd_per_month,
    )
    return (api, retrieval)


def _own(section: OwnSection, price: Known, requests_per_second: Known, training: Known) -> Own:
    return Own(
        name=OWN,
        requests_per_second=requests_per_second.value,
        price_usd_per_gpu_hour=price.value,
        training_usd=training.value,
        gpu_hours_per_month=section.gpu_hours_per_month,
        whole_gpus=section.whole_gpus,
        utilisation=section.utilisation,
        amortisation_months=section.amortisation_months,
        retrainings_per_year=section.retrainings_per_year,
    )


def _price(section: CostSection) -> Known:
    own = section.own
    if own.price_usd_per_gpu_hour is not None:
        return Known(own.price_usd_per_gpu_hour, "yours", f"of {section.priced_on}")
    hardware = GPUS[str(own.gpu)]
    assert hardware.price_usd_per_hour is not None, "every GPU of the table has a price"
    detail = f"{hardware.name}, {hardware.price_source}"
    return Known(hardware.price_usd_per_hour, "example table", detail)


def _throughput(ground: Ground, lengths: Lengths) -> Known:
    own, speed = ground.section.own, ground.tuned
    if own.requests_per_second is not None:
        return Known(own.requests_per_second, "yours")
    measured = speed.get("batched_requests_per_second") if speed else None
    if speed is not None and measured is not None:
        if is_priced(speed.gpu, own.gpu):
            return Known(measured, "measured", speed.where)
        ground.notes.append(
            f"{measured:.3g} requests a second were measured ({speed.where}). That is no speed "
            f"of {own.gpu or 'a GPU'}, so no cost is reckoned with it"
        )
    return _foretold_throughput(ground, lengths)


def _foretold_throughput(ground: Ground, lengths: Lengths) -> Known:
    own = ground.section.own
    if own.gpu not in GPUS:
        raise ground.unknown(
            "cost.own.requests_per_second is not known: nothing measured it on what is priced. "
            f"Give it, or name the GPU to foretell it for (cost.own.gpu: {', '.join(GPUS)})"
            + ("; cost.own.gpu: cpu takes what a CPU measured" if own.gpu is None else "")
        )
    if ground.architecture is None:
        raise ground.unknown(
            "cost.own.requests_per_second is not known and cannot be foretold before the base is "
            f"here. Give it, or run: luthier base {ground.config.path}"
        )
    found = predict_throughput(
        ground.architecture, GPUS[str(own.gpu)], lengths.prompt.value, lengths.answer.value
    )
    detail = f"at most, {own.gpu}, {found.requests_together} requests at a time, 16 bits"
    return Known(found.requests_per_second, "predicted", detail)


def _assumed_of_asked(section: CostSection, lengths: Lengths) -> list[Assumption]:
    on, api = f"of {section.priced_on}", section.api
    found = [
        Assumption("prompt of the tuned model", "tokens", lengths.prompt),
        Assumption("answer of the tuned model", "tokens", lengths.answer),
        Assumption("prompt of the API", "tokens", lengths.api_prompt),
        Assumption("answer of the API", "tokens", lengths.api_answer),
        Assumption(
            "price of 1 M input tokens",
            "USD",
            Known(api.price_usd_per_million_input_tokens, "yours", on),
        ),
        Assumption(
            "price of 1 M output tokens",
            "USD",
            Known(api.price_usd_per_million_output_tokens, "yours", on),
        ),
    ]
    if section.retrieval is not None:
        retrieved = Known(section.retrieval.extra_input_tokens, "yours")
        fixed = Known(section.retrieval.price_usd_per_month, "yours", on)
        found += [
            Assumption("retrieved text in a prompt", "tokens", retrieved),
            Assumption("retrieval, fixed", "USD a month", fixed),
        ]
    return found


def _assumed_of_use(own: OwnSection) -> list[Assumption]:
    words = "as many again beyond that, whole GPUs" if own.whole_gpus else "more as needed"
    rows = (
        ("GPU hours paid anyway", "a month", "gpu_hours_per_month", words),
        ("utilisation of a GPU", "of full load", "utilisation", ""),
        ("amortisation of training", "months", "amortisation_months", ""),
        ("trained again", "times a year", "retrainings_per_year", ""),
    )
    return [
        Assumption(
            what,
            unit,
            Known(
                getattr(own, field),
                "yours" if field in own.model_fields_set else "default",
                detail,
            ),
        )
        for what, unit, field, detail in rows
    ]


def _notes(section: CostSection, price: Known, today: date) -> list[str]:
    found = []
    days = (today - section.priced_on).days
    if days < 0:
        found.append(f"cost.priced_on {section.priced_on} lies in the future: is it a mistake?")
    if days > _OLD_DAYS:
        found.append(f"your prices are {days} days old: look whether they still hold")
    if price.origin == "example table":
        found.append(f"the price of a GPU hour is an example, not an offer: {price.detail}")
    if section.own.gpu is None and section.own.requests_per_second is None:
        found.append(
            "cost.own.gpu is not given: the price is taken to be that of the GPU that was measured"
        )
    if section.api.prompt_tokens is None:
        found.append(
            "tokens are counted by the base's tokenizer; your provider's counts the same text "
            "differently"
        )
    return found
