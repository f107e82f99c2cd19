"""Small training jobs on a tiny base, for tests of everything that trains."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from luthier.progress import Reporter
from luthier.training.job import Outcome, TrainingJob
from luthier.training.sft_section import SFTSection
from luthier.watching import UNWATCHED, Watch

PREFIX = list(range(100, 120))
LIGHT: dict[str, Any] = {
    "lora": {"r": 4, "alpha": 8},
    "learning_rate": 1e-2,
    "epochs": 2,
    "per_device_batch_size": 3,
    "checkpoint_every_steps": 3,
}


def token_rows(
    count: int, *, prefix: list[int] | None = None, seed: int = 3
) -> list[dict[str, Any]]:
    """Rows of random tokens: a prefix, a prompt of 3 to 12, a reply of 1 to 3 and stop (2)."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        prompt = [*(prefix or []), *(rng.randrange(200, 2000) for _ in range(rng.randint(3, 12)))]
        reply = [*(rng.randrange(3000, 3010) for _ in range(rng.randint(1, 3))), 2]
        rows.append({"input_ids": prompt + reply, "labels": [-100] * len(prompt) + reply})
    return rows


def write_dataset(
    folder: Path, *, train: int = 12, validation: int = 6, prefix: list[int] | None = PREFIX
) -> Path:
    """The token columns of a dataset artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count, seed in (("train", train, 3), ("validation", validation, 4)):
        if count:
            table = pa.Table.from_pylist(token_rows(count, prefix=prefix, seed=seed))
            parquet.write_table(table, folder / f"{split}-00000.parquet")
    return folder


def make_job(
    base: Path, dataset: Path, folder: Path, *, start: Path | None = None, **fields: Any
) -> TrainingJob:
    """A job of `LIGHT` with `fields` on it, from `start` when it is given, which works in
    `folder`."""
    outputs, scratch = folder / "outputs", folder / "scratch"
    outputs.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    values = LIGHT | fields | ({"start_from": "try/adapter"} if start else {})
    for given, instead_of in (("batch_tokens", "per_device_batch_size"), ("max_steps", "epochs")):
        if given in fields:
            values.pop(instead_of)
    if start is not None or fields.get("method") == "full":
        values.pop("lora")
    return TrainingJob(
        name="tiny",
        seed=5,
        section=SFTSection.model_validate(values),
        base=base,
        base_name="tiny",
        dataset=dataset,
        start=start,
        fork=None,
        outputs=outputs,
        scratch=scratch,
    )


class Following(Watch):
    """Keeps what it is told, and wants the end after so many validations; None: never."""

    def __init__(self, end_after: int | None = None) -> None:
        self.end_after, self.seen = end_after, list[tuple[float, float]]()

    def validated(self, progress: float, loss: float) -> None:
        self.seen.append((progress, loss))

    @property
    def wants_end(self) -> bool:
        return self.end_after is not None and len(self.seen) >= self.end_after


def run_job(
    job: TrainingJob,
    asked_to_stop: Callable[[], bool] = lambda: False,
    watch: Watch = UNWATCHED,
) -> Outcome | None:
    """Train in this process, in silence."""
    from luthier.training.session import train

    return train(job, Reporter(), asked_to_stop, watch)
