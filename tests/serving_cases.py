"""What the serving tests share: a dataset artifact's files, a tuned tiny model, its GGUF."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.data.summary import DatasetCounts, DatasetInfo
from luthier.serving.converter import GGUFType, convert
from luthier.store.artifact import Workspace

QUESTIONS = (
    "a chess program",
    "reads mail",
    "fonts for  12 scripts",
    "web server in C++",
    "plays music 🎵",
    "plots 3D data",
    "naïve Bayes tool",
    "a dummy package",
)
LABELS = ("games", "mail", "fonts", "web", "sound", "science", "math", "admin")
SURE_LOSS = 0.02  # nats: far enough from a tie for 8 bits to keep every answer
SYSTEM_PROMPT = 'Name the "section" of this package.'


def write_dataset(
    folder: Path, tokenizer_folder: Path, *, task: str = "classification", rows: int = 8
) -> Path:
    """The files of a dataset artifact that serving reads."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    from luthier.models.loading import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        records = [_record(tokenizer, task, row) for row in range(rows)]
        parquet.write_table(pa.Table.from_pylist(records), folder / f"{split}-00000.parquet")
    info = DatasetInfo(
        task=task,
        labels=sorted(LABELS),
        system_prompt=None if task == "completion" else SYSTEM_PROMPT,
        splits={"train": rows, "test": rows},
        stop_token_ids=[2],
        max_length_tokens=256,
        counts=DatasetCounts(
            read=rows, generated=0, kept=rows, quarantined={}, dropped={}, changed={}, splits={}
        ),
    )
    (folder / "dataset.json").write_text(info.model_dump_json())
    return folder


def _record(tokenizer: Any, task: str, row: int) -> dict[str, Any]:
    from luthier.models.chat import encode, render

    question, label = QUESTIONS[row % len(QUESTIONS)], LABELS[row % len(LABELS)]
    conversation = [{"role": "user", "content": question}, {"role": "assistant", "content": label}]
    if task == "completion":
        prompt, whole = (
            encode(tokenizer, question),
            encode(tokenizer, f"{question}{label}<|im_end|>"),
        )
    else:
        conversation.insert(0, {"role": "system", "content": SYSTEM_PROMPT})
        start = render(tokenizer, conversation[:-1], add_generation_prompt=True)
        prompt, whole = encode(tokenizer, start), encode(tokenizer, f"{start}{label}<|im_end|>")
    return {"messages": conversation, "input_ids": whole, "prompt_length": len(prompt)}


def tune(base: Path, folder: Path, dataset: Path, steps: int = 150) -> Path:
    """A copy of the tiny base, trained until it knows the test rows by heart."""
    import pyarrow.parquet as parquet
    import torch

    from luthier.models.loading import load_model

    shutil.copytree(base, folder)
    rows = parquet.read_table(dataset / "test-00000.parquet").to_pylist()
    longest = max(len(row["input_ids"]) for row in rows)
    ids_BT = torch.tensor([padded(row["input_ids"], longest, 2) for row in rows])
    labels_BT = torch.tensor(
        [
            padded(
                [-100] * row["prompt_length"] + row["input_ids"][row["prompt_length"] :],
                longest,
                -100,
            )
            for row in rows
        ]
    )
    model = load_model(folder)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        loss = model(input_ids=ids_BT, labels=labels_BT).loss
        if loss.item() < SURE_LOSS:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def padded(ids: Sequence[int], length: int, filler: int) -> list[int]:
    return [*ids, *[filler] * (length - len(ids))]


def edit_json(path: Path, **changes: Any) -> None:
    """Set top-level keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), encoding="utf-8")


def convert_folder(folder: Path, target: Path, quantization: GGUFType = "q8_0") -> Path:
    workspace = target.with_suffix(".workspace")
    workspace.mkdir()
    convert(folder, target, quantization=quantization, name="t", workspace=Workspace(workspace))
    return target


def make_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter as `sft` saves it, with B matrices that change answers."""
    import torch

    from luthier.models.loading import load_model
    from luthier.models.lora import LoraSection, attach, save_adapter

    model = attach(load_model(base), LoraSection(**({"r": 4, "alpha": 8} | options)), seed=3)
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    folder.mkdir()
    save_adapter(model, folder, "smol")
    return folder
