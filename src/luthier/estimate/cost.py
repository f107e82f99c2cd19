"""What answering costs a month, by approach and volume, and from which volume an own model pays.

Volumes are requests a month. Prices are US dollars.

    monthly(API) = tokens x price, input and output priced separately, + what is fixed
    monthly(own) = max(hours paid for anyway, requests / throughput) x price of a GPU hour
                   + training / months of amortisation + retraining
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

MILLION = 1e6
SECONDS_PER_HOUR = 3600.0
MONTHS_PER_YEAR = 12
HOURS_PER_MONTH = 365 * 24 / MONTHS_PER_YEAR

# A step function is followed up to here; whoever rents more has other prices.
MOST_GPUS = 1000
# Two floats that differ by less than this share are the same volume.
_SAME = 1e-9


@dataclass(frozen=True)
class Asked:
    """Somebody else's model, paid by the token: prompted, or prompted with retrieved text."""

    name: str
    input_tokens: float
    """Of a request: instruction, examples, retrieved text and all."""
    output_tokens: float
    price_usd_per_million_input_tokens: float
    price_usd_per_million_output_tokens: float
    price_usd_per_month: float = 0.0
    """Fixed: a vector database, a subscription."""

    @property
    def usd_per_request(self) -> float:
        """Its tokens, each at its price."""
        paid = self.input_tokens * self.price_usd_per_million_input_tokens
        return (paid + self.output_tokens * self.price_usd_per_million_output_tokens) / MILLION

    def monthly_usd(self, requests: float) -> float:
        """Of this many requests a month."""
        return self.price_usd_per_month + requests * self.usd_per_request


@dataclass(frozen=True)
class Piece:
    """Requests from `start` to `end`, where the cost is `usd` + requests x `usd_per_request`."""

    start: float
    end: float
    usd: float
    usd_per_request: float


@dataclass(frozen=True)
class Own:
    """The own fine-tuned model on rented or bought GPUs."""

    name: str
    requests_per_second: float
    """Of one GPU under full load."""
    price_usd_per_gpu_hour: float
    training_usd: float
    gpu_hours_per_month: float = HOURS_PER_MONTH
    """Paid for whether used or not; 0 where only use is paid."""
    whole_gpus: bool = False
    """Beyond these hours as many again are paid, not only those that are needed."""
    utilisation: float = 1.0
    """Share of the full load that real traffic reaches in the hours that are paid."""
    amortisation_months: float = MONTHS_PER_YEAR
    retrainings_per_year: float = 0.0

    @property
    def requests_per_gpu_hour(self) -> float:
        """What one GPU answers in an hour of real traffic."""
        return self.requests_per_second * self.utilisation * SECONDS_PER_HOUR

    @property
    def usd_per_request(self) -> float:
        """The GPU time of one request; no more than this where all paid hours are used."""
        return self.price_usd_per_gpu_hour / self.requests_per_gpu_hour

    @property
    def retraining_usd(self) -> float:
        """A month's share of training again."""
        return self.training_usd * self.retrainings_per_year / MONTHS_PER_YEAR

    @property
    def fixed_usd(self) -> float:
        """A month's share of all training."""
        return self.training_usd / self.amortisation_months + self.retraining_usd

    def gpu_hours(self, requests: float) -> float:
        """Paid for this many requests a month."""
        needed = requests / self.requests_per_gpu_hour
        if self.whole_gpus:
            return max(1, math.ceil(needed / self.gpu_hours_per_month)) * self.gpu_hours_per_month
        return max(self.gpu_hours_per_month, needed)

    def running_usd(self, requests: float) -> float:
        """A month without the share of the first training."""
        return self.gpu_hours(requests) * self.price_usd_per_gpu_hour + self.retraining_usd

    def monthly_usd(self, requests: float) -> float:
        """Of this many requests a month."""
        return self.gpu_hours(requests) * self.price_usd_per_gpu_hour + self.fixed_usd

    def pieces(self) -> Iterator[Piece]:
        """The straight pieces of `monthly_usd`, without end where GPUs are whole."""
        capacity = self.gpu_hours_per_month * self.requests_per_gpu_hour
        paid_anyway = self.gpu_hours_per_month * self.price_usd_per_gpu_hour
        yield Piece(0.0, capacity, paid_anyway + self.fixed_usd, 0.0)
        if not self.whole_gpus:
            yield Piece(capacity, math.inf, self.fixed_usd, self.usd_per_request)
            return
        gpus = 1
        while True:
            usd = (gpus + 1) * paid_anyway + self.fixed_usd
            yield Piece(gpus * capacity, (gpus + 1) * capacity, usd, 0.0)
            gpus += 1


@dataclass(frozen=True)
class Crossover:
    """The volumes at which the own model costs less than another approach.

    `ranges`: from and to, in requests a month, in order; the last may end at infinity. There can
    be several: a further GPU makes a step, and beyond the hours paid anyway each request costs.
    `examined_to`: volumes beyond it were not looked at; infinity where all were.
    """

    ranges: tuple[tuple[float, float], ...]
    examined_to: float = math.inf

    @property
    def is_never(self) -> bool:
        """The other approach costs no more at any volume that was looked at."""
        return not self.ranges

    @property
    def is_always(self) -> bool:
        """The own model costs less at every volume."""
        return self.ranges == ((0.0, math.inf),)

    @property
    def first(self) -> float | None:
        """The lowest volume from which the own model costs less; None: never."""
        return self.ranges[0][0] if self.ranges else None

    @property
    def ends(self) -> tuple[float, ...]:
        """Every volume at which another approach becomes the cheaper one."""
        return tuple(end for pair in self.ranges for end in pair if 0 < end < math.inf)


def crossover(own: Own, asked: Asked) -> Crossover:
    """Where the own model costs less: solved piece by piece, so no crossing is overlooked."""
    last = _settled_from(own, asked) if own.whole_gpus else None
    found: list[tuple[float, float]] = []
    for number, piece in enumerate(own.pieces()):
        if last is not None and piece.start >= last:
            wins = own.usd_per_request < asked.usd_per_request
            return Crossover(_joined([*found, (piece.start, math.inf)] if wins else found))
        if number == MOST_GPUS:
            return Crossover(_joined(found), examined_to=piece.start)
        part = _cheaper(piece, asked)
        if part is not None:
            found.append(part)
    return Crossover(_joined(found))


def _settled_from(own: Own, asked: Asked) -> float:
    """With whole GPUs: the volume from which one side costs less whatever the step.

    The cost lies between the line of the used hours and a GPU's price above it.
    """
    step_usd = own.gpu_hours_per_month * own.price_usd_per_gpu_hour
    a_request = asked.usd_per_request - own.usd_per_request
    ahead = own.fixed_usd - asked.price_usd_per_month
    if a_request > 0:
        return max(0.0, (ahead + step_usd) / a_request)
    if ahead >= 0:
        return 0.0
    return ahead / a_request if a_request < 0 else math.inf


def _cheaper(piece: Piece, asked: Asked) -> tuple[float, float] | None:
    """The part of a piece that lies below the other approach's line."""
    slope = piece.usd_per_request - asked.usd_per_request
    room = asked.price_usd_per_month - piece.usd
    start, end = piece.start, piece.end
    if slope > 0:
        end = min(end, room / slope)
    elif slope < 0:
        start = max(start, room / slope)
    elif room <= 0:
        return None
    return (start, end) if end - start > _SAME * abs(start) else None


def _joined(ranges: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Ranges that touch become one."""
    whole: list[tuple[float, float]] = []
    for start, end in ranges:
        if whole and start - whole[-1][1] <= _SAME * start:
            whole[-1] = (whole[-1][0], end)
        else:
            whole.append((start, end))
    return tuple(whole)


def payback_months(own: Own, asked: Asked, requests: float) -> float | None:
    """Months until what is saved has paid the training; None where nothing is saved.

    Raises nothing: training that cost nothing is paid at once.
    """
    saved = asked.monthly_usd(requests) - own.running_usd(requests)
    return own.training_usd / saved if saved > 0 else None
