"""A sweep in the terminal: its candidates, the first against the others, the winner on test."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.report import spelling, sweep_words
from luthier.report.terminal import columns, copyable, facts, heading, indented, printing, styled

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from luthier.sweeping.state import SweepState, TrialState

_SHOWN = 30  # lines of a table; a longer one is for the page
_TONE_STATUS = {"good": "pass", "unsure": "warn", "bad": "fail", "none": ""}


def sweep_table(state: "SweepState", page: Path) -> None:
    """Print a sweep as it stands, and where its page is."""
    verdict = sweep_words.judge_sweep(state)
    with printing() as console:
        console.print(styled(f"{state.name}: {verdict.word}", _TONE_STATUS[verdict.tone]))
        console.print(
            f"{sweep_words.spell_objectives(state)}; {sweep_words.spell_progress(state)}"
        )
        if state.trials:
            console.print()
            _print_trials(console, state)
        if state.ranking is not None and len(state.ranking.ranked) > 1:
            _print_against(console, state)
        _print_said(console, state, page)


def sweep_json(state: "SweepState") -> dict[str, Any]:
    """All of it as JSON values."""
    return asdict(state) | {"config": str(state.config), "folder": str(state.folder)}


def _print_trials(console: "Console", state: "SweepState") -> None:
    """A column for each parameter, or their values below where these do not fit side by side."""
    names = sweep_words.short_names(state.parameters)
    shown = sweep_words.in_order(state)[:_SHOWN]
    table = _trials_table(console, state, shown, names)
    if console.measure(table).maximum <= console.width - 2:
        indented(console, table)
    else:
        indented(console, _trials_table(console, state, shown, {}))
        heading(console, "Their values")
        lines = [(str(one.number), sweep_words.spell_params(one.params, names)) for one in shown]
        values = columns(console, ("trial", "values"))
        for line in lines:
            values.add_row(*line)
        indented(console, values)
    if len(state.trials) > _SHOWN:
        console.print(f"  and {len(state.trials) - _SHOWN} more: --json has all")


def _trials_table(
    console: "Console",
    state: "SweepState",
    trials: "Sequence[TrialState]",
    names: Mapping[str, str],
) -> "Table":
    """With a column for each of the parameters in `names`."""
    scores = sweep_words.objective_words(state)
    numbers = [scores[0], "95 % interval", *scores[1:], "time"]
    table = columns(console, ("trial", *names.values(), *numbers, ""), right=numbers)
    ranked = state.ranking.ranked if state.ranking else []
    intervals = {int(one.name): one.interval for one in ranked}
    for trial in trials:
        first, *others = sweep_words.spell_scores(state, trial)
        interval = intervals.get(trial.number)
        table.add_row(
            str(trial.number),
            *(sweep_words.spell_param(trial.params, path) for path in names),
            first,
            sweep_words.spell_interval(state.objectives[0], interval) if first else "",
            *others,
            spelling.duration(trial.seconds),
            _noted(state, trial),
        )
    return table


def _noted(state: "SweepState", trial: "TrialState") -> Any:
    status = "pass" if trial.number == state.winner else sweep_words.state_status(trial.state)
    return styled(sweep_words.came_to(state, trial), status)


def _print_against(console: "Console", state: "SweepState") -> None:
    assert state.ranking is not None
    heading(console, sweep_words.against_title(state))
    seeds = ["seeds", "deviation"] if sweep_words.has_seeds(state) else []
    numbers = [*seeds, sweep_words.change_word(state), "95 % interval", "p"]
    table = columns(console, ("trial", *numbers, ""), right=numbers)
    for one in state.ranking.ranked[:_SHOWN]:
        change, interval, p, verdict = sweep_words.against_first(state, one)
        spread = [str(one.seeds), sweep_words.spell_deviation(state, one)] if seeds else []
        shown = styled(verdict, sweep_words.verdict_status(verdict))
        table.add_row(one.name, *spread, change, interval, p, shown)
    indented(console, table)


def _print_said(console: "Console", state: "SweepState", page: Path) -> None:
    """The sentences, errors, and what to type next."""
    for sentence in sweep_words.ranking_sentences(state):
        console.print()
        console.print(sentence)
    tested = sweep_words.test_sentences(state)
    if tested:
        console.print()
        console.print(" ".join(tested))
    console.print()
    ended = [one for one in sweep_words.in_order(state) if one.error is not None]
    rows = [(f"trial {one.number}", _error(one)) for one in ended[:_SHOWN]]
    facts(console, [*rows, ("time", f"{spelling.duration(state.spent_seconds)} of all trials")])
    console.print(f"  page         {page}", soft_wrap=True)
    commands = sweep_words.next_commands(state)
    if commands:
        heading(console, "Next")
        copyable(console, commands)


def _error(trial: "TrialState") -> str:
    assert trial.error is not None
    return f"{trial.state}: {sweep_words.first_line(trial.error)}"
