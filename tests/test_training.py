"""Loss, batches, checkpoints and the trainer, on a tiny random Llama with SmolLM2's tokenizer."""

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from luthier.models.loading import load_model, load_tokenizer
from luthier.models.lora import LoraSection, attach, moved_share, output_matrices, trainable_dtypes
from luthier.store.artifact import Workspace
from luthier.training.batches import LengthSortedBatches, PaddedCollator
from luthier.training.callbacks import loss_is_real, stage_callback
from luthier.training.checkpoints import newest_intact, seal_checkpoint
from luthier.training.loss import mean_loss, shared_prefix_length, summed_loss
from luthier.training.trainer import TrainingPlan, make_trainer

PREFIX = list(range(100, 120))


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


@pytest.fixture
def tiny_adapted(tiny_base: Path) -> torch.nn.Module:
    model = attach(load_model(tiny_base), LoraSection(r=4, alpha=8), seed=5)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    return model


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("share_prefix", [False, True])
def test_loss_and_gradient_equal_transformers_own(
    tiny_adapted: torch.nn.Module, share_prefix: bool
) -> None:
    batch = PaddedCollator(2)(token_rows(6, prefix=PREFIX))
    assert shared_prefix_length(batch["input_ids"], batch["labels"]) >= len(PREFIX) - 1
    reference = tiny_adapted(**batch, num_items_in_batch=1).loss
    reference.backward()
    expected = gradients(tiny_adapted)
    loss = summed_loss(tiny_adapted, batch, share_prefix=share_prefix)
    loss.backward()
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-5)
    found = gradients(tiny_adapted)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_identical_rows_keep_the_position_before_the_reply(tiny_adapted: torch.nn.Module) -> None:
    row = token_rows(1, prefix=PREFIX)[0]
    batch = PaddedCollator(2)([row, row, row])
    first_label = next(i for i, label in enumerate(row["labels"]) if label != -100)
    assert shared_prefix_length(batch["input_ids"], batch["labels"]) == first_label - 1
    plain = summed_loss(tiny_adapted, batch, share_prefix=False)
    torch.testing.assert_close(summed_loss(tiny_adapted, batch, share_prefix=True), plain)


def test_short_or_lonely_prefixes_are_not_shared() -> None:
    collate = PaddedCollator(2)
    for rows in (token_rows(4), token_rows(1, prefix=PREFIX)):
        batch = collate(rows)
        assert shared_prefix_length(batch["input_ids"], batch["labels"]) == 0


def test_gradient_does_not_depend_on_accumulation(tiny_adapted: torch.nn.Module) -> None:
    """F18: 1x8, 2x4, 4x2 and 8x1 rows give the same gradient when normalised over the step."""
    rows, collate = token_rows(8, prefix=PREFIX), PaddedCollator(2)
    supervised = sum(label != -100 for row in rows for label in row["labels"])
    results = []
    for size in (1, 2, 4, 8):
        for start in range(0, 8, size):
            batch = collate(rows[start : start + size])
            (summed_loss(tiny_adapted, batch, share_prefix=True) / supervised).backward()
        results.append(gradients(tiny_adapted))
    for other in results[1:]:
        for name, gradient in results[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6)


def test_mean_loss_is_per_supervised_token(tiny_base: Path) -> None:
    model, rows = load_model(tiny_base), token_rows(20, prefix=PREFIX)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            labels = torch.tensor(row["labels"])[1:]
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += int((labels != -100).sum())
    assert mean_loss(model, datasets.Dataset.from_list(rows)) == pytest.approx(
        total / count, rel=1e-5
    )


@pytest.mark.parametrize(("rows", "tokens"), [(4, None), (None, 64)])
def test_batches_hold_every_row_once_and_keep_their_content(
    rows: int | None, tokens: int | None
) -> None:
    lengths = [random.Random(i).randint(5, 40) for i in range(50)]
    batches = LengthSortedBatches(lengths, rows=rows, tokens=tokens, seed=1)
    epochs = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        epochs.append(list(batches))
        assert sorted(row for batch in epochs[-1] for row in batch) == list(range(50))
        assert len(epochs[-1]) == len(batches)
    assert epochs[0] == epochs[2] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])
    for batch in epochs[0]:
        if tokens:
            assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= tokens
        else:
            assert len(batch) <= 4


def test_batches_need_one_limit() -> None:
    with pytest.raises(ValueError, match="either rows or tokens"):
        LengthSortedBatches([1], rows=None, tokens=None, seed=0)


def checkpoint(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_text(text)
    (folder / "optimizer.pt").write_text(text * 2)
    return folder


def test_newest_intact_checkpoint_is_taken(tmp_path: Path) -> None:
    said: list[str] = []
    root = tmp_path / "checkpoints"
    assert newest_intact(root, said.append) is None
    for step in (1, 2, 3):
        seal_checkpoint(checkpoint(root / "unsealed" / f"c{step}", f"s{step}"), root, step, keep=3)
    assert newest_intact(root, said.append) == root / "sealed-00000003"
    damaged = root / "sealed-00000003" / "optimizer.pt"
    damaged.write_bytes(b"X" + damaged.read_bytes()[1:])
    assert newest_intact(root, said.append) == root / "sealed-00000002"
    assert "optimizer.pt is damaged" in said[-1]
    (root / "sealed-00000002" / "optimizer.pt").unlink()
    assert newest_intact(root, said.append) == root / "sealed-00000001"
    assert "optimizer.pt is missing" in said[-1]
    (root / "sealed-00000001" / "seal.json").write_text("{")
    assert newest_intact(root, said.append) is None


def test_old_checkpoints_go(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        seal_checkpoint(checkpoint(tmp_path / "u" / str(step), "x"), tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.glob("sealed-*")) == [
        "sealed-00000010",
        "sealed-00000015",
    ]


@pytest.mark.parametrize(
    ("loss", "real"), [(0.3, True), (0.0, False), (float("nan"), False), (float("inf"), False)]
)
def test_loss_is_real(loss: float, real: bool) -> None:
    assert loss_is_real(loss) is real


def train(base: Path, folder: Path, *, stop_after: int | None = None, lr: float = 1e-2) -> Any:
    """Train 12 rows for 2 epochs of 4 steps, from the newest checkpoint in `folder`."""
    folder.mkdir(exist_ok=True)
    workspace = Workspace(folder)
    model = attach(load_model(base), LoraSection(r=4, alpha=8, dropout=0.1), seed=5)

    class Counting:
        done = 0

        def advance(self, count: int = 1, **_: object) -> None:
            self.done += count
            workspace.stop.requested = self.done == stop_after

        def resize(self, total: int, done: int = 0) -> None:
            pass

    plan = TrainingPlan(
        rows_per_batch=3,
        tokens_per_batch=None,
        seed=5,
        share_prefix=False,
        checkpoints=folder / "c",
    )
    rows = datasets.Dataset.from_list(token_rows(12, prefix=PREFIX))
    trainer = make_trainer(
        model=model,
        tokenizer=load_tokenizer(base),
        rows=(rows, None),
        plan=plan,
        arguments={
            "num_train_epochs": 2,
            "per_device_train_batch_size": 3,
            "learning_rate": lr,
            "save_steps": 3,
            "use_cpu": True,
            "gradient_checkpointing": False,
        },
        callbacks=[stage_callback(workspace, Counting())],
    )
    start = newest_intact(plan.checkpoints, print)
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    return trainer


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("stop_after", [2, 4, 5])
def test_stopped_and_resumed_training_is_bitwise_the_same(
    tiny_base: Path, tmp_path: Path, stop_after: int
) -> None:
    whole = train(tiny_base, tmp_path / "whole")
    assert whole.state.global_step == 8
    first = train(tiny_base, tmp_path / "parts", stop_after=stop_after)
    assert first.state.global_step < 8
    second = train(tiny_base, tmp_path / "parts")
    losses = [
        [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        for trainer in (whole, second)
    ]
    assert losses[0] == losses[1]
    for name, weight in weights(whole).items():
        assert torch.equal(weights(second)[name], weight), name
    assert trainable_dtypes(second.model) == trainable_dtypes(whole.model)
    assert set(trainable_dtypes(second.model)) == {"float32"}


def test_adapter_moves_when_it_learns_and_only_then(tiny_base: Path, tmp_path: Path) -> None:
    model = attach(load_model(tiny_base), LoraSection(r=4, alpha=8), seed=5)
    before = output_matrices(model)
    assert moved_share(before, output_matrices(model)) == 0.0
    learned = output_matrices(train(tiny_base, tmp_path / "run").model)
    assert moved_share(before, learned) > 0.9
    learned[next(iter(learned))][0, 0] = float("nan")
    assert moved_share(before, learned) == 0.0


def test_nan_loss_stops_the_training(tiny_base: Path, tmp_path: Path) -> None:
    """F16: a NaN is seen at its step, not averaged away."""

    def poisoned(*_args: Any, **_options: Any) -> Any:
        return original(*_args, **_options) * float("nan")

    from luthier.training import trainer as module

    original = module.summed_loss
    module.summed_loss = poisoned
    try:
        result = train(tiny_base, tmp_path / "run")
    finally:
        module.summed_loss = original
    losses = [entry["loss"] for entry in result.state.log_history if "loss" in entry]
    assert len(losses) == 1
    assert not loss_is_real(losses[0])


def test_log_has_every_step_and_prints_nothing(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = train(tiny_base, tmp_path / "run").state.log_history
    assert capsys.readouterr().out == ""
    steps = [entry["step"] for entry in history if "loss" in entry]
    assert steps == list(range(1, 9))
    assert json.dumps(history)
