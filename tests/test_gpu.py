"""The CUDA paths: LoRA and QLoRA training, and the numerics that they must keep. `-m gpu`."""

from pathlib import Path

import datasets
import pytest
import torch

from luthier.models.loading import Quantization, load_model, load_tokenizer
from luthier.models.lora import LoraSection, attach, moved_share, output_matrices, trainable_dtypes
from luthier.store.artifact import Workspace
from luthier.training.batches import PaddedCollator
from luthier.training.callbacks import stage_callback
from luthier.training.loss import summed_loss
from luthier.training.trainer import TrainingPlan, make_trainer
from test_training import PREFIX, token_rows

pytestmark = pytest.mark.gpu


class NoTask:
    def advance(self, count: int = 1, **_: object) -> None:
        pass

    def resize(self, total: int, done: int = 0) -> None:
        pass


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_bfloat16_training_keeps_a_float32_adapter_that_learns(
    tiny_base: Path, tmp_path: Path, quantization: Quantization | None
) -> None:
    model = load_model(tiny_base, dtype="bfloat16", quantization=quantization)
    assert model.device.type == "cuda"
    model = attach(model, LoraSection(r=4, alpha=8), seed=5)
    before = output_matrices(model)
    trainer = make_trainer(
        model=model,
        tokenizer=load_tokenizer(tiny_base),
        rows=(datasets.Dataset.from_list(token_rows(24, prefix=PREFIX)), None),
        plan=TrainingPlan(4, None, 5, share_prefix=True, checkpoints=tmp_path / "c"),
        arguments={
            "num_train_epochs": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "gradient_checkpointing": False,
        },
        callbacks=[stage_callback(Workspace(tmp_path), NoTask())],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert set(trainable_dtypes(model)) == {"float32"}
    assert moved_share(before, output_matrices(model)) > 0.9


def test_shared_prefix_equals_plain_on_cuda(tiny_base: Path) -> None:
    model = load_model(tiny_base, dtype="float32")
    batch = PaddedCollator(2)(token_rows(6, prefix=PREFIX))
    inputs = {name: tensor.to("cuda") for name, tensor in batch.items()}
    with torch.inference_mode():
        shared = summed_loss(model, inputs, share_prefix=True)
        plain = summed_loss(model, inputs, share_prefix=False)
    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-4)
