"""Plots of preference optimisation: rewards, and how likely the replies are, while training."""

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.report.plots import Plot, axis, legend_above, plot

Log = Sequence[Mapping[str, Any]]
_COLOURS = {"chosen": "#3fb950", "rejected": "#e3862b", "margin": "#2f81f7", "grey": "#8b949e"}


def reward_plot(log: Log, stage: str) -> Plot | None:
    """Rewards of chosen and rejected replies, their margin, and how often it has the right sign;
    training pairs as lines, held-out pairs as marks. None for other trainings."""
    if not any("rewards/margins" in line for line in log):
        return None
    data = [
        *_traces(log, "rewards/chosen", "reward, chosen", _COLOURS["chosen"]),
        *_traces(log, "rewards/rejected", "reward, rejected", _COLOURS["rejected"]),
        *_traces(log, "rewards/margins", "margin", _COLOURS["margin"]),
        *_traces(log, "rewards/accuracies", "accuracy", _COLOURS["grey"], second_axis=True),
    ]
    layout = _layout("reward: beta x log p over the reference", "share of pairs told apart")
    layout["yaxis2"] |= {"range": [0, 1.02]}
    return plot(f"rewards-{stage}", f"Rewards while training ({stage})", data, layout)


def log_probability_plot(log: Log, stage: str) -> Plot | None:
    """log p of chosen and rejected replies, and KL to the reference; None for other trainings."""
    if not any("logps/chosen" in line for line in log):
        return None
    data = [
        *_traces(log, "logps/chosen", "log p, chosen", _COLOURS["chosen"]),
        *_traces(log, "logps/rejected", "log p, rejected", _COLOURS["rejected"]),
        *_traces(log, "kl", "KL to the reference", _COLOURS["grey"], second_axis=True),
    ]
    layout = _layout("log p of a reply, nats", "KL, nats a token")
    return plot(f"logps-{stage}", f"How likely replies are while training ({stage})", data, layout)


def _traces(
    log: Log, name: str, title: str, colour: str, *, second_axis: bool = False
) -> list[Any]:
    """A line for the training steps, and marks for the held-out pairs, of those that are there."""
    import plotly.graph_objects as go

    axes = {"yaxis": "y2"} if second_axis else {}
    found = []
    for key, said, mode, line in (
        (name, f"{title}, training", "lines", {"color": colour, "width": 1}),
        (f"eval_{name}", f"{title}, held out", "lines+markers", {"color": colour, "width": 2}),
    ):
        lines = [one for one in log if key in one]
        if lines:
            found.append(
                go.Scatter(
                    x=[one["step"] for one in lines],
                    y=[one[key] for one in lines],
                    name=said,
                    mode=mode,
                    line=line | ({"dash": "dot"} if second_axis else {}),
                    opacity=0.5 if key == name else 1,
                    **axes,
                )
            )
    return found


def _layout(title: str, second_title: str) -> dict[str, Any]:
    return {
        "height": 420,
        "xaxis": axis("step"),
        "yaxis": axis(title),
        "yaxis2": axis(second_title) | {
            "overlaying": "y", "side": "right", "showgrid": False, "rangemode": "tozero",
            "tickmode": "auto", "nticks": 6,
        },
        "legend": legend_above(),
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "hovermode": "x unified",
    }  # fmt: skip
