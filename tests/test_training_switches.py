"""The parts of `performance`: each does what it says, and the gradients stay what they were."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.errors import ModelError
from luthier.training import session
from luthier.training.section import PerformanceSection
from training_cases import PREFIX, make_job, write_dataset
from training_watch import Watched, light_sessions, watch

__all__ = ["light_sessions"]

OFF = dict.fromkeys(PerformanceSection.model_fields, False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rows, which all fit one batch and one pack."""
    return write_dataset(tmp_path_factory.mktemp("dataset"), train=6, validation=0)


class Passes:
    """Shapes of what comes out of the layers and of the head, without the last dimension."""

    def __init__(self) -> None:
        self.layers: list[tuple[int, ...]] = []
        self.head: list[tuple[int, ...]] = []

    def watch(self, trainer: Any) -> None:
        base = trainer.model.get_base_model()
        hooked = ((base.model.layers[0].mlp, self.layers), (base.lm_head, self.head))
        for module, shapes in hooked:
            module.register_forward_hook(self._into(shapes))

    def _into(
        self, shapes: list[tuple[int, ...]]
    ) -> Callable[[torch.nn.Module, Any, torch.Tensor], None]:
        return lambda _module, _inputs, output: shapes.append(tuple(output.shape[:-1]))


@pytest.fixture
def run(tiny_base: Path, dataset: Path, tmp_path: Path) -> Callable[..., tuple[Watched, Passes]]:
    """Two steps with those parts on, the first at full rate, and what went through the model."""

    def run(*parts: str, **fields: Any) -> tuple[Watched, Passes]:
        settings = {"batch_tokens": 1024, "max_steps": 2, "warmup_fraction": 0} | fields
        performance = OFF | dict.fromkeys(parts, True)
        folder = tmp_path / "-".join(["run", *parts])
        job = make_job(tiny_base, dataset, folder, performance=performance, **settings)
        passes = Passes()
        seen = watch(job, at_start=passes.watch)
        assert seen.outcome is not None
        for name, decision in seen.outcome.facts["training"]["performance"].items():
            assert decision["on"] is (name in parts), name
        return seen, passes

    return run


@pytest.fixture
def plain(run: Callable[..., tuple[Watched, Passes]]) -> tuple[Watched, Passes]:
    return run()


def assert_same_steps(seen: Watched, expected: Watched) -> None:
    assert len(seen.gradients) == len(expected.gradients) == 2
    for found, wanted in zip(seen.gradients, expected.gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    losses = [line["loss"] for line in expected.log]
    assert [line["loss"] for line in seen.log] == pytest.approx(losses, rel=1e-5)


def test_without_any_everything_is_computed(plain: tuple[Watched, Passes]) -> None:
    _, passes = plain
    rows, width = passes.layers[0]
    assert rows == 6
    assert width > len(PREFIX)
    assert passes.layers == [(rows, width)] * 2
    assert passes.head == [(rows, width)] * 2


def test_shared_prefix_goes_through_once(
    run: Callable[..., tuple[Watched, Passes]], plain: tuple[Watched, Passes]
) -> None:
    seen, passes = run("share_prefix")
    assert_same_steps(seen, plain[0])
    (one, prefix), (rows, rest) = passes.layers[:2]
    assert (one, rows) == (1, 6)
    assert prefix >= len(PREFIX) - 1
    assert (rows, prefix + rest) == plain[1].layers[0]
    assert len(passes.layers) == 4


def test_head_sees_supervised_positions_only(
    run: Callable[..., tuple[Watched, Passes]], plain: tuple[Watched, Passes]
) -> None:
    seen, passes = run("supervised_head")
    assert_same_steps(seen, plain[0])
    supervised = sum(
        int((batch["labels"][:, 1:] != -100).sum())
        for batch in seen.trainer.get_train_dataloader()
    )
    assert passes.head == [(1, supervised)] * 2


def test_packed_rows_have_no_padding(
    run: Callable[..., tuple[Watched, Passes]], plain: tuple[Watched, Passes]
) -> None:
    seen, passes = run("packing")
    assert_same_steps(seen, plain[0])
    tokens = sum(len(row["input_ids"]) for row in seen.trainer.train_dataset)
    assert passes.layers == [(1, tokens)] * 2
    assert seen.outcome is not None
    assert {gate.id: gate.status for gate in seen.outcome.gates}["packing-isolated"] == "pass"


def test_fused_adapters_are_one_function(
    run: Callable[..., tuple[Watched, Passes]], plain: tuple[Watched, Passes]
) -> None:
    seen, _ = run("fused_lora")
    assert_same_steps(seen, plain[0])
    assert seen.outcome is not None
    assert plain[0].outcome is not None
    assert seen.outcome.facts["training"]["fused"]
    assert not plain[0].outcome.facts["training"]["fused"]


def test_rows_of_like_length_share_a_batch(tiny_base: Path, tmp_path: Path) -> None:
    rows = write_dataset(tmp_path / "rows", train=30, validation=0, prefix=None)
    padded = {}
    for length_sorted in (False, True):
        performance = OFF | {"length_sorted": length_sorted}
        folder = tmp_path / str(length_sorted)
        seen = watch(make_job(tiny_base, rows, folder, max_steps=2, performance=performance))
        batches = [batch["input_ids"] for batch in seen.trainer.get_train_dataloader()]
        assert [len(batch) for batch in batches] == [3] * 10
        padded[length_sorted] = sum(batch.numel() for batch in batches)
    assert padded[True] < 0.85 * padded[False]


def test_batches_of_many_tokens_go_through_in_parts(
    tiny_base: Path,
    dataset: Path,
    plain: tuple[Watched, Passes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same steps as of whole batches, with room for two rows at a time."""
    monkeypatch.setattr(session, "PART_TOKENS", {"cpu": 80})
    fields = {"per_device_batch_size": 6, "max_steps": 2, "warmup_fraction": 0}
    performance = OFF | {"split_batches": True}
    passes = Passes()
    job = make_job(tiny_base, dataset, tmp_path, performance=performance, **fields)
    seen = watch(job, at_start=passes.watch)
    assert_same_steps(seen, plain[0])
    assert len(passes.layers) == 6
    assert [rows for rows, _ in passes.layers] == [2] * 6
    assert all(rows * tokens <= 80 for rows, tokens in passes.layers)


@pytest.mark.parametrize(
    ("part", "fields", "why"),
    [
        ("share_prefix", {"neftune_noise_alpha": 5}, "NEFTune's noise would be drawn once"),
        ("share_prefix", {"gradient_checkpointing": True}, "drops the keys and values"),
        ("share_prefix", {"lora": {"dropout": 0.1}}, "dropout would be drawn once"),
        ("split_batches", {}, "batch_tokens says how much"),
        ("fused_lora", {"lora": {"use_dora": True}}, "a formula of their own"),
    ],
)
def test_what_cannot_be_done_is_refused(
    part: str, fields: dict[str, Any], why: str, run: Callable[..., Any]
) -> None:
    with pytest.raises(ModelError, match=rf"performance\.{part}: true is not possible: .*{why}"):
        run(part, **fields)
