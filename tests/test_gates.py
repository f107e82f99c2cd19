"""The gate record: what passes, what a config may lower, what is judged again."""

import pytest

from luthier.gates import Gate, check, failures, judged


@pytest.mark.parametrize(
    ("measured", "comparison", "threshold", "status"),
    [
        (0.99, ">=", 0.9, "pass"),
        (0.89, ">=", 0.9, "fail"),
        (0, "==", 0, "pass"),
        ("bfloat16", "==", "float32", "fail"),
        (1e-5, "<=", 1e-4, "pass"),
        (1e-4, "<", 1e-4, "fail"),
        (0.1, ">", 0.0, "pass"),
        (1, "!=", 1, "fail"),
        (float("nan"), "<=", 1.0, "fail"),
        (float("nan"), "!=", 1.0, "fail"),
        (float("inf"), "<=", 1.0, "fail"),
        ("nan", "<=", 1.0, "fail"),
    ],
)
def test_check(measured: float, comparison: str, threshold: float, status: str) -> None:
    gate = check("merge-parity", measured, comparison, threshold)  # type: ignore[arg-type]
    assert gate.status == status


def test_unknown_gate_is_our_bug() -> None:
    with pytest.raises(KeyError):
        check("no-such-gate", 1, "==", 1)


def test_policy_lowers_a_failure_and_nothing_else() -> None:
    gates = [check("merge-parity", 1.0, "<=", 0.1), check("merge-changed", 1.0, ">", 0.1)]
    assert [g.status for g in judged(gates, {"merge-parity": "warn"})] == ["warn", "pass"]
    assert [g.id for g in failures(gates)] == ["merge-parity"]


def test_what_one_config_lowered_fails_again_for_another() -> None:
    """A reused artifact was sealed under another policy."""
    sealed = judged([check("merge-parity", 1.0, "<=", 0.1)], {"merge-parity": "warn"})
    assert sealed[0].status == "warn"
    read_back = [Gate.model_validate_json(gate.model_dump_json()) for gate in sealed]
    assert [g.status for g in judged(read_back, {})] == ["fail"]
