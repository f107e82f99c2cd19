"""What a metric is: one decorated function, from the answers of one system to a JSON value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from luthier.data.rows import Task
from luthier.evaluation.answers import Answer
from luthier.evaluation.statistics import Interval, wilson_interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FREE: tuple[Task, ...] = ("extraction", "chat", "grounded", "completion", "text")


@dataclass(frozen=True)
class Answered:
    """The answers of one system, the labels they are about (none for free text), and the seed.

    `json_schema` is the text of the JSON Schema that extracted objects must follow, where known.
    """

    answers: Sequence[Answer]
    labels: Sequence[str]
    seed: int
    json_schema: str | None = None

    @cached_property
    def correct(self) -> int:
        """Rows answered correctly."""
        return sum(answer.correct for answer in self.answers)

    @cached_property
    def pairs(self) -> "NDArray[np.int64]":
        """Expected and predicted label index of each row; the last column index is `other`."""
        import numpy as np

        index = {label: place for place, label in enumerate(self.labels)}
        other = len(self.labels)
        return np.array(
            [
                (index[answer.expected], index.get(answer.predicted or "", other))
                for answer in self.answers
            ],
            dtype=np.int64,
        )

    @cached_property
    def confusion(self) -> "NDArray[np.int64]":
        """Counts [label expected, label predicted or other]."""
        import numpy as np

        size = len(self.labels)
        flat = np.bincount(
            self.pairs[:, 0] * (size + 1) + self.pairs[:, 1], minlength=size * (size + 1)
        )
        return flat.reshape(size, size + 1)


Measure = Callable[[Answered], Any]
IntervalOf = Callable[[Answered], Interval | None]


@dataclass(frozen=True)
class Metric:
    """A metric, the tasks it is for, and its 95 % interval where it has one.

    `is_score`: it goes from 0 to 1 and more is better, so a target can be set for it.
    """

    name: str
    tasks: frozenset[Task]
    measure: Measure
    interval: IntervalOf | None
    is_score: bool


METRICS: dict[str, Metric] = {}


def metric(
    *tasks: Task, interval: IntervalOf | None = None, is_score: bool = True
) -> Callable[[Measure], Measure]:
    """Register a function under its own name for these tasks."""

    def register(function: Measure) -> Measure:
        METRICS[function.__name__] = Metric(
            function.__name__, frozenset(tasks), function, interval, is_score
        )
        return function

    return register


def share_interval(answered: Answered) -> Interval:
    """Wilson's, of the rows that are answered correctly."""
    return wilson_interval(answered.correct, len(answered.answers))
