"""FSDP2: weights, gradients and optimizer state split over the processes (torch `fully_shard`).

Called directly, not through accelerate (1.15), whose FSDP2 exists on GPUs only: what is tested on
processors is what runs on GPUs. A checkpoint holds whole tensors, as that of one process does.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ConfigError
from luthier.models.lora import LoraSection
from luthier.training.processes import from_rank_0
from luthier.training.section import TrainingSection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

OPTIMIZER_NAME = "optimizer.pt"
# Those whose update of a number looks at that number alone, so that a shard is enough, and which
# torch's sharded tensors can compute.
BASE_CHANGING = ("pissa", "olora", "loftq")
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")


def check_sharding(section: TrainingSection) -> None:
    """Raises ConfigError when the section asks for what weights in shards cannot do."""
    if section.sharding == "none":
        return
    problem = _against_sharding(section)
    if problem is not None:
        raise ConfigError(f"sft.{problem}, or leave sft.sharding: {section.sharding} out.")


def _against_sharding(section: TrainingSection) -> str | None:
    """What to change, without `sft.` before it and a full stop after it."""
    if section.optimizer not in OPTIMIZERS:
        return (
            f"optimizer: {section.optimizer} does not work on weights in shards. "
            f"Use one of {', '.join(OPTIMIZERS)}"
        )
    if section.method == "qlora" and section.quantization.storage_dtype == "uint8":
        return (
            "quantization.storage_dtype: shards must be floating-point numbers. Set the type of "
            "the base, such as bfloat16 (type: int8 has none)"
        )
    return _against_adapter(section.lora) if section.method != "full" else None


def _against_adapter(lora: LoraSection) -> str | None:
    start = lora.init_lora_weights
    if start in BASE_CHANGING:
        return (
            f"lora.init_lora_weights: {start} changes the base in every process by itself, and "
            "shards of different results would be mixed. Use default"
        )
    for name in ("modules_to_save", "train_embeddings", "trainable_token_indices"):
        if getattr(lora, name):
            return f"lora.{name}: it is not done for weights in shards. Leave it out"
    return None


def shard(model: "PreTrainedModel", device_type: str) -> None:
    """Split every parameter of `model` over all processes, in place; collective.

    One layer at a time is gathered, forward and backward. A model on the processor goes to the
    GPU by shards, so it never has to fit there as a whole.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    _start_alike(model)
    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    layers = set(model._no_split_modules or ())
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _start_alike(model: "nn.Module") -> None:
    """Rank 0's values of what is trained for all, as DistributedDataParallel does it."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(from_rank_0(parameter.data.cpu()))


def _reshard(model: "nn.Module") -> None:
    """The root's own weights stay whole after a forward pass without backward."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gathered(model: "nn.Module") -> "dict[str, Tensor]":
    """Whole tensors of all that is trained, by parameter name, on the processor; collective."""
    _reshard(model)
    return {
        name: _whole(parameter.detach())
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def gather_in_place(model: "nn.Module") -> None:
    """Put whole tensors in the place of what is trained, so that it can be saved and compared.

    Collective. The rest stays in shards: the model cannot be run after it.
    """
    from torch import nn

    _reshard(model)
    made: dict[nn.Parameter, nn.Parameter] = {}  # tied weights stay one
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                continue
            if parameter not in made:
                made[parameter] = nn.Parameter(_whole(parameter.detach()))
            module.register_parameter(name, made[parameter])


def save_optimizer(optimizer: "torch.optim.Optimizer", folder: Path, *, writes: bool) -> None:
    """Write the optimizer's state with whole tensors, as one process has it; collective."""
    import torch

    whole = _map(optimizer.state_dict())
    if writes:
        torch.save(whole, folder / OPTIMIZER_NAME)


def split_state(optimizer: "torch.optim.Optimizer") -> None:
    """Split state that was loaded as whole tensors as its parameters are."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    for parameter, state in optimizer.state.items():
        if not isinstance(parameter, DTensor):
            continue
        for name, value in _tensors_like(parameter, state):
            state[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)


def _tensors_like(
    parameter: "Tensor", state: "Mapping[str, Any]"
) -> "Iterator[tuple[str, Tensor]]":
    for name, value in list(state.items()):
        if getattr(value, "shape", None) == parameter.shape and parameter.dim() > 0:
            yield name, value


def _whole(tensor: "Tensor") -> "Tensor":
    from torch.distributed.tensor import DTensor

    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def _map(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return _whole(value)
    if isinstance(value, dict):
        return {name: _map(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_map(one) for one in value]
    return value
