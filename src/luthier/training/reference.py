"""The reference's log-probabilities: computed once, for every run that has the same reference.

The reference is the model as it is before its first step, so it never stands in memory beside it.
What it says of the pairs is stored under a key made of the base, the adapter, the pairs and the
numerics, beside the runs that use it: a run that resumes and every trial of a sweep find it there.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.errors import InterruptedRunError
from luthier.progress import Reporter
from luthier.store.canonical import canonical_json, sha256_json
from luthier.store.files import fsync_folder, write_atomically
from luthier.store.journal import Journal
from luthier.training.batches import LengthSortedBatches, row_lengths
from luthier.training.checkpoints import checkpoint_damage, write_seal
from luthier.training.loss import evaluating
from luthier.training.pair_loss import reply_log_probs

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel

    from luthier.training.loss import Head
    from luthier.training.objective import Rows

    Floats = NDArray[np.float32]

# Padded tokens of a batch. Without gradients some thousands cost little memory.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
_VALUES, _IDENTITY = "reference.safetensors", "identity.json"
HeldSplit = Literal["train", "validation"]


@dataclass(frozen=True)
class Scorer:
    """How pairs are scored: as training does it, without gradients."""

    model: "PreTrainedModel"
    collate: "Callable[[Rows], dict[str, Any]]"
    share_prefix: bool
    head: "Head"

    def score(self, rows: "datasets.Dataset", numbers: list[int]) -> "Floats":
        """(pairs, 4): as `pair_loss.reply_log_probs`, of some rows."""
        import numpy as np
        import torch

        device = self.model.device
        with evaluating(self.model), torch.inference_mode():
            batch = self.collate(list(rows.select(numbers)))
            inputs = {name: value.to(device) for name, value in batch.items()}
            found = reply_log_probs(
                self.model, inputs, share_prefix=self.share_prefix, head=self.head
            )
        return found.cpu().numpy().astype(np.float32)


@dataclass(frozen=True)
class ReferenceStore:
    """Where reference log-probabilities are kept: `root/<first digits of the key>/`.

    `identity` is all that they depend on, JSON values; its SHA-256 is the key.
    """

    root: Path
    identity: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What they were computed from."""
        return sha256_json(dict(self.identity))

    @property
    def folder(self) -> Path:
        """Where those of this key are, or will be."""
        return self.root / self.key[:16]

    def read(self, say: Callable[[str], None]) -> "dict[str, Floats] | None":
        """What is stored, after every byte was compared with its seal; None when nothing is."""
        if not self.folder.exists():
            return None
        damage = checkpoint_damage(self.folder)
        if damage is None:
            stated = (self.folder / _IDENTITY).read_text(encoding="utf-8")
            damage = None if stated == self._spelled() else f"{_IDENTITY}: is of another key"
        if damage is not None:
            say(f"  The stored reference is damaged, and computed anew: {damage} ({self.folder})")
            return None
        from safetensors.numpy import load_file

        return load_file(self.folder / _VALUES)

    def write(self, values: "Mapping[str, Floats]") -> None:
        """Store them, whole or not at all; what another run stored meanwhile gives way."""
        from safetensors.numpy import save

        self.root.mkdir(parents=True, exist_ok=True)
        making = self.root / f".making-{self.key[:16]}-{os.getpid()}"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        write_atomically(making / _VALUES, save(dict(values)))
        write_atomically(making / _IDENTITY, self._spelled())
        write_seal(making)
        if self.folder.exists():
            leaving = making.with_name(f"{making.name}-old")
            self.folder.rename(leaving)
            shutil.rmtree(leaving)
        making.rename(self.folder)
        fsync_folder(self.root)

    def _spelled(self) -> str:
        return canonical_json(dict(self.identity)) + "\n"


def compute(
    scorer: Scorer,
    splits: "Mapping[HeldSplit, datasets.Dataset]",
    scratch: Path,
    reporter: Reporter,
    asked_to_stop: Callable[[], bool],
) -> "dict[str, Floats]":
    """Score all pairs, going on after what an earlier run of this workspace has scored.

    Raises:
        InterruptedRunError: a stop was requested; finished batches are kept.
    """
    import numpy as np

    found: dict[str, Floats] = {}
    total = sum(len(rows) for rows in splits.values())
    with reporter.task("reference", total, "pairs") as task:
        for split, rows in splits.items():
            journal = Journal(scratch / f"reference-{split}.jsonl")
            values = np.full((len(rows), 4), np.nan, dtype=np.float32)
            batches = list(
                LengthSortedBatches(
                    row_lengths(rows),
                    rows=None,
                    tokens=BATCH_TOKENS[scorer.model.device.type],
                    seed=0,
                )
            )
            done = _intact(journal.read(), batches)
            journal.keep(len(done))
            for numbers, log_p in zip(batches, done, strict=False):
                values[numbers] = np.array(log_p, dtype=np.float32)
                task.advance(len(numbers))
            for numbers in batches[len(done) :]:
                values[numbers] = scorer.score(rows, numbers)
                kept = values[numbers].tolist()
                journal.append({"log_p": kept, "sha256": sha256_json(kept)})
                task.advance(len(numbers))
                if asked_to_stop():
                    raise InterruptedRunError(
                        "Stopped on request. The same command continues from what is done."
                    )
            found[split] = values
    return found


def _intact(entries: list[Any], batches: list[list[int]]) -> list[Any]:
    """The values of the journal's first entries that are as they were written."""
    whole: list[Any] = []
    for entry, numbers in zip(entries, batches, strict=False):
        log_p = entry["log_p"]
        if len(log_p) != len(numbers) or sha256_json(log_p) != entry["sha256"]:
            break
        whole.append(log_p)
    return whole


def adapter_digest(model: "PreTrainedModel") -> str:
    """SHA-256 over the names and float32 values of a model's adapter, as it would be saved."""
    from peft import get_peft_model_state_dict

    return _digest(get_peft_model_state_dict(model, save_embedding_layers=False))


def stored_adapter_digest(weights: Path) -> str:
    """`adapter_digest` of an adapter's safetensors file."""
    from safetensors.torch import load_file

    return _digest(load_file(weights))


def _digest(state: "Mapping[str, Tensor]") -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
