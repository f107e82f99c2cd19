"""Which rows share a batch: each once, within limits, dealt anew each epoch, for N processes."""

import random
import tracemalloc
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader

from luthier.training.batches import (
    LengthSortedBatches,
    PaddedCollator,
    RowBatches,
    forward_epochs,
    rounded_widths,
    row_lengths,
)
from luthier.training.packing import PackedBatches
from training_cases import PREFIX, token_rows

LENGTHS = [random.Random(i).randint(5, 90) for i in range(200)]


def made(kind: str, **options: Any) -> RowBatches:
    if kind == "packs":
        return PackedBatches(LENGTHS, tokens=128, seed=1, **options)
    limits: dict[str, Any] = {"rows": None, "tokens": None, kind: 7 if kind == "rows" else 256}
    return LengthSortedBatches(LENGTHS, seed=1, **limits, **options)


def epoch_of(batches: RowBatches, epoch: int) -> list[list[int]]:
    batches.set_epoch(epoch)
    return list(batches)


KINDS = pytest.mark.parametrize("kind", ["rows", "tokens", "packs"])


@KINDS
def test_every_epoch_holds_every_row_once_in_as_many_batches(kind: str) -> None:
    batches = made(kind)
    for epoch in range(3):
        dealt = epoch_of(batches, epoch)
        assert sorted(row for batch in dealt for row in batch) == list(range(len(LENGTHS)))
        assert len(dealt) == len(batches)


@KINDS
def test_batches_stay_within_their_limit(kind: str) -> None:
    for epoch in range(3):
        for batch in epoch_of(made(kind), epoch):
            lengths = [LENGTHS[row] for row in batch]
            size = {
                "rows": len(batch) <= 7,
                "tokens": len(batch) * max(lengths) <= 256,
                "packs": sum(lengths) <= 128,
            }
            assert size[kind]


@KINDS
def test_epoch_alone_decides_and_changes_both_content_and_order(kind: str) -> None:
    batches = made(kind)
    first, second = epoch_of(batches, 0), epoch_of(batches, 1)
    assert epoch_of(batches, 0) == first == epoch_of(made(kind), 0)
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    assert [len(batch) for batch in first] != [len(batch) for batch in second]
    other = LengthSortedBatches(LENGTHS, rows=7, tokens=None, seed=2)
    assert epoch_of(other, 0) != epoch_of(made("rows"), 0)


@pytest.mark.parametrize(("rows", "tokens"), [(7, None), (None, 256)])
def test_sorting_by_length_saves_most_padding(rows: int | None, tokens: int | None) -> None:
    def padding(*, by_length: bool) -> float:
        batches = LengthSortedBatches(
            LENGTHS, rows=rows, tokens=tokens, seed=1, by_length=by_length
        )
        dealt = epoch_of(batches, 1)
        assert sorted(row for batch in dealt for row in batch) == list(range(len(LENGTHS)))
        if tokens:
            assert all(len(b) * max(LENGTHS[row] for row in b) <= tokens for b in dealt)
        padded = sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in dealt)
        return padded / sum(LENGTHS) - 1

    assert padding(by_length=True) < 0.06
    assert padding(by_length=False) > 0.3


@KINDS
def test_the_heaviest_batch_opens_the_first_epoch(kind: str) -> None:
    def weight(batch: list[int]) -> int:
        return int(rounded_widths(LENGTHS, 64 if kind == "packs" else 16, None)[batch].sum())

    dealt = epoch_of(made(kind), 0)
    assert weight(dealt[0]) == max(map(weight, dealt))


def test_one_limit_must_be_given() -> None:
    for rows, tokens in ((None, None), (3, 64)):
        with pytest.raises(ValueError, match="either rows or tokens"):
            LengthSortedBatches([1], rows=rows, tokens=tokens, seed=0)


def test_a_row_longer_than_the_limit_is_alone() -> None:
    for batches in (
        LengthSortedBatches([500, 4, 4], rows=None, tokens=16, seed=0),
        PackedBatches([500, 4, 4], tokens=16, seed=0),
    ):
        assert sorted(map(len, batches)) == [1, 2]
        assert [0] in list(batches)


def test_widths_round_up_by_a_sixteenth_of_an_octave_within_the_limit() -> None:
    lengths = np.arange(1, 3000)
    widths = rounded_widths(lengths, 16, 2000)
    assert (widths >= lengths).all()
    assert (widths <= lengths * (1 + 1 / 16) + 1e-9).all()
    assert (widths[lengths <= 2000] <= 2000).all()
    assert (np.diff(widths) >= 0).all()
    assert len(np.unique(widths)) < 150
    assert (widths[:31] == lengths[:31]).all()


@KINDS
@pytest.mark.parametrize("multiple_of", [2, 8, 37])
def test_number_of_batches_becomes_a_multiple(kind: str, multiple_of: int) -> None:
    batches = made(kind, multiple_of=multiple_of)
    assert len(batches) % multiple_of == 0
    assert len(batches) - len(made(kind)) < multiple_of
    dealt = epoch_of(batches, 1)
    assert sorted(row for batch in dealt for row in batch) == list(range(len(LENGTHS)))
    assert all(dealt)


def test_too_few_rows_for_the_processes_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 rows cannot fill 4 batches"):
        LengthSortedBatches([5, 5, 5], rows=1, tokens=None, seed=0, multiple_of=4)


@KINDS
def test_four_processes_take_together_what_one_takes_in_four_steps(kind: str) -> None:
    """DDP x 4 = accumulation x 4, through accelerate's own sharding: no row lost or repeated."""
    one = epoch_of(made(kind, multiple_of=4), 0)
    shards = [
        list(BatchSamplerShard(made(kind, multiple_of=4), num_processes=4, process_index=rank))
        for rank in range(4)
    ]
    assert [list(step) for step in zip(*shards, strict=True)] == [
        one[start : start + 4] for start in range(0, len(one), 4)
    ]


def test_a_resumed_process_of_two_gets_the_epoch() -> None:
    """As transformers 5.23 `_run_epoch` does it: skip batches, set the epoch, iterate."""
    dataset = [{"row": row} for row in range(len(LENGTHS))]

    def seen(*, skipped: int) -> list[list[int]]:
        batches = made("rows", multiple_of=2)
        loader = prepare_data_loader(
            DataLoader(dataset, batch_sampler=batches, collate_fn=lambda rows: rows),
            num_processes=2,
            process_index=1,
            put_on_device=False,
        )
        forward_epochs(loader, batches)
        epoch_loader = skip_first_batches(loader, skipped) if skipped else loader
        epoch_loader.set_epoch(2)
        wrapped = getattr(epoch_loader.batch_sampler, "batch_sampler", None)
        if hasattr(wrapped, "set_epoch"):
            wrapped.set_epoch(2)
        return [[item["row"] for item in batch] for batch in epoch_loader]

    expected = epoch_of(made("rows", multiple_of=2), 2)[1::2]
    assert seen(skipped=0) == expected
    assert seen(skipped=5) == expected[5:]


def test_many_rows_cost_few_bytes_each() -> None:
    lengths = np.random.default_rng(0).integers(10, 2000, 50_000).astype(np.int32)
    tracemalloc.start()
    batches = LengthSortedBatches(lengths, rows=None, tokens=8192, seed=0)
    kept, peak = tracemalloc.get_traced_memory()
    assert next(iter(batches))
    _, peak_of_epoch = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 12 * len(lengths)
    assert max(peak, peak_of_epoch) < 80 * len(lengths)


def test_row_lengths_follow_the_rows_that_are_chosen() -> None:
    rows = datasets.Dataset.from_list([{"input_ids": [1] * n, "labels": [1]} for n in (3, 1, 2)])
    assert row_lengths(rows).tolist() == [3, 1, 2]
    assert row_lengths(rows.select([2, 0])).tolist() == [2, 3]
    assert row_lengths(rows.select([])).tolist() == []


def test_collator_pads_right_and_knows_what_is_supervised() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [5, -100, 7]},
        {"input_ids": [8, 9], "labels": [-100, 9]},
    ]
    batch = PaddedCollator(2)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    # Nothing predicts the first token of a row.
    assert batch["labels"].tolist() == [[-100, -100, 7], [-100, 9, -100]]
    supervision = batch["supervision"]
    assert supervision.pairs_4N.tolist() == [[0, 1], [1, 0], [1, 0], [7, 9]]
    assert supervision.positions_K.tolist() == [0, 1]
    moved = supervision.to("meta", non_blocking=True)
    assert moved.pairs_4N.device.type == moved.positions_K.device.type == "meta"


def test_collator_finds_the_shared_prefix() -> None:
    def shared(rows: list[dict[str, Any]]) -> int:
        prefix: int = PaddedCollator(2)(rows)["supervision"].shared_prefix
        return prefix

    rows = token_rows(6, prefix=PREFIX)
    assert shared(rows) >= len(PREFIX) - 1
    assert shared(rows[:1]) == 0
    assert shared(token_rows(4)) == 0
    same = rows[0]
    first_label = next(i for i, label in enumerate(same["labels"]) if label != -100)
    assert shared([same, same, same]) == first_label - 1


def test_collated_batches_travel_to_a_device_as_accelerate_sends_them() -> None:
    from accelerate.utils import send_to_device

    batch = send_to_device(PaddedCollator(2)(token_rows(3)), "meta")
    assert (
        batch["supervision"].pairs_4N.device == batch["input_ids"].device == torch.device("meta")
    )
