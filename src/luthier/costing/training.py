"""What the training costs: given, or GPU hours measured or foretold, at the price of one."""

from luthier.costing.ground import Ground
from luthier.costing.known import Known, is_priced, machine
from luthier.errors import ConfigError
from luthier.estimate.cost import SECONDS_PER_HOUR
from luthier.estimate.hardware import GPUS
from luthier.foretelling import ROWS_OF, foretell, training_sections
from luthier.training.prediction import Prediction

_STAGES = "cost.own.training_usd"


def training_cost(ground: Ground, price_usd_per_gpu_hour: float) -> Known:
    """US dollars for all stages that train, once.

    Raises:
        ConfigError: it is neither given nor measured, and cannot be foretold yet.
    """
    own = ground.section.own
    if own.training_usd is not None:
        return Known(own.training_usd, "yours")
    stages = training_sections(ground.config)
    if not stages:
        raise ground.unknown(
            f"{_STAGES} is not known: the config has no section sft or dpo. Give it, in US dollars"
        )
    made = {stage: ground.artifacts[stage] for stage in stages if stage in ground.artifacts}
    gpus = {stage: made[stage].manifest.environment.gpu for stage in made}
    if len(made) == len(stages) and all(is_priced(gpu, own.gpu) for gpu in gpus.values()):
        return _measured(ground, price_usd_per_gpu_hour)
    for stage, gpu in gpus.items():
        if not is_priced(gpu, own.gpu):
            seconds = made[stage].manifest.timings_seconds.get("stage", 0.0)
            ground.notes.append(
                f"{stage} took {seconds:,.0f} s on {machine(gpu)}. Those are no hours of "
                f"{own.gpu or 'a GPU'}, so they are not in the training cost"
            )
    return _foretold(ground, price_usd_per_gpu_hour)


def _measured(ground: Ground, price: float) -> Known:
    hours, words = 0.0, []
    for stage, section in training_sections(ground.config).items():
        manifest = ground.artifacts[stage].manifest
        spent = manifest.timings_seconds["stage"] / SECONDS_PER_HOUR * section.processes
        hours += spent
        words.append(f"{stage} {spent:.3g} GPU hours on {machine(manifest.environment.gpu)}")
        if manifest.resumed:
            ground.notes.append(
                f"{stage} was interrupted; the hours before its last start are not in the "
                "training cost"
            )
    return Known(hours * price, "measured", ", ".join(words))


def _foretold(ground: Ground, price: float) -> Known:
    own, stages = ground.section.own, training_sections(ground.config)
    if own.gpu not in GPUS:
        raise ground.unknown(
            f"{_STAGES} is not known: no GPU that is priced has trained this. Give it, in US "
            f"dollars, or name the GPU to foretell it for (cost.own.gpu: {', '.join(GPUS)})"
        )
    missing = [ROWS_OF[stage] for stage in stages if ROWS_OF[stage] not in ground.artifacts]
    found = {} if missing else foretell(ground.config, ground.steps, own.gpu)
    predicted = {name: one for name, one in found.items() if isinstance(one, Prediction)}
    if missing or len(predicted) < len(stages):
        command = missing[0] if missing else "base"
        raise ground.unknown(
            f"{_STAGES} is not known and cannot be foretold yet. Give it, in US dollars, or run: "
            f"luthier {command} {ground.config.path}"
        )
    _refuse_too_large(ground, predicted)
    hours = {
        stage: one.time.seconds / SECONDS_PER_HOUR * stages[stage].processes
        for stage, one in predicted.items()
    }
    words = ", ".join(f"{stage} {spent:.3g} GPU hours" for stage, spent in hours.items())
    return Known(sum(hours.values()) * price, "predicted", f"at least: {words} on {own.gpu}")


def _refuse_too_large(ground: Ground, predicted: dict[str, Prediction]) -> None:
    for stage, one in predicted.items():
        if one.fit.largest_rows is None and not one.fit.fits:
            raise ConfigError(
                f"{ground.config.path}: {stage} does not fit on {one.hardware.name} (peak "
                f"{one.peak}), so its time there cannot be foretold. See: luthier plan "
                f"{ground.config.path} --on {one.hardware.name}; or give {_STAGES}"
            )
