"""Stage `preferences`: `prepare` once more, for the pairs of chosen and rejected replies."""

from luthier.data.section import PrepareSection
from luthier.errors import ConfigError
from luthier.stages import prepare
from luthier.stages.contract import Slot, Stage


def _refuse_others(section: PrepareSection, _filled: frozenset[str]) -> None:
    if section.task != "preference":
        raise ConfigError(
            f"preferences.task is {section.task}: this section is for pairs, task: preference. "
            "Other rows belong under `prepare:`."
        )


STAGE = Stage(
    name="preferences",
    order=25,
    summary="read, clean, split and tokenise pairs of replies",
    makes="preferences",
    version=prepare.STAGE.version,
    section=PrepareSection,
    run=prepare.run,
    slots=(Slot("base", "base", ("base",)),),
    uses_seed=True,
    packages=prepare.STAGE.packages,
    files=prepare.files,
    check=_refuse_others,
)
