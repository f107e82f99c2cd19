"""How far the crossover moves when one input is half or twice what was assumed."""

from dataclasses import dataclass, replace

from luthier.estimate.cost import Asked, Crossover, Own, crossover

FACTORS = (0.5, 2.0)


@dataclass(frozen=True)
class Changed:
    """The crossover with one input changed to `value`."""

    value: float
    crossover: Crossover


@dataclass(frozen=True)
class Sensitivity:
    """One input: what it is, and the crossover at half and at twice that."""

    what: str
    value: float
    half: Changed
    twice: Changed


_OF_OWN = {
    "price of a GPU hour, USD": "price_usd_per_gpu_hour",
    "requests a second of one GPU": "requests_per_second",
    "utilisation": "utilisation",
    "GPU hours a month paid anyway": "gpu_hours_per_month",
    "training, USD": "training_usd",
    "months of amortisation": "amortisation_months",
}
_OF_ASKED = {
    "price of 1 M input tokens, USD": "price_usd_per_million_input_tokens",
    "price of 1 M output tokens, USD": "price_usd_per_million_output_tokens",
    "input tokens of a request": "input_tokens",
    "output tokens of a request": "output_tokens",
    "fixed price a month, USD": "price_usd_per_month",
}
_AT_MOST = {"utilisation": 1.0}


def sensitivity(own: Own, asked: Asked) -> list[Sensitivity]:
    """Each input that is not zero, at half and at twice; a utilisation is at most 1."""
    found = []
    for sides, names in ((own, _OF_OWN), (asked, _OF_ASKED)):
        for what, field in names.items():
            value = float(getattr(sides, field))
            if value:
                half, twice = (_changed(own, asked, field, value * factor) for factor in FACTORS)
                found.append(Sensitivity(what, value, half, twice))
    return found


def _changed(own: Own, asked: Asked, field: str, value: float) -> Changed:
    value = min(value, _AT_MOST.get(field, value))
    if field in _OF_OWN.values():
        return Changed(value, crossover(replace(own, **{field: value}), asked))  # type: ignore[arg-type]
    return Changed(value, crossover(own, replace(asked, **{field: value})))  # type: ignore[arg-type]
