"""What is to be served against the model that was measured: the same rows, the same verdict."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from luthier.evaluation.answers import Answer
from luthier.evaluation.shipping import Rule, against
from luthier.evaluation.speed import Speed
from luthier.evaluation.versus import compare_rows
from luthier.gates import Gate, check


@dataclass(frozen=True)
class Served:
    """One system that could be served: its answers to the rows, how fast it gave them, and of a
    server what asking took."""

    name: str
    answers: Sequence[Answer]
    speed: Speed | None
    requests: dict[str, Any] | None = None


@dataclass(frozen=True)
class Accepted:
    """The paired tests by system, for evaluation.json; the rules, the gates, and the lines."""

    summary: dict[str, Any]
    rules: list[Rule]
    gates: list[Gate]
    lines: list[str]


def accept_served(
    served: Sequence[Served],
    tuned: Sequence[Answer],
    *,
    max_drop: float,
    max_p95_seconds: float | None,
    alpha: float,
) -> Accepted:
    """Whether each answers as well as the tuned model did (no more than `max_drop` below, by the
    paired interval), and fast enough.

    Raises:
        DataError: one of them did not answer the rows that the tuned model did.
    """
    tests: dict[str, Any] = {}
    rules, gates, lines = list[Rule](), list[Gate](), list[str]()
    for one in served:
        test = compare_rows(one.answers, tuned, old_name="The tuned model", alpha=alpha)
        tests[one.name] = asdict(test)
        rule = against("as-tuned", "the tuned model", test, max_drop)
        rule = replace(rule, said=f"{one.name} {rule.said}")
        rules.append(rule)
        gates.append(check("as-tuned", rule.held, "!=", "broken", rule.said))
        lines.append(f"  {rule.said}")
        if max_p95_seconds is not None and one.speed is not None:
            rules.append(_fast(one.name, one.speed, max_p95_seconds))
    return Accepted(tests, rules, gates, lines)


def _fast(name: str, speed: Speed, limit: float) -> Rule:
    p95 = speed.request_seconds.p95
    said = f"{name} answers 95 % of {speed.requests} requests within {p95:.3f} s, limit {limit:g}"
    return Rule("fast-enough", "holds" if p95 <= limit else "broken", said)
