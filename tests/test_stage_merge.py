"""The merge stage: what it measures of the merged model, of both bases, and what it refuses."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evaluation_cases import artifact
from luthier.config import load_config
from luthier.errors import ConfigError, InterruptedRunError, ModelError
from luthier.evaluation.answers import Answer
from luthier.evaluation.merge_candidates import Measured, choose
from luthier.evaluation.summary import describe
from luthier.gates import spell
from luthier.models.fresh import fresh_logits
from luthier.models.loading import load_model
from luthier.models.merge_check import MAX_RELATIVE_DIFFERENCE, Merged, expected_logits
from luthier.models.merging import dequantised_weights, merge
from luthier.models.parity import largest_logit, max_logit_difference, probe_logits
from luthier.models.quantization import dequantised
from luthier.pipeline import all_sections
from luthier.stages.base import STAGE as BASE
from luthier.stages.base import BaseSection
from luthier.stages.training import base_as_trained
from luthier.store.artifact import Workspace
from merge_cases import (
    Case,
    base_artifact,
    change_json,
    copy_of,
    learn,
    make_adapter,
    make_case,
    of_base,
    statuses,
    untied_copy,
)

ROWS = [[1, 9690, 198, 2683, 2], [1, 520, 9531, 198, 28, 7018, 2]]


@pytest.fixture(scope="module")
def case(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("merge"), tiny_base)


@pytest.fixture(scope="module")
def untied_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untied_copy(tiny_base, tmp_path_factory.mktemp("untied") / "base")


def test_float32(case: Case, tmp_path: Path) -> None:
    result = case.merge(tmp_path)
    assert statuses(result.gates) == dict.fromkeys(
        ("merge-parity", "merge-changed", "merge-tokenizer"), "pass"
    )
    assert 0 < result.metrics["max_abs_logit_difference"] < 1e-4
    assert result.metrics["max_abs_logit_change"] > 0.05
    assert result.metrics["relative_delta_error"] < 1e-4
    assert result.facts["base_weights"] == "original"
    assert result.facts["trained_on"] == "the base in float32, as trained"
    assert "cast_max_abs_logit_difference" not in result.metrics
    logits = probe_logits(load_model(tmp_path), ROWS)
    expected = probe_logits(load_model(case.base.path, adapter=case.adapter.path), ROWS)
    assert max_logit_difference(logits, expected) <= 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_are_compared_as_strictly_as_32(dtype: str, case: Case, tmp_path: Path) -> None:
    result = case.merge(tmp_path, dtype=dtype)
    assert set(statuses(result.gates).values()) == {"pass"}
    found = result.metrics
    # What rounding does is far above the limit, and is no part of what is compared with it.
    assert found["cast_max_abs_logit_difference"] > 10 * found["max_abs_logit_difference"]
    limit = MAX_RELATIVE_DIFFERENCE * found["largest_logit"]
    assert found["cast_max_abs_logit_difference"] > limit
    assert max(found["max_abs_logit_difference"], found["peft_max_abs_logit_difference"]) <= limit
    assert 1e-4 < found["relative_delta_error"] < 0.1
    weights = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "config.json").read_bytes())["dtype"] == dtype


@pytest.fixture(scope="module")
def bfloat16_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("bfloat16")
    load_model(tiny_base, dtype="bfloat16").save_pretrained(base)
    for path in tiny_base.iterdir():
        if not (base / path.name).exists():
            shutil.copy(path, base)
    return base


def test_a_16_bit_base_stays_what_it_is(case: Case, bfloat16_base: Path, tmp_path: Path) -> None:
    changed = Case(base_artifact(bfloat16_base), case.dataset, case.adapter)
    result = changed.merge(tmp_path / "merged")
    assert result.facts["dtype"] == "bfloat16"
    assert set(statuses(result.gates).values()) == {"pass"}


def test_an_update_that_rounding_eats_is_said(
    case: Case, bfloat16_base: Path, tmp_path: Path
) -> None:
    small = Case(base_artifact(bfloat16_base), case.dataset, case.adapter)
    result = small.merge(tmp_path / "merged", weight=WEAK)
    assert statuses(result.gates)["merge-rounding"] == "fail"
    assert statuses(result.gates)["merge-parity"] == "pass"
    assert result.metrics["relative_delta_error"] > 0.5
    [gate] = [gate for gate in result.gates if gate.id == "merge-rounding"]
    assert "set merge.dtype: float32" in spell(gate)
    kept = small.merge(tmp_path / "float32", weight=WEAK, dtype="float32")
    assert set(statuses(kept.gates).values()) == {"pass"}


WEAK = 0.002  # of the adapter, of which bfloat16 then keeps a part
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora with patterns": {
        "use_rslora": True,
        "rank_pattern": {"down_proj": 6},
        "alpha_pattern": {"layers.1.*v_proj": 32},
    },
    "dora": {"use_dora": True},
    "a norm whole": {"modules_to_save": ["norm"]},
    "embeddings": {"train_embeddings": True},
    "some tokens": {"trainable_token_indices": [2, 198, 9690]},
}
UNTIED_KINDS: dict[str, dict[str, Any]] = {
    "the head": {"target_modules": ["q_proj", "lm_head"]},
    "the embedding, dora": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    "some tokens": {"trainable_token_indices": [2, 198, 9690]},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_pefts_own_merge_agrees_in_16_bits(
    options: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    """The whole chain: base + adapter == PEFT's merge; that, rounded, == our folder."""
    adapter = make_adapter(tmp_path / "adapter", tiny_base, **options).path
    check_chain(Merged(tmp_path / "merged", tiny_base, adapter, "bfloat16"))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_pefts_own_merge_agrees_where_one_of_two_tied_matrices_is_tuned(
    name: str, tiny_base: Path, tmp_path: Path
) -> None:
    """Luthier trains no such adapter; PEFT does."""
    import peft

    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", name])
    model = peft.get_peft_model(load_model(tiny_base), config)
    learn(model)
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    check_chain(Merged(tmp_path / "merged", tiny_base, tmp_path / "adapter", "bfloat16"))


@pytest.mark.parametrize("options", UNTIED_KINDS.values(), ids=UNTIED_KINDS)
def test_pefts_own_merge_agrees_on_an_untied_base(
    options: dict[str, Any], untied_base: Path, tmp_path: Path
) -> None:
    base = untied_base
    adapter = make_adapter(tmp_path / "adapter", base, **options).path
    check_chain(Merged(tmp_path / "merged", base, adapter, "bfloat16"))


@pytest.mark.parametrize("type_", ["nf4", "int8"])
def test_pefts_own_merge_agrees_on_a_decoded_base(
    type_: str, tiny_base: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "adapter", tiny_base, quantization=type_).path
    decoded = dequantised_weights(tiny_base, type_)
    check_chain(Merged(tmp_path / "merged", tiny_base, adapter, "bfloat16", type_, decoded))


def check_chain(merged: Merged) -> None:
    merged.folder.mkdir()
    merge(merged.base, merged.adapter, merged.folder, dtype=merged.dtype, replaced=merged.decoded)
    expected = expected_logits(merged, ROWS, "cpu")
    limit = MAX_RELATIVE_DIFFERENCE * largest_logit(expected.adapted)
    assert expected.chain <= limit
    found = probe_logits(load_model(merged.folder), ROWS, most_positions=32)
    assert max_logit_difference(expected.merged, found) <= limit
    assert max_logit_difference(expected.adapted, found) > limit
    assert max_logit_difference(expected.base, found) > 0.01


def test_both_bases_of_qlora_are_measured(case: Case, tiny_base: Path, tmp_path: Path) -> None:
    """F28: loss, task metric and general text of both, and why one was kept."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"text": f"Text {n} of what is known."}) + "\n" for n in range(12))
    )
    adapter = make_adapter(tmp_path / "adapter", tiny_base, quantization="nf4")
    quantised = Case(case.base, case.dataset, adapter)
    folder = tmp_path / "merged"
    result = quantised.merge(folder, general_texts=texts, scored_rows=8)
    metrics, both = result.metrics, {"original", "dequantized"}
    assert metrics["validation_loss"].keys() == metrics["general_nats"].keys() == both
    assert metrics["task_metric"].keys() == both | {"name", "rows"}
    assert (metrics["task_metric"]["name"], metrics["task_metric"]["rows"]) == ("accuracy", 8)
    for name in ("validation_loss", "general_nats"):
        assert metrics[name]["original"] != metrics[name]["dequantized"]
    kept = min(both, key=lambda name: metrics["validation_loss"][name])
    assert result.facts["base_weights"] == kept
    assert result.facts["kept_because"].startswith(f"{kept} base kept: validation loss")
    assert result.facts["trained_on"] == "the base in nf4, as trained"
    assert result.facts["candidates"].keys() == both
    assert set(statuses(result.gates).values()) == {"pass"}
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize("kept", ["original", "dequantized"])
def test_each_base_of_qlora_is_proved(
    kept: str, case: Case, tiny_base: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "adapter", tiny_base, quantization="nf4")
    quantised = Case(case.base, case.dataset, adapter)
    result = quantised.merge(tmp_path / "merged", base_weights=kept, dtype="bfloat16")
    assert set(statuses(result.gates).values()) == {"pass"}
    assert (
        result.facts["merged_into"]
        == {
            "original": "the base as stored, in float32",
            "dequantized": "the base as its quantised weights decode",
        }[kept]
    )
    assert "validation_loss" not in result.metrics


def test_a_base_that_was_trained_on_in_16_bits_decodes_to_16_bits(
    case: Case, tiny_base: Path, tmp_path: Path
) -> None:
    """As QLoRA trains on GPUs: other weights than those that decode in float32."""
    adapter = make_adapter(
        tmp_path / "adapter", tiny_base, quantization="nf4", trained_dtype="bfloat16"
    )
    result = Case(case.base, case.dataset, adapter).merge(
        tmp_path / "merged", base_weights="dequantized"
    )
    assert set(statuses(result.gates).values()) == {"pass"}
    trained: Any = load_model(tiny_base, dtype="bfloat16", quantization="nf4")
    matrices = load_file(adapter.path / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (matrices[f"base_model.model.{name}.lora_{one}.weight"] for one in "AB")
    wanted = dequantised(trained.get_submodule(name)) + 16 / 4 * b @ a
    found = load_file(tmp_path / "merged" / "model.safetensors")[f"{name}.weight"]
    assert torch.allclose(found, wanted, atol=1e-6)
    in_float32 = dequantised_weights(tiny_base, "nf4")[f"{name}.weight"] + 16 / 4 * b @ a
    assert not torch.allclose(found, in_float32, atol=1e-6)


def answers(correct: Sequence[bool]) -> list[Answer]:
    return [
        Answer("s", str(n), "a", "a" if one else "b", "a", one, "stop", None, None, None)
        for n, one in enumerate(correct)
    ]


def test_the_task_metric_decides_where_the_rows_can_tell() -> None:
    few, many = answers([True] * 10 + [False] * 20), answers([True] * 30)
    measured = {"original": Measured(1.0, few, None), "dequantized": Measured(2.0, many, None)}
    kept, why = choose(measured)
    assert kept == "dequantized"
    assert why == (
        "dequantized base kept: 1.000 of 30 rows answered as expected, "
        "0.333 on the original base, p 1.9e-06"
    )
    [one, two] = measured.items()
    assert choose(dict([two, one]))[0] == "dequantized"


@pytest.mark.parametrize("has_answers", [True, False])
def test_the_validation_loss_decides_otherwise(has_answers: bool) -> None:
    one = answers([True] * 10 + [False] * 2) if has_answers else None
    two = answers([True] * 12) if has_answers else None
    measured = {"original": Measured(1.0, one, 3.0), "dequantized": Measured(1.5, two, 2.0)}
    kept, why = choose(measured)
    assert kept == "original"
    assert why.startswith("original base kept: validation loss 1.0000, 1.5000 on the dequantized")
    assert why.endswith("do not tell them apart") == has_answers


def test_completions_are_measured_by_their_loss_alone(tiny_base: Path, tmp_path: Path) -> None:
    case = make_case(tmp_path, tiny_base, task="completion")
    adapter = make_adapter(tmp_path / "quantised", tiny_base, quantization="nf4")
    result = Case(case.base, case.dataset, adapter).merge(tmp_path / "merged")
    assert result.metrics["task_metric"] is None
    assert result.metrics["general_nats"] is None
    assert result.metrics["validation_loss"].keys() == {"original", "dequantized"}


def test_adapters_with_weights_are_merged_as_their_sum(
    case: Case, tiny_base: Path, tmp_path: Path
) -> None:
    other = make_adapter(tmp_path / "other", tiny_base, seed=3, r=2)
    weighted = [{"ref": "x/adapter@v1", "weight": -0.5}]
    folder = tmp_path / "merged"
    result = case.merge_with(folder, {"adapters-1": other}, adapters=weighted, weight=0.25)
    assert set(statuses(result.gates).values()) == {"pass"}
    base = load_file(tiny_base / "model.safetensors")
    parts = []
    for name, adapter in (("own", case.adapter), ("other", other)):
        alone = tmp_path / f"{name} alone"
        alone.mkdir()
        merge(tiny_base, adapter.path, alone)
        parts.append(load_file(alone / "model.safetensors"))
    for name, tensor in load_file(folder / "model.safetensors").items():
        first, second = (part[name] - base[name] for part in parts)
        torch.testing.assert_close(tensor, base[name] + 0.25 * first - 0.5 * second)


def test_an_adapter_of_another_base_is_refused(
    case: Case, tiny_base: Path, tmp_path: Path
) -> None:
    other = of_base(make_adapter(tmp_path / "other", tiny_base), "f" * 64)
    with pytest.raises(ConfigError, match=r"trained on case/base@v1, which is not the base of"):
        case.merge_with(
            tmp_path / "merged", {"adapters-1": other}, adapters=[{"ref": "x/adapter@v1"}]
        )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dtype: nf4", r"merge.dtype: nf4 would quantise what was merged.*gguf_quantization"),
        ("dtype: int4", "merge.dtype: int4 would quantise"),
        ("dtype: float8", "merge.dtype must be 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("combination: ties", r"merge: combination: ties needs density, such as 0.5"),
        ("density: 0.5", r"merge: density has no meaning for combination: cat"),
        ("combination: linear", r"merge: combination: linear needs adapters"),
    ],
)
def test_what_the_section_refuses(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"name: x\nmerge:\n  {line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(path, all_sections())


def test_a_base_that_is_quantised_already_is_refused_at_once(
    tiny_base: Path, tmp_path: Path
) -> None:
    base = copy_of(tiny_base, tmp_path / "base")
    change_json(base / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    section = BaseSection(model=str(base))
    with pytest.raises(ModelError, match="stored quantised"):
        BASE.check(section, frozenset())


def test_a_folder_that_does_not_load_is_named(tiny_base: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_base, tmp_path / "model")
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="the model does not load"):
        fresh_logits(folder, ROWS, Workspace(tmp_path), device="cpu")


def test_a_process_that_fails_says_how(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"ended with status 1. Its last lines:[\s\S]*IndexError"):
        fresh_logits(tiny_base, [[10_000_000]], Workspace(tmp_path), device="cpu")


def test_the_process_ends_when_asked(tiny_base: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.stop.requested = True
    with pytest.raises(InterruptedRunError):
        fresh_logits(tiny_base, ROWS, workspace, device="cpu")
    assert not (tmp_path / "_scratch" / "fresh" / "logits.safetensors").exists()


def test_the_process_ends_when_its_parent_is_gone(tiny_base: Path, tmp_path: Path) -> None:
    """Its standard input is then closed, as it is here from the start."""
    fresh_logits(tiny_base, ROWS, Workspace(tmp_path), device="cpu")
    talk = tmp_path / "_scratch" / "fresh"
    (talk / "logits.safetensors").unlink()
    command = [sys.executable, "-m", "luthier.models.fresh", str(talk)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert not (talk / "logits.safetensors").exists()


def test_what_an_adapter_was_measured_on_is_said(case: Case, tiny_base: Path) -> None:
    training = {"dtype": "bfloat16", "quantization": None, "method": "lora"}
    plain = artifact(case.adapter.path, "adapter", training=training)
    assert base_as_trained(plain) == "the base in bfloat16, as trained"
    nf4 = artifact(
        case.adapter.path, "adapter", training=training | {"quantization": {"type": "nf4"}}
    )
    assert base_as_trained(nf4) == "the base in nf4, as trained"
    whole = artifact(tiny_base, "adapter", training=training | {"method": "full"})
    assert base_as_trained(whole) == "the model itself, in bfloat16"
    summary = {"primary_metric": "accuracy", "systems": {}, "measured_on": "the base in nf4"}
    assert describe(summary) == ["  the adapter was measured on the base in nf4"]
