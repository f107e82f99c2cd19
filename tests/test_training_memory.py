"""Running out of memory for real: a child process that may not take more than a little."""

import json
import os
import pickle
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.errors import ModelError
from luthier.training import session
from luthier.training.shrinking import is_out_of_memory
from training_cases import make_job, run_job

MIB = 2**20


def in_child(work: Callable[[], Any], *, extra_bytes: int | None) -> Any:
    """What `work` gives in a forked process, whose address space may grow by `extra_bytes`."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        if extra_bytes is not None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + extra_bytes
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            found: Any = work()
        except BaseException as error:  # noqa: BLE001, it goes to the parent
            found = (type(error).__name__, str(error))
        with os.fdopen(sending, "wb") as pipe:
            pickle.dump(found, pipe)
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(data)


def wide_rows(folder: Path, count: int, tokens: int) -> Path:
    """Rows whose every token is supervised: logits take 12 MiB for 64 tokens."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    ids = [[100 + (i * 7 + t) % 900 for t in range(tokens)] for i in range(count)]
    rows = [{"input_ids": row, "labels": list(range(200, 200 + tokens))} for row in ids]
    folder.mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), folder / "train-00000.parquet")
    return folder


@pytest.fixture
def losses(tiny_base: Path, tmp_path: Path) -> Callable[..., Any]:
    """The losses of two steps on 16 rows each, in a child process."""
    from luthier.training.trainer import supervised_trainer_class

    supervised_trainer_class()  # what is imported here takes no address space of the children
    dataset = wide_rows(tmp_path / "rows", 32, tokens=128)

    long_rows = wide_rows(tmp_path / "long", 4, tokens=480)

    def train(name: str, extra_bytes: int | None, *, is_long: bool = False, **fields: Any) -> Any:
        def work() -> Any:
            job = make_job(
                tiny_base,
                long_rows if is_long else dataset,
                tmp_path / name,
                **{"per_device_batch_size": 16, "max_steps": 2, "keep": "last"} | fields,
            )
            outcome = run_job(job)
            assert outcome is not None
            log = (job.outputs / "measured" / "training_log.jsonl").read_text()
            lines = [json.loads(line)["loss"] for line in log.splitlines()]
            return lines, outcome.facts["training"]["batch_parts"]

        return in_child(work, extra_bytes=extra_bytes)

    return train


def test_out_of_memory_shrinks_the_batches_and_keeps_the_losses(
    losses: Callable[..., Any],
) -> None:
    whole, parts = losses("whole", None, on_oom="shrink")
    assert parts == 1
    accumulated = {"per_device_batch_size": 8, "gradient_accumulation_steps": 2}
    for name, fields in (("one", {}), ("accumulated", accumulated)):
        shrunk, parts = losses(name, 300 * MIB, on_oom="shrink", **fields)
        assert parts > 1
        assert shrunk == pytest.approx(whole, rel=1e-5)


def test_out_of_memory_is_one_message(losses: Callable[..., Any]) -> None:
    kind, message = losses("run", 300 * MIB)
    assert kind == "ModelError", message
    said = r"Out of memory at step 1, with batches of 16; predicted was [\d.]+ of [\d.]+ GiB\. "
    assert re.match(said, message), message
    assert "on_oom: shrink" in message


def test_out_of_memory_before_the_first_step_is_the_same_message(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(session, "make_model", load)
    dataset = wide_rows(tmp_path / "rows", 4, tokens=16)
    said = r"Out of memory before the first step; predicted was [\d.]+ of [\d.]+ GiB\. Set"
    with pytest.raises(ModelError, match=said):
        run_job(make_job(tiny_base, dataset, tmp_path / "run"))


def test_a_row_that_does_not_fit_is_an_error(losses: Callable[..., Any]) -> None:
    kind, message = losses("run", 110 * MIB, is_long=True, on_oom="shrink")
    assert kind == "ModelError", message
    assert "Out of memory with a single row" in message


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ModelError("x"))
    assert is_out_of_memory(MemoryError())
