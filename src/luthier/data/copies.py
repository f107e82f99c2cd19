"""The search for near copies, over the rows in the spool."""

import shutil

from luthier.data.index import RowIndex
from luthier.data.near import Work, search
from luthier.data.section import PrepareSection
from luthier.data.spool import Spool
from luthier.data.spooled import SpooledTexts
from luthier.data.summary import NearCounts
from luthier.data.workers import Workers
from luthier.store.artifact import Workspace


def look_for_copies(
    section: PrepareSection,
    index: RowIndex,
    spool: Spool,
    pool: Workers,
    workspace: Workspace,
) -> NearCounts | None:
    """Give near copies their fate, and count them; None when the config switches this off.

    Raises:
        DataError: a contamination file cannot be used.
        InterruptedRunError: a stop was requested; the search begins anew next time.
    """
    if not section.near.enabled:
        return None
    scratch = workspace.scratch / "near"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    with workspace.reporter.task("looking for near copies", 1, "searches") as task:

        def tell(label: str, done: int, total: int) -> None:
            workspace.raise_if_stopped()
            task.resize(total, done)
            task.advance(0, step=label)

        found = search(
            SpooledTexts(spool, spool.parts),
            index,
            section.near,
            section.contamination,
            section.on_leak,
            Work(pool, scratch, tell),
        )
    shutil.rmtree(scratch)
    return found
