"""The config of a candidate, for `luthier run`: the user's own with its values and no sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config.document import plain
from luthier.config.sources import read_sources
from luthier.errors import ConfigError, StoreError
from luthier.pipeline import load_run
from luthier.store.files import write_atomically
from luthier.store.problems import storage_errors
from luthier.sweeping.space import overrides

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luthier.sweeping.state import SweepState
    from luthier.sweeping.study import Study


def chosen_trial(state: "SweepState", number: int | None) -> int:
    """The trial that a user means: the winner, or the one named.

    Raises:
        StoreError: no trial is done yet, or that one is none or has no score.
    """
    if number is None:
        if state.winner is None:
            raise StoreError(
                f"{state.config}: no trial of this sweep is done yet. Run: "
                f"luthier sweep {state.config}"
            )
        return state.winner
    done = [trial.number for trial in state.trials if trial.values]
    if number not in done:
        known = ", ".join(map(str, done)) or "none"
        raise StoreError(f"--trial {number}: no trial of that number is done. Done are: {known}.")
    return number


def render_config(study: "Study", number: int, why: str) -> str:
    """The YAML of a trial's config: what the user wrote, with the trial's values in it."""
    config = study.plan.config
    params = study.params(study.trials()[number])
    root, _ = read_sources(Path(config.path), [*config.overrides, *overrides(params)])
    values = plain(root)
    assert isinstance(values, dict), "a config is a mapping"
    values.pop("sweep")
    return f"# {why}\n# Its adapter is made already: luthier run reuses it.\n{_yaml(values)}"


def write_config(study: "Study", number: int, why: str, path: Path) -> None:
    """Write it where nothing is yet, and see that it loads.

    Raises:
        ConfigError: the file is there, or its folder is not.
    """
    if path.exists():
        raise ConfigError(f"--write {path}: that is there already, and stays. Name a new file.")
    if not path.parent.is_dir():
        raise ConfigError(f"--write {path}: there is no folder {path.parent}. Make it first.")
    with storage_errors(path.parent):
        write_atomically(path, render_config(study, number, why))
    load_run(str(path), [])


def _yaml(values: "Mapping[str, Any]") -> str:
    import yaml

    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=88)
