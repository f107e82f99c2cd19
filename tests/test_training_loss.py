"""The loss equals transformers' own and direct formulas, however its work is saved."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from luthier.models.loading import load_model
from luthier.models.lora import LoraSection, attach
from luthier.training.batches import LengthSortedBatches, PaddedCollator
from luthier.training.loss import (
    Head,
    mean_loss,
    summed_loss,
    supervised_logits,
    supervised_tokens,
    supports_head_on_pairs,
)
from luthier.training.packed_attention import use_packing_attention
from luthier.training.packing import PackedBatches, PackedCollator
from training_cases import PREFIX, token_rows

HEADS: tuple[Head, ...] = ("all", "positions", "pairs")
SHAPE: dict[str, Any] = {
    "vocab_size": 4000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
}


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


def assert_same_gradients(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, atol: float = 1e-5
) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=atol)


def own_loss(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """transformers' own, summed."""
    tensors = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    loss: torch.Tensor = model(**tensors, num_items_in_batch=1).loss
    return loss


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("share_prefix", [False, True])
def test_loss_and_gradient_equal_transformers_own(
    tiny_adapted: torch.nn.Module, share_prefix: bool, head: Head
) -> None:
    batch = PaddedCollator(2)(token_rows(6, prefix=PREFIX))
    assert batch["supervision"].shared_prefix >= len(PREFIX) - 1
    reference = own_loss(tiny_adapted, batch)
    reference.backward()
    expected = gradients(tiny_adapted)
    loss = summed_loss(tiny_adapted, batch, share_prefix=share_prefix, head=head)
    loss.backward()
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(tiny_adapted), expected)


def test_identical_rows_keep_the_position_before_the_reply(tiny_adapted: torch.nn.Module) -> None:
    batch = PaddedCollator(2)([token_rows(1, prefix=PREFIX)[0]] * 3)
    plain = summed_loss(tiny_adapted, batch, share_prefix=False)
    torch.testing.assert_close(summed_loss(tiny_adapted, batch, share_prefix=True), plain)


def test_a_batch_of_plain_tensors_will_do(tiny_adapted: torch.nn.Module) -> None:
    batch = PaddedCollator(2)(token_rows(6, prefix=PREFIX))
    expected = summed_loss(tiny_adapted, batch, share_prefix=True)
    assert supervised_tokens(batch) == len(batch["supervision"].targets_N)
    count, supervision = supervised_tokens(batch), batch.pop("supervision")
    assert supervised_tokens(batch) == count == len(supervision.targets_N)
    torch.testing.assert_close(summed_loss(tiny_adapted, batch, share_prefix=True), expected)


def test_the_head_runs_on_supervised_pairs_only(tiny_base: Path) -> None:
    model, widths = load_model(tiny_base), []
    model.lm_head.register_forward_hook(lambda _m, _i, out: widths.append(out[..., 0].numel()))
    batch = PaddedCollator(2)(token_rows(6))
    for head in HEADS:
        supervised_logits(model, batch, share_prefix=False, head=head)
    pairs, positions = (
        batch["supervision"].pairs_4N.shape[1],
        len(batch["supervision"].positions_K),
    )
    assert widths == [batch["input_ids"].numel(), 6 * positions, pairs]
    assert pairs < 6 * positions < batch["input_ids"].numel()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, final_logit_softcapping=3.0)),
        lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=7.0)),
    ],
)
def test_pairs_keep_what_a_model_does_to_its_logits(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    model.set_attn_implementation("eager")
    assert supports_head_on_pairs(model)
    batch = PaddedCollator(2)(token_rows(4))
    loss = summed_loss(model, batch, share_prefix=False, head="pairs")
    torch.testing.assert_close(loss, own_loss(model, batch), rtol=1e-5, atol=1e-5)


def test_the_probe_refuses_logits_that_depend_on_one_another() -> None:
    class Centred(LlamaForCausalLM):
        def forward(self, *arguments: Any, **options: Any) -> Any:
            out = super().forward(*arguments, **options)
            out.logits = out.logits - out.logits.mean(dim=1, keepdim=True)
            return out

    class Flat(LlamaForCausalLM):
        def forward(self, *arguments: Any, **options: Any) -> Any:
            out = super().forward(*arguments, **options)
            out.logits = out.logits.reshape(2, 3, -1)
            return out

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE)
    assert supports_head_on_pairs(LlamaForCausalLM(config))
    assert not supports_head_on_pairs(Centred(config))
    assert not supports_head_on_pairs(Flat(config))


def test_label_smoothing_is_that_of_transformers(tiny_base: Path) -> None:
    from transformers.trainer_pt_utils import LabelSmoother

    model, batch = load_model(tiny_base), PaddedCollator(2)(token_rows(6, prefix=PREFIX))
    loss = summed_loss(model, batch, share_prefix=True, head="pairs", label_smoothing=0.1)
    logits_NV = supervised_logits(model, batch, share_prefix=False)
    logs_NV = logits_NV.log_softmax(dim=1)
    targets_N = batch["supervision"].targets_N
    nll_N = -logs_NV[torch.arange(len(targets_N)), targets_N]
    direct = (0.9 * nll_N - 0.1 * logs_NV.mean(dim=1)).sum()
    torch.testing.assert_close(loss, direct, rtol=1e-5, atol=1e-5)
    whole = {"logits": model(input_ids=batch["input_ids"]).logits}
    theirs = LabelSmoother(epsilon=0.1)(
        whole, batch["labels"], shift_labels=True, num_items_in_batch=1
    )
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-5)


def test_gradient_does_not_depend_on_how_a_step_is_cut(tiny_adapted: torch.nn.Module) -> None:
    """F18: 8x1, 4x2, 2x4, 1x8 rows, token-budget batches and packs give the same gradient when
    normalised over the step's supervised tokens."""
    use_packing_attention(tiny_adapted, "row_by_row")
    rows, padded, packed = (
        token_rows(8, prefix=PREFIX),
        PaddedCollator(2),
        PackedCollator("row_by_row"),
    )
    lengths = [len(row["input_ids"]) for row in rows]
    by_rows = [LengthSortedBatches(lengths, rows=n, tokens=None, seed=1) for n in (1, 2, 4, 8)]
    by_tokens = LengthSortedBatches(lengths, rows=None, tokens=100, seed=1)
    halved = LengthSortedBatches(lengths, rows=None, tokens=100, seed=1, multiple_of=4)
    packs = PackedBatches(lengths, tokens=100, seed=1)
    assert len({len(batch) for batch in by_tokens}) > 1
    assert 1 < len(packs) < 8
    cuts = [(batches, padded) for batches in (*by_rows, by_tokens, halved)] + [(packs, packed)]
    results = []
    for batches, collate in cuts:
        step = [collate([rows[i] for i in batch]) for batch in batches]
        count = sum(map(supervised_tokens, step))
        assert count == sum(int((batch["labels"] != -100).sum()) for batch in step)
        for batch in step:
            loss = summed_loss(tiny_adapted, batch, share_prefix=True, head="pairs")
            (loss / count).backward()
        results.append(gradients(tiny_adapted))
    for other in results[1:]:
        assert_same_gradients(other, results[0], atol=1e-6)


def test_mean_loss_is_per_supervised_token(tiny_adapted: torch.nn.Module) -> None:
    rows, total, count = token_rows(20, prefix=PREFIX), 0.0, 0
    with torch.no_grad():
        for row in rows:
            logits = tiny_adapted(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            labels = torch.tensor(row["labels"])[1:]
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += int((labels != -100).sum())
    dataset = datasets.Dataset.from_list(rows)
    assert mean_loss(tiny_adapted, dataset) == pytest.approx(total / count, rel=1e-5)
    assert mean_loss(tiny_adapted, dataset.select([3])) != pytest.approx(total / count, rel=1e-3)


def test_mean_loss_is_without_dropout_and_leaves_the_model_training(tiny_base: Path) -> None:
    model = attach(load_model(tiny_base), LoraSection(r=4, alpha=8, dropout=0.5), seed=5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    rows = datasets.Dataset.from_list(token_rows(6))
    expected = mean_loss(model.eval(), rows)
    assert mean_loss(model.train(), rows) == expected
    assert model.training


@contextmanager
def counted_waits() -> Iterator[list[str]]:
    """The operators of a block for which a GPU's host must wait: they read values off it."""
    waits: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = func.overloadpacket.__name__
            masks = name == "index" and any(
                index is not None and index.dtype == torch.bool for index in args[1]
            )
            if masks or name in {"_local_scalar_dense", "nonzero", "masked_select", "_unique2"}:
                waits.append(name)
            return func(*args, **(kwargs or {}))

    with Watch():
        yield waits


def test_a_step_reads_nothing_back_from_the_device(tiny_adapted: torch.nn.Module) -> None:
    rows = token_rows(6, prefix=PREFIX)
    padded = PaddedCollator(2)(rows)
    tiny_adapted.train()
    with counted_waits() as waits:
        summed_loss(tiny_adapted, padded, share_prefix=True, head="pairs").backward()
        summed_loss(tiny_adapted, padded, share_prefix=True, head="positions").backward()
    assert waits == []
    # Without a cache transformers (5.23, masking_utils.py) looks once for packed positions.
    with counted_waits() as waits:
        summed_loss(tiny_adapted, padded, share_prefix=False, head="pairs").backward()
    assert waits in ([], ["_local_scalar_dense"])
    use_packing_attention(tiny_adapted, "row_by_row")
    packed = PackedCollator("row_by_row")(rows)
    with counted_waits() as waits:
        summed_loss(tiny_adapted, packed, share_prefix=False).backward()
    assert waits == []
    del padded["supervision"]
    with counted_waits() as waits:
        summed_loss(tiny_adapted, padded, share_prefix=False)
    assert len(waits) > 2
