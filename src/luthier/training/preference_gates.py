"""The gates of preference optimisation: the right reference, whole replies, what was learned."""

from pathlib import Path
from typing import TYPE_CHECKING

from luthier.data.dataset import read_info
from luthier.evaluation.statistics import wilson_interval
from luthier.gates import Gate, check
from luthier.training.dpo_section import DPOSection
from luthier.training.pair_rows import REFERENCE, PairRows
from luthier.training.preference_loss import loss_at_start

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from luthier.training.objective import Log
    from luthier.training.reference import Scorer

    Doubles = NDArray[np.float64]

PROBED_PAIRS = 8
# Nats a token, mean over replies of |log p - log p of the stored reference| / tokens. In float32
# two orders of the same sums differ by some 1e-6, in bfloat16 by some 1e-2; another adapter by
# 0.1 and more.
MAX_REFERENCE_ERROR = {"float32": 1e-4, "bfloat16": 0.03, "float16": 0.01}
MAX_START_ERROR = 1e-3  # of the first step's loss from ln 2, and of its margin from 0


def reference_gates(
    scorer: "Scorer", rows: PairRows, digests: tuple[str, str] | None
) -> list[Gate]:
    """F23 before the first step: the model, which still is its reference, against what is stored
    as the reference's; and which adapter that is.

    Args:
        scorer: of the model.
        rows: with the stored reference.
        digests: the adapter in the model, and the SFT adapter; None without one.
    """
    import numpy as np

    numbers = np.linspace(0, len(rows.train) - 1, min(PROBED_PAIRS, len(rows.train)), dtype=int)
    probed = rows.train.select(numbers)
    stored_n2 = _replies(np.asarray(probed[REFERENCE], dtype=np.float64))
    found_n2 = _replies(scorer.score(rows.train, numbers.tolist()).astype(np.float64))
    lengths = np.asarray(
        [
            (
                row["chosen_tokens"],
                len(row["input_ids"]) - row["prompt_tokens"] - row["chosen_tokens"],
            )
            for row in probed
        ]
    )
    error = float((np.abs(found_n2 - stored_n2) / lengths).mean())
    dtype = str(scorer.model.dtype).removeprefix("torch.")
    gates = [
        check(
            "dpo-reference",
            round(error, 9),
            "<=",
            MAX_REFERENCE_ERROR[dtype],
            f"nats a token by which {len(numbers)} pairs' replies under the model at its start "
            f"differ from the stored reference, {dtype}",
        )
    ]
    if digests is not None:
        found, expected = digests
        gates.append(
            check(
                "dpo-start",
                found,
                "==",
                expected,
                "SHA-256 of the adapter that training began with",
            )
        )
    return gates


def _replies(found_n4: "Doubles") -> "Doubles":
    found_n2: Doubles = found_n4.reshape(-1, 2, 2).sum(2)
    return found_n2


def truncation_gate(rows: PairRows, preferences: Path) -> Gate:
    """F24: replies of the training pairs that do not end with a stop token."""
    stops = set(read_info(preferences).stop_token_ids)
    cut = 0
    for row in rows.train:
        ids, chosen_end = row["input_ids"], row["prompt_tokens"] + row["chosen_tokens"]
        cut += (ids[chosen_end - 1] not in stops) + (ids[-1] not in stops)
    return check(
        "reply-truncated",
        cut,
        "==",
        0,
        f"of {2 * len(rows.train)} replies end without a stop token",
    )


def closing_gates(
    section: DPOSection, rows: PairRows, log: "Log", kept_step: int | None
) -> list[Gate]:
    """Of the training log: F23 at the first step, F25, and whether held-out pairs are told
    apart."""
    first = next(line for line in log if "loss" in line)
    found = {line["step"]: line for line in log if "eval_loss" in line}
    trained = [step for step in found if step > 0]
    gates = _first_step(section, first)
    if 0 not in found or not trained:
        return gates
    kept = found[kept_step if kept_step in trained else max(trained)]
    assert rows.validation is not None, "load sees to it"
    return [
        *gates,
        _displacement(section, found[0], kept),
        _accuracy(kept["eval_rewards/accuracies"], len(rows.validation)),
    ]


def _first_step(section: DPOSection, first: dict[str, float]) -> list[Gate]:
    """The first step's loss is computed before any weight changed."""
    margin = abs(first["rewards/margins"])
    expected = loss_at_start(section)
    error = margin if expected is None else max(margin, abs(first["loss"] - expected))
    said = "" if expected is None else f", its loss {first['loss']:.6f} from {expected:.6f}"
    return [
        check(
            "dpo-first-step",
            round(error, 9),
            "<=",
            MAX_START_ERROR,
            f"how far the first step's margin {first['rewards/margins']:.2g} is from 0{said}",
        )
    ]


def _displacement(section: DPOSection, before: dict[str, float], kept: dict[str, float]) -> Gate:
    old, new = (line["eval_chosen_nats_per_token"] for line in (before, kept))
    return check(
        "likelihood-displacement",
        round(new - old, 6),
        "<=",
        section.max_likelihood_drop,
        "by how many nats a token the held-out chosen replies became less likely than under the "
        f"reference: -log p {old:.4g} before, {new:.4g} after",
    )


def _accuracy(share: float, pairs: int) -> Gate:
    low, high = wilson_interval(round(share * pairs), pairs)
    return check(
        "reward-accuracy",
        round(low, 6),
        ">",
        0.5,
        f"lower end of the 95 % interval {low:.3f} to {high:.3f} of the share of {pairs} held-out "
        f"pairs whose chosen reply has the higher reward, {share:.3f}",
    )
