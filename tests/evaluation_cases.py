"""A small classification dataset made by the real `prepare`, artifacts, and a trained adapter."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from luthier.config import Section
from luthier.data.dataset import load_split
from luthier.models.chat import stop_token_ids
from luthier.models.loading import load_model, load_tokenizer
from luthier.models.lora import LoraSection, attach, save_adapter
from luthier.stages import prepare
from luthier.stages.contract import Stage, StageInputs, StageResult
from luthier.store.artifact import Artifact, Workspace
from luthier.store.manifest import ArtifactKind, Manifest
from luthier.training.loss import summed_loss
from tiny_llama import tiny_llama

SEED = 7
ANIMALS = ("cat", "dog", "horse", "sheep")
TOOLS = ("hammer", "drill", "wrench", "saw")
TRAINING = {"dtype": "float32", "quantization": None, "method": "lora"}


def artifact(folder: Path, kind: ArtifactKind, **facts: object) -> Artifact:
    """A folder as a sealed artifact, with the parts of a manifest that stages read."""
    return Artifact(
        folder,
        Manifest.model_construct(name="case", version=1, kind=kind, facts=facts, digest="0" * 64),
    )


def class_records(count: int, first: int) -> list[dict[str, Any]]:
    return [
        {
            "text": f"{n}: the {(ANIMALS, TOOLS)[n % 2][n // 2 % 4]}",
            "label": ("animal", "tool")[n % 2],
        }
        for n in range(first, first + count)
    ]


def chat_records(count: int, first: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"count {n}"},
                {
                    "role": "assistant",
                    "content": " ".join(str(n + step) for step in range(n % 3 + 1)),
                },
            ]
        }
        for n in range(first, first + count)
    ]


def completion_records(count: int, first: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{n} and one is", "completion": f" {n + 1}"}
        for n in range(first, first + count)
    ]


RECORDS = {
    "classification": class_records,
    "chat": chat_records,
    "completion": completion_records,
}


def make_dataset(folder: Path, base: Path, *, task: str, train: int, test: int) -> Path:
    """Run `prepare` on made-up rows of a task; returns the dataset's folder."""
    folder.mkdir(parents=True)
    for split, count, first in (("train", train, 0), ("test", test, train)):
        lines = (json.dumps(record) for record in RECORDS[task](count, first))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    section = prepare.PrepareSection.model_validate(
        {
            "task": task,
            "sources": [
                {"path": str(folder / "train.jsonl"), "split": "train"},
                {"path": str(folder / "test.jsonl"), "split": "test"},
            ],
            "system_prompt": None if task == "completion" else "Say what it is.",
        }
    )
    dataset = folder / "dataset"
    dataset.mkdir()
    run_stage(prepare.STAGE, section, {"base": base_artifact(base)}, Workspace(dataset))
    return dataset


def base_artifact(folder: Path) -> Artifact:
    stops = stop_token_ids(folder, load_tokenizer(folder))
    return artifact(folder, "base", stop_token_ids=stops)


def run_stage(
    stage: Stage[Any], section: Section, artifacts: dict[str, Artifact], workspace: Workspace
) -> StageResult:
    return stage.run(section, StageInputs("case", SEED, artifacts), workspace)


def make_teachable_base(folder: Path, tokenizer: Path) -> Path:
    """A random model whose words differ enough for LoRA to tell them apart within seconds."""
    model = tiny_llama(4, initializer_range=0.1, tie_word_embeddings=False)
    model.model.embed_tokens.weight.data.normal_(std=1.0)
    model.lm_head.weight.data.normal_(std=0.3)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)
    for path in tokenizer.iterdir():
        shutil.copy(path, folder / path.name)
    return folder


def make_teachable(folder: Path, tokenizer: Path, *, test: int) -> tuple[Artifact, Artifact]:
    """A base that can be taught, and 40 rows of three classes to teach it, `test` to ask it."""
    base = make_teachable_base(folder / "base", tokenizer)
    rows = make_dataset(folder / "data", base, task="classification", train=40, test=test)
    return base_artifact(base), artifact(rows, "dataset")


def train_adapter(
    base: Path,
    dataset: Path,
    folder: Path,
    *,
    steps: int,
    learning_rate: float = 5e-3,
    only_label: str | None = None,
) -> Artifact:
    """LoRA on the dataset's own tokens, perhaps of one class; without steps it changes nothing."""
    folder.mkdir()
    model = attach(load_model(base), LoraSection(r=16, alpha=32), seed=1)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate)
    rows = load_split(dataset, "train").to_list()
    batch = padded([row for row in rows if only_label in (None, row["label"])][:24])
    model.train()
    for _ in range(steps):
        summed_loss(model, batch, share_prefix=True).backward()
        optimizer.step()
        optimizer.zero_grad()
    save_adapter(model, folder, "tiny")
    return artifact(folder, "adapter", training=TRAINING)


def padded(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)

    def pad(name: str, value: int) -> torch.Tensor:
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    ids = pad("input_ids", 2)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = torch.arange(longest)[None, :] < lengths[:, None]
    return {"input_ids": ids, "labels": pad("labels", -100), "attention_mask": mask.long()}
