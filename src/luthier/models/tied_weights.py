"""Input and output embeddings that are one matrix, and adapters that change one of the two.

PEFT 0.21 adds a LoRA on a tied module to that module's output alone, so base + adapter is no
longer tied; merging in place would change both (transformers issue 45127, peft issue 2777).
With `ensure_weight_tying` an adapter has both, with the same values, and they stay tied; token
embeddings it has once, and they mean both.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from luthier.models.adapter_updates import LowRank, Replaced, Update
from luthier.models.skeleton import StoredModel

if TYPE_CHECKING:
    from torch import Tensor


def without_ties(
    found: Mapping[str, Update], stored: StoredModel
) -> tuple[dict[str, Update], Mapping[str, str]]:
    """The updates by tensor that is written, and the tensors that must be written for it beside
    the one that they were tied to: name, and the file's name of the other."""
    updates = dict(found)
    untied: dict[str, str] = {}
    for head, table in stored.ties().items():
        module_name = next((n for n in updates if stored.file_name(n) == table), None)
        of_table = updates[module_name] if module_name else None
        of_head = updates.get(head)
        if of_table is None and of_head is None:
            continue
        if not _are_alike(of_table, of_head):
            untied[head] = table
        elif head in stored.tensors:
            # Written twice by whoever made the base; both must change.
            assert of_table is not None
            updates[head] = of_table
        else:
            updates.pop(head, None)
    return updates, untied


def _are_alike(table: Update | None, head: Update | None) -> bool:
    import torch

    match table, head:
        case Replaced(), None:
            return table.rows is not None
        case Replaced(), Replaced():
            return _same(table.rows, head.rows) and torch.equal(table.values, head.values)
        case LowRank(), LowRank():
            is_plain = table.magnitude is None and head.magnitude is None
            is_same = torch.equal(table.a.T, head.b) and torch.equal(table.b.T, head.a)
            return is_plain and is_same and table.scale == head.scale
    return False


def _same(one: "Tensor | None", other: "Tensor | None") -> bool:
    import torch

    return other is None if one is None else other is not None and torch.equal(one, other)
