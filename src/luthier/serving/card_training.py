"""What the model card says of the training."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from luthier.models.adapter_files import read_lora_section
from luthier.serving import markdown

if TYPE_CHECKING:
    from luthier.store.artifact import Artifact

_TITLES: Mapping[str, str] = {"before": "First", "adapter": "Last"}
_SHOWN_MODULES = 12


def method_words(adapter: "Artifact | None") -> list[str]:
    """`lora` or `qlora`, and the stage if it is not sft; nothing where it is not known."""
    if adapter is None:
        return []
    method = adapter.manifest.facts.get("training", {}).get("method")
    stage = adapter.manifest.stage
    words = [*([str(method)] if method else []), *([stage] if stage in ("sft", "dpo") else [])]
    return ["full-finetuning" if word == "full" else word for word in words]


def training_parts(artifacts: Mapping[str, "Artifact"]) -> list[str]:
    """A table for each training that went into the model, the first first."""
    found = [slot for slot in ("before", "adapter") if slot in artifacts]
    if not found:
        return ["Nothing is recorded of the training.\n"]
    return [
        f"{_title(artifacts[slot], slot, len(found))}:\n\n{_settings(artifacts[slot])}"
        for slot in found
    ]


def _title(adapter: "Artifact", slot: str, trainings: int) -> str:
    stage = adapter.manifest.stage.upper()
    return f"{_TITLES[slot]}, {stage}" if trainings > 1 else stage


def _settings(adapter: "Artifact") -> str:
    manifest = adapter.manifest
    training, config = manifest.facts.get("training", {}), manifest.config
    steps, kept = training.get("steps"), training.get("kept_step")
    rows = [
        ("method", training.get("method")),
        ("weights of the base", _base_weights(training)),
        *_lora(_shape(adapter) if training.get("method") != "full" else None),
        ("loss", ", ".join(config["loss_type"]) if "loss_type" in config else None),
        ("reference, beta", _reference(config)),
        ("learning rate", _learning_rate(config)),
        ("optimiser", config.get("optimizer")),
        ("epochs", _number(config.get("epochs"))),
        ("steps", f"{steps:,}, ended: {training.get('stop_reason')}" if steps else None),
        ("weights kept", f"of step {kept:,}" if kept else None),
        ("batch", _batch(config)),
        ("rows", _number(training.get("train_rows"))),
        ("tokens seen", _number(training.get("trained_tokens"))),
        ("of these with a loss", _number(training.get("supervised_tokens"))),
        ("seed", None if manifest.seed is None else str(manifest.seed)),
        ("loss, first and last step", _change(manifest.metrics, "first_loss", "last_loss")),
        (
            "loss on validation rows",
            _change(manifest.metrics, "validation_loss_before", "validation_loss"),
        ),
        ("packages", ", ".join(f"{name} {said}" for name, said in manifest.key_packages.items())),
    ]
    return markdown.table(("", ""), [(what, markdown.plain(said)) for what, said in rows if said])


def _base_weights(training: Mapping[str, Any]) -> str | None:
    quantization = training.get("quantization")
    if quantization:
        kind = quantization["type"] if isinstance(quantization, Mapping) else quantization
        return f"quantised ({kind}), computed in {training.get('dtype')}"
    return str(training["dtype"]) if "dtype" in training else None


def _shape(adapter: "Artifact") -> Mapping[str, Any] | None:
    """The adapter's shape: as the config has it, or where it was brought by another adapter, as
    its own files have it."""
    config = adapter.manifest.config
    went_on = config.get("reference") == "sft" or config.get("start_from")
    if not went_on:
        return config.get("lora")
    return read_lora_section(adapter.path).model_dump()


def _lora(lora: Mapping[str, Any] | None) -> list[tuple[str, str | None]]:
    if not lora:
        return []
    targets = lora.get("target_modules")
    kinds = {"use_rslora": "rsLoRA", "use_dora": "DoRA", "train_embeddings": "embeddings whole"}
    more = [word for key, word in kinds.items() if lora.get(key)]
    more += [f"{name} whole" for name in lora.get("modules_to_save") or []]
    if lora.get("init_lora_weights", "default") != "default":
        more.append(f"started by {lora['init_lora_weights']}")
    patterns = {**(lora.get("rank_pattern") or {})}
    return [
        (
            "LoRA",
            f"rank {lora.get('r')}, alpha {lora.get('alpha')}, dropout {lora.get('dropout')}",
        ),
        ("adapted modules", _listed(targets) if isinstance(targets, list) else targets),
        ("ranks of their own", _listed([f"{name} {rank}" for name, rank in patterns.items()])),
        ("besides", ", ".join(more) or None),
    ]


def _listed(names: list[str]) -> str | None:
    more = len(names) - _SHOWN_MODULES
    shown = ", ".join(names[:_SHOWN_MODULES])
    return f"{shown} and {more:,} more" if more > 0 else shown or None


def _reference(config: Mapping[str, Any]) -> str | None:
    return f"{config['reference']}, {config.get('beta')}" if "reference" in config else None


def _learning_rate(config: Mapping[str, Any]) -> str | None:
    if "learning_rate" not in config:
        return None
    return f"{config['learning_rate']:g}, {config.get('schedule', 'constant')}"


def _batch(config: Mapping[str, Any]) -> str | None:
    parts = [
        f"{config[key]:,} {what}"
        for key, what in (("batch_tokens", "tokens"), ("per_device_batch_size", "rows a device"))
        if config.get(key)
    ]
    if (times := config.get("gradient_accumulation_steps", 1)) and times > 1:
        parts.append(f"{times} accumulated")
    if (processes := config.get("processes", 1)) and processes > 1:
        parts.append(f"{processes} processes")
    return ", ".join(parts) or None


def _change(metrics: Mapping[str, Any], before: str, after: str) -> str | None:
    """`10.88 to 9.64 nats`; manifests spell what is not finite."""
    ends = [metrics.get(before), metrics.get(after)]
    if not all(isinstance(end, int | float) for end in ends):
        return None
    return f"{ends[0]:.3f} before, {ends[1]:.3f} after"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:,.10g}"
