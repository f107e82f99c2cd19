"""Wrong merges, each planted between merging and its check, and what finds each."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.errors import ModelError
from luthier.gates import failures
from luthier.models.merging import MergeReport
from luthier.models.merging import merge as merge_rightly
from luthier.stages import merge as stage
from merge_cases import (
    SQUARE,
    Case,
    Tensors,
    base_artifact,
    change_json,
    change_tensors,
    copy_of,
    make_adapter,
    make_case,
    untied_copy,
)

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Merging:
    """One call of `merge` by the stage, and a folder to put things in."""

    base: Path
    adapter: Path
    folder: Path
    dtype: Any
    spare: Path

    def merge(self, base: Path | None = None, adapter: Path | None = None) -> MergeReport:
        return merge_rightly(
            base or self.base, adapter or self.adapter, self.folder, dtype=self.dtype
        )

    def merge_changed(self, change: Callable[[Tensors], Tensors]) -> MergeReport:
        report = self.merge()
        change_tensors(self.folder / WEIGHTS, change)
        return report


def not_applied(merging: Merging) -> MergeReport:
    adapter = copy_of(merging.adapter, merging.spare)
    change_tensors(
        adapter / "adapter_model.safetensors",
        lambda tensors: {
            name: tensor * ("lora_B" not in name) for name, tensor in tensors.items()
        },
    )
    return merging.merge(adapter=adapter)


def applied_twice(merging: Merging) -> MergeReport:
    merging.spare.mkdir()
    merge_rightly(merging.base, merging.adapter, merging.spare, dtype="float32")
    return merging.merge(base=merging.spare)


def wrong_alpha(merging: Merging) -> MergeReport:
    adapter = copy_of(merging.adapter, merging.spare)
    change_json(adapter / "adapter_config.json", lora_alpha=17)
    return merging.merge(adapter=adapter)


def a_layer_missing(merging: Merging) -> MergeReport:
    adapter = copy_of(merging.adapter, merging.spare)
    change_tensors(
        adapter / "adapter_model.safetensors",
        lambda tensors: {name: t for name, t in tensors.items() if ".layers.1." not in name},
    )
    return merging.merge(adapter=adapter)


def transposed(merging: Merging) -> MergeReport:
    """Of a square matrix, where shapes say nothing: the update, not the weights."""
    before = load_file(merging.base / WEIGHTS)[f"{SQUARE}.weight"].float()

    def change(tensors: Tensors) -> Tensors:
        weight = tensors[f"{SQUARE}.weight"]
        turned = before + (weight.float() - before).T
        return tensors | {f"{SQUARE}.weight": turned.to(weight.dtype)}

    return merging.merge_changed(change)


def one_value_nan(merging: Merging) -> MergeReport:
    def change(tensors: Tensors) -> Tensors:
        tensors[f"{SQUARE}.weight"][3, 5] = torch.nan
        return tensors

    return merging.merge_changed(change)


def untied_without_a_head(merging: Merging) -> MergeReport:
    """The tied head is no longer said to be tied, and is not in the file."""
    report = merging.merge()
    change_json(merging.folder / "config.json", tie_word_embeddings=False)
    return report


def another_head_beside_tied_embeddings(merging: Merging) -> MergeReport:
    report = merging.merge_changed(
        lambda tensors: tensors | {"lm_head.weight": 1.01 * tensors["model.embed_tokens.weight"]}
    )
    change_json(merging.folder / "config.json", tie_word_embeddings=False)
    return report


def added_in_16_bits(merging: Merging) -> MergeReport:
    """The base cast before the update was added: rounded twice."""
    base = copy_of(merging.base, merging.spare)
    coarse = torch.float16 if merging.dtype == "float32" else getattr(torch, merging.dtype)
    change_tensors(
        base / WEIGHTS,
        lambda tensors: {name: tensor.to(coarse) for name, tensor in tensors.items()},
    )
    return merging.merge(base=base)


FAULTS = [
    not_applied,
    applied_twice,
    wrong_alpha,
    a_layer_missing,
    transposed,
    one_value_nan,
    untied_without_a_head,
    another_head_beside_tied_embeddings,
    added_in_16_bits,
]


@pytest.fixture(scope="module")
def case(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("planted"), tiny_base)


def plant(
    fault: Callable[[Merging], MergeReport], spare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge(base: Path, adapter: Path, folder: Path, **options: Any) -> MergeReport:
        return fault(Merging(base, adapter, folder, options["dtype"], spare))

    monkeypatch.setattr(stage, "merge", merge)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
def test_a_wrong_merge_is_found(
    fault: Callable[[Merging], MergeReport],
    dtype: str,
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(fault, tmp_path / "spare", monkeypatch)
    result = case.merge(tmp_path / "merged", dtype=dtype)
    failed = {gate.id for gate in failures(result.gates)}
    assert "merge-parity" in failed
    assert ("merge-changed" in failed) == (
        fault is one_value_nan or (fault is not_applied and dtype == "float32")
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dropped_head_is_found(
    dtype: str, tiny_base: Path, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = untied_copy(tiny_base, tmp_path / "base")
    untied = Case(base_artifact(base), case.dataset, make_adapter(tmp_path / "adapter", base))

    def drop(merging: Merging) -> MergeReport:
        return merging.merge_changed(
            lambda tensors: {n: t for n, t in tensors.items() if n != "lm_head.weight"}
        )

    plant(drop, tmp_path / "spare", monkeypatch)
    result = untied.merge(tmp_path / "merged", dtype=dtype)
    assert "merge-parity" in {gate.id for gate in failures(result.gates)}


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_another_tokenizer_is_found(
    name: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of token ids are the same: its files are compared."""

    def swap(merging: Merging) -> MergeReport:
        report = merging.merge()
        path = merging.folder / name
        if path.suffix == ".json":
            found = json.loads(path.read_text(encoding="utf-8"))
            found["added_tokens"][0]["content"] = "<|other|>"
            path.write_text(json.dumps(found), encoding="utf-8")
        else:
            path.unlink()
        return report

    plant(swap, tmp_path / "spare", monkeypatch)
    result = case.merge(tmp_path / "merged")
    [gate] = failures(result.gates)
    assert (gate.id, gate.measured, gate.detail) == (
        "merge-tokenizer",
        1,
        f"files that are not the base's: {name}",
    )


def test_a_file_that_was_cut_off_is_named(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(merging: Merging) -> MergeReport:
        report = merging.merge()
        path = merging.folder / WEIGHTS
        whole = path.read_bytes()
        path.unlink()
        path.write_bytes(whole[: len(whole) // 2])
        return report

    plant(cut, tmp_path / "spare", monkeypatch)
    with pytest.raises(ModelError, match=r"merged"):
        case.merge(tmp_path / "merged")


def test_the_right_merge_passes_where_the_faults_are_planted(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(Merging.merge, tmp_path / "spare", monkeypatch)
    assert not failures(case.merge(tmp_path / "merged", dtype="bfloat16").gates)
