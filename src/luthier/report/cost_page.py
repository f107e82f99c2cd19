"""The page of `luthier cost --plot`: the curves, and the tables of the terminal."""

import math
from pathlib import Path
from typing import Any

from luthier.costing import Costing
from luthier.errors import StoreError
from luthier.estimate.cost import crossover
from luthier.report.cost import (
    PAID_BACK,
    counted,
    sensitivity_rows,
    source,
    spell_number,
    verdict,
    volume_rows,
)
from luthier.report.page import page_template, plotly_source
from luthier.report.plots import Plot, axis, legend_above, plot
from luthier.store.files import write_atomically

_TEMPLATE = "cost.html.jinja"
_COLOURS = ("#8b949e", "#e3862b")
_OWN_COLOUR = "#2f81f7"
_POINTS = 240


def write_cost_page(costing: Costing, path: Path) -> None:
    """Write one HTML file without a single request to a network.

    Raises:
        StoreError: it cannot be written there.
    """
    figure = cost_plot(costing)
    content = page_template(_TEMPLATE).render(
        costing=costing,
        figure=figure,
        counted=counted(costing),
        paid_back=PAID_BACK,
        assumptions=[
            (one.what, spell_number(one.known.value), one.unit, source(one))
            for one in costing.assumptions
        ],
        volumes=volume_rows(costing),
        crossovers=[(asked.name, verdict(costing, asked)) for asked in costing.asked],
        sensitivities=[(asked.name, *sensitivity_rows(costing, asked)) for asked in costing.asked],
        plotly=plotly_source(),
    )
    try:
        write_atomically(path, content)
    except OSError as error:
        raise StoreError(
            f"--plot {path}: {error.strerror}. Name a file in a folder that can be written."
        ) from error


def cost_plot(costing: Costing) -> Plot:
    """A curve for each approach, and a mark where the own model's crosses another one's."""
    import plotly.graph_objects as go

    requests = _curve_points(costing)
    tokens = [one * costing.task_tokens for one in requests]
    colours = (*_COLOURS[: len(costing.asked)], _OWN_COLOUR)
    data = [
        go.Scatter(
            x=tokens,
            y=[one.monthly_usd(volume) for volume in requests],
            name=one.name,
            mode="lines",
            line={"color": colour, "width": 2},
            hovertemplate="%{y:,.2f} USD",
        )
        for one, colour in zip(costing.approaches, colours, strict=True)
    ]
    crossings = [end for one in costing.asked for end in crossover(costing.own, one).ends]
    if crossings:
        data.append(
            go.Scatter(
                x=[end * costing.task_tokens for end in crossings],
                y=[costing.own.monthly_usd(end) for end in crossings],
                name="crossover",
                mode="markers",
                marker={"color": _OWN_COLOUR, "size": 11, "symbol": "diamond"},
                hovertemplate="%{x:,.0f} tokens: %{y:,.2f} USD<extra></extra>",
            )
        )
    return plot("cost", "Cost of a month by volume; both axes logarithmic", data, _layout())


def _layout() -> dict[str, Any]:
    return {
        "height": 440,
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "xaxis": axis("tokens a month") | {"type": "log"},
        "yaxis": axis("USD a month") | {"type": "log"},
        "legend": legend_above(),
        "hovermode": "x unified",
    }


def _curve_points(costing: Costing) -> list[float]:
    """Requests a month, evenly on a logarithmic axis, with every volume of the table."""
    low, high = math.log(costing.volumes[0] / 2), math.log(costing.volumes[-1] * 2)
    even = [math.exp(low + (high - low) * place / _POINTS) for place in range(_POINTS + 1)]
    return sorted({*even, *costing.volumes})
