"""How a sweep is put for people: short names, scores in their unit, rows of tables, a verdict.

The terminal and the page say the same, by what is here.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from luthier.config.document import shortened
from luthier.evaluation.ranking_words import describe_ranking
from luthier.report import spelling
from luthier.report.scores import metric_word
from luthier.report.verdict import Tone, Verdict

if TYPE_CHECKING:
    from luthier.evaluation.entrants import Direction
    from luthier.evaluation.ranking import Ranked
    from luthier.sweeping.state import SweepState, TestedState, TrialState

_BEST = "configs/best.yaml"
_STATE_STATUS = {"gate failed": "warn", "interrupted": "warn", "failed": "fail"}
_VERDICT_STATUS = {"the first": "pass", "worse": "fail"}


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Of each dotted path as many of its last parts as tell it from the others."""
    found = {}
    for path in paths:
        parts = path.split(".")
        tails = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
        found[path] = next(
            tail for tail in tails if sum(f".{one}".endswith(f".{tail}") for one in paths) == 1
        )
    return found


def spell_value(value: Any) -> str:
    """A searched value as a config says it, text without quotes, numbers in three digits."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return spelling.printable(value if isinstance(value, str) else json.dumps(value))


def spell_params(params: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """A candidate's values on one line, by their short names."""
    return ", ".join(f"{names[path]} {spell_param(params, path)}" for path in params)


def spell_param(params: Mapping[str, Any], path: str) -> str:
    """One value, a long one shortened; nothing where the candidate does not have it."""
    return shortened(" ".join(spell_value(params[path]).split())) if path in params else ""


def objective_words(state: "SweepState") -> list[str]:
    """`evaluate.macro_f1` is `macro-F1`, `sft.validation_loss` is `validation loss`."""
    short = short_names([name for name, _ in state.objectives])
    return [metric_word(name).replace("_", " ") for name in short.values()]


def is_share(objective: "tuple[str, Direction]") -> bool:
    """Whether an objective is a share of rows, which people read in per cent: all scores are."""
    return objective[1] == "maximize"


def spell_score(objective: "tuple[str, Direction]", value: float | None) -> str:
    """A value of an objective in its unit."""
    name = objective[0]
    if value is None:
        return spelling.NOTHING
    if is_share(objective):
        return spelling.percent(value)
    if name.endswith("train_seconds"):
        return spelling.duration(value)
    if name.endswith("_seconds"):
        return spelling.latency(value)
    return spelling.size(round(value)) if name.endswith("_bytes") else f"{value:.4f}"


def spell_scores(state: "SweepState", trial: "TrialState") -> list[str]:
    """One for each objective, empty where the trial has none."""
    if not trial.values:
        return [""] * len(state.objectives)
    pairs = zip(state.objectives, trial.values, strict=True)
    return [spell_score(objective, value) for objective, value in pairs]


def spell_interval(
    objective: "tuple[str, Direction]", interval: tuple[float, float] | None
) -> str:
    """Low and high end of an objective."""
    if interval is None:
        return spelling.NOTHING
    if is_share(objective):
        return spelling.percent_interval(*interval)
    return " to ".join(spell_score(objective, end) for end in interval)


def spell_change(objective: "tuple[str, Direction]", change: float) -> str:
    """A difference of two scores with its sign: of shares in points."""
    return spelling.points(change) if is_share(objective) else f"{change:+.4g}"


def in_order(state: "SweepState") -> "list[TrialState]":
    """Ranked trials, the best first; then the others by number."""
    ranked = [state.trial(int(one.name)) for one in state.ranking.ranked] if state.ranking else []
    numbers = {trial.number for trial in ranked}
    return ranked + [trial for trial in state.trials if trial.number not in numbers]


def came_to(state: "SweepState", trial: "TrialState") -> str:
    """What is to be said of a trial beside its score."""
    said: str = "" if trial.state == "done" else trial.state
    if trial.state in ("pruned", "running", "interrupted") and trial.progress > 0:
        said += f" {'after' if trial.state == 'pruned' else 'at'} {100 * trial.progress:.0f} %"
    if trial.number == state.winner:
        said = "the winner"
    if trial.number in state.front:
        said = f"{said}, front" if said else "front"
    return said


def first_line(error: str) -> str:
    """Of an error; the page has the whole."""
    return spelling.printable(error.strip().splitlines()[0]) if error.strip() else "no message"


def spell_objectives(state: "SweepState") -> str:
    """All, with the way that is better."""
    ways = {"maximize": "higher", "minimize": "lower"}
    pairs = zip(objective_words(state), state.objectives, strict=True)
    return ", ".join(f"{word} ({ways[way]} is better)" for word, (_, way) in pairs)


def spell_progress(state: "SweepState") -> str:
    """How many trials ended how, of how many."""
    counts: dict[str, int] = {}
    for trial in state.trials:
        counts[trial.state] = counts.get(trial.state, 0) + 1
    parts = ", ".join(f"{number} {word}" for word, number in counts.items()) or "none begun"
    over = f"; no more begin: {state.over}" if state.over else ""
    return f"trials: {parts}, of {state.wanted_trials} wanted{over}"


def ranking_sentences(state: "SweepState") -> list[str]:
    """What the validation rows say of the candidates; nothing where none is done."""
    if state.ranking is None:
        return []
    titles = {one.name: f"trial {one.name}" for one in state.ranking.ranked}
    return describe_ranking(state.ranking, titles)


def test_sentences(state: "SweepState") -> list[str]:
    """The winner on the test rows; nothing where there is no winner."""
    if state.winner is None:
        return []
    tested = state.tested
    if tested is None:
        return [f"Trial {state.winner} was not asked the test rows yet."]
    said = [_measured(tested)] if tested.score is not None else []
    if tested.error is not None:
        said.append(f"A gate stopped its run: {first_line(tested.error)}")
    if state.looks > 1:
        said.append(
            f"{state.looks} models of this store were asked these test rows by now, and the "
            "interval does not allow for that: the best of several looks is too good."
        )
    return said


def _measured(tested: "TestedState") -> str:
    assert tested.score is not None
    interval = ""
    if tested.interval is not None:
        interval = f", 95 % interval {spelling.percent_interval(*tested.interval)}"
    ship = f" Its rules say: {tested.ship}." if tested.ship else ""
    return (
        f"On {spelling.count(tested.rows)} test rows trial {tested.number} has "
        f"{metric_word(tested.metric)} {spelling.percent(tested.score)}{interval}.{ship}"
    )


def judge_sweep(state: "SweepState") -> Verdict:
    """The sentence that a sweep comes to, and its colour."""
    if state.winner is None:
        return _without_winner(state)
    winner = state.trial(state.winner)
    names = short_names(state.parameters)
    score = spell_score(state.objectives[0], winner.values[0])
    said = (
        f"Trial {winner.number} ({spell_params(winner.params, names)}) is ahead with "
        f"{objective_words(state)[0]} {score} on the validation rows."
    )
    tone, word = _tone(state)
    return Verdict(tone, word, " ".join([said, *ranking_sentences(state), *test_sentences(state)]))


def _without_winner(state: "SweepState") -> Verdict:
    open_ones = [one for one in state.trials if one.state in ("running", "interrupted")]
    if open_ones or not state.trials or state.over is None:
        return Verdict("none", "nothing yet", f"No trial is done. {spell_progress(state)}.")
    return Verdict("bad", "no winner", f"No trial came to its end. {spell_progress(state)}.")


def _tone(state: "SweepState") -> tuple[Tone, str]:
    tested = state.tested
    if any(one.state in ("running", "interrupted") for one in state.trials) or not state.over:
        return "none", "not done yet"
    if tested is not None and tested.error is not None:
        return "bad", "stopped"
    if tested is not None and tested.ship == "do not ship":
        return "bad", "do not ship"
    if state.ranking is not None and len(state.ranking.tied) > 1:
        return "unsure", "several are as good"
    return "good", "a winner"


def against_first(state: "SweepState", one: "Ranked") -> tuple[str, str, str, str]:
    """Difference to the first, its 95 % interval, p and verdict, each spelled."""
    if one.behind is None:
        return "", "", "", "the first"
    assert state.ranking is not None
    behind, spell = one.behind, spelling.points
    if not state.ranking.rows:  # what is tested is the score itself
        spell = partial(spell_change, state.objectives[0])
    interval = ""
    if behind.interval is not None:
        interval = " to ".join(spell(end) for end in behind.interval)
    p = "" if behind.p_value is None else spelling.p_value(behind.p_value)
    return (
        spell(behind.difference),
        interval,
        p.removeprefix("p = ").removeprefix("p "),
        behind.verdict,
    )


def against_title(state: "SweepState") -> str:
    """Above the differences to the first."""
    assert state.ranking is not None
    tested = state.ranking.comparisons
    corrected = f"; p allows for {tested} comparisons (Holm)" if tested > 1 else ""
    return f"Against trial {state.ranking.ranked[0].name}{corrected}"


def change_word(state: "SweepState") -> str:
    """What the differences to the first are of: the score, or rows right where rows tell."""
    found = state.ranking
    return "rows right" if found and found.rows and found.metric != "accuracy" else "change"


def verdict_status(verdict: str) -> str:
    """The colour of a verdict against the first."""
    return _VERDICT_STATUS.get(verdict, "warn")


def state_status(state: str) -> str:
    """The colour of a trial's state."""
    return _STATE_STATUS.get(state, "")


def has_seeds(state: "SweepState") -> bool:
    """Whether a candidate was trained with several seeds."""
    return state.ranking is not None and any(one.seeds > 1 for one in state.ranking.ranked)


def spell_deviation(state: "SweepState", one: "Ranked") -> str:
    """Standard deviation over a candidate's seeds, of shares in points."""
    if one.deviation is None:
        return spelling.NOTHING
    return spell_change(state.objectives[0], one.deviation).lstrip("+")


def next_commands(state: "SweepState") -> list[str]:
    """What can be done now, to type."""
    config = spelling.config_arguments(state.config, state.overrides)
    commands = []
    if not state.over or any(one.state == "interrupted" for one in state.trials):
        commands.append(f"luthier sweep {config}")
    if any(one.state == "failed" for one in state.trials):
        commands.append(f"luthier sweep {config} --retry-failed")
    return commands + winner_commands(state)


def winner_commands(state: "SweepState") -> list[str]:
    """What makes the winner's config and runs it; nothing where there is none."""
    if state.winner is None:
        return []
    config = spelling.config_arguments(state.config, state.overrides)
    return [f"luthier sweep best {config} --write {_BEST}", f"luthier run {_BEST}"]


def spell_conditions(when: Mapping[str, Any]) -> str:
    """With which other values a parameter is searched."""
    said = []
    for path, wanted in when.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        said.append(f"{path} is {' or '.join(map(spell_value, values))}")
    return " and ".join(said)
