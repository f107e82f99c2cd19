"""The logits of a model folder, from a process that has nothing but what it loads from there.

`fresh_logits` starts `python -m luthier.models.fresh REQUEST`, which ends with its parent: it
watches its standard input, which closes even when the parent is killed with SIGKILL.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.children import end_child, start_child
from luthier.errors import LuthierError, ModelError
from luthier.models.loading import load_model
from luthier.models.parity import probe_logits
from luthier.store.artifact import Workspace
from luthier.store.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

_POLL_SECONDS = 0.05
_LOG_TAIL_CHARACTERS = 1500
_REQUEST, _LOGITS, _ERROR, _LOG = "request.json", "logits.safetensors", "error", "log"


def fresh_logits(
    folder: Path,
    rows: Sequence[Sequence[int]],
    workspace: Workspace,
    *,
    device: str,
    most_positions: int | None = None,
) -> "list[Tensor]":
    """`probe_logits` of a model folder in float32, loaded in a new process on `device`.

    Args:
        folder: a whole model.
        rows: token ids of each row.
        workspace: says whether to stop; its scratch folder holds request, answer and log.
        device: "cpu" or "cuda".
        most_positions: see `probe_logits`.

    Raises:
        ModelError: the model does not load, or the process ended otherwise; with its last lines.
        InterruptedRunError: stopped on request; the process is ended.
    """
    from safetensors.torch import load_file

    talk = workspace.scratch / "fresh"
    talk.mkdir(exist_ok=True)
    for name in (_LOGITS, _ERROR):
        (talk / name).unlink(missing_ok=True)
    request = {
        "folder": str(folder.resolve()),
        "rows": [list(row) for row in rows],
        "device": device,
        "most_positions": most_positions,
    }
    write_atomically(talk / _REQUEST, json.dumps(request))
    status = _run(talk, workspace)
    if (talk / _ERROR).exists():
        raise ModelError((talk / _ERROR).read_text(encoding="utf-8"))
    if status != 0:
        log = (talk / _LOG).read_text(encoding="utf-8", errors="replace").strip()
        raise ModelError(
            f"{folder}: the process that loads it again, to check it, ended with status {status}. "
            f"Its last lines:\n{log[-_LOG_TAIL_CHARACTERS:]}"
        )
    tensors = load_file(talk / _LOGITS)
    return [tensors[str(place)] for place in range(len(rows))]


def _run(talk: Path, workspace: Workspace) -> int:
    arguments = ["-m", "luthier.models.fresh", str(talk.resolve())]
    with (talk / _LOG).open("wb") as log:
        process = start_child(arguments, stdout=log, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None:
            workspace.raise_if_stopped()
            time.sleep(_POLL_SECONDS)
    finally:
        status = end_child(process)
    return status


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not through sys.stdin, whose lock would be held at the end
    os._exit(1)


def _answer(talk: Path) -> None:
    """The child: load, compute, write."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request: dict[str, Any] = json.loads((talk / _REQUEST).read_text(encoding="utf-8"))
    try:
        model = load_model(Path(request["folder"]), device=request["device"])
    except LuthierError as error:
        write_atomically(talk / _ERROR, str(error))
        sys.exit(error.exit_code)
    from safetensors.torch import save_file

    logits = probe_logits(model, request["rows"], most_positions=request["most_positions"])
    save_file({str(place): row for place, row in enumerate(logits)}, talk / _LOGITS)


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
