"""Pairs as one sequence, the reference that is kept, and what happens when it is a wrong one."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.errors import ConfigError, DataError, InterruptedRunError
from luthier.training import preference, reference
from luthier.training.dpo_section import DPOSection
from luthier.training.job import Outcome, TrainingJob
from luthier.training.pair_batches import PairCollator
from luthier.training.pair_loss import reply_log_probs
from luthier.training.pair_rows import PairRows
from luthier.training.reference import ReferenceStore, Scorer
from pair_cases import pair_job, run_pairs, sft_adapter, token_pairs, write_pairs
from training_cases import PREFIX, run_job
from training_watch import light_sessions

__all__ = ["light_sessions"]


@pytest.fixture(scope="module")
def start(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SFT adapter on the tiny base."""
    return sft_adapter(tiny_base, tmp_path_factory.mktemp("sft") / "adapter")


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "preferences")


def gates_of(outcome: Outcome) -> dict[str, str]:
    return {gate.id: gate.status for gate in outcome.gates}


def log_of(job: TrainingJob) -> list[dict[str, Any]]:
    text = (job.outputs / "measured" / "training_log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def rows_of(pairs: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            "input_ids": row["prompt_ids"] + row["chosen_ids"] + row["rejected_ids"],
            "prompt_tokens": len(row["prompt_ids"]),
            "chosen_tokens": len(row["chosen_ids"]),
        }
        for row in pairs
    ]


def plainly(model: Any, pair: dict[str, Any]) -> list[float]:
    """log p of both replies up to the length of the shorter one and beyond, one row a reply."""
    import torch

    found = []
    shared = min(len(pair["chosen_ids"]), len(pair["rejected_ids"]))
    for name in ("chosen_ids", "rejected_ids"):
        ids = torch.tensor([pair["prompt_ids"] + pair[name]])
        log_p_TV = model(ids).logits[0].log_softmax(-1)
        first = len(pair["prompt_ids"])
        each = [float(log_p_TV[first + n - 1, token]) for n, token in enumerate(pair[name])]
        found += [sum(each[:shared]), sum(each[shared:])]
    return found


@pytest.mark.parametrize("prefix", [PREFIX, None], ids=["system prompt", "no system prompt"])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("share", [True, False], ids=["one sequence", "two rows"])
@pytest.mark.parametrize("head", ["all", "positions", "pairs"])
def test_a_pair_in_one_sequence_is_two_replies_alone(
    prefix: list[int] | None, count: int, share: bool, head: Any, tiny_base: Path
) -> None:
    import torch

    from luthier.models.loading import load_model

    model = load_model(tiny_base)
    pairs = token_pairs(count, prefix=prefix)
    batch = PairCollator(0, share_prompt=share)(rows_of(pairs))
    with torch.no_grad():
        found = reply_log_probs(model, batch, share_prefix=share, head=head)
        expected = [plainly(model, pair) for pair in pairs]
    assert found.tolist() == [pytest.approx(row, abs=1e-3, rel=1e-5) for row in expected]
    assert (batch["supervision"].shared_prefix > 0) is (share and count > 1 and prefix is not None)


def test_the_gradient_is_that_of_two_rows(tiny_base: Path) -> None:
    from luthier.models.loading import load_model

    gradients = []
    for share in (True, False):
        model = load_model(tiny_base)
        batch = PairCollator(0, share_prompt=share)(rows_of(token_pairs(4)))
        reply_log_probs(model, batch, share_prefix=share, head="pairs").sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, found in gradients[0].items():
        expected = gradients[1][name]
        assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max()), name


def test_rows_are_prompt_chosen_rejected(preferences: Path) -> None:
    rows = PairRows.load(preferences)
    assert list(rows.train) == rows_of(token_pairs(12, seed=3))
    assert rows.supervised.tolist() == [
        len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in token_pairs(12, seed=3)
    ]


def test_without_held_out_pairs_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"preferences\.validation_fraction"):
        PairRows.load(write_pairs(tmp_path, validation=0))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"performance": {"share_prefix": False, "fused_lora": False}},
        {"batch_tokens": 128},
        {"per_device_batch_size": 1, "gradient_accumulation_steps": 3},
    ],
    ids=["together", "apart", "tokens", "accumulated"],
)
def test_training_begins_at_its_reference(
    fields: dict[str, Any], tiny_base: Path, start: Path, preferences: Path, tmp_path: Path
) -> None:
    """Step 1: ln 2, no margin; later the held-out pairs are told apart."""
    job = pair_job(tiny_base, preferences, tmp_path / "job", start=start, **fields)
    outcome = run_pairs(job)
    first = next(line for line in log_of(job) if "loss" in line)
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert set(gates_of(outcome).values()) == {"pass"}, outcome.gates
    last = [line for line in log_of(job) if "eval_loss" in line][-1]
    assert last["eval_rewards/margins"] > 0
    assert last["eval_kl"] > 0


def test_accumulated_batches_are_one_batch(
    tiny_base: Path, start: Path, preferences: Path, tmp_path: Path
) -> None:
    """With the sft term too, whose mean is over the chosen tokens of the whole step."""
    losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3], "max_steps": 3}
    found = []
    for rows, steps in ((12, 1), (4, 3), (1, 12)):
        sizes = {"per_device_batch_size": rows, "gradient_accumulation_steps": steps}
        job = pair_job(tiny_base, preferences, tmp_path / f"{rows}", start=start, **losses | sizes)
        run_pairs(job)
        found.append([line["loss"] for line in log_of(job) if "loss" in line])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_on_a_quantised_base(tiny_base: Path, preferences: Path, tmp_path: Path) -> None:
    adapter = sft_adapter(tiny_base, tmp_path / "sft", method="qlora")
    job = pair_job(
        tiny_base, preferences, tmp_path / "job", start=adapter, method="qlora", max_steps=2
    )
    gates = gates_of(run_pairs(job))
    assert {gates[name] for name in ("dpo-reference", "dpo-start", "dpo-first-step")} == {"pass"}
    first = next(line for line in log_of(job) if "loss" in line)
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-3)


def test_a_fresh_adapter_has_the_base_as_reference(
    tiny_base: Path, preferences: Path, tmp_path: Path
) -> None:
    job = pair_job(
        tiny_base, preferences, tmp_path / "job", start=None, reference="base", max_steps=2
    )
    gates = gates_of(run_pairs(job))
    assert gates["dpo-reference"] == gates["dpo-first-step"] == "pass"
    assert "dpo-start" not in gates


@contextmanager
def other_weights(model: Any, folder: Path) -> Iterator[None]:
    """Within it `model` has the adapter of another folder."""
    from safetensors.torch import load_file

    other = load_file(folder / "adapter_model.safetensors")
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept = {name: p.data.clone() for name, p in own.items()}
    for name, parameter in own.items():
        parameter.data = other[name.replace(".default", "")]
    yield
    for name, parameter in own.items():
        parameter.data = kept[name]


@pytest.fixture(scope="module", params=["lora", "qlora"])
def trained(
    request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """A method, an adapter that it made, and one that another training made."""
    method, folder = request.param, tmp_path_factory.mktemp("trained")
    one = sft_adapter(tiny_base, folder / "sft", method=method)
    fields = {"method": method, "learning_rate": 2e-2, "max_steps": 6}
    return method, one, sft_adapter(tiny_base, folder / "other", **fields)


@pytest.mark.parametrize("wrong", ["raw base", "fresh adapter", "other seed"])
def test_a_wrong_reference_is_caught(
    wrong: str,
    trained: tuple[str, Path, Path],
    tiny_base: Path,
    preferences: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F23: the reference is computed with something else than the model that training begins
    with."""
    import torch

    method, start, other = trained
    right = reference.compute

    def planted(scorer: Scorer, *arguments: Any) -> Any:
        if wrong == "raw base":
            with scorer.model.disable_adapter():
                return right(scorer, *arguments)
        if wrong == "other seed":
            with other_weights(scorer.model, other):
                return right(scorer, *arguments)
        second = {n: p for n, p in scorer.model.named_parameters() if "lora_B" in n}
        kept = {name: p.data for name, p in second.items()}
        for parameter in second.values():
            parameter.data = torch.zeros_like(parameter)
        found = right(scorer, *arguments)
        for name, parameter in second.items():
            parameter.data = kept[name]
        return found

    monkeypatch.setattr(preference, "compute", planted)
    job = pair_job(
        tiny_base, preferences, tmp_path / "job", start=start, method=method, max_steps=2
    )
    gates = gates_of(run_pairs(job))
    assert gates["dpo-reference"] == "fail"
    assert gates["dpo-start"] == "pass"


def test_a_wrong_start_is_caught(
    tiny_base: Path, start: Path, preferences: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """F23: training begins with a fresh adapter, which then agrees with its own reference."""
    made = preference.Making

    def fresh(job: TrainingJob, section: DPOSection, *others: Any) -> Any:
        model = others[2]
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.zero_()
        return made(job, section, *others)

    monkeypatch.setattr("luthier.training.session.Making", fresh)
    job = pair_job(tiny_base, preferences, tmp_path / "job", start=start, max_steps=2)
    gates = gates_of(run_pairs(job))
    assert gates["dpo-reference"] == "pass"
    assert gates["dpo-start"] == "fail"


def stopping_after(calls: int) -> Callable[[], bool]:
    left = [calls]

    def asked() -> bool:
        left[0] -= 1
        return left[0] < 0

    return asked


def test_the_reference_goes_on_and_is_shared(
    tiny_base: Path, start: Path, preferences: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Stopped after the first batch it goes on with the second; another run finds it whole."""
    monkeypatch.setitem(reference.BATCH_TOKENS, "cpu", 128)
    whole = pair_job(tiny_base, preferences, tmp_path / "whole" / "job", start=start, max_steps=2)
    run_pairs(whole)
    job = pair_job(tiny_base, preferences, tmp_path / "parts" / "job", start=start, max_steps=2)
    for done in (1, 2):
        with pytest.raises(InterruptedRunError):
            run_job(job, stopping_after(0))
        assert len((job.scratch / "reference-train.jsonl").read_bytes().splitlines()) == done
    scored: list[int] = []
    score = Scorer.score

    def counted(self: Scorer, rows: Any, numbers: list[int]) -> Any:
        scored.append(len(numbers))
        return score(self, rows, numbers)

    monkeypatch.setattr(Scorer, "score", counted)
    assert run_pairs(job).facts["reference"]["reused"] is False
    stored = [next(p.glob("parts/.shared/references/*")) for p in [tmp_path]]
    stored.append(next(tmp_path.glob("whole/.shared/references/*")))
    assert stored[0].name == stored[1].name
    assert (stored[0] / "reference.safetensors").read_bytes() == (
        stored[1] / "reference.safetensors"
    ).read_bytes()
    assert sum(scored) == 12 + 6 - 2 * scored[0] + 8  # the first two batches; the gate looks at 8
    scored.clear()
    trial = pair_job(
        tiny_base, preferences, tmp_path / "parts" / "trial", start=start, max_steps=2, beta=0.5
    )
    assert run_pairs(trial).facts["reference"]["reused"] is True
    assert scored == [8]


@pytest.mark.parametrize("damage", ["flipped byte", "missing file", "other key"])
def test_a_damaged_reference_is_computed_anew(
    damage: str, tiny_base: Path, start: Path, preferences: Path, tmp_path: Path
) -> None:
    job = pair_job(tiny_base, preferences, tmp_path / "job", start=start, max_steps=2)
    run_pairs(job)
    (stored,) = (tmp_path / ".shared" / "references").iterdir()
    values = stored / "reference.safetensors"
    right = values.read_bytes()
    if damage == "flipped byte":
        values.write_bytes(right[:-3] + bytes([right[-3] ^ 1]) + right[-2:])
    elif damage == "missing file":
        values.unlink()
    else:
        other = ReferenceStore(stored.parent, {"inputs": "others"})
        other.write({"train": np.zeros((12, 4), np.float32)})
        shutil.rmtree(stored)
        other.folder.rename(stored)
    again = pair_job(tiny_base, preferences, tmp_path / "again", start=start, max_steps=2)
    assert run_pairs(again).facts["reference"]["reused"] is False
    assert values.read_bytes() == right


def test_a_damaged_journal_is_gone_on_before_the_damage(tmp_path: Path) -> None:
    from luthier.store.journal import Journal

    journal = Journal(tmp_path / "journal.jsonl")
    for value in ({"log_p": [[1.0]]}, {"log_p": [[2.0]]}, {"log_p": [[3.0]]}):
        journal.append(value)
    content = (tmp_path / "journal.jsonl").read_bytes()
    (tmp_path / "journal.jsonl").write_bytes(content.replace(b"2.0", b"2]0"))
    assert journal.read() == [{"log_p": [[1.0]]}]
    journal.append({"log_p": [[4.0]]})
    assert journal.read() == [{"log_p": [[1.0]]}, {"log_p": [[4.0]]}]
    journal.keep(1)
    assert journal.read() == [{"log_p": [[1.0]]}]


def test_displaced_chosen_replies_fail(
    tiny_base: Path, start: Path, preferences: Path, tmp_path: Path
) -> None:
    """F25: a loss that makes chosen replies less likely, which apo_down does by design."""
    job = pair_job(
        tiny_base, preferences, tmp_path / "job", start=start, loss_type=["apo_down"],
        learning_rate=2e-2, epochs=4, beta=0.5, keep="last",
    )  # fmt: skip
    outcome = run_pairs(job)
    assert gates_of(outcome)["likelihood-displacement"] == "fail", outcome.gates


def test_cut_replies_fail(tiny_base: Path, start: Path, tmp_path: Path) -> None:
    """F24: a chosen reply without its stop token."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder = write_pairs(tmp_path / "preferences")
    rows = token_pairs(12, seed=3)
    rows[4]["chosen_ids"] = [3001, 3002]
    kind = pa.list_(pa.int32())
    schema = pa.schema([(n, kind) for n in ("prompt_ids", "chosen_ids", "rejected_ids")])
    parquet.write_table(pa.Table.from_pylist(rows, schema), folder / "train-00000.parquet")
    outcome = run_pairs(pair_job(tiny_base, folder, tmp_path / "job", start=start, max_steps=2))
    assert gates_of(outcome)["reply-truncated"] == "fail"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lora": {"dropout": 0.1}}, "noise would part"),
        ({"loss_type": ["sft"]}, "learns nothing of the rejected"),
        ({"loss_type": ["sigmoid", "sigmoid"]}, "a loss twice"),
        ({"loss_weights": [1.0, 2.0]}, "give one for each"),
        ({"simpo_gamma": 1.0}, "without simpo"),
        ({"label_smoothing": 0.1}, "without robust or exo_pair"),
        ({"loss_type": ["exo_pair"]}, "label_smoothing above 0"),
        ({"processes": 2}, "one process"),
        ({"batch_tokens": 99, "per_device_batch_size": None, "performance": {"packing": True}},
         "share a sequence"),
    ],
)  # fmt: skip
def test_a_section_that_contradicts_itself(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DPOSection.model_validate({"per_device_batch_size": 2} | fields)


@pytest.mark.parametrize(
    ("fields", "filled", "said"),
    [
        ({}, [], r"there is none: the config has no section sft.*dpo\.reference: base"),
        ({"reference": "base"}, ["adapter"], "what sft learned would be lost"),
        ({"lora": {"r": 4}}, ["adapter"], r"dpo\.lora: dpo goes on with the SFT adapter"),
        ({"method": "qlora"}, ["adapter"], r"dpo\.method"),
    ],
)
def test_what_it_starts_from_is_said(fields: dict[str, Any], filled: list[str], said: str) -> None:
    from luthier.stages.dpo import STAGE

    section = DPOSection.model_validate({"per_device_batch_size": 2} | fields)
    with pytest.raises(ConfigError, match=said):
        STAGE.check(section, frozenset(filled))


def test_the_adapter_brings_its_shape_and_numerics(tiny_base: Path, tmp_path: Path) -> None:
    """As it is on disk; a PiSSA adapter, which is stored with twice its rank, too."""
    from luthier.stages.dpo import _on_from
    from luthier.store import Artifact, Manifest

    shape = {"r": 6, "alpha": 3, "dropout": 0.1, "use_rslora": True, "target_modules": ["q_proj"]}
    for init, rank in (("default", 6), ("pissa", 12)):
        lora = shape | {"init_lora_weights": init}
        folder = sft_adapter(tiny_base, tmp_path / init, lora=lora)
        facts = {"training": {"dtype": "bfloat16", "quantization": {"type": "nf4"}}}
        adapter = Artifact(folder, Manifest.model_construct(kind="adapter", facts=facts))
        section = DPOSection.model_validate({"per_device_batch_size": 2, "beta": 0.4})
        found = _on_from(section, adapter)
        assert (found.lora.r, found.lora.dropout, found.lora.target_modules) == (
            rank,
            0,
            ["q_proj"],
        )
        assert (found.method, found.dtype, found.beta) == ("qlora", "bfloat16", 0.4)


def test_numbers_of_pairs_are_those_of_the_rows(preferences: Path) -> None:
    from luthier.training.prediction import numbers_of_pairs

    pairs = token_pairs(12, seed=3)
    prompts = [len(row["prompt_ids"]) for row in pairs]
    replies = [len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in pairs]
    for share, times in ((True, 1), (False, 2)):
        found = numbers_of_pairs(preferences, share_prompt=share)
        lengths = [times * p + r for p, r in zip(prompts, replies, strict=True)]
        assert (found.rows, found.longest, found.supervised_most) == (
            12, max(lengths), max(replies),
        )  # fmt: skip
        assert found.mean == pytest.approx(sum(lengths) / 12)
        assert found.shared_prefix == (len(PREFIX) if share else 0)
