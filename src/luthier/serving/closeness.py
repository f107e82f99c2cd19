"""How near a served model's next-token distributions are to the merged model's, token by token.

B rows, T tokens of a row, P positions of a row that are compared, V vocabulary.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import ServingError
from luthier.models.loading import load_model
from luthier.models.parity import check_device
from luthier.serving.answers import Answer, ProbeSet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from luthier.store.artifact import Workspace

# Of a reply. What comes later hangs on the same weights, and V floats a position are kept.
MAX_POSITIONS = 32


@dataclass(frozen=True)
class ReplyRow:
    """A prompt and the merged model's greedy reply; logits are wanted from `first_position` on.

    Position t has the distribution of token t + 1, so the first is the prompt's last token.
    """

    token_ids: tuple[int, ...]
    first_position: int


@dataclass(frozen=True)
class Closeness:
    """Over all positions: Kullback-Leibler divergence of the served model's distributions from
    the merged model's, in nats, and the share of positions with the same likeliest token or, near
    a tie, with one that is as likely."""

    positions: int
    mean_kl_nats: float
    p99_kl_nats: float
    token_agreement: float


def reply_rows(probes: ProbeSet, merged: Sequence[Answer]) -> list[ReplyRow]:
    """The rows on which distributions are compared: replies up to their stop, at most
    `MAX_POSITIONS` predicted tokens each."""
    return [
        ReplyRow(
            (*probe.prompt_ids, *answer.token_ids[: MAX_POSITIONS - 1]), len(probe.prompt_ids) - 1
        )
        for probe, answer in zip(probes.probes, merged, strict=True)
    ]


def merged_logits(
    model_folder: Path, rows: Sequence[ReplyRow], folder: Path, workspace: "Workspace"
) -> list[Path]:
    """Float32 logits (P, V) of each row by transformers, in one .npy file a row in `folder`."""
    import numpy as np
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    model = load_model(model_folder, device=check_device(model_folder))
    paths = []
    with workspace.reporter.task("Logits of the merged model", len(rows), "rows") as task:
        for number, row in enumerate(rows):
            workspace.raise_if_stopped()
            kept = len(row.token_ids) - row.first_position
            with torch.inference_mode():
                ids_BT = torch.tensor([row.token_ids], device=model.device)
                logits_PV = model(input_ids=ids_BT, logits_to_keep=kept).logits[0]
            paths.append(folder / f"row-{number:05d}.npy")
            np.save(paths[-1], logits_PV.float().cpu().numpy())
            task.advance()
    return paths


def closeness(
    merged: Iterable[Path], served: Iterable["NDArray[np.float32]"], tie_nats: float = 0.0
) -> Closeness:
    """Compare logits (P, V) of the same rows; KL(merged || served), exact over the vocabulary.

    A likeliest token that the merged model has at most `tie_nats` below its own is the same.

    Raises:
        ServingError: the served model has another vocabulary, or there is nothing to compare.
    """
    import numpy as np

    divergences, agreements = [], []
    for path, theirs_PV in zip(merged, served, strict=True):
        ours_PV = np.load(path)
        if ours_PV.shape != theirs_PV.shape:
            raise ServingError(
                f"The GGUF's logits have the shape {theirs_PV.shape}, the merged model's "
                f"{ours_PV.shape}: it has another vocabulary."
            )
        divergences.append(_divergence(ours_PV, theirs_PV))
        taken_P = np.take_along_axis(ours_PV, theirs_PV.argmax(axis=1)[:, None], axis=1)[:, 0]
        agreements.append(ours_PV.max(axis=1) - taken_P <= tie_nats)
    if not divergences:
        raise ServingError("No replies to compare distributions on.")
    all_P, same_P = np.concatenate(divergences), np.concatenate(agreements)
    return Closeness(
        positions=len(all_P),
        mean_kl_nats=float(all_P.mean()),
        p99_kl_nats=float(np.quantile(all_P, 0.99)) if np.isfinite(all_P).all() else math.nan,
        token_agreement=float(same_P.mean()),
    )


def _divergence(
    ours_PV: "NDArray[np.float32]", theirs_PV: "NDArray[np.float32]"
) -> "NDArray[np.float64]":
    import numpy as np

    ours, theirs = log_softmax(ours_PV), log_softmax(theirs_PV)
    found: NDArray[np.float64] = (np.exp(ours) * (ours - theirs)).sum(axis=1)
    return found


def log_softmax(logits_PV: "NDArray[np.float32]") -> "NDArray[np.float64]":
    """Natural-log probabilities of logits, in float64."""
    from scipy.special import log_softmax as over_axis

    found: NDArray[np.float64] = over_axis(logits_PV.astype("float64"), axis=1)
    return found
