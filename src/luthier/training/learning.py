"""The gates of training: is what was trained what its user believes it is?"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from luthier.gates import Gate, check
from luthier.models.lora import moved_share, output_matrices, trainable_dtypes
from luthier.training.packing import packing_isolation_error, packing_leak

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

MIN_MOVED_SHARE = 0.9
# Of the kept weights' validation loss over the lowest one seen.
MAX_OVERFIT = 1.05
# Of packed logits to those of the row alone in float32, where rounding gives 2e-6 and other rows
# in sight 0.1 and more; in 16 bits of a row's logits when its neighbours change, which is 0.
MAX_ISOLATION_ERROR = 1e-5
PROBED_PACK_ROWS = 4


def training_gates(
    model: "PreTrainedModel",
    before: "dict[str, Tensor]",
    log: list[dict[str, Any]],
    kept_step: int | None,
    is_real: Callable[[float], bool],
) -> list[Gate]:
    """F14, F15, F16 and, with validation rows, F26.

    Args:
        model: as it is saved.
        before: `output_matrices` of the model before training.
        log: the lines of the training log.
        kept_step: the step whose weights are kept; None: the last one.
        is_real: whether a logged loss can be one.
    """
    dtypes = trainable_dtypes(model)
    losses = [line["loss"] for line in log if "loss" in line]
    unreal = sum(not is_real(loss) for loss in losses)
    return [
        check("adapter-dtype", ", ".join(sorted(dtypes)), "==", "float32", f"elements: {dtypes}"),
        check(
            "adapter-moved",
            round(moved_share(before, output_matrices(model)), 6),
            ">=",
            MIN_MOVED_SHARE,
            "share of the B matrices' elements that training changed",
        ),
        check("loss-is-real", unreal, "==", 0, f"of {len(losses)} logged losses"),
        *_validation_gates(log, kept_step),
    ]


def packing_gate(model: "PreTrainedModel", rows: list[dict[str, Any]], collate: Any) -> Gate:
    """F17, on the first training rows, with the attention and dtype of training."""
    dtype = str(model.dtype).removeprefix("torch.")
    measure = packing_isolation_error if dtype == "float32" else packing_leak
    return check(
        "packing-isolated",
        measure(model, rows, collate),
        "<=",
        MAX_ISOLATION_ERROR,
        f"largest change of a row's logits by its neighbours, {len(rows)} rows, {dtype}",
    )


def _validation_gates(log: list[dict[str, Any]], kept_step: int | None) -> list[Gate]:
    found = {line["step"]: line["eval_loss"] for line in log if "eval_loss" in line}
    trained = {step: loss for step, loss in found.items() if step > 0}
    if 0 not in found or not trained:
        return []
    kept = trained[kept_step if kept_step in trained else max(trained)]
    lowest = min(trained, key=lambda step: trained[step])
    return [
        check(
            "validation-improves",
            kept,
            "<",
            found[0],
            f"loss on held-out rows; {found[0]:.4g} before training",
        ),
        check(
            "overfit",
            round(kept / trained[lowest], 6),
            "<=",
            MAX_OVERFIT,
            f"validation loss of the kept weights over the lowest, {trained[lowest]:.4g} at step "
            f"{lowest}; keep: best keeps those",
        ),
    ]
