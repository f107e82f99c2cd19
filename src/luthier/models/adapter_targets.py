"""Which modules of a model an adapter changes; names and patterns that match nothing are errors.

PEFT itself ignores unmatched patterns silently, all but `target_modules` (peft 0.21
`tuners/tuners_utils.py` check_target_module_exists, `utils/other.py` get_pattern_key).
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError
from luthier.models.adapter_section import LoraSection

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_SHOWN_NAMES = 20


@dataclass(frozen=True)
class Targets:
    """`section`'s selections as PEFT's arguments, checked against a model."""

    arguments: dict[str, Any]
    ties_embeddings: bool


def find_targets(model: "PreTrainedModel", section: LoraSection) -> Targets:
    """What of `model` the section means.

    Raises:
        ModelError: a name or pattern matches nothing, or a tied embedding is half-trained.
    """
    adaptable = _adaptable(model)
    targets: str | list[str] = section.target_modules
    if targets == "all-linear":
        head = _name_of(model, model.get_output_embeddings())
        targets = sorted({_leaf(n) for n, kind in adaptable.items() if kind and n != head})
    whole = _trained_whole(model, section)
    ties = _is_tied(model)
    arguments = {
        "target_modules": targets,
        "exclude_modules": section.exclude_modules,
        "layers_to_transform": section.layers_to_transform,
        "layers_pattern": section.layers_pattern,
        "rank_pattern": dict(section.rank_pattern),
        "alpha_pattern": dict(section.alpha_pattern),
        "modules_to_save": whole or None,
        "trainable_token_indices": section.trainable_token_indices,
    }
    chosen = _chosen(list(adaptable), arguments)
    _check_matches(section, list(adaptable), chosen, arguments)
    _check_patterns(section, chosen)
    _check_tied(model, chosen, whole, ties)
    embedding = _name_of(model, model.get_input_embeddings())
    _check_tokens(model, section, chosen, whole)
    _check_start(section, [name for name in chosen if not adaptable[name]])
    if isinstance(targets, str):
        # PEFT would stumble over every layer and block that the pattern matches too.
        arguments["target_modules"] = chosen
    return Targets(arguments, ties_embeddings=ties and embedding in whole)


def lora_scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """How B @ A of a module counts: alpha / r, rank-stabilised alpha / sqrt(r), with the alpha
    that adapter_config.json has for it (peft 0.21 `tuners/lora/layer.py`, update_layer)."""
    patterns = config.get("alpha_pattern") or {}
    pattern = pattern_for(patterns, module)
    alpha: float = config["lora_alpha"] if pattern is None else patterns[pattern]
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def pattern_for(patterns: Iterable[str], name: str) -> str | None:
    """The first pattern that fits the end of a module's name, as PEFT decides it
    (peft 0.21 `utils/other.py`, get_pattern_key)."""
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", name)), None)


def _adaptable(model: "nn.Module") -> dict[str, bool]:
    """Names of the modules that LoRA knows: True for linear ones, False for embeddings."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return {
        name: not isinstance(module, nn.Embedding)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D)
    }


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _name_of(model: "nn.Module", wanted: "nn.Module | None") -> str | None:
    return next((name for name, module in model.named_modules() if module is wanted), None)


def _is_tied(model: "PreTrainedModel") -> bool:
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight is table.weight


def _chosen(names: Sequence[str], arguments: dict[str, Any]) -> list[str]:
    """The modules that PEFT would adapt, by PEFT's own rule."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    config = LoraConfig(**arguments)
    found = {name: check_target_module_exists(config, name) for name in names}
    return [name for name, hit in found.items() if hit and not isinstance(hit, _ExcludedModule)]


def _check_matches(
    section: LoraSection, names: Sequence[str], chosen: Sequence[str], arguments: dict[str, Any]
) -> None:
    all_layers = {**arguments, "layers_to_transform": None, "layers_pattern": None}
    before = _chosen(names, {**all_layers, "exclude_modules": None})
    _check_targets(section.target_modules, before, names)
    for name in _entries(section.exclude_modules):
        excluded = name if isinstance(section.exclude_modules, str) else [name]
        if len(_chosen(before, {**all_layers, "exclude_modules": excluded})) == len(before):
            raise _unmatched("exclude_modules", name, before)
    for layer in section.layers_to_transform or []:
        if not _chosen(names, {**arguments, "layers_to_transform": [layer]}):
            raise _unmatched("layers_to_transform", str(layer), before, whole_names=True)
    if not chosen:
        raise ModelError(
            "sft.lora.exclude_modules: it leaves out every module of target_modules; "
            "name fewer, or leave it out"
        )


def _check_patterns(section: LoraSection, chosen: Sequence[str]) -> None:
    for field, patterns in (
        ("rank_pattern", section.rank_pattern),
        ("alpha_pattern", section.alpha_pattern),
    ):
        used = {pattern_for(patterns, name) for name in chosen}
        for pattern in patterns:
            if pattern not in used:
                raise _unmatched(field, pattern, chosen, whole_names=True)


def _check_targets(targets: str | list[str], before: Sequence[str], names: Sequence[str]) -> None:
    if isinstance(targets, str):
        if not before:
            raise _unmatched("target_modules", targets, names, whole_names=targets != "all-linear")
        return
    for target in targets:
        if not any(_ends_with(name, target) for name in before):
            raise _unmatched("target_modules", target, names)


def _entries(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _unmatched(
    field: str, value: str, names: Sequence[str], *, whole_names: bool = False
) -> ModelError:
    shown = list(dict.fromkeys(name if whole_names else _leaf(name) for name in names))
    more = f" and {len(shown) - _SHOWN_NAMES} more" if len(shown) > _SHOWN_NAMES else ""
    return ModelError(
        f"sft.lora.{field}: {value!r} matches none of the modules it is about. "
        f"There are: {', '.join(shown[:_SHOWN_NAMES])}{more}."
    )


def _trained_whole(model: "PreTrainedModel", section: LoraSection) -> list[str]:
    """Full names for PEFT's `modules_to_save`, which matches any name's end: "norm" would also
    mean "input_layernorm" (peft 0.21 `utils/other.py`, _set_trainable)."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: list[str] = []
    for wanted in section.modules_to_save:
        hits = [name for name in modules if name and _ends_with(name, wanted)]
        if not hits:
            inner = [name for name, module in modules.items() if name and _own_weights(module)]
            raise _unmatched("modules_to_save", wanted, inner)
        found += hits
    if section.train_embeddings:
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        wholes = [table] if _is_tied(model) else [table, head]
        found += [name for one in wholes if (name := _name_of(model, one)) is not None]
    for name in found:
        if any(not weight.is_floating_point() for weight in modules[name].parameters()):
            raise ModelError(
                f"sft.lora.modules_to_save: {name} is quantised in this base and cannot be "
                "trained whole. Adapt it with target_modules, or set method: lora."
            )
    return list(dict.fromkeys(found))


def _own_weights(module: "nn.Module") -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _check_tied(
    model: "PreTrainedModel", chosen: Sequence[str], whole: Sequence[str], ties: bool
) -> None:
    if not ties:
        return
    table = _name_of(model, model.get_input_embeddings())
    head = next(
        (
            n
            for n, m in model.named_modules(remove_duplicate=False)
            if m is model.get_output_embeddings()
        ),
        None,
    )
    for name in (table, head):
        if name in chosen:
            raise ModelError(
                f"sft.lora.target_modules: {name} is one matrix for input and output in this "
                "base, and an adapter would change one of the two. Leave it out; "
                "train_embeddings: true or trainable_token_indices train both as one."
            )
    if head in whole:
        raise ModelError(
            f"sft.lora.modules_to_save: {head} is tied to the input embeddings in this base, and "
            "training it alone would untie them. Set train_embeddings: true instead."
        )


def _check_tokens(
    model: "PreTrainedModel", section: LoraSection, chosen: Sequence[str], whole: Sequence[str]
) -> None:
    wanted = section.trainable_token_indices
    if wanted is None:
        return
    table = model.get_input_embeddings()
    name = _name_of(model, table)
    if name in chosen or name in whole:
        raise ModelError(
            f"sft.lora.trainable_token_indices: {name} is trained already. "
            "Leave out one of the two."
        )
    if max(wanted) >= table.weight.shape[0]:
        raise ModelError(
            f"sft.lora.trainable_token_indices: {max(wanted)} is no token id; this base has "
            f"{table.weight.shape[0]} embeddings, from 0."
        )


def _check_start(section: LoraSection, tables: Sequence[str]) -> None:
    if tables and section.init_lora_weights not in ("default", "gaussian"):
        raise ModelError(
            f"sft.lora.init_lora_weights: {section.init_lora_weights} is for linear modules, and "
            f"{tables[0]} is an embedding. Leave it out of target_modules, or use default."
        )
