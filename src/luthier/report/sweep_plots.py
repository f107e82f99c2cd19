"""The plot of a sweep's candidates: score, 95 % interval and single seeds, the best first."""

from typing import TYPE_CHECKING, Any

from luthier.report import sweep_words
from luthier.report.plots import Plot, axis, legend_above, plot, plot_text

if TYPE_CHECKING:
    from luthier.evaluation.ranking import Ranked
    from luthier.sweeping.state import SweepState

GREY, BLUE, ORANGE = "#8b949e", "#2f81f7", "#e3862b"
MARGIN = {"l": 10, "r": 25, "t": 10, "b": 10}
_LINE_PX, _FRAME_PX = 40, 100
_MOST = 30


def scaled(state: "SweepState", place: int, value: float) -> float:
    """A value of an objective as its axis has it: shares in per cent."""
    return 100 * value if sweep_words.is_share(state.objectives[place]) else value


def axis_title(state: "SweepState", place: int) -> str:
    """The name of an objective's axis."""
    name = sweep_words.objective_words(state)[place]
    return f"{name}, %" if sweep_words.is_share(state.objectives[place]) else name


def candidates_plot(state: "SweepState") -> Plot | None:
    """A line for each of the best candidates; None where none is done."""
    import plotly.graph_objects as go

    if state.ranking is None:
        return None
    ranked = list(state.ranking.ranked[:_MOST])
    lines = [_line(state, one) for one in ranked]
    tied = set(state.ranking.tied)
    scores = [scaled(state, 0, one.score) for one in ranked]
    ends = [one.interval or (one.score, one.score) for one in ranked]
    placed = list(zip(ends, scores, strict=True))
    means = go.Scatter(
        x=scores,
        y=lines,
        name="score, with its 95 % interval",
        mode="markers",
        marker={"size": 11, "color": [BLUE if one.name in tied else GREY for one in ranked]},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [scaled(state, 0, high) - at for (_, high), at in placed],
            "arrayminus": [at - scaled(state, 0, low) for (low, _), at in placed],
        },
        hovertext=[_hover(state, one) for one in ranked],
        hoverinfo="text",
    )
    data = [means, *_single_seeds(state, ranked, lines)]
    layout = {
        "height": _FRAME_PX + _LINE_PX * len(ranked),
        "margin": MARGIN,
        "xaxis": axis(axis_title(state, 0)),
        "yaxis": {
            "automargin": True, "autorange": "reversed", "fixedrange": True, "type": "category",
        },
        "legend": legend_above(),
        "showlegend": len(data) > 1,
    }  # fmt: skip
    return plot("candidates", _title(state, len(ranked)), data, layout)


def _title(state: "SweepState", shown: int) -> str:
    assert state.ranking is not None
    total = len(state.ranking.ranked)
    best = f"The best {shown} of {total} candidates" if total > shown else "Each candidate"
    word = sweep_words.objective_words(state)[0]
    told = "; blue: the first, and those that cannot be told from it" if total > 1 else ""
    return f"{best}, {word} on the validation rows with its 95 % interval{told}"


def _single_seeds(state: "SweepState", ranked: "list[Ranked]", lines: list[str]) -> list[Any]:
    """An open point for each seed, where a candidate has several."""
    import plotly.graph_objects as go

    points = [
        (scaled(state, 0, score), line, f"seed {seed}: {scaled(state, 0, score):.4g}")
        for one, line in zip(ranked, lines, strict=True)
        for seed, score in state.trial(int(one.name)).scores.items()
        if one.seeds > 1
    ]
    if not points:
        return []
    return [
        go.Scatter(
            x=[at for at, _, _ in points],
            y=[line for _, line, _ in points],
            name="single seeds",
            mode="markers",
            marker={"size": 8, "color": ORANGE, "symbol": "circle-open", "line": {"width": 1.5}},
            hovertext=[said for _, _, said in points],
            hoverinfo="text",
        )
    ]


def _line(state: "SweepState", one: "Ranked") -> str:
    score = sweep_words.spell_score(state.objectives[0], one.score)
    return f"trial {one.name}  <b>{score}</b>"


def _hover(state: "SweepState", one: "Ranked") -> str:
    params = state.trial(int(one.name)).params
    names = sweep_words.short_names(state.parameters)
    values = [
        f"{plot_text(names[path])} {plot_text(sweep_words.spell_value(value))}"
        for path, value in params.items()
    ]
    interval = sweep_words.spell_interval(state.objectives[0], one.interval)
    return "<br>".join([f"{_line(state, one)} ({interval})", *values])
