"""A sweep's study as Optuna draws it: values and names as people read them.

Shares are in per cent, names are short, and choices have no quotes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.report import sweep_words
from luthier.report.plots import plot_text
from luthier.report.sweep_plots import axis_title, scaled

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from luthier.sweeping.state import SweepState
    from luthier.sweeping.study import Study


@dataclass(frozen=True)
class Shown:
    """The copy that is drawn; `titles` are the axes of the objectives."""

    study: "optuna.Study"
    state: "SweepState"
    titles: Sequence[str]

    @property
    def done(self) -> "list[FrozenTrial]":
        """Trials with a score."""
        return [trial for trial in self.study.trials if trial.state.name == "COMPLETE"]

    @property
    def searched(self) -> set[str]:
        """Parameters that a trial which is done has."""
        return {name for trial in self.done for name in trial.params}


def shown_study(study: "Study", state: "SweepState") -> Shown:
    """The copy of a study."""
    import optuna

    short = sweep_words.short_names(state.parameters)
    names = {path: plot_text(name) for path, name in short.items()}
    trials = [_copied(trial, names, state) for trial in study.trials()]
    copy = optuna.create_study(directions=[direction for _, direction in state.objectives])
    copy.add_trials(trials)
    titles = [axis_title(state, place) for place in range(len(state.objectives))]
    return Shown(copy, state, titles)


def _copied(trial: "FrozenTrial", names: Mapping[str, str], state: "SweepState") -> "FrozenTrial":
    from optuna.trial import create_trial

    values = trial.values if trial.state.name == "COMPLETE" else None
    drawn = {
        path: _drawn_value(one, trial.params[path]) for path, one in trial.distributions.items()
    }
    # The study has losses with their sign turned where its objective goes up.
    sign = -1.0 if state.objectives[0][1] == "maximize" else 1.0
    return create_trial(
        state=trial.state,
        values=values and [scaled(state, place, value) for place, value in enumerate(values)],
        params={names[path]: value for path, (value, _) in drawn.items()},
        distributions={names[path]: one for path, (_, one) in drawn.items()},
        intermediate_values={
            step: sign * loss for step, loss in trial.intermediate_values.items()
        },
    )


def _drawn_value(kept: "BaseDistribution", value: Any) -> "tuple[Any, BaseDistribution]":
    """A value and its distribution: choices are JSON text, shown as people write it."""
    from optuna.distributions import CategoricalDistribution

    if not isinstance(kept, CategoricalDistribution):
        return value, kept
    read = [json.loads(str(choice)) for choice in kept.choices]
    shown: list[Any] = [plot_text(sweep_words.spell_value(choice)) for choice in read]
    if {type(choice) for choice in read} in ({int}, {float}):
        shown = read
    elif len(set(shown)) < len(shown):  # 1 and "1", or texts that begin alike
        shown = [f"{text} ({place})" for place, text in enumerate(shown, 1)]
    return shown[kept.choices.index(value)], CategoricalDistribution(shown)


def choice_labels(shown: Shown) -> dict[str, str]:
    """Choices by what Optuna writes for them, which has quotes."""
    from optuna.distributions import CategoricalDistribution

    return {
        repr(choice): str(choice)
        for trial in shown.done
        for one in trial.distributions.values()
        if isinstance(one, CategoricalDistribution)
        for choice in one.choices
    }
