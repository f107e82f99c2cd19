"""Logits of a GGUF, exactly as llama.cpp computes them on the CPU; also a child's program.

`gguf_logits` starts `python -m luthier.serving.gguf_logits`, which loads the file, answers row
after row on a pipe, and ends when its reader is gone.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from luthier.children import Child, start_child
from luthier.errors import ServingError
from luthier.serving.child import running
from luthier.serving.llama_server import default_threads

if TYPE_CHECKING:
    import numpy as np

_LOG_TAIL_CHARACTERS = 1500
_VOCABULARY_BYTES = 4  # the child's first word: an int32


def gguf_logits(
    gguf_path: Path,
    rows: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]] | None = None,
    *,
    threads: int | None = None,
) -> Iterator["np.ndarray"]:
    """Logits of rows of token ids, one row after the other; one row's are in memory at a time.

    The same file, rows and threads give the same numbers.

    Args:
        rows: token ids, none of them empty.
        positions: of each row, those whose logits (of the token after) are wanted, ascending;
            None: all.
        threads: None takes $OMP_NUM_THREADS, else the cores this process may use.

    Yields:
        (T, V) float32 for each row: T positions, V tokens of the vocabulary.

    Raises:
        ServingError: `xllamacpp` is missing, the file cannot be loaded or computed, or llama.cpp
            crashes; the message has the end of its log.
    """
    import numpy as np

    if positions is None:
        positions = [range(len(row)) for row in rows]
    assert len(rows) == len(positions)
    assert all(rows)
    if not rows:
        return
    with (
        tempfile.TemporaryDirectory(prefix="luthier-logits-") as folder,
        _child(gguf_path, rows, positions, Path(folder), threads or default_threads()) as child,
    ):
        log = Path(folder) / "log"
        (vocabulary,) = np.frombuffer(_read(child, _VOCABULARY_BYTES, gguf_path, log), np.int32)
        for wanted in positions:
            size_bytes = len(wanted) * int(vocabulary) * 4
            data = _read(child, size_bytes, gguf_path, log)
            yield np.frombuffer(data, np.float32).reshape(len(wanted), vocabulary)


@contextmanager
def _child(
    gguf_path: Path,
    rows: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    folder: Path,
    threads: int,
) -> Iterator[Child]:
    request = folder / "request.json"
    content = {
        "gguf_path": str(gguf_path),
        "rows": [list(row) for row in rows],
        "positions": [list(wanted) for wanted in positions],
        "threads": threads,
    }
    request.write_text(json.dumps(content), encoding="utf-8")
    with (folder / "log").open("wb") as log:
        process = start_child(
            ["-m", "luthier.serving.gguf_logits", str(request)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    with running(process):
        yield process


def _read(child: Child, size_bytes: int, gguf_path: Path, log: Path) -> bytes:
    assert child.stdout is not None
    data = child.stdout.read(size_bytes)
    if len(data) < size_bytes:
        status = child.wait()
        told = log.read_text("utf-8", errors="replace").strip()[-_LOG_TAIL_CHARACTERS:]
        raise ServingError(
            f"{gguf_path}: llama.cpp gave no logits (exit status {status}). Its last lines:\n"
            f"{told}"
        )
    return data


def _answer(request_path: Path, output: IO[bytes]) -> None:
    """The child: the vocabulary's size, then each row's logits."""
    import numpy as np

    from luthier.serving.llama_library import LlamaModel

    request = json.loads(request_path.read_text("utf-8"))
    rows, positions = request["rows"], request["positions"]
    with LlamaModel(
        Path(request["gguf_path"]),
        context_tokens=max(map(len, rows)),
        outputs=max(1, *map(len, positions)),
        threads=request["threads"],
    ) as model:
        output.write(np.int32(model.vocabulary_tokens).tobytes())
        for row, wanted in zip(rows, positions, strict=True):
            output.write(model.logits(row, wanted).data)
            output.flush()


def main() -> None:
    """Answer the request on standard output, which native code cannot write to meanwhile."""
    with os.fdopen(os.dup(1), "wb") as output:
        os.dup2(2, 1)
        try:
            _answer(Path(sys.argv[1]), output)
        except ServingError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
