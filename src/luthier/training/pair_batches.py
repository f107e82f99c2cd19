"""Pairs as tensors: prompt, chosen and rejected reply in one sequence, or two rows a pair.

In one sequence the prompt goes through the model once for both replies. Positions begin anew after
the prompt with each reply, and the attention of the rejected reply leaves the chosen one out: each
reply sees exactly what it would see alone.

B pairs of a batch, T tokens of the longest row, N supervised tokens, P first tokens that all rows
share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from luthier.training.batches import MIN_SHARED_PREFIX_TOKENS, Supervision

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PROMPT, _CHOSEN, _REJECTED, _PADDING = range(4)


@dataclass(frozen=True)
class Branches:
    """Which reply each token belongs to, for the model's attention and positions.

    Attributes:
        branch_BT: 0 of the prompt, 1 and 2 of the replies, 3 of padding; int64.
        positions_BT: of each token in its conversation; int64.
    """

    branch_BT: "Tensor"  # noqa: N815
    positions_BT: "Tensor"  # noqa: N815

    def model_arguments(self, prefix: int, dtype: "torch.dtype") -> dict[str, Any]:
        """What to call the model with, beside the tokens after the first `prefix`."""
        import torch

        branch_BT = self.branch_BT
        length = branch_BT.shape[1]
        earlier_TT = torch.ones(length, length, dtype=torch.bool, device=branch_BT.device).tril()
        keys_B1T, queries_BT1 = branch_BT[:, None, :], branch_BT[:, :, None]
        visible_BTT = earlier_TT & ((keys_B1T == _PROMPT) | (keys_B1T == queries_BT1))
        hidden = torch.finfo(dtype).min
        mask = torch.zeros(visible_BTT.shape, dtype=dtype, device=branch_BT.device)
        mask.masked_fill_(~visible_BTT, hidden)
        return {
            # transformers takes a mask of four dimensions as it is (5.23, masking_utils.py).
            "attention_mask": mask[:, None, prefix:],
            "position_ids": self.positions_BT[:, prefix:],
        }

    def to(self, *where: Any, **how: Any) -> "Branches":
        """As `Tensor.to`; accelerate calls it."""
        return replace(
            self,
            branch_BT=self.branch_BT.to(*where, **how),
            positions_BT=self.positions_BT.to(*where, **how),
        )

    def pin_memory(self) -> "Branches":
        """As `Tensor.pin_memory`; torch's DataLoader calls it."""
        return replace(
            self,
            branch_BT=self.branch_BT.pin_memory(),
            positions_BT=self.positions_BT.pin_memory(),
        )


@dataclass(frozen=True)
class PairCollator:
    """Rows of `PairRows` to tensors. `share_prompt`: a pair is one sequence, else two rows."""

    pad_token_id: int
    share_prompt: bool

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids`, their `supervision`, with `share_prompt` their `branches`; `stretches_4B`,
        how many supervised tokens each pair has of the kinds that `reference` has, in the order of
        the supervision; and, where the rows have one, `reference_B4`."""
        import torch

        batch = self._shared(rows) if self.share_prompt else self._apart(rows)
        if "reference" in rows[0]:
            batch["reference_B4"] = torch.tensor([row["reference"] for row in rows])
        batch["stretches_4B"] = torch.tensor([n for row in rows for n in _stretches(row)])
        return batch

    def _shared(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        ids_BT = torch.full((len(rows), width), self.pad_token_id, dtype=torch.long)
        branch_BT = torch.full((len(rows), width), _PADDING, dtype=torch.long)
        positions_BT = torch.zeros((len(rows), width), dtype=torch.long)
        places: list[Tensor] = []
        for number, row in enumerate(rows):
            prompt, chosen, length = _ends(row)
            ids_BT[number, :length] = torch.as_tensor(row["input_ids"])
            for branch, start, end in (
                (_PROMPT, 0, prompt),
                (_CHOSEN, prompt, chosen),
                (_REJECTED, chosen, length),
            ):
                branch_BT[number, start:end] = branch
                first = 0 if branch == _PROMPT else prompt
                positions_BT[number, start:end] = torch.arange(first, first + end - start)
            places += [
                _places(number, [prompt - 1, *range(prompt, chosen - 1)], prompt),
                _places(number, [prompt - 1, *range(chosen, length - 1)], chosen),
            ]
        return {
            "input_ids": ids_BT,
            "supervision": _supervision(ids_BT, places, _shared_tokens(rows)),
            "branches": Branches(branch_BT, positions_BT),
        }

    def _apart(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import torch

        width = max(max(chosen, prompt + end - chosen) for prompt, chosen, end in map(_ends, rows))
        ids_BT = torch.full((2 * len(rows), width), self.pad_token_id, dtype=torch.long)
        places: list[Tensor] = []
        for number, row in enumerate(rows):
            prompt, chosen, _ = _ends(row)
            ids = row["input_ids"]
            for reply, tokens in enumerate((ids[:chosen], [*ids[:prompt], *ids[chosen:]])):
                at = 2 * number + reply
                ids_BT[at, : len(tokens)] = torch.as_tensor(tokens)
                places.append(_places(at, range(prompt - 1, len(tokens) - 1), prompt))
        return {"input_ids": ids_BT, "supervision": _supervision(ids_BT, places, 0)}


def _ends(row: dict[str, Any]) -> tuple[int, int, int]:
    """Where prompt, chosen and rejected reply end in a row."""
    prompt = row["prompt_tokens"]
    return prompt, prompt + row["chosen_tokens"], len(row["input_ids"])


def _stretches(row: dict[str, Any]) -> tuple[int, int, int, int]:
    """Tokens of chosen up to the length of the shorter reply and beyond, then of rejected."""
    prompt, chosen_end, length = _ends(row)
    chosen, rejected = chosen_end - prompt, length - chosen_end
    shared = min(chosen, rejected)
    return shared, chosen - shared, shared, rejected - shared


def _places(row: int, positions: Sequence[int], first_target: int) -> "Tensor":
    """(3, tokens): the row, the position that predicts, and the one whose token is predicted."""
    import torch

    predicts = torch.as_tensor(list(positions))
    targets = torch.arange(first_target, first_target + len(predicts))
    return torch.stack([torch.full_like(predicts, row), predicts, targets])


def _supervision(ids_BT: "Tensor", places: "Sequence[Tensor]", prefix: int) -> Supervision:
    import torch

    rows_N, positions_N, targets_N = torch.cat(list(places), dim=1)
    positions_K, kept_N = torch.unique(positions_N, return_inverse=True)
    return Supervision(
        torch.stack([rows_N, positions_N, kept_N, ids_BT[rows_N, targets_N]]), positions_K, prefix
    )


def _shared_tokens(rows: Sequence[dict[str, Any]]) -> int:
    """P: first tokens of all prompts that are the same, the last of a prompt left out, for it
    predicts a reply. 0 when sharing does not pay."""
    if len(rows) < 2:
        return 0
    prompts = [row["input_ids"][: row["prompt_tokens"] - 1] for row in rows]
    low, high = min(prompts), max(prompts)
    differing = (n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    length = next(differing, min(len(low), len(high)))
    return length if length >= MIN_SHARED_PREFIX_TOKENS else 0
