"""A base, a dataset and adapters with random updates, as the merge stage reads them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from evaluation_cases import SEED, artifact, make_dataset
from luthier.gates import Gate
from luthier.models.chat import stop_token_ids
from luthier.models.loading import DType, load_model, load_tokenizer
from luthier.models.lora import LoraSection, attach, save_adapter
from luthier.models.weights import describe_weights
from luthier.stages.contract import StageInputs, StageResult
from luthier.stages.merge import STAGE, MergeSection
from luthier.store.artifact import Artifact, Workspace
from luthier.store.manifest import InputRef

SQUARE = "model.layers.1.self_attn.q_proj"  # 64 x 64, as o_proj


@dataclass(frozen=True)
class Case:
    """What the merge stage gets."""

    base: Artifact
    dataset: Artifact
    adapter: Artifact

    def merge(self, folder: Path, **section: Any) -> StageResult:
        return self.merge_with(folder, {}, **section)

    def merge_with(self, folder: Path, more: dict[str, Artifact], **section: Any) -> StageResult:
        inputs = {"base": self.base, "dataset": self.dataset, "adapter": self.adapter, **more}
        folder.mkdir(exist_ok=True)
        stage_inputs = StageInputs("case", SEED, inputs)
        return STAGE.run(MergeSection(**section), stage_inputs, Workspace(folder))


def make_case(folder: Path, base: Path, *, task: str = "classification") -> Case:
    return Case(
        base=base_artifact(base),
        dataset=artifact(
            make_dataset(folder / "data", base, task=task, train=20, test=12), "dataset"
        ),
        adapter=make_adapter(folder / "adapter", base),
    )


def base_artifact(folder: Path) -> Artifact:
    stops = stop_token_ids(folder, load_tokenizer(folder))
    return artifact(folder, "base", stop_token_ids=stops, dtype=describe_weights(folder)["dtype"])


def learn(model: Any, seed: int = 7, strength: float = 1.0) -> None:
    """Move everything that is trained, as training would but at random."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            spread = float(parameter.detach().std()) if parameter.numel() > 1 else 0.0
            step = torch.randn_like(parameter) * (0.1 * spread + 0.03)
            parameter.data += strength * step
    model.eval()


def make_adapter(
    folder: Path,
    base: Path,
    *,
    seed: int = 7,
    strength: float = 1.0,
    quantization: str | None = None,
    trained_dtype: DType = "float32",
    **options: Any,
) -> Artifact:
    """A LoRA of the base whose update is random."""
    model = load_model(base, dtype=trained_dtype, quantization=quantization)
    model = attach(model, LoraSection(**({"r": 4, "alpha": 16} | options)), seed)
    learn(model, seed, strength)
    folder.mkdir(parents=True)
    save_adapter(model, folder, "tiny")
    training = {"dtype": trained_dtype, "quantization": quantization, "method": "lora"}
    return of_base(artifact(folder, "adapter", training=training), "0" * 64)


def of_base(adapter: Artifact, digest: str) -> Artifact:
    """The same adapter, trained on the base of this digest."""
    ref = InputRef(slot="base", kind="base", key="1" * 64, digest=digest, ref="case/base@v1")
    manifest = adapter.manifest.model_copy(update={"inputs": [ref]})
    return Artifact(adapter.path, manifest)


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def change_json(path: Path, **changes: Any) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(found | changes), encoding="utf-8")


Tensors = dict[str, torch.Tensor]


def change_tensors(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Rewrite a safetensors file."""
    tensors = change(load_file(path))
    path.unlink()
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        path,
        metadata={"format": "pt"},
    )


def untied_copy(base: Path, folder: Path) -> Path:
    """`base` with an output head of its own."""
    copy_of(base, folder)
    change_json(folder / "config.json", tie_word_embeddings=False)

    def with_head(tensors: Tensors) -> Tensors:
        torch.manual_seed(4)
        table = tensors["model.embed_tokens.weight"]
        return tensors | {"lm_head.weight": table + 0.01 * torch.randn_like(table)}

    change_tensors(folder / "model.safetensors", with_head)
    return folder


def statuses(gates: list[Gate] | Any) -> dict[str, str]:
    return {gate.id: gate.status for gate in gates}
