"""Replay as one more source, behind all others: where its rows come from, and how many stay."""

from typing import TYPE_CHECKING

from luthier.data import chunks, replay
from luthier.data.index import Fate, RowIndex
from luthier.data.ingest import FilePlan
from luthier.data.reading import replay_plan
from luthier.data.records import SourceFile
from luthier.data.section import PrepareSection
from luthier.data.sources import expand
from luthier.data.summary import Advice
from luthier.errors import DataError
from luthier.store.artifact import Artifact, Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ANSWERS_NAME = "replay.jsonl"  # in the dataset: what the base answered, with each prompt's place


def replay_files(
    section: PrepareSection, base: Artifact, workspace: Workspace
) -> tuple[FilePlan, ...]:
    """The files of replay rows: the user's own, or what the base answers to instructions.

    Raises:
        DataError: a file cannot be read, or an instruction cannot be used.
    """
    if section.replay is None:
        return ()
    if section.replay.path is not None:
        return replay_plan(expand(section.replay.path), section)
    path = workspace.path / ANSWERS_NAME
    prompts = _prompts(str(section.replay.prompts))
    answers = replay.generate_answers(base.path, prompts, section.replay, workspace)
    answered = sum(answer.outcome == "answered" for answer in answers)
    workspace.reporter.say(f"replay: the base answered {answered} of {len(answers)} instructions")
    replay.write_rows(path, prompts, answers, base.digest)
    return replay_plan([SourceFile(path, ANSWERS_NAME)], section) if answered else ()


def _prompts(path: str) -> list[replay.ReplayPrompt]:
    records = [
        record
        for file in expand(path)
        for chunk in chunks.cut(file)
        for record in chunks.read(chunk)
    ]
    prompts, unusable = replay.read_prompts(records)
    if unusable:
        first = unusable[0]
        raise DataError(f"{first.file}:{first.line}: {first.reason}. Mend or remove the line.")
    return prompts


def draw_replay(
    section: PrepareSection, index: RowIndex, replayed: "NDArray[np.bool_]", seed: int
) -> list[Advice]:
    """Of the replay rows as many stay as are the share of train asked for; says if too few."""
    import numpy as np

    if section.replay is None:
        return []
    waiting = np.flatnonzero(index.kept & replayed)
    task_rows = int((index.inside("train") & ~replayed).sum())
    drawn = replay.draw(task_rows, index.id_key[waiting], section.replay.fraction, seed)
    index.leave(np.delete(waiting, drawn), Fate.MIXTURE)
    short = replay.shortage(task_rows, len(waiting), section.replay.fraction)
    return [short] if short is not None else []
