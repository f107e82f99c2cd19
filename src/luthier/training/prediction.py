"""What a training will take: memory, time and cost, from a section and the rows. No torch.

The numbers are `luthier.estimate`'s; here they get what a config and a dataset say.
"""

import math
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.dataset import split_files
from luthier.data.tokens import IGNORE_INDEX
from luthier.estimate.architecture import Architecture, read_architecture
from luthier.estimate.fitting import Fit, find_fit
from luthier.estimate.hardware import GIB, Hardware, by_device_name, cpu, find_hardware
from luthier.estimate.shape import AdapterShape, TrainingShape
from luthier.estimate.time import TimePrediction, predict_seconds
from luthier.training.dpo_section import DPOSection
from luthier.training.performance import PART_TOKENS, is_foreseen
from luthier.training.section import TrainingSection

# Rows that are compared for a common beginning, which is then a good guess for every batch.
_COMPARED_ROWS = 64
MIB = 2**20


@dataclass(frozen=True)
class RowNumbers:
    """Of the training rows: how many, and tokens of the longest and in the mean, of which
    supervised; tokens that all rows begin with."""

    rows: int
    longest: int
    mean: float
    supervised_most: int
    supervised_mean: float
    shared_prefix: int


@dataclass(frozen=True)
class Prediction:
    """Whether training fits on some hardware, and how long it takes there."""

    architecture: Architecture
    shape: TrainingShape
    hardware: Hardware
    fit: Fit
    time: TimePrediction

    @property
    def peak(self) -> str:
        """For people: the memory that training takes, of what there is."""
        return f"{self.fit.prediction.total / GIB:.2f} of {self.fit.memory_bytes / GIB:.1f} GiB"


def numbers_for(section: TrainingSection, dataset: Path) -> RowNumbers:
    """Of the rows or pairs that a section's stage trains on."""
    if isinstance(section, DPOSection):
        return numbers_of_pairs(dataset, share_prompt=is_foreseen(section, "share_prefix"))
    return numbers_of(dataset)


def numbers_of(dataset: Path) -> RowNumbers:
    """Of a prepared dataset's training rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import parquet

    files = split_files(dataset, "train")
    table = pa.concat_tables(
        parquet.read_table(path, columns=["input_ids", "labels"]) for path in files
    )
    lengths = pc.list_value_length(table["input_ids"]).to_numpy()
    labels = pc.list_flatten(table["labels"]).to_numpy() != IGNORE_INDEX
    ends = np.cumsum(lengths)
    supervised = np.diff(np.concatenate([[0], np.cumsum(labels)[ends - 1]]))
    first = table["input_ids"].slice(0, _COMPARED_ROWS).to_pylist()
    return RowNumbers(
        rows=len(lengths),
        longest=int(lengths.max()),
        mean=float(lengths.mean()),
        supervised_most=int(supervised.max()),
        supervised_mean=float(supervised.mean()),
        shared_prefix=_common_beginning(first) if len(first) > 1 else 0,
    )


def numbers_of_pairs(preferences: Path, *, share_prompt: bool) -> RowNumbers:
    """Of the training pairs: a pair is a row, its two replies behind one prompt; without
    `share_prompt` behind one each."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import parquet

    names = ["prompt_ids", "chosen_ids", "rejected_ids"]
    files = split_files(preferences, "train")
    table = pa.concat_tables(parquet.read_table(path, columns=names) for path in files)
    prompts, chosen, rejected = (pc.list_value_length(table[name]).to_numpy() for name in names)
    replies = chosen + rejected
    lengths = replies + prompts * (1 if share_prompt else 2)
    first = table["prompt_ids"].slice(0, _COMPARED_ROWS).to_pylist()
    return RowNumbers(
        rows=len(lengths),
        longest=int(lengths.max()),
        mean=float(np.mean(lengths)),
        supervised_most=int(replies.max()),
        supervised_mean=float(np.mean(replies)),
        shared_prefix=_common_beginning(first) if len(first) > 1 and share_prompt else 0,
    )


def unknown_numbers(max_length_tokens: int) -> RowNumbers:
    """Before a dataset is prepared: every row as long as it may be, every token supervised."""
    length = max_length_tokens
    return RowNumbers(0, length, float(length), length, float(length), 0)


def _common_beginning(rows: list[list[int]]) -> int:
    return next(
        (at for at, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1),
        min(map(len, rows)),
    )


def predict(
    config: Mapping[str, Any], section: TrainingSection, numbers: RowNumbers, hardware: Hardware
) -> Prediction:
    """Memory of the largest batch, time and cost of the whole training.

    Args:
        config: the base's config.json.
        section: how it is trained.
        numbers: the rows.
        hardware: where.

    Raises:
        ConfigError: the architecture is not known, or nothing of it is adapted.
    """
    architecture = read_architecture(config)
    shape = _shape(section, numbers, hardware)
    mean = max(1, round(numbers.mean))
    rows = section.per_device_batch_size
    if rows is None:
        rows = max(1, shape.rows * shape.tokens_per_row // mean)
    typical = shape.with_length(mean).with_rows(min(rows, max(1, numbers.rows)))
    batches = max(1, numbers.rows) / typical.rows * section.epochs / section.processes
    if section.max_steps is not None:
        batches = section.max_steps * section.gradient_accumulation_steps
    return Prediction(
        architecture=architecture,
        shape=shape,
        hardware=hardware,
        fit=find_fit(architecture, shape, hardware),
        time=predict_seconds(architecture, typical, hardware, micro_batches=math.ceil(batches)),
    )


def _shape(section: TrainingSection, numbers: RowNumbers, hardware: Hardware) -> TrainingShape:
    dtype = section.dtype
    if dtype == "auto":
        dtype = "bfloat16" if hardware.is_cuda else "float32"
    quantization = section.quantization if section.method == "qlora" else None
    compute = quantization.compute_dtype if quantization else "auto"
    rows = section.per_device_batch_size
    if rows is None:
        assert section.batch_tokens is not None, "the section has one of the two"
        rows = max(1, section.batch_tokens // numbers.longest)
    if is_foreseen(section, "split_batches"):
        most = PART_TOKENS["cuda" if hardware.is_cuda else "cpu"]
        rows = min(rows, max(1, most // numbers.longest))
    return TrainingShape(
        method=section.method,
        dtype=dtype,
        adapter=_adapter(section),
        quantization=quantization.type if quantization else None,
        double_quantization=quantization.double_quantization if quantization else True,
        compute_dtype=dtype if compute == "auto" else compute,
        optimizer=section.optimizer,
        rows=rows if not numbers.rows else min(rows, numbers.rows),
        tokens_per_row=numbers.longest,
        supervised_tokens_per_row=numbers.supervised_most,
        shared_prefix_tokens=(
            max(0, numbers.shared_prefix - 1) if is_foreseen(section, "share_prefix") else 0
        ),
        gradient_checkpointing=section.gradient_checkpointing,
        gradient_accumulation_steps=section.gradient_accumulation_steps,
        fused_kernels=is_foreseen(section, "fused_lora"),
    )


def _adapter(section: TrainingSection) -> AdapterShape | None:
    if section.method == "full":
        return None
    lora, targets, layers = (
        section.lora,
        section.lora.target_modules,
        section.lora.layers_to_transform,
    )
    whole = [
        *lora.modules_to_save,
        *(["embed_tokens", "lm_head"] if lora.train_embeddings else []),
    ]
    return AdapterShape(
        r=lora.r,
        target_modules=targets if isinstance(targets, str) else tuple(targets),
        rank_pattern=lora.rank_pattern,
        dropout=lora.dropout,
        use_dora=lora.use_dora,
        modules_to_save=tuple(whole),
        layers_to_transform=None if layers is None else tuple(layers),
    )


def hardware_here() -> Hardware:
    """This machine's first GPU where it is a known one, else its processor and free memory."""
    return _gpu() or _processor()


def hardware_named(name: str) -> Hardware:
    """As `find_hardware`; `auto` is this machine.

    Raises:
        ConfigError: there is none of that name.
    """
    return find_hardware(name, _processor() if name == "cpu" else hardware_here())


def _processor() -> Hardware:
    import psutil  # type: ignore[import-untyped]

    cores = psutil.cpu_count(logical=False) or 1
    return cpu(psutil.virtual_memory().available, cores, maps_tensors=True)


def _gpu() -> Hardware | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=10)
    if done.returncode != 0 or not done.stdout.strip():
        return None
    name, mebibytes = done.stdout.splitlines()[0].rsplit(",", 1)
    return by_device_name(name, int(mebibytes) * MIB)
