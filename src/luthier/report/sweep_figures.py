"""Optuna's figures of a sweep, in the page's look.

A figure that would say nothing is left out with a reason.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.report import sweep_words
from luthier.report.plots import Plot, axis, legend_above, plot
from luthier.report.sweep_plots import BLUE, GREY, MARGIN, ORANGE
from luthier.report.sweep_shown import Shown, choice_labels, shown_study

if TYPE_CHECKING:
    from luthier.sweeping.state import SweepState
    from luthier.sweeping.study import Study

_SCALE = [[0, GREY], [1, BLUE]]
_COLOURS = (BLUE, ORANGE, GREY)  # of objectives
_COLUMN_PX = 200
_ENOUGH = 2  # trials that are done, for a figure to say anything
_TICK_DIGITS = (1, 2, 5)
_MOST_TICKS = 7


def sweep_figures(study: "Study", state: "SweepState") -> tuple[list[Plot], list[str]]:
    """Figures in the page's order, and why others are left out."""
    shown = shown_study(study, state)
    plots: list[Plot] = []
    left_out: list[str] = []
    for draw in _drawn(state):
        found = draw(shown)
        if isinstance(found, Plot):
            plots.append(found)
        else:
            left_out.append(found)
    return plots, left_out


def _drawn(state: "SweepState") -> "Iterator[Callable[[Shown], Plot | str]]":
    for other in range(1, len(state.objectives)):
        yield lambda shown, other=other: _front(shown, other)  # type: ignore[misc]
    yield from (_importances, _slices, _parallel, _history, _losses)


def _too_few(shown: Shown, what: str) -> str | None:
    if len(shown.done) >= _ENOUGH:
        return None
    return f"{what} is left out: it needs {_ENOUGH} trials that are done."


def _front(shown: Shown, other: int) -> Plot | str:
    from optuna.visualization import plot_pareto_front

    what = f"The front of {shown.titles[0]} and {shown.titles[other]}"
    reason = _too_few(shown, what)
    if reason is not None:
        return reason
    figure = plot_pareto_front(
        shown.study,
        targets=lambda trial: (trial.values[0], trial.values[other]),
        target_names=[shown.titles[0], shown.titles[other]],
    )
    data = []
    for trace, name, colour in zip(
        figure.data, ("beaten by another", "on the front"), (GREY, BLUE), strict=True
    ):
        trace.update(name=name, showlegend=True, hovertemplate="%{text}<extra></extra>")
        trace.marker = {"color": colour, "size": 10}
        data.append(trace)
    layout = _layout(420, axis(shown.titles[0]), axis(shown.titles[other])) | {
        "legend": legend_above(), "showlegend": True,
    }  # fmt: skip
    said = "No other trial is better in all objectives than one on the front"
    return plot(f"front-{other}", f"{what}. {said}", data, layout)


def _importances(shown: Shown) -> Plot | str:
    from optuna.visualization import plot_param_importances

    what = "Which parameters matter"
    reason = _too_few(shown, what)
    if reason is not None:
        return reason
    if len(shown.searched) < 2:
        return f"{what} is left out: a single parameter was searched."
    if any(
        len({trial.values[place] for trial in shown.done}) < 2
        for place in range(len(shown.titles))
    ):
        return f"{what} is left out: all trials have the same score."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that trials are few, which the caption says
        figure = plot_param_importances(shown.study)
    data = list(figure.data)
    for trace, title, colour in zip(data, shown.titles, _COLOURS, strict=False):
        trace.update(
            name=title, marker={"color": colour}, hovertemplate="%{y}: %{x:.2f}<extra></extra>"
        )
    layout = _layout(
        110 + 34 * len(shown.searched) * len(data),
        axis("importance"),
        {"automargin": True, "fixedrange": True},
    ) | {"legend": legend_above(), "showlegend": len(data) > 1}
    layout["xaxis"] |= {"range": [0, 1.1]}
    said = (
        "shares of what decides whether a trial is among the best, which few trials only hint at"
    )
    return plot("importances", f"{what}: {said} (Optuna, PED-ANOVA)", data, layout)


def _slices(shown: Shown) -> Plot | str:
    from optuna.visualization import plot_slice

    what = "The score by each parameter"
    reason = _too_few(shown, what)
    if reason is not None:
        return reason
    figure = plot_slice(shown.study, **_first(shown))
    spelled = choice_labels(shown)
    for trace in figure.data:
        trace.customdata = trace.marker.color
        trace.hovertemplate = "trial %{customdata}: %{x}, %{y:.4g}<extra></extra>"
        trace.x = [spelled.get(value, value) for value in trace.x]
        trace.marker = {
            "size": 10,
            "color": trace.marker.color,
            "colorscale": _SCALE,
            "showscale": False,
        }
    axes = {
        name: found.to_plotly_json() | axis(found.title.text or "")
        for name, found in _axes(figure)
    }
    for name, found in axes.items():
        if "categoryarray" in found:
            found["categoryarray"] = [
                spelled.get(value, value) for value in found["categoryarray"]
            ]
        if found.get("type") == "log":
            found |= _log_ticks(_values_on(figure, name))
    layout = axes | {"height": 340, "margin": MARGIN, "showlegend": False}
    said = "one point a trial, grey ones early and blue ones late"
    return plot(
        "slices", f"{what}; {said}", list(figure.data), layout, _COLUMN_PX * len(shown.searched)
    )


def _parallel(shown: Shown) -> Plot | str:
    from optuna.visualization import plot_parallel_coordinate

    what = "All values of each trial"
    reason = _too_few(shown, what)
    if reason is not None:
        return reason
    figure = plot_parallel_coordinate(shown.study, **_first(shown))
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    for trace in lines:
        height = trace.y[0]  # of the score on its axis, 0 to 1
        good = height if shown.state.objectives[0][1] == "maximize" else 1 - height
        trace.line = {"color": _between(good), "width": 1 + 2 * good}
        trace.opacity = 0.35 + 0.6 * good
    # A choice that is nothing is written "null", so "None" is Optuna's for one that is not there.
    ticks = [
        note.to_plotly_json() | {"font": {"size": 11}}
        | ({"text": "not searched"} if note.text == "None" else {})
        for note in figure.layout.annotations
    ]  # fmt: skip
    xaxis = axis("") | {
        "tickmode": "array", "tickvals": figure.layout.xaxis.tickvals,
        "ticktext": [shown.titles[0], *figure.layout.xaxis.ticktext[1:]],
        "range": [-0.35, len(figure.layout.xaxis.tickvals) - 0.8], "showgrid": False,
    }  # fmt: skip
    yaxis = {"range": [-0.08, 1.08], "visible": False, "fixedrange": True}
    layout = _layout(380, xaxis, yaxis) | {
        "annotations": ticks, "shapes": figure.layout.shapes, "hovermode": "closest",
    }  # fmt: skip
    said = "a line is a trial, the bluer and thicker the better its score"
    width = _COLUMN_PX // 2 * (1 + len(shown.searched))
    return plot("parallel", f"{what}: {said}", lines, layout, width)


def _history(shown: Shown) -> Plot | str:
    from optuna.visualization import plot_optimization_history

    what = "The search over time"
    reason = _too_few(shown, what)
    if reason is not None:
        return reason
    figure = plot_optimization_history(shown.study, **_first(shown))
    data = [trace for trace in figure.data if trace.x]
    data[0].update(name="a trial", marker={"color": BLUE, "size": 9})
    for trace in data[1:]:
        trace.update(name="the best so far", line={"color": ORANGE, "width": 2, "shape": "hv"})
    layout = _layout(
        320, axis("trial") | {"dtick": None, "tickformat": "d"}, axis(shown.titles[0])
    )
    layout |= {"legend": legend_above(), "showlegend": len(data) > 1}
    return plot("history", f"{what}: each trial's score, in the order they began", data, layout)


def _losses(shown: Shown) -> Plot | str:
    from optuna.visualization import plot_intermediate_values

    what = "Validation losses while training"
    if sum(bool(trial.intermediate_values) for trial in shown.study.trials) < _ENOUGH:
        return (
            f"{what} are left out: too few trials measured any. See sft.evaluate_every_fraction."
        )
    figure = plot_intermediate_values(shown.study)
    for trace in figure.data:
        number = int(trace.name.removeprefix("Trial"))
        word = sweep_words.came_to(shown.state, shown.state.trial(number)) or "done"
        colour = (
            ORANGE if word.startswith("pruned") else BLUE if number == shown.state.winner else GREY
        )
        trace.update(
            name=f"trial {number}, {word}",
            line={"color": colour, "width": 3 if number == shown.state.winner else 1.5},
            marker={"color": colour, "size": 7},
            hovertemplate="%{y:.4f} after %{x} %",
        )
    layout = _layout(
        360, axis("share of the run") | {"ticksuffix": " %"}, axis("loss, nats a token")
    )
    said = "blue: the winner; orange: ended early, since it fell behind"
    return plot(
        "losses", f"{what} (sft); {said}", list(figure.data), layout | {"showlegend": False}
    )


def _first(shown: Shown) -> dict[str, Any]:
    """Arguments that make Optuna draw the first objective."""
    several = len(shown.titles) > 1
    target = (lambda trial: trial.values[0]) if several else None
    return {"target": target, "target_name": shown.titles[0]}


def _layout(height: int, xaxis: Mapping[str, Any], yaxis: Mapping[str, Any]) -> dict[str, Any]:
    return {"height": height, "margin": MARGIN, "xaxis": dict(xaxis), "yaxis": dict(yaxis)}


def _axes(figure: Any) -> "Iterator[tuple[str, Any]]":
    for name in figure.layout:
        if name.startswith(("xaxis", "yaxis")):
            yield name, figure.layout[name]


def _values_on(figure: Any, axis_name: str) -> list[float]:
    """Of the traces on one x axis."""
    wanted = axis_name.replace("xaxis", "x")
    return [value for trace in figure.data if (trace.xaxis or "x") == wanted for value in trace.x]


def _log_ticks(values: Sequence[float]) -> dict[str, Any]:
    """Round numbers, written out: plotly's own ticks are single digits that few can read."""
    low, high = min(values), max(values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [digit * 10.0**power for power in powers for digit in _TICK_DIGITS]
    found = [value for value in found if low / 2 <= value <= high * 2]
    if len(found) > _MOST_TICKS:
        found = [10.0**power for power in powers]
    return {"tickvals": found, "ticktext": [f"{value:g}" for value in found]}


def _between(share: float) -> str:
    """A colour from grey, at 0, to blue, at 1."""
    ends = [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in (GREY, BLUE)]
    mixed = [round(low + share * (high - low)) for low, high in zip(*ends, strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed)
