"""What a process that trains must know of the others: who writes, and what all agree on.

Without `torch.distributed` everything here is as for one process. Functions that say "collective"
must be called by every process, the same number of times and in the same order.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from luthier.data.tokens import IGNORE_INDEX

if TYPE_CHECKING:
    import datasets
    import torch.distributed as dist
    from torch import Tensor, nn


def process_count() -> int:
    """How many processes train together."""
    import torch.distributed as dist

    return dist.get_world_size() if _in_group() else 1


def process_index() -> int:
    """The rank of this process; rank 0 alone writes checkpoints' seals and the artifact."""
    import torch.distributed as dist

    return dist.get_rank() if _in_group() else 0


def _in_group() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def only_once(do: Callable[[], object]) -> None:
    """Rank 0 does it, the others wait until it is done; collective."""
    if process_index() == 0:
        do()
    if _in_group():
        import torch.distributed as dist

        dist.barrier()


def sums(*own: int) -> list[int]:
    """Each number summed over the processes; collective. No GPU is waited for."""
    if process_count() == 1:
        return list(own)
    import torch
    import torch.distributed as dist

    total = torch.tensor(own)
    dist.all_reduce(total, group=_processors())
    return [int(number) for number in total]


def from_rank_0(tensor: "Tensor") -> "Tensor":
    """Rank 0's tensor, which is on the processor and of the same shape everywhere; collective."""
    import torch.distributed as dist

    dist.broadcast(tensor, src=0, group=_processors())
    return tensor


@cache
def _processors() -> "dist.ProcessGroup":
    """The group that talks from processor to processor, by gloo."""
    import torch.distributed as dist

    group: dist.ProcessGroup = dist.new_group(backend="gloo")
    return group


def agreed(ask: Callable[[], bool]) -> Callable[[], bool]:
    """Rank 0's answer to `ask`, for all; each call is collective."""

    def answer() -> bool:
        return bool(sums(int(process_index() == 0 and ask()))[0])

    return answer


def mean_over_processes(
    mean: "Callable[[nn.Module, datasets.Dataset], float]",
    model: "nn.Module",
    rows: "datasets.Dataset",
) -> float:
    """`mean(model, rows)`, a mean per supervised token, where every process takes a share of rows.

    Collective, and the same number in every process, so that all keep the same best step. Each
    computes all rows when there are fewer than processes, and when weights are in shards: who runs
    the model then needs the others' shards, as often as they need its own.
    """
    count, index = process_count(), process_index()
    if count == 1:
        return mean(model, rows)
    import torch
    import torch.distributed as dist

    if len(rows) < count or is_sharded(model):
        return float(from_rank_0(torch.tensor(mean(model, rows), dtype=torch.float64)))
    share = rows.select(range(index, len(rows), count))
    tokens = _supervised_tokens(share)
    # In float64 the order of the processes changes nothing that a log shows.
    total = torch.tensor([mean(model, share) * tokens, tokens], dtype=torch.float64)
    dist.all_reduce(total, group=_processors())
    return float(total[0] / total[1])


def is_sharded(model: "nn.Module") -> bool:
    """Whether any parameter is a shard."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _supervised_tokens(rows: "datasets.Dataset") -> int:
    return sum(label != IGNORE_INDEX for labels in rows["labels"] for label in labels[1:])
