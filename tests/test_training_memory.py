"""Running out of memory for real: a child process that may not take more than a little."""

import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kill_child import ENDED
from luthier.errors import ModelError
from luthier.training import session
from luthier.training.job import TrainingJob
from luthier.training.shrinking import is_out_of_memory
from training_cases import make_job, run_job
from warm_children import child_process, join

MIB = 2**20


def train_within(job: TrainingJob, extra_bytes: int | None) -> None:
    """Train in this process, whose address space may grow by `extra_bytes`; ENDED says how it
    went."""
    if extra_bytes is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + extra_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    found: dict[str, Any]
    try:
        outcome = run_job(job)
    except ModelError as error:
        found = {"error": str(error)}
    else:
        assert outcome is not None
        log = (job.outputs / "measured" / "training_log.jsonl").read_text()
        lines = [json.loads(line)["loss"] for line in log.splitlines()]
        found = {"losses": lines, "parts": outcome.facts["training"]["batch_parts"]}
    (job.outputs.parent / ENDED).write_text(json.dumps(found))


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
def ending(tiny_base: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """How two steps on 16 rows each end in a child of a fork server. A fork of this process would
    have free memory in its heap; how much depends on the tests before."""
    dataset = wide_rows(tmp_path / "rows", 32, tokens=128)
    long_rows = wide_rows(tmp_path / "long", 4, tokens=480)

    def train(
        name: str, extra_bytes: int | None, *, is_long: bool = False, **fields: Any
    ) -> dict[str, Any]:
        job = make_job(
            tiny_base,
            long_rows if is_long else dataset,
            tmp_path / name,
            **{"per_device_batch_size": 16, "max_steps": 2, "keep": "last"} | fields,
        )
        join(child_process(train_within, job, extra_bytes))
        return dict(json.loads((tmp_path / name / ENDED).read_text()))

    return train


def test_out_of_memory_shrinks_the_batches_and_keeps_the_losses(
    ending: Callable[..., dict[str, Any]],
) -> None:
    whole = ending("whole", None, on_oom="shrink")
    assert whole["parts"] == 1
    accumulated = {"per_device_batch_size": 8, "gradient_accumulation_steps": 2}
    for name, fields in (("one", {}), ("accumulated", accumulated)):
        shrunk = ending(name, 500 * MIB, on_oom="shrink", **fields)
        assert shrunk["parts"] > 1, shrunk
        assert shrunk["losses"] == pytest.approx(whole["losses"], rel=1e-5)


def test_out_of_memory_is_one_message(ending: Callable[..., dict[str, Any]]) -> None:
    message = ending("run", 500 * MIB)["error"]
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


def test_a_row_that_does_not_fit_is_an_error(ending: Callable[..., dict[str, Any]]) -> None:
    message = ending("run", 350 * MIB, is_long=True, on_oom="shrink")["error"]
    assert "Out of memory with a single row" in message


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ModelError("x"))
    assert is_out_of_memory(MemoryError())
