"""From a training section to the arguments of TRL's trainers (transformers' names)."""

from typing import Any

from luthier.training.section import TrainingSection

# Lion's (arXiv 2302.06675, section 4.1) is lower than AdamW's: its momentum is its only memory.
_LION_BETA2 = 0.99
_ADAM_BETA2 = 0.999


def trainer_arguments(
    section: TrainingSection, *, has_validation: bool, on_cpu: bool
) -> dict[str, Any]:
    """Keyword arguments of SFTConfig for everything that the section says about the training loop.

    What transformers' Trainer does not do as we want it (evaluation, best weights, early stopping,
    label smoothing) is not here: see `trainer.py` and `callbacks.py`.
    """
    return {
        "num_train_epochs": section.epochs,
        "max_steps": section.max_steps or -1,
        "per_device_train_batch_size": section.per_device_batch_size or 1,
        "gradient_accumulation_steps": section.gradient_accumulation_steps,
        "learning_rate": section.learning_rate,
        "optim": section.optimizer,
        "adam_beta1": section.adam_beta1,
        "adam_beta2": _beta2(section),
        "adam_epsilon": section.adam_epsilon,
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
        "lr_scheduler_type": section.schedule,
        "lr_scheduler_kwargs": _schedule_options(section),
        # transformers 5 takes a number below 1 as a share of the steps.
        "warmup_steps": section.warmup_steps or section.warmup_fraction,
        "neftune_noise_alpha": section.noise_alpha,
        "gradient_checkpointing": section.gradient_checkpointing,
        "save_steps": section.checkpoint_every_steps,
        "metric_for_best_model": "loss" if has_validation else None,
        "greater_is_better": False,
        "use_cpu": on_cpu,
    }


def _beta2(section: TrainingSection) -> float:
    if section.adam_beta2 is not None:
        return section.adam_beta2
    return _LION_BETA2 if "lion" in section.optimizer else _ADAM_BETA2


def _schedule_options(section: TrainingSection) -> dict[str, Any]:
    """transformers' `optimization.py` names the floor of each schedule differently."""
    floor = section.min_learning_rate_fraction or 0.0
    match section.schedule:
        case "cosine_with_min_lr":
            return {"min_lr_rate": floor}
        case "cosine_with_restarts":
            return {"num_cycles": section.schedule_cycles}
        case "polynomial":
            # Its own floor would be 1e-7, above some peak rates.
            return {"lr_end": floor * section.learning_rate, "power": section.schedule_power}
        case "warmup_stable_decay":
            # The trainer adds the number of decay steps when it knows that of all steps.
            return {"min_lr_ratio": floor}
        case _:
            return {}
