"""The space of a sweep: its parameters as Optuna's distributions, and as config overrides.

Choices are kept as their canonical JSON text, since Optuna takes single values only and holds
`1` and `true` for the same.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.config.document import Node, nearest
from luthier.config.sources import read_sources
from luthier.errors import ConfigError
from luthier.store.canonical import canonical_json
from luthier.sweeping.section import ParameterSection, SweepSection, in_order

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

Params = Mapping[str, Any]  # by dotted path, as the config gets them

_SET = re.compile(r"^--set [^:]*: ")


def distribution(parameter: ParameterSection) -> "BaseDistribution":
    """A parameter as Optuna knows it."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if parameter.choice is not None:
        return CategoricalDistribution([canonical_json(value) for value in parameter.choice])
    low, high = parameter.bounds
    log = parameter.kind.startswith("log")
    if "int" in parameter.kind:
        step = int(parameter.step or 1)
        return IntDistribution(int(low), int(high) - int(high - low) % step, log=log, step=step)
    return FloatDistribution(low, _reached(parameter), log=log, step=parameter.step)


def _reached(parameter: ParameterSection) -> float:
    """The highest value that steps from low lead to."""
    low, high = parameter.bounds
    if parameter.step is None:
        return high
    return low + parameter.step * int((high - low) / parameter.step + 1e-9)


def quiet_optuna() -> Any:
    """The library, saying errors only."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def draw(trial: "Trial", parameters: Mapping[str, ParameterSection]) -> dict[str, Any]:
    """One candidate, by a sampler; of those parameters whose condition holds."""
    params: dict[str, Any] = {}
    for name in in_order(parameters):
        if _applies(parameters[name], params):
            params[name] = decoded(parameters[name], _suggested(trial, name, parameters[name]))
    return params


def _suggested(trial: "Trial", name: str, parameter: ParameterSection) -> Any:
    found = distribution(parameter)
    if parameter.choice is not None:
        return trial.suggest_categorical(name, found.choices)  # type: ignore[attr-defined]
    ask = trial.suggest_int if "int" in parameter.kind else trial.suggest_float
    low, high, step = found.low, found.high, found.step  # type: ignore[attr-defined]
    raw = ask(name, low, high, step=step, log=found.log)  # type: ignore[attr-defined]
    # More than six digits would change nothing but what people read.
    return max(low, min(high, float(f"{raw:.6g}"))) if isinstance(raw, float) else raw


def decoded(parameter: ParameterSection, raw: Any) -> Any:
    """A value as Optuna keeps it, as the config gets it."""
    return json.loads(raw) if parameter.choice is not None else raw


def encoded(parameter: ParameterSection, value: Any) -> Any:
    """The other way round."""
    return canonical_json(value) if parameter.choice is not None else value


def grid(parameters: Mapping[str, ParameterSection]) -> list[dict[str, Any]]:
    """Every combination, each once; the first parameter changes slowest."""
    names = in_order(parameters)
    found: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*(list(_values(parameters[name])) for name in names)):
        params: dict[str, Any] = {}
        for name, value in zip(names, values, strict=True):
            if _applies(parameters[name], params):
                params[name] = value
        found.setdefault(canonical_json(params), params)
    return list(found.values())


def overrides(params: Params) -> list[str]:
    """A candidate as texts of `--set`."""
    return [f"{name}={json.dumps(value)}" for name, value in params.items()]


def check_space(path: "Path", section: SweepSection, given: Sequence[str], load: Any) -> None:
    """Load the config with every bound and every choice once, and with drawn combinations.

    Args:
        path: the config.
        section: its sweep.
        given: the command line's overrides.
        load: loads the config with more overrides, and raises ConfigError.

    Raises:
        ConfigError: a parameter is no field of the config or a value is none of its values, or
            values do not go together; each with the place of the parameter in the file.
    """
    root, _ = read_sources(path, given)
    found = list(probes(section.parameters))
    for alone in (True, False):
        problems: dict[str, str] = {}
        for params, changed in found:
            if (changed is not None) is not alone:
                continue
            try:
                load(overrides(params))
            except ConfigError as error:
                for line in str(error).splitlines():
                    said = _SET.sub("", line)
                    problems.setdefault(said, _placed(said, changed, params, root))
        if problems:
            raise ConfigError("\n".join(problems.values()))


def probes(
    parameters: Mapping[str, ParameterSection],
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Candidates that show every bound, and the parameter that each is about; then drawn ones."""
    for name in in_order(parameters):
        for value in _ends(parameters[name]):
            params: dict[str, Any] = {}
            for other in in_order(parameters):
                wanted = parameters[name].when.get(other)
                if other == name:
                    params[other] = value
                elif wanted is not None:
                    params[other] = wanted[0] if isinstance(wanted, list) else wanted
                elif other in _ancestors(name, parameters):
                    params[other] = _ends(parameters[other])[0]
            yield params, name
    for number in range(_DRAWN):
        yield _drawn(parameters, number), None


_DRAWN = 24


def _ancestors(name: str, parameters: Mapping[str, ParameterSection]) -> set[str]:
    """All that must be set for a parameter to be searched."""
    found = set(parameters[name].when)
    for other in list(found):
        found |= _ancestors(other, parameters)
    return found


def _drawn(parameters: Mapping[str, ParameterSection], number: int) -> dict[str, Any]:
    optuna = quiet_optuna()
    sampler = optuna.samplers.RandomSampler(seed=number)
    return draw(optuna.create_study(sampler=sampler).ask(), parameters)


def _ends(parameter: ParameterSection) -> list[Any]:
    """Every choice, or the lowest and the highest number."""
    if parameter.choice is not None:
        return list(parameter.choice)
    found = distribution(parameter)
    return [found.low, found.high]  # type: ignore[attr-defined]


def _values(parameter: ParameterSection) -> Iterator[Any]:
    """All values of a countable parameter."""
    if parameter.choice is not None:
        yield from parameter.choice
        return
    low, high = _ends(parameter)
    step = parameter.step or 1
    for place in range(int((high - low) / step + 1e-9) + 1):
        value = low + place * step
        yield int(value) if "int" in parameter.kind else float(f"{value:.6g}")


def _applies(parameter: ParameterSection, params: Params) -> bool:
    for other, wanted in parameter.when.items():
        if other not in params:
            return False
        if params[other] not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def _placed(said: str, changed: str | None, params: Params, root: Node) -> str:
    """A message about an override as one about the sweep that made it."""
    if changed is None:
        mark = nearest(root, ("sweep", "parameters")).mark
        together = ", ".join(f"{name} {json.dumps(value)}" for name, value in params.items())
        ended = said if said.endswith((".", "?")) else f"{said}."
        return f"{mark}: sweep.parameters: {ended} Drawn together: {together}. See `when`"
    mark = nearest(root, ("sweep", "parameters", changed)).mark
    value = json.dumps(params[changed])
    return f"{mark}: sweep.parameters.{changed}: with {value}: {said}"
