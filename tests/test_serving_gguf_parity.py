"""The gates of one GGUF against the merged model: each catches what it is for."""

import dataclasses
import math
from pathlib import Path

import pytest

from luthier.errors import ServingError
from luthier.gates import Gate, failures
from luthier.serving.answers import Answer, ServedAnswers
from luthier.serving.closeness import closeness
from luthier.serving.gguf_limits import (
    COARSEST_FIRST,
    LIMITS,
    advise,
    closeness_gates,
    finer,
    is_too_lossy,
    limits_for,
)
from luthier.serving.gguf_parity import (
    answer_gates,
    measure_answers,
    measure_gguf,
)
from luthier.serving.parity_tables import QuantizationParity
from luthier.serving.reference import Reference
from luthier.store.artifact import Workspace

pytest_plugins = "serving_fixtures"

PARITY = QuantizationParity(
    quantization="q8_0",
    file="model-q8_0.gguf",
    size_bytes=1,
    texts_compared=1000,
    text_mismatches=0,
    positions_compared=400,
    mean_kl_nats=0.001,
    p99_kl_nats=0.01,
    token_agreement=1.0,
    answers_compared=100,
    answer_agreement=0.99,
    merged_score=0.81,
    served_score=0.79,
    stopped=1.0,
    told_apart=100,
    served_as_tuned=0.99,
)


def statuses(gates: list[Gate]) -> dict[str, str]:
    return {gate.id: gate.status for gate in gates}


def test_served_as_trained_passes_every_gate(
    reference: Reference, tuned_gguf: Path, workspace: Workspace
) -> None:
    found = measure_gguf(tuned_gguf, "q8_0", reference, LIMITS["q8_0"], workspace)
    assert set(statuses(found.gates).values()) == {"pass"}
    parity = found.parity
    assert (parity.merged_score, parity.served_score, parity.told_apart) == (1.0, 1.0, 8)
    assert parity.texts_compared > 2000
    assert parity.chats_compared >= 20 + 8
    assert parity.positions_compared >= 8 * 2
    assert parity.mean_kl_nats is not None
    assert 0 < parity.mean_kl_nats < 0.005


def test_the_base_served_in_its_place_fails(
    reference: Reference, base_gguf: Path, workspace: Workspace
) -> None:
    found = measure_gguf(base_gguf, "q8_0", reference, LIMITS["q8_0"], workspace)
    failed = {gate.id for gate in failures(found.gates)}
    assert failed >= {"gguf-kl", "gguf-tokens", "gguf-answers", "gguf-score", "served-is-tuned"}
    assert found.parity.served_as_tuned == 0.0
    assert not is_too_lossy(found.gates), "the base is not the tuned model rounded"


def test_a_tuned_model_that_answers_as_the_base_cannot_pass(reference: Reference) -> None:
    answers = [Answer((5,), stopped=True) for _ in reference.merged]
    same = dataclasses.replace(reference, base=answers, merged=answers)
    shares = measure_answers(same, ServedAnswers(answers, answers, miscounted=0))
    assert (shares.agreement, shares.told_apart, shares.served_as_tuned) == (1.0, 0, 0.0)
    parity = dataclasses.replace(PARITY, told_apart=0, served_as_tuned=shares.served_as_tuned)
    assert statuses(answer_gates(parity, LIMITS["q8_0"]))["served-is-tuned"] == "fail"


def test_one_answer_that_does_not_stop_fails(reference: Reference) -> None:
    merged = [Answer((5,), stopped=True) for _ in reference.merged]
    rambling = [Answer((5,), stopped=False), *merged[1:]]
    one = dataclasses.replace(reference, base=rambling, merged=merged)
    shares = measure_answers(one, ServedAnswers(merged, rambling, miscounted=0))
    parity = dataclasses.replace(PARITY, stopped=shares.stopped)
    assert statuses(answer_gates(parity, LIMITS["q8_0"]))["stop-at-serve"] == "fail"


def test_an_answer_that_parts_at_a_near_tie_agrees(reference: Reference) -> None:
    import numpy as np

    logits_PV = np.load(reference.logits[0])
    ours = reference.merged[0]
    second = int(logits_PV[0].argsort()[-2])
    gap = float(logits_PV[0, ours.token_ids[0]] - logits_PV[0, second])
    other = Answer((second, *ours.token_ids[1:]), stopped=True)
    assert reference.agrees(0, other, gap * 1.01)
    assert not reference.agrees(0, other, gap * 0.99)
    cut_short = Answer(ours.token_ids[:-1], stopped=True)
    assert not reference.agrees(0, cut_short, 1.0)
    assert reference.agrees(0, ours, 0.0)


def test_a_score_lost_by_exactly_the_limit_passes() -> None:
    """0.81 - 0.79 is more than 0.02 in binary."""
    assert {gate.status for gate in closeness_gates(PARITY, LIMITS["q8_0"])} == {"pass"}
    worse = dataclasses.replace(PARITY, served_score=0.78)
    assert statuses(closeness_gates(worse, LIMITS["q8_0"]))["gguf-score"] == "fail"


def test_a_loss_that_the_rows_cannot_tell_is_none() -> None:
    lost = dataclasses.replace(PARITY, served_score=0.7, score_difference=(-0.25, 0.01))
    (gate,) = (one for one in closeness_gates(lost, LIMITS["q8_0"]) if one.id == "gguf-score")
    assert (gate.status, gate.measured) == ("pass", 0.0)
    assert "cannot tell" in gate.detail
    sure = dataclasses.replace(lost, score_difference=(-0.2, -0.01))
    assert statuses(closeness_gates(sure, LIMITS["q8_0"]))["gguf-score"] == "fail"


@pytest.mark.parametrize(
    ("gate", "changes"),
    [
        ("gguf-kl", {"mean_kl_nats": 0.021}),
        ("gguf-kl", {"mean_kl_nats": None}),
        ("gguf-kl", {"mean_kl_nats": float("nan")}),
        ("gguf-tokens", {"token_agreement": 0.94}),
        ("gguf-answers", {"answer_agreement": 0.89}),
    ],
)
def test_each_limit_has_its_gate(gate: str, changes: dict[str, float]) -> None:
    gates = closeness_gates(dataclasses.replace(PARITY, **changes), LIMITS["q8_0"])
    assert [one.id for one in failures(gates)] == [gate]
    assert is_too_lossy(gates)
    assert all("q6_k would pass" in one.detail for one in failures(advise(gates, "q6_k")))
    assert "not the rounding" in failures(advise(gates, None))[0].detail


def test_limits_tighten_with_the_bits() -> None:
    kl = [LIMITS[one].max_mean_kl_nats for one in COARSEST_FIRST]
    assert kl == sorted(kl, reverse=True)
    assert finer("q5_k_m")[0] == "q6_k"
    assert finer("bf16") == ()
    assert limits_for("q4_0", max_score_drop=0.5, min_greedy_agreement=None) == (
        dataclasses.replace(LIMITS["q4_0"], max_score_drop=0.5)
    )


def test_near_ties_are_the_same_token(tmp_path: Path) -> None:
    import numpy as np

    ours_PV = np.array([[2.0, 1.9, -9.0], [2.0, -1.0, 0.0]], dtype=np.float32)
    theirs_PV = np.array([[1.9, 2.0, -9.0], [0.0, 1.0, 2.0]], dtype=np.float32)
    np.save(tmp_path / "row.npy", ours_PV)
    found = closeness([tmp_path / "row.npy"], [theirs_PV], tie_nats=0.2)
    assert found.token_agreement == 0.5
    assert closeness([tmp_path / "row.npy"], [theirs_PV]).token_agreement == 0.0
    exact = [
        sum(p * math.log(p / q) for p, q in zip(_shares(ours), _shares(theirs), strict=True))
        for ours, theirs in zip(ours_PV.tolist(), theirs_PV.tolist(), strict=True)
    ]
    assert found.mean_kl_nats == pytest.approx(sum(exact) / 2)
    with pytest.raises(ServingError, match="another vocabulary"):
        closeness([tmp_path / "row.npy"], [theirs_PV[:, :2]])


def _shares(logits: list[float]) -> list[float]:
    total = sum(map(math.exp, logits))
    return [math.exp(logit) / total for logit in logits]
