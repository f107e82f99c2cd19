"""Packing: first fit decreasing, and rows that do not see each other, measured (FAILURES F17)."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    FalconConfig,
    GPT2Config,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    MistralForCausalLM,
)

from luthier.errors import ModelError
from luthier.models.loading import load_model
from luthier.models.lora import LoraSection, attach
from luthier.training.batches import PaddedCollator
from luthier.training.loss import summed_loss, supervised_logits
from luthier.training.packed_attention import (
    PACKING_WAYS,
    PackingWay,
    choose_packing_attention,
    use_packing_attention,
)
from luthier.training.packing import (
    PackedBatches,
    PackedCollator,
    Packing,
    first_fit_decreasing,
    packing_isolation_error,
    packing_leak,
    why_not_packed,
)
from training_cases import PREFIX, token_rows

MAX_ERROR = 1e-5
SHAPE: dict[str, Any] = {
    "vocab_size": 4000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
CPU_WAYS: tuple[PackingWay, ...] = ("row_by_row", "block_mask")


def one_by_one(widths: Sequence[int], tokens: int) -> list[int]:
    """The textbook's first fit decreasing: the pack of each row, rows by descending width."""
    room: list[int] = []
    packs = []
    for width in sorted(widths, reverse=True):
        fitting = (number for number, left in enumerate(room) if width <= left)
        pack = next(fitting, len(room))
        if pack == len(room):
            room.append(max(tokens, width))
        room[pack] -= width
        packs.append(pack)
    return packs


@pytest.mark.parametrize("tokens", [40, 64, 200])
def test_packs_are_those_of_first_fit_decreasing(tokens: int) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        widths = [rng.randint(1, 60) for _ in range(rng.randint(1, 120))]
        assert first_fit_decreasing(np.asarray(widths), tokens).tolist() == one_by_one(
            widths, tokens
        )


def test_packs_are_nearly_full() -> None:
    lengths = np.random.default_rng(3).lognormal(4.5, 0.6, 5000).clip(5, 900).astype(int)
    packs = PackedBatches(lengths, tokens=1024, seed=1)
    assert lengths.sum() / (len(packs) * 1024) > 0.97


def test_a_pack_restarts_positions_and_never_predicts_across_rows() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [5, -100, 7]},
        {"input_ids": [8, 9], "labels": [8, 9]},
    ]
    batch = PackedCollator("row_by_row")(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[-100, -100, 7, -100, 9]]
    assert batch["supervision"].pairs_4N.tolist()[1] == [1, 3]
    packing = batch["packing"]
    assert packing.positions_1T.tolist() == [[0, 1, 2, 0, 1]]
    assert packing.starts.tolist() == [0, 3, 5]
    assert packing.starts.dtype == torch.int32
    assert packing.lengths == (3, 2)
    assert packing.to("meta").starts.device.type == "meta"


def prepared(base: Path, way: PackingWay, *, dtype: Any = "float32") -> torch.nn.Module:
    model = load_model(base, dtype=dtype)
    use_packing_attention(model, way)
    return model


class OneRow(Packing):
    """The planted fault: positions restart, but the mask says that it is all one row."""

    def model_arguments(self) -> dict[str, Any]:
        return {
            "position_ids": self.positions_1T,
            "attention_mask": torch.ones_like(self.positions_1T),
        }


def faulty(way: PackingWay) -> Any:
    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = PackedCollator(way)(rows)
        return batch | {"packing": OneRow(**vars(batch["packing"]))}

    return collate


@pytest.mark.parametrize("way", CPU_WAYS)
def test_packed_logits_equal_separate_ones(tiny_base: Path, way: PackingWay) -> None:
    model, rows = prepared(tiny_base, way), token_rows(6, prefix=PREFIX[:3])
    assert packing_isolation_error(model, rows, PackedCollator(way)) <= MAX_ERROR
    assert packing_leak(model, rows, PackedCollator(way)) == 0
    assert not model.training


@pytest.mark.parametrize("way", CPU_WAYS)
def test_rows_that_see_each_other_are_caught(tiny_base: Path, way: PackingWay) -> None:
    model, rows = prepared(tiny_base, way), token_rows(6, prefix=PREFIX[:3])
    assert packing_isolation_error(model, rows, faulty(way)) > 1000 * MAX_ERROR
    assert packing_leak(model, rows, faulty(way)) > 1000 * MAX_ERROR


def test_the_real_model_isolates_real_rows(smol_dir: Path) -> None:
    model, rows = prepared(smol_dir, "row_by_row"), token_rows(3, prefix=PREFIX)
    assert packing_isolation_error(model, rows, PackedCollator("row_by_row")) <= MAX_ERROR
    assert packing_isolation_error(model, rows, faulty("row_by_row")) > 1000 * MAX_ERROR


def test_a_leak_shows_in_bfloat16_too(tiny_base: Path) -> None:
    model, rows = prepared(tiny_base, "row_by_row", dtype="bfloat16"), token_rows(4)
    assert packing_leak(model, rows, PackedCollator("row_by_row")) == 0
    assert packing_leak(model, rows, faulty("row_by_row")) > 1000 * MAX_ERROR


@pytest.mark.parametrize("way", CPU_WAYS)
def test_packed_training_equals_padded(tiny_base: Path, way: PackingWay) -> None:
    model = attach(load_model(tiny_base), LoraSection(r=4, alpha=8, dropout=0.0), seed=5).train()
    rows, results = token_rows(6, prefix=PREFIX), []
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    padded = PaddedCollator(2)(rows)
    expected = summed_loss(model, padded, share_prefix=False)
    use_packing_attention(model, way)
    packed = PackedCollator(way)(rows)
    for inputs in (padded, packed):
        loss = summed_loss(model, inputs, share_prefix=True, head="pairs")
        loss.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        results.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_keeps_rows_apart(tiny_base: Path) -> None:
    model = prepared(tiny_base, "row_by_row").train()
    batch, losses = PackedCollator("row_by_row")(token_rows(4)), []
    for checkpointed in (False, True):
        if checkpointed:
            # transformers 5.17 knows the older name only
            name = "activation_checkpointing_enable"
            enable = getattr(model, name, None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        loss = summed_loss(model, batch, share_prefix=False)
        loss.backward()
        losses.append((loss.detach(), model.model.layers[0].mlp.up_proj.weight.grad.clone()))
        model.zero_grad()
    torch.testing.assert_close(losses[1], losses[0])


def test_padded_prompts_after_packing_are_as_before(tiny_base: Path) -> None:
    """Left padding, as generation has it, under the registered attention: masks as for sdpa."""
    ids = torch.tensor([[2, 2, 300, 301], [400, 401, 402, 403]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    positions = torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3]])
    models = load_model(tiny_base), prepared(tiny_base, "row_by_row")
    with torch.no_grad():
        expected, found = (
            model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
            for model in models
        )
    torch.testing.assert_close(found, expected)
    assert models[1].config._attn_implementation != models[0].config._attn_implementation


def test_sliding_windows_are_kept_by_masks_and_refused_row_by_row() -> None:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=6)).eval()
    assert choose_packing_attention("cpu", model.config).way == "block_mask"
    rows = token_rows(5)
    assert packing_isolation_error(model, rows, PackedCollator("block_mask")) <= MAX_ERROR
    assert packing_isolation_error(model, rows, faulty("block_mask")) > 1000 * MAX_ERROR
    use_packing_attention(model, "row_by_row")
    with pytest.raises(ModelError, match="sliding_window"):
        packing_leak(model, rows, PackedCollator("row_by_row"))


def test_the_varlen_kernel_gets_rows_starts_and_causality() -> None:
    """Without a GPU the kernel's shapes alone can be run: torch's meta device."""
    calls: list[Any] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.overloadpacket.__name__ == "_varlen_attn":
                calls.append(args)
            return func(*args, **(kwargs or {}))

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE)).bfloat16()
    use_packing_attention(model, "varlen")
    rows = token_rows(3)
    batch = PackedCollator("varlen")(rows)
    inputs = {name: value.to("meta") for name, value in batch.items()}
    with Watch():
        logits_NV = supervised_logits(model, inputs, share_prefix=False)
    assert logits_NV.shape == (len(batch["supervision"].targets_N), SHAPE["vocab_size"])
    assert len(calls) == SHAPE["num_hidden_layers"]
    query, key, _, starts, _, longest, _, is_causal, scale, *_ = calls[0]
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert (query.shape, key.shape) == ((tokens, 4, 8), (tokens, 2, 8))
    assert starts is inputs["packing"].starts
    assert longest == max(len(row["input_ids"]) for row in rows)
    assert is_causal
    assert scale == 8**-0.5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_way_chosen_on_this_gpu_isolates(tiny_base: Path, dtype: Any) -> None:
    model, rows = load_model(tiny_base, dtype=dtype), token_rows(6)
    way = choose_packing_attention("cuda", model.config, dtype=dtype).way
    assert way in PACKING_WAYS
    use_packing_attention(model, way)
    assert packing_leak(model, rows, PackedCollator(way)) <= MAX_ERROR
    limit = MAX_ERROR if dtype == "float32" else 0.05
    assert packing_isolation_error(model, rows, PackedCollator(way)) <= limit
    assert packing_leak(model, rows, faulty(way)) > 1000 * MAX_ERROR


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MambaConfig(), "isolation is not shown for the model's layers of linear_attention"),
        (Llama4TextConfig(), "isolation is not shown for the model's layers of chunked_attention"),
        (FalconConfig(alibi=True), "positions are not rotary"),
        (GPT2Config(), "positions are not rotary"),
        (LlamaConfig(**SHAPE, is_causal=False), "not causal"),
    ],
)
def test_models_whose_rows_cannot_be_kept_apart_are_refused(config: Any, reason: str) -> None:
    choice = choose_packing_attention("cpu", config)
    assert choice.way is None
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("capability", "dtype", "changes", "way"),
    [
        ((9, 0), "bfloat16", {}, "varlen"),
        ((7, 5), "bfloat16", {}, "row_by_row"),
        ((9, 0), "float32", {}, "row_by_row"),
        ((9, 0), "bfloat16", {"head_dim": 512}, "row_by_row"),
        ((9, 0), "bfloat16", {"attention_dropout": 0.1}, "row_by_row"),
    ],
)
def test_the_kernel_is_chosen_where_it_runs(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: str,
    changes: dict[str, Any],
    way: PackingWay,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    config = LlamaConfig(**SHAPE | changes)
    assert choose_packing_attention("cuda", config, dtype=dtype).way == way


def test_why_not_packed_asks_the_models_code(tiny_base: Path) -> None:
    assert why_not_packed(load_model(tiny_base)) is None

    class OwnAttention(LlamaForCausalLM):
        def forward(self, input_ids: Any) -> Any:
            return super().forward(input_ids)

    model = OwnAttention(LlamaConfig(**SHAPE))
    assert why_not_packed(model) == "the model's code chooses attention itself"
    with pytest.raises(ModelError, match="OwnAttention cannot pack rows"):
        use_packing_attention(model, "row_by_row")
