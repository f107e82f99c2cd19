"""What everything served is compared with: the answers of base and merged model to the probes.

P positions of a row, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.serving.answers import Answer, ProbeSet, transformers_answers
from luthier.serving.closeness import ReplyRow, merged_logits, reply_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.store.artifact import Workspace


@dataclass(frozen=True)
class Reference:
    """The base's and the merged model's answers in float32, and
    the merged model's logits (P, V) for its own replies, one file a row."""

    tokenizer: "PreTrainedTokenizerBase"
    probes: ProbeSet
    base: Sequence[Answer]
    merged: Sequence[Answer]
    rows: Sequence[ReplyRow]
    logits: Sequence[Path]

    def agrees(self, row: int, answer: Answer, tie_nats: float) -> bool:
        """Whether an answer is the merged model's, or parts from it where that preferred its own
        token by no more than `tie_nats`; what comes after the row's logits is not looked at."""
        import numpy as np

        if answer == self.merged[row]:
            return True
        ours, theirs = self.merged[row].token_ids, answer.token_ids
        pairs = enumerate(zip(ours, theirs, strict=False))
        at = next((at for at, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
        logs_PV = np.load(self.logits[row], mmap_mode="r")
        if at >= len(logs_PV):
            return True
        stop = self.probes.stop_token_ids[0]
        taken = theirs[at] if at < len(theirs) else stop
        own = ours[at] if at < len(ours) else stop
        return bool(logs_PV[at, own] - logs_PV[at, taken] <= tie_nats)


def make_reference(
    tokenizer: "PreTrainedTokenizerBase",
    probes: ProbeSet,
    base: Path,
    merged: Path,
    workspace: "Workspace",
) -> Reference:
    """Ask base and merged model (folders) the probes; the logits stay in the scratch folder."""
    of_base = transformers_answers(base, probes, workspace, "Answers of the base")
    of_merged = transformers_answers(merged, probes, workspace, "Answers of the merged model")
    rows = reply_rows(probes, of_merged)
    logits = merged_logits(merged, rows, workspace.scratch / "merged-logits", workspace)
    return Reference(tokenizer, probes, of_base, of_merged, rows, logits)
