"""The page's plots: plotly figures as JSON, without colours of their own where the theme has them.

The page gives text, lines and colour scales the colours of the light or the dark theme. Texts of
users are escaped here, because plotly reads its texts as HTML.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.report.scores import Confusion, SystemScore

_ROLE_COLOURS = {"baseline": "#8b949e", "tuned": "#2f81f7", "served": "#3fb950"}
_TRAIN_COLOUR, _VALIDATION_COLOUR, _RATE_COLOUR = "#2f81f7", "#e3862b", "#8b949e"
_SPLIT_COLOURS = {"train": "#2f81f7", "validation": "#e3862b", "test": "#3fb950"}
_BAR_HEIGHT_PX, _FRAME_HEIGHT_PX = 46, 70
_CELL_PX, _CONFUSION_FRAME_PX, _CHARACTER_PX = 28, 70, 7
_SMOOTHED_STEPS = 10
_LONGEST_LABEL = 28
_BIN_PX = 60  # wide enough for its name


@dataclass(frozen=True)
class Plot:
    """A figure of the page: `id` of its place, what it shows in words, and plotly's JSON."""

    id: str
    title: str
    json: str
    height_px: int
    min_width_px: int = 0


def plot(
    plot_id: str, title: str, data: list[Any], layout: Mapping[str, Any], min_width_px: int = 0
) -> Plot:
    """A figure for the page, from plotly's traces and layout."""
    import plotly.graph_objects as go

    figure = go.Figure(data=data)
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        **layout,
    )
    return Plot(plot_id, title, figure.to_json(), layout["height"], min_width_px)


def scores_plot(systems: Sequence[SystemScore], metric: str) -> Plot | None:
    """A bar for each system, with its interval; the number stands beside the name."""
    import plotly.graph_objects as go

    if not systems:
        return None
    bars = go.Bar(
        x=[100 * score.score for score in systems],
        y=[f"{plot_text(score.title)}<br><b>{100 * score.score:.1f} %</b>" for score in systems],
        orientation="h",
        marker={"color": [_ROLE_COLOURS[score.role] for score in systems]},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [100 * (score.high - score.score) for score in systems],
            "arrayminus": [100 * (score.score - score.low) for score in systems],
        },
        hovertemplate="%{x:.1f} %<extra></extra>",
    )
    layout = {
        "height": _FRAME_HEIGHT_PX + _BAR_HEIGHT_PX * len(systems),
        "margin": {"l": 10, "r": 25, "t": 10, "b": 10},
        "xaxis": axis(metric) | {"range": [0, 100], "ticksuffix": " %"},
        "yaxis": {"automargin": True, "autorange": "reversed", "fixedrange": True},
        "bargap": 0.35,
    }
    return plot("scores", f"Each system's {metric}, with its 95 % interval", [bars], layout)


def loss_plot(log: Sequence[Mapping[str, Any]], stage: str) -> Plot | None:
    """Training loss (each step, and a moving mean), validation loss and learning rate."""
    import plotly.graph_objects as go

    trained = [line for line in log if _is_number(line.get("loss"))]
    if not trained:
        return None
    steps = [line["step"] for line in trained]
    losses = [line["loss"] for line in trained]
    checked = [line for line in log if _is_number(line.get("eval_loss"))]
    faint = {"color": _TRAIN_COLOUR, "width": 1}
    data = [
        go.Scatter(x=steps, y=losses, name="training, each step", line=faint, opacity=0.35),
        go.Scatter(
            x=steps,
            y=_moving_mean(losses),
            name=f"training, mean of {_SMOOTHED_STEPS} steps",
            line={"color": _TRAIN_COLOUR, "width": 2},
        ),
        go.Scatter(
            x=steps,
            y=[line.get("learning_rate") for line in trained],
            name="learning rate",
            yaxis="y2",
            line={"color": _RATE_COLOUR, "width": 1, "dash": "dot"},
        ),
    ]
    if checked:
        data.append(
            go.Scatter(
                x=[line["step"] for line in checked],
                y=[line["eval_loss"] for line in checked],
                name="validation",
                mode="lines+markers",
                line={"color": _VALIDATION_COLOUR, "width": 2},
                marker={"size": 9},
            )
        )
    return plot(f"loss-{stage}", f"Loss while training ({stage})", data, _loss_layout(stage))


def _loss_layout(stage: str) -> dict[str, Any]:
    title = "loss, nats a token" if stage == "sft" else "loss"
    return {
        "height": 380,
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "xaxis": axis("step"),
        "yaxis": axis(title) | {"rangemode": "tozero"},
        "yaxis2": axis("learning rate") | {
            "overlaying": "y", "side": "right", "showgrid": False, "rangemode": "tozero",
            "tickmode": "auto", "nticks": 5, "tickformat": ".1e",
        },
        "legend": legend_above(),
        "hovermode": "x unified",
    }  # fmt: skip


def axis(title: str) -> dict[str, Any]:
    """An axis that keeps its place and leaves room for its labels."""
    return {
        "title": {"text": title, "standoff": 10},
        "automargin": True,
        "zeroline": False,
        "fixedrange": True,
    }


def legend_above() -> dict[str, Any]:
    """The legend above the frame, from the left."""
    return {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}


def _moving_mean(losses: Sequence[float]) -> list[float]:
    means = []
    for end in range(1, len(losses) + 1):
        window = losses[max(0, end - _SMOOTHED_STEPS) : end]
        means.append(sum(window) / len(window))
    return means


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int)


def confusion_plot(confusion: Confusion) -> Plot:
    """Counts in every cell, coloured by the share of the expected class."""
    import plotly.graph_objects as go

    longest = max(min(len(label), _LONGEST_LABEL) for label in confusion.columns)
    frame_px = _CONFUSION_FRAME_PX + _CHARACTER_PX * longest
    rows, columns = len(confusion.labels), len(confusion.columns)
    heatmap = go.Heatmap(
        z=[[cell / max(sum(line), 1) for cell in line] for line in confusion.counts],
        x=list(range(columns)),
        y=list(range(rows)),
        text=[[str(cell) if cell else "" for cell in line] for line in confusion.counts],
        hovertext=_cells_in_words(confusion),
        hoverinfo="text",
        texttemplate="%{text}",
        textfont={"size": 11},
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=1,
        showscale=False,
    )
    layout = {
        "height": frame_px + _CELL_PX * rows,
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "xaxis": axis("answered") | _named(confusion.columns) | {"tickangle": -55},
        "yaxis": axis("expected") | _named(confusion.labels) | {"autorange": "reversed"},
    }
    title = f"Rows by expected and answered class: {confusion.title}"
    return plot("confusion", title, [heatmap], layout, frame_px + _CELL_PX * columns)


def _named(labels: Sequence[str]) -> dict[str, Any]:
    """Ticks by place, since two shortened labels can look alike."""
    return {
        "tickvals": list(range(len(labels))),
        "ticktext": [plot_text(label) for label in labels],
        "showgrid": False,
        "ticks": "",
    }


def _cells_in_words(confusion: Confusion) -> list[list[str]]:
    return [
        [
            f"expected {plot_text(expected)}, answered {plot_text(answered)}: "
            f"{cell} of {sum(line)} rows"
            for answered, cell in zip(confusion.columns, line, strict=True)
        ]
        for expected, line in zip(confusion.labels, confusion.counts, strict=True)
    ]


def tokens_plot(plot_id: str, title: str, bins: Mapping[str, Sequence[int]]) -> Plot | None:
    """Rows of each split by their tokens; `bins` are the histograms of dataset.json's spreads."""
    import plotly.graph_objects as go

    filled = [place for rows in bins.values() for place, found in enumerate(rows) if found]
    if not filled:
        return None
    places = range(min(filled), max(filled) + 1)
    data = [
        go.Bar(
            x=[_bin_in_words(place) for place in places],
            y=[100 * _at(rows, place) / sum(rows) for place in places],
            name=split,
            customdata=[f"{_at(rows, place):,} of {sum(rows):,}" for place in places],
            hovertemplate="%{x} tokens: %{customdata} rows (%{y:.1f} %)",
            marker={"color": _SPLIT_COLOURS.get(split, _RATE_COLOUR), "line": {"width": 0}},
        )
        for split, rows in bins.items()
        if sum(rows)
    ]
    layout = {
        "height": 260,
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "barmode": "group",
        "xaxis": axis("tokens a row") | {"type": "category"},
        "yaxis": axis("share of the split's rows") | {"ticksuffix": " %"},
        "legend": legend_above() | {"traceorder": "normal"},
        "showlegend": True,
    }
    return plot(plot_id, title, data, layout, _BIN_PX * len(places))


def _at(rows: Sequence[int], place: int) -> int:
    return rows[place] if place < len(rows) else 0


def _bin_in_words(place: int) -> str:
    """Bin k of a spread's histogram ends before 2 ** k: `0`, `1`, `2 to 3`, `4 to 7`."""
    low, high = 2**place // 2, 2**place - 1
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def plot_text(text: str) -> str:
    """A user's text, shortened, as plotly shows it and does not obey it."""
    shown = text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"
    return html.escape(shown, quote=False)  # plotly does not know &quot;
