"""Stage `preferences`: `prepare` once more, for the pairs of chosen and rejected replies."""

from collections.abc import Sequence
from pathlib import Path

from luthier.data.section import PrepareSection
from luthier.errors import ConfigError
from luthier.stages import prepare
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.stages.pairs import PAIRS_NAME
from luthier.store.artifact import Workspace

OWN_PAIRS = "pairs:"  # the path that means what the stage `pairs` made


def run(section: PrepareSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """As `prepare`, with the pairs of the stage `pairs` where a source means them."""
    made = inputs.get("pairs")
    if made is not None:
        path = (made.path / PAIRS_NAME).as_posix()
        sources = [
            source.model_copy(update={"path": path}) if source.path == OWN_PAIRS else source
            for source in section.sources
        ]
        section = section.model_copy(update={"sources": sources})
    return prepare.run(section, inputs, workspace)


def _files(section: PrepareSection) -> Sequence[Path]:
    """What is read from outside the store: own pairs are in it."""
    others = [source for source in section.sources if source.path != OWN_PAIRS]
    return prepare.files(section.model_copy(update={"sources": others}))


def _check(section: PrepareSection, filled: frozenset[str]) -> None:
    if section.task != "preference":
        raise ConfigError(
            f"preferences.task is {section.task}: this section is for pairs, task: preference. "
            "Other rows belong under `prepare:`."
        )
    reads = any(source.path == OWN_PAIRS for source in section.sources)
    if reads and "pairs" not in filled:
        raise ConfigError(
            f"preferences.sources: {OWN_PAIRS} means what the stage pairs makes, and the config "
            "has no section pairs. Add one, or name a file."
        )
    if "pairs" in filled and not reads:
        raise ConfigError(
            "pairs makes pairs that nobody reads. Add {path: 'pairs:', split: train} to "
            "preferences.sources, or leave out the section pairs."
        )


STAGE = Stage(
    name="preferences",
    order=25,
    summary="read, clean, split and tokenise pairs of replies",
    makes="preferences",
    version=prepare.STAGE.version,
    section=PrepareSection,
    run=run,
    slots=(
        Slot("base", "base", ("base",)),
        Slot("pairs", "pairs", ("pairs",), optional=True),
    ),
    uses_seed=True,
    packages=prepare.STAGE.packages,
    files=_files,
    check=_check,
)
