"""`RunConfig`, and `load_config`, which makes one from a YAML file; other files of one section."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError, create_model

from luthier.config.document import Node, Problem, plain, raise_if_any, shortened
from luthier.config.findings import problems_of
from luthier.config.section import Section
from luthier.config.sources import read_sources
from luthier.gates import GATES

SectionT = TypeVar("SectionT", bound=Section)

DEFAULT_SEED = 7
NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"
_NAME_FIELD = Field(
    description="Names everything that comes of this config",
    json_schema_extra={"pattern": f"^{NAME_PATTERN}$"},
)
_RESERVED = ("name", "seed", "gates", "extends")


@dataclass(frozen=True)
class RunConfig:
    """One run: its name and seed, gates lowered to warnings, and the sections the config has."""

    name: str
    seed: int
    gates: Mapping[str, Literal["warn"]]
    path: Path
    overrides: tuple[str, ...]
    sections: Mapping[str, Section]

    def seed_of(self, stage: str) -> int:
        """The seed that a stage works with: its section's own, else the run's."""
        own: int | None = getattr(self.sections[stage], "seed", None)
        return self.seed if own is None else own

    def resolved(self) -> dict[str, Any]:
        """The whole config as JSON values, defaults filled in."""
        sections = {name: one.model_dump(mode="json") for name, one in self.sections.items()}
        return {"name": self.name, "seed": self.seed, "gates": dict(self.gates)} | sections


def load_config(
    path: Path | str, sections: Mapping[str, type[Section]], overrides: Sequence[str] = ()
) -> RunConfig:
    """Read, extend, override and validate a run config.

    `sections` are the sections that a config may have, by key. `overrides` are the texts of
    `--set`, each `section.key=value`.

    Raises:
        ConfigError: with every mistake, one a line, each with file:line and what to write.
    """
    path = Path(path)
    root, problems = read_sources(path, overrides)
    root, empty = _without_empty_sections(root, {*sections, "gates"})
    problems += empty
    model = file_model(sections)
    file = _validated(model, root, problems)
    values = {name: getattr(file, name) for name in model.model_fields}
    present = {name: values[name] for name in sections if values[name] is not None}
    return RunConfig(
        values["name"], values["seed"], values["gates"], path, tuple(overrides), present
    )


def load_section(path: Path | str, model: type[SectionT]) -> SectionT:
    """Read a YAML file that is one section, by the rules of run configs.

    Raises:
        ConfigError: as `load_config`.
    """
    root, problems = read_sources(Path(path), ())
    return _validated(model, root, problems)


def _validated(model: type[SectionT], root: Node, problems: list[Problem]) -> SectionT:
    """The tree as its model; `problems` are the mistakes met while reading it."""
    try:
        read = model.model_validate_json(json.dumps(plain(root)), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise_if_any(problems + problems_of([dict(one) for one in found], model, root))
        raise AssertionError("a validation error has a problem") from error
    raise_if_any(problems)
    return read


def file_model(sections: Mapping[str, type[Section]]) -> type[Section]:
    """The model of a whole config file, `extends` left out; the same for the same sections."""
    return _file_model(tuple(sections.items()))


@lru_cache(maxsize=8)  # pydantic takes 50 ms for all sections
def _file_model(sections: tuple[tuple[str, type[Section]], ...]) -> type[Section]:
    names = {name for name, _ in sections}
    assert not names & set(_RESERVED), "a section has a reserved name"
    fields: dict[str, Any] = {
        "name": (Annotated[str, AfterValidator(_checked_name)], _NAME_FIELD),
        "seed": (
            int,
            Field(DEFAULT_SEED, ge=0, lt=2**32, description="All randomness follows it"),
        ),
        "gates": (
            dict[Literal[tuple(GATES)], Literal["warn"]],  # type: ignore[misc]
            Field(default_factory=dict, description="Gates that only warn, by id"),
        ),
    }
    # no default in the schema: an absent section is a stage that does not run
    fields |= {name: (section, None) for name, section in sections}
    return create_model("Config", __base__=Section, **fields)


def _checked_name(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(
            "must be 1 to 64 characters a-z, 0-9, '.', '_' or '-', the first a letter or digit, "
            f"got the text {shortened(name)!r}"
        )
    return name


def _without_empty_sections(root: Node, names: set[str]) -> tuple[Node, list[Problem]]:
    """The tree with each section that says nothing marked as reported."""
    assert isinstance(root.value, dict)
    problems: list[Problem] = []
    entries = dict(root.value)
    for name in names & set(entries):
        node = entries[name]
        if node.value is None and not node.refused:
            entries[name] = replace(node, refused=True)
            said = f"{name} is empty. Write {name}: {{}} for its defaults, or remove it"
            problems.append(Problem(node.mark, said))
    return replace(root, value=entries), problems
