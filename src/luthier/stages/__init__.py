"""The stages, one file each. A module here with a `STAGE` is a stage; nothing registers it."""

import ast
import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.stages.contract import Stage


@dataclass(frozen=True)
class Heading:
    """What the command line's help says of a stage."""

    name: str
    order: int
    summary: str


@cache
def headings() -> list[Heading]:
    """Every stage's heading in pipeline order, read from its file without importing it.

    Importing them all takes longer than anybody waits for `--help`.
    """
    files = sorted(Path(folder) / f"{name}.py" for folder in __path__ for name in _module_names())
    found = [heading for path in files if (heading := _heading(path)) is not None]
    return sorted(found, key=lambda heading: heading.order)


@cache
def discover() -> "dict[str, Stage[Any]]":
    """Every stage by name, in pipeline order."""
    modules = (importlib.import_module(f"{__name__}.{name}") for name in _module_names())
    stages = [module.STAGE for module in modules if hasattr(module, "STAGE")]
    return {stage.name: stage for stage in sorted(stages, key=lambda stage: stage.order)}


def _module_names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]


def _heading(path: Path) -> Heading | None:
    """The constants of `STAGE = Stage(name=..., order=..., summary=...)`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="STAGE")], value=ast.Call(keywords=keywords)):
                given = {k.arg: k.value for k in keywords if k.arg in ("name", "order", "summary")}
                return Heading(**{str(k): ast.literal_eval(v) for k, v in given.items()})
    return None
