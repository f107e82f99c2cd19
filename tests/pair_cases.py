"""Small jobs of preference optimisation on a tiny base."""

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as parquet

from dataset_cases import full_info
from luthier.training.dpo_section import DPOSection
from luthier.training.job import Outcome, TrainingJob
from training_cases import PREFIX, make_job, run_job, write_dataset

if TYPE_CHECKING:
    from luthier.data.rows import Split

LIGHT: dict[str, Any] = {
    "learning_rate": 1e-3,
    "epochs": 2,
    "per_device_batch_size": 3,
    "checkpoint_every_steps": 2,
}


def token_pairs(count: int, *, prefix: list[int] | None = PREFIX, seed: int = 3) -> list[Any]:
    """Random pairs: a prefix, a prompt of 3 to 12 tokens, replies of 1 to 6 and stop (2); chosen
    replies are of other tokens than rejected ones."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        prompt = [*(prefix or []), *(rng.randrange(200, 2000) for _ in range(rng.randint(3, 12)))]
        chosen, rejected = (
            [*(rng.randrange(first, first + 10) for _ in range(rng.randint(1, 6))), 2]
            for first in (3000, 4000)
        )
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return rows


def write_pairs(
    folder: Path, *, train: int = 12, validation: int = 6, prefix: list[int] | None = PREFIX
) -> Path:
    """The token columns of a preferences artifact, and what dataset.json says of stop tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = pa.list_(pa.int32())
    schema = pa.schema([(n, kind) for n in ("prompt_ids", "chosen_ids", "rejected_ids")])
    splits: dict[Split, list[Any]] = {
        "train": token_pairs(train, prefix=prefix, seed=3),
        "validation": token_pairs(validation, prefix=prefix, seed=4),
    }
    for split, rows in splits.items():
        if rows:
            parquet.write_table(
                pa.Table.from_pylist(rows, schema), folder / f"{split}-00000.parquet"
            )
    info = full_info({split: rows for split, rows in splits.items() if rows}, "preference")
    (folder / "dataset.json").write_text(info.model_dump_json())
    return folder


def sft_adapter(base: Path, folder: Path, **fields: Any) -> Path:
    """A folder with an adapter that a few supervised steps made."""
    job = make_job(base, write_dataset(folder / "data"), folder, **{"max_steps": 4} | fields)
    assert run_job(job) is not None
    return job.outputs


def pair_job(
    base: Path, preferences: Path, folder: Path, *, start: Path | None, **fields: Any
) -> TrainingJob:
    """A job of `LIGHT` with `fields` on it, from the adapter `start`, which works in `folder`."""
    outputs, scratch = folder / "outputs", folder / "scratch"
    outputs.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    values = LIGHT | fields
    for given, instead_of in (("batch_tokens", "per_device_batch_size"), ("max_steps", "epochs")):
        if given in fields:
            values.pop(instead_of)
    return TrainingJob(
        name="tiny",
        seed=5,
        section=DPOSection.model_validate(values),
        base=base,
        base_name="tiny",
        dataset=preferences,
        start=start,
        fork=None,
        outputs=outputs,
        scratch=scratch,
        shared=folder.parent / ".shared",
        reference_inputs={"base": "b", "preferences": "p", "adapter": str(start and start.name)},
    )


def run_pairs(job: TrainingJob) -> Outcome:
    """Train to the end, in silence."""
    outcome = run_job(job)
    assert outcome is not None
    return outcome
