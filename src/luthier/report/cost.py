"""`luthier cost` on a terminal and as JSON."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.costing import Assumption, Costing
from luthier.estimate.cost import Asked, Crossover, crossover, payback_months
from luthier.estimate.sensitivity import Changed, sensitivity
from luthier.report import spelling
from luthier.report.terminal import columns, facts, heading, indented, printing

if TYPE_CHECKING:
    from rich.console import Console

_RANGES_SHOWN = 3
_LEAST_SHOWN_MONTHS = 0.1
PAID_BACK = "Paid back: months until what is saved has paid the training."
# Costs that differ by less are the same: at a crossover both are the cheapest.
_SAME = 1e-9


def print_cost(costing: Costing, page: Path | None = None) -> None:
    """Print assumptions with their source, costs by volume, crossovers and their sensitivity."""
    with printing() as console:
        console.print(f"{costing.name}: monthly cost in USD, your prices of {costing.priced_on}")
        heading(console, "assumptions")
        _print_assumptions(console, costing)
        for note in costing.notes:
            console.print(f"  note: {note}.")
        heading(console, "cost of a month, USD; * is the cheapest")
        _print_volumes(console, costing)
        console.print(f"  {counted(costing)}")
        console.print(f"  {PAID_BACK}")
        heading(console, "crossover")
        facts(console, ((asked.name, verdict(costing, asked)) for asked in costing.asked))
        for asked in costing.asked:
            heading(console, f"sensitivity: the own model costs less than {asked.name}")
            _print_sensitivity(console, costing, asked)
        if page is not None:
            console.print()
            console.print(f"  page         {page}", soft_wrap=True)


def cost_json(costing: Costing) -> dict[str, Any]:
    """The same as JSON values; a range without end has null there."""
    return {
        "name": costing.name,
        "priced_on": costing.priced_on.isoformat(),
        "assumptions": [
            {"what": one.what, "unit": one.unit, **asdict(one.known)}
            for one in costing.assumptions
        ],
        "notes": list(costing.notes),
        "tokens_per_request": costing.task_tokens,
        "volumes": [_volume_json(costing, requests) for requests in costing.volumes],
        "crossover": {
            asked.name: _crossover_json(costing, crossover(costing.own, asked))
            for asked in costing.asked
        },
        "sensitivity": {
            asked.name: [
                {
                    "what": one.what,
                    "value": one.value,
                    "half": _changed_json(costing, one.half),
                    "twice": _changed_json(costing, one.twice),
                }
                for one in sensitivity(costing.own, asked)
            ]
            for asked in costing.asked
        },
    }


def _volume_json(costing: Costing, requests: float) -> dict[str, Any]:
    return {
        "requests_per_month": requests,
        "tokens_per_month": requests * costing.task_tokens,
        "usd": usd_by_approach(costing, requests),
        "cheapest": cheapest(costing, requests),
        "payback_months": {
            asked.name: payback_months(costing.own, asked, requests) for asked in costing.asked
        },
    }


def _crossover_json(costing: Costing, found: Crossover) -> dict[str, Any]:
    tokens = costing.task_tokens
    return {
        "verdict": _word(found),
        "requests_per_month": [[low, _finite(high)] for low, high in found.ranges],
        "tokens_per_month": [[low * tokens, _finite(high * tokens)] for low, high in found.ranges],
        "examined_to_requests": _finite(found.examined_to),
    }


def _changed_json(costing: Costing, changed: Changed) -> dict[str, Any]:
    return {"value": changed.value} | _crossover_json(costing, changed.crossover)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _word(found: Crossover) -> str:
    if found.is_never:
        return "never"
    if found.is_always:
        return "always"
    (_, high), *more = found.ranges
    return "from" if not more and high == math.inf else "ranges"


def usd_by_approach(costing: Costing, requests: float) -> dict[str, float]:
    """A month's cost by approach, the own model last."""
    return {one.name: one.monthly_usd(requests) for one in costing.approaches}


def cheapest(costing: Costing, requests: float) -> list[str]:
    """The cheapest approach; at a crossover, both."""
    costs = usd_by_approach(costing, requests)
    least = min(costs.values())
    return [name for name, usd in costs.items() if usd <= least * (1 + _SAME)]


def _print_assumptions(console: "Console", costing: Costing) -> None:
    table = columns(console, ("what", "value", "unit", "source"), right=("value",))
    for one in costing.assumptions:
        table.add_row(one.what, spell_number(one.known.value), one.unit, source(one))
    indented(console, table)


def source(assumption: Assumption) -> str:
    """Where a number is from: `measured (evaluate, tuned/generation, on a CPU)`."""
    known = assumption.known
    return f"{known.origin} ({known.detail})" if known.detail else known.origin


def _print_volumes(console: "Console", costing: Costing) -> None:
    names, rows = volume_rows(costing)
    table = columns(console, names, right=names)
    for row in rows:
        table.add_row(*row)
    indented(console, table)


def volume_rows(costing: Costing) -> tuple[list[str], list[list[str]]]:
    """Column names, and a row of texts for each volume; the cheapest has a star."""
    approaches = [one.name for one in costing.approaches]
    paid = [f"paid back: {asked.name}" for asked in costing.asked]
    rows = []
    for requests in costing.volumes:
        best = cheapest(costing, requests)
        costs = usd_by_approach(costing, requests)
        rows.append(
            [
                spell_volume(requests * costing.task_tokens),
                spelling.count(requests),
                *(f"{'* ' if name in best else ''}{usd:,.2f}" for name, usd in costs.items()),
                *(
                    spell_months(payback_months(costing.own, asked, requests))
                    for asked in costing.asked
                ),
            ]
        )
    return ["tokens a month", "requests", *approaches, *paid], rows


def counted(costing: Costing) -> str:
    """What a token of the volumes is."""
    return (
        f"Tokens are those of the tuned model's prompts and answers, "
        f"{spell_number(costing.task_tokens)} a request; each approach pays its own for the same "
        "requests."
    )


def verdict(costing: Costing, asked: Asked) -> str:
    """From which volume on the own model costs less, in a sentence."""
    found = crossover(costing.own, asked)
    said = f"the own model costs less {spell_crossover(costing, found)}"
    if found.is_never or found.is_always:
        return said
    said += " tokens a month"
    if found.first:
        said += f", that is from {spelling.count(math.ceil(found.first))} requests"
    if _word(found) == "ranges":
        said += "; outside, further GPU hours make it the dearer one"
    return said


def _print_sensitivity(console: "Console", costing: Costing, asked: Asked) -> None:
    names, rows = sensitivity_rows(costing, asked)
    table = columns(console, names, right=("as it is", "half", "twice"))
    for row in rows:
        table.add_row(*row)
    indented(console, table)


def sensitivity_rows(costing: Costing, asked: Asked) -> tuple[list[str], list[list[str]]]:
    """Column names, and a row of texts for each input; volumes in tokens a month."""
    as_it_is = spell_crossover(costing, crossover(costing.own, asked))
    rows = [["nothing changed", "", "", as_it_is, "", as_it_is]]
    for one in sensitivity(costing.own, asked):
        half, twice = one.half, one.twice
        rows.append(
            [
                one.what,
                spell_number(one.value),
                spell_number(half.value),
                spell_crossover(costing, half.crossover),
                spell_number(twice.value),
                spell_crossover(costing, twice.crossover),
            ]
        )
    return ["input", "as it is", "half", "with half", "twice", "with twice"], rows


def spell_crossover(costing: Costing, found: Crossover) -> str:
    """`never`, `always`, `from 8.3 M`, `from 8.3 M to 40 M`: tokens a month."""
    beyond = ""
    if found.examined_to < math.inf:
        most = spell_volume(found.examined_to * costing.task_tokens)
        beyond = f" (looked at up to {most} tokens a month)"
    if found.is_never or found.is_always:
        return _word(found) + beyond
    return ", ".join(_spelled_ranges(costing, found)) + beyond


def _spelled_ranges(costing: Costing, found: Crossover) -> Iterator[str]:
    for low, high in found.ranges[:_RANGES_SHOWN]:
        start = f"from {spell_volume(low * costing.task_tokens)}" if low else ""
        end = f"to {spell_volume(high * costing.task_tokens)}" if high < math.inf else ""
        yield f"{start} {end}".strip()
    if len(found.ranges) > _RANGES_SHOWN:
        low = found.ranges[-1][0] * costing.task_tokens
        more = len(found.ranges) - _RANGES_SHOWN
        yield f"{more} more ranges, the last from {spell_volume(low)}"


def spell_volume(tokens: float) -> str:
    """Tokens a month in millions, three digits: `8.31 M`."""
    millions = tokens / 1e6
    if millions >= 100:
        return f"{millions:,.0f} M"
    return f"{millions:.3g} M"


def spell_number(number: float) -> str:
    """Four digits, no exponent: `3`, `0.6`, `212.3`, `1,460`."""
    if number >= 1000:
        return f"{number:,.0f}"
    return f"{number:.4g}" if number >= 1e-4 or not number else f"{number:.2e}"


def spell_months(months: float | None) -> str:
    """`3.2`; never where nothing is saved."""
    if months is None:
        return "never"
    if months < _LEAST_SHOWN_MONTHS:
        return f"under {_LEAST_SHOWN_MONTHS}"
    return spell_number(float(f"{months:.2g}"))
