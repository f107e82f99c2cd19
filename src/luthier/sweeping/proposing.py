"""Who proposes the next candidate: Optuna's samplers, so that a killed sweep proposes the same.

A sampler's random state dies with its process. So each candidate gets a sampler of its own, whose
seed follows from the sweep's seed and the candidate's number, in a study in memory that holds all
trials before: what is proposed depends on these alone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.evaluation.entrants import Direction
from luthier.store.canonical import canonical_json
from luthier.sweeping.section import ParameterSection, SweepSection
from luthier.sweeping.space import decoded, distribution, draw, encoded, grid, quiet_optuna

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

# Candidates drawn at random before a sampler has enough to go by.
_STARTUP_TRIALS = 5
# Tries to find a candidate that was not run before; all the same means that there is none.
_ATTEMPTS = 50


def propose(
    section: SweepSection,
    directions: Sequence[Direction],
    past: "Sequence[FrozenTrial]",
    seed: int,
) -> dict[str, Any] | None:
    """The next candidate, none of those that were run or run now; None when there is no other.

    Args:
        section: the sweep.
        directions: of its objectives.
        past: all trials so far, by number.
        seed: of the sweep.
    """
    taken = {canonical_json(params_of(section.parameters, trial)) for trial in past}
    if section.sampler == "grid":
        return next(
            (one for one in grid(section.parameters) if canonical_json(one) not in taken), None
        )
    for attempt in range(_ATTEMPTS):
        params = _asked(section, directions, past, _derived(seed, len(past), attempt))
        if canonical_json(params) not in taken:
            return params
    return None


def params_of(parameters: Mapping[str, ParameterSection], trial: "FrozenTrial") -> dict[str, Any]:
    """A trial's values as the config gets them."""
    return {name: decoded(parameters[name], value) for name, value in trial.params.items()}


def as_trial(parameters: Mapping[str, ParameterSection], params: Mapping[str, Any]) -> Any:
    """What Optuna calls a candidate: arguments of `optuna.trial.create_trial`."""
    return {
        "params": {name: encoded(parameters[name], value) for name, value in params.items()},
        "distributions": {name: distribution(parameters[name]) for name in params},
    }


def _asked(
    section: SweepSection,
    directions: Sequence[Direction],
    past: "Sequence[FrozenTrial]",
    seed: int,
) -> dict[str, Any]:
    optuna = quiet_optuna()
    sampler = _sampler(section, seed)
    study = optuna.create_study(directions=list(directions), sampler=sampler)
    if section.sampler == "cmaes":
        _replay(study, past)
    else:
        study.add_trials(past)
    return draw(study.ask(), section.parameters)


def _replay(study: "Study", past: "Sequence[FrozenTrial]") -> None:
    """Let CMA-ES go through all that was: its state is made of the trials that it asked for.
    Optuna would keep that state as a pickle, and those can run code when they are read."""
    for trial in past:
        study.enqueue_trial(trial.params)
        asked = study.ask(trial.distributions)
        if trial.state.is_finished():
            values = trial.values if trial.state.name == "COMPLETE" else None
            study.tell(asked, values, state=trial.state)


def _sampler(section: SweepSection, seed: int) -> "BaseSampler":
    import optuna

    samplers = optuna.samplers
    match section.sampler:
        case "random":
            return samplers.RandomSampler(seed=seed)
        case "gp":
            return samplers.GPSampler(
                seed=seed, n_startup_trials=_STARTUP_TRIALS, warn_independent_sampling=False
            )
        case "cmaes":
            return samplers.CmaEsSampler(
                seed=seed, n_startup_trials=_STARTUP_TRIALS, warn_independent_sampling=False
            )
    return samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP_TRIALS, constant_liar=True)


def _derived(*parts: int) -> int:
    """A seed of 31 bits."""
    text = ".".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
