"""The HTML page of a sweep: one file without a single request to a network."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.report import spelling, sweep_words
from luthier.report.page import REPORTS_FOLDER, page_template, plotly_source, yaml_text
from luthier.report.sweep_figures import sweep_figures
from luthier.report.sweep_plots import candidates_plot
from luthier.store.files import write_atomically
from luthier.store.problems import storage_errors

if TYPE_CHECKING:
    from luthier.sweeping.section import ParameterSection, SweepSection
    from luthier.sweeping.state import SweepState
    from luthier.sweeping.study import Study

_TEMPLATE = "sweep.html.jinja"
_KINDS = {
    "uniform": "a number from {} to {}",
    "log_uniform": "a number from {} to {}, on a logarithmic scale",
    "int_uniform": "a whole number from {} to {}",
    "log_int_uniform": "a whole number from {} to {}, on a logarithmic scale",
}


def write_sweep_page(study: "Study", state: "SweepState") -> Path:
    """Write `<store>/reports/<config name>-sweep.html` of a sweep as it stands; `state` is what
    `read_state` says of the study.

    Raises:
        StoreError: the store cannot be written.
    """
    plan, store = study.plan, study.store
    candidates = candidates_plot(state)
    figures, left_out = sweep_figures(study, state)
    content = page_template(_TEMPLATE).render(
        state=state,
        words=sweep_words,
        verdict=sweep_words.judge_sweep(state),
        names=sweep_words.short_names(state.parameters),
        trials=sweep_words.in_order(state),
        candidates=candidates,
        figures=figures,
        left_out=left_out,
        searched=[
            (path, _searched(one), sweep_words.spell_conditions(one.when))
            for path, one in plan.section.parameters.items()
        ],
        settings=list(_settings(plan.section, state)),
        again=[
            f"luthier sweep {spelling.config_arguments(state.config, state.overrides)}",
            *sweep_words.winner_commands(state),
        ],
        config=yaml_text(plan.config.resolved()),
        plotly=plotly_source() if candidates or figures else "",
    )
    path = store.root / REPORTS_FOLDER / f"{plan.config.name}-sweep.html"
    with storage_errors(store.root):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return path


def _searched(one: "ParameterSection") -> str:
    """The values that a parameter may take, in words."""
    if one.choice is not None:
        return f"one of {', '.join(sweep_words.spell_value(value) for value in one.choice)}"
    said = _KINDS[one.kind].format(*(f"{end:g}" for end in one.bounds))
    return said + (f", in steps of {one.step:g}" if one.step else "")


def _settings(section: "SweepSection", state: "SweepState") -> Iterator[tuple[str, str]]:
    """How it was searched: a label and a text."""
    yield "chosen by", sweep_words.spell_objectives(state) + ", on the validation rows"
    yield "proposed by", section.sampler
    yield "trials", sweep_words.spell_progress(state).removeprefix("trials: ")
    seeds = section.seeds_per_candidate
    yield "training seeds", f"{seeds} of each candidate"
    if section.finalists is not None:
        best = section.finalists
        yield "finalists", f"the best {best.candidates}, {best.seeds} seeds each"
    yield "pruning", _pruning(section)
    yield "time", f"{spelling.duration(state.spent_seconds)} of all trials"
    if section.price_usd_per_hour is not None:
        cost = state.spent_seconds / 3600 * section.price_usd_per_hour
        yield "cost", f"{cost:.2f} USD at {section.price_usd_per_hour:g} USD an hour"


def _pruning(section: "SweepSection") -> str:
    match section.pruning:
        case None:
            return "none: every trial ran to its end"
        case one if one.kind == "hyperband":
            return f"hyperband: the best 1 in {one.reduction_factor} go on at each rung"
        case one:
            return (
                "median: ended when the validation loss is worse than the median of those before, "
                f"after {one.startup_trials} trials"
            )
