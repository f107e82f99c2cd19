"""How many trials run at once on this machine."""

from collections.abc import Sequence

from luthier.foretelling import foretell
from luthier.pipeline import Pipeline
from luthier.sweeping.space import probes
from luthier.sweeping.study import Study
from luthier.training.prediction import Prediction

# Of a GPU's free memory: what predictions miss by, and what the allocator cannot use.
_USABLE_SHARE = 0.9
# What CUDA itself takes in every process (H100 with torch 2.11: 0.5 GB).
_CONTEXT_BYTES = 600_000_000


def trial_slots(study: Study) -> tuple[int, int]:
    """Trials at once, and the GPUs that they share; on a CPU `auto` is one, since a training
    already uses every core.

    Raises:
        ConfigError: the base's architecture or the hardware is not known.
    """
    wanted = study.plan.section.concurrency or 1
    free = _free_bytes() if wanted != 1 else []
    if wanted != "auto":
        return min(wanted, study.plan.trials), len(free)
    if not free:
        return 1, 0
    return min(fitting(free, _most_bytes(study)), study.plan.trials), len(free)


def fitting(free_bytes: Sequence[int], trial_bytes: int | None) -> int:
    """How many trials fit the GPUs, at least one on each; one on each where the memory of a trial
    cannot be predicted."""
    if trial_bytes is None:
        return len(free_bytes)
    each = trial_bytes + _CONTEXT_BYTES
    return sum(max(1, int(_USABLE_SHARE * one // each)) for one in free_bytes)


def _free_bytes() -> list[int]:
    """Of each GPU."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count())]


def _most_bytes(study: Study) -> int | None:
    """The predicted peak of the hungriest candidate, by the bounds of the space."""
    plan, most = study.plan, 0
    for params, _ in probes(plan.section.parameters):
        config = plan.trial_config(params, plan.config.seed)
        foretold = foretell(config, Pipeline(config, study.store).plan(), None)
        found = [one for one in foretold.values() if isinstance(one, Prediction)]
        if not found:
            return None
        most = max(most, *(one.fit.prediction.total for one in found))
    return most
