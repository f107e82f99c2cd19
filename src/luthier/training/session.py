"""One process that trains: model, rows, trainer, then the adapter and the gates."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ConfigError, DataError
from luthier.models.loading import load_tokenizer, pick_device
from luthier.models.lora import output_matrices, parameter_groups
from luthier.progress import Reporter
from luthier.training.arguments import trainer_arguments
from luthier.training.callbacks import PASSING_REASONS, Schedule, stage_callback
from luthier.training.checkpoints import (
    checkpoint_folder,
    checkpoint_step,
    newest_intact,
    seed_checkpoint,
)
from luthier.training.dpo_section import DPOSection
from luthier.training.job import Outcome, TrainingJob
from luthier.training.kernels import slow_down, speed_up
from luthier.training.learning import training_gates
from luthier.training.log import metrics_of, write_log
from luthier.training.meter import (
    CountingCollator,
    Meter,
    map_tensors,
    peak_memory_bytes,
    resident_memory_bytes,
)
from luthier.training.model import base_dtype, check_shapes, make_model, save_trained
from luthier.training.objective import Objective
from luthier.training.pair_rows import PairRows
from luthier.training.performance import PART_TOKENS, Decisions, decide
from luthier.training.plan import TrainingPlan
from luthier.training.prediction import Prediction, hardware_here, numbers_for, predict
from luthier.training.preference import Making, preference_objective
from luthier.training.processes import only_once, process_index
from luthier.training.resuming import best_step
from luthier.training.rows import TrainingRows
from luthier.training.section import TrainingSection
from luthier.training.sft_section import SFTSection
from luthier.training.shrinking import told_when_out_of_memory
from luthier.training.supervised import supervised_objective
from luthier.training.tracking import tracker_arguments, tracking_environment
from luthier.training.trainer import make_trainer, supervised_trainer_class
from luthier.watching import UNWATCHED, Watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Setting:
    """A job with what was made and decided for it."""

    job: TrainingJob
    reporter: Reporter
    prediction: Prediction | None
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    decisions: Decisions
    objective: Objective
    meter: Meter


@dataclass(frozen=True)
class _Trained:
    """A trainer at its end, and where it began."""

    trainer: Any
    stop_reason: str | None
    resumed_at: int
    seconds: float


def train(
    job: TrainingJob,
    reporter: Reporter,
    asked_to_stop: Callable[[], bool],
    watch: Watch = UNWATCHED,
) -> Outcome | None:
    """Train, or go on training, and write the adapter; None when it was asked to stop or who
    watches ended it, and in all of several processes but rank 0.

    Raises:
        ModelError: the base or the adapter cannot be used as the config says.
    """
    map_tensors()
    supervised_trainer_class()  # so that what training takes is not what libraries take
    resident_bytes = resident_memory_bytes()
    prediction = _foretell(job, reporter)
    lighter = f"Set {job.section.stage_name}.method: qlora, or take a smaller base"
    with told_when_out_of_memory(lambda: "before the first step", prediction, lighter):
        setting = _set_up(job, reporter, prediction, asked_to_stop)
    model, objective = setting.model, setting.objective
    before = output_matrices(model)
    fused = speed_up(model) if setting.decisions.fused_lora.on else []
    trained = _run(setting, asked_to_stop, watch)
    slow_down(model)
    if trained.stop_reason in PASSING_REASONS:
        return None
    kept_step = trained.trainer.load_best() if job.section.keep == "best" else None
    if process_index() > 0:
        return None
    log = write_log(job.outputs, trained.trainer.state.log_history)
    save_trained(model, job)
    return Outcome(
        metrics=metrics_of(log),
        gates=[
            *training_gates(model, before, log, kept_step, objective.is_real),
            *objective.gates,
            *objective.closing_gates(log, kept_step),
        ],
        facts={
            "training": _facts(setting, trained, kept_step)
            | {"fused": fused, "memory": _memory(prediction, resident_bytes)},
            **objective.facts,
        },
        timings_seconds={"train": trained.seconds},
    )


def _foretell(job: TrainingJob, reporter: Reporter) -> Prediction | None:
    """What training will take here, said; None for a model whose memory cannot be predicted."""
    config = json.loads((job.base / "config.json").read_text(encoding="utf-8"))
    try:
        found = predict(
            config, job.section, numbers_for(job.section, job.dataset), hardware_here()
        )
    except ConfigError as error:
        reporter.say(f"  Memory and time are not predicted: {error}")
        return None
    reporter.say(f"  predicted: at least {found.time.seconds / 60:.1f} minutes, {found.peak}")
    return found


def _memory(prediction: Prediction | None, resident_bytes: int) -> dict[str, Any]:
    """The peak as it was predicted and as it was measured, of one process.

    On CUDA what tensors take, elsewhere by how much the process grew.
    """
    on_cuda = pick_device() == "cuda"
    predicted = None
    if prediction is not None:
        memory = prediction.fit.prediction
        predicted = memory.allocated if on_cuda else memory.total
    return {
        "predicted_bytes": predicted,
        "measured_bytes": peak_memory_bytes() - (0 if on_cuda else resident_bytes),
        "parts_bytes": prediction.fit.prediction.parts() if prediction else {},
    }


def _set_up(
    job: TrainingJob,
    reporter: Reporter,
    prediction: Prediction | None,
    asked_to_stop: Callable[[], bool],
) -> _Setting:
    section = job.section
    kind = PairRows if isinstance(section, DPOSection) else TrainingRows
    rows = kind.load(job.dataset)
    _check_validation(section, rows)
    model = make_model(job, rows.train)
    decisions = decide(section, model, pick_device())
    tokenizer = load_tokenizer(job.base)
    assert tokenizer.pad_token_id is not None, "the base stage saw to it"
    pad = int(tokenizer.pad_token_id)
    if isinstance(rows, PairRows):
        assert isinstance(section, DPOSection), "it has pairs"
        objective = preference_objective(
            Making(job, section, decisions, rows, model, pad, reporter, asked_to_stop)
        )
    else:
        assert isinstance(section, SFTSection), "it has rows"
        objective = supervised_objective(section, decisions, rows, model, job.seed, pad)
    return _Setting(job, reporter, prediction, model, tokenizer, decisions, objective, Meter())


def _check_validation(section: TrainingSection, rows: TrainingRows) -> None:
    """Raises DataError when the section asks for what only validation rows can give."""
    for name in ("early_stopping", "evaluate_every_steps", "evaluate_every_fraction"):
        if rows.validation is None and getattr(section, name) is not None:
            raise DataError(
                f"{section.stage_name}.{name} needs validation rows, and the dataset has none. "
                "Give a source with split: validation, or set prepare.validation_fraction; or "
                f"leave {name} out."
            )


def _run(setting: _Setting, asked_to_stop: Callable[[], bool], watch: Watch) -> _Trained:
    """Train to the end, or to a requested stop."""
    job, section, reporter = setting.job, setting.job.section, setting.reporter
    started_from = _starting_checkpoint(setting)
    resumed_at = checkpoint_step(started_from) if started_from else 0
    schedule = Schedule(
        setting.objective.rows.validation is not None,
        section.evaluate_every_steps,
        section.evaluate_every_fraction,
        section.early_stopping,
    )
    seconds = setting.prediction.time.seconds if setting.prediction else None
    batch = section.per_device_batch_size or f"{section.batch_tokens} tokens"
    with tracking_environment(job), reporter.task("training", 0, "steps", seconds) as task:
        callback = stage_callback(asked_to_stop, task, schedule, setting.objective.is_real, watch)
        trainer = _trainer(setting, callback, started_from)
        if started_from is not None:
            reporter.say(f"  resuming after step {resumed_at}")
        started = time.monotonic()
        setting.meter.restart()
        with told_when_out_of_memory(
            lambda: f"at step {trainer.state.global_step + 1}, with batches of {batch}",
            setting.prediction,
            f"Set {section.stage_name}.on_oom: shrink to go on with smaller batches of the same "
            "effective size",
        ):
            trainer.train_from(started_from)
    return _Trained(trainer, callback.stop_reason, resumed_at, time.monotonic() - started)


def _starting_checkpoint(setting: _Setting) -> Path | None:
    """The newest intact checkpoint of this job; in a new fork, a copy of that of its parent."""
    job = setting.job

    def best(checkpoint: Path) -> int | None:
        # A fork begins anew with what is best.
        keeps = job.section.keep == "best" and not _begins_fork(job, checkpoint)
        return best_step(checkpoint) if keeps else None

    own = newest_intact(job.checkpoints, setting.reporter.say, best)
    if own is not None or job.fork is None:
        return own
    check_shapes(setting.model, job.fork)
    fork = job.fork
    only_once(lambda: seed_checkpoint(fork, job.checkpoints))
    return checkpoint_folder(job.checkpoints, checkpoint_step(fork))


def _begins_fork(job: TrainingJob, checkpoint: Path | None) -> bool:
    """Whether a checkpoint is the parent's; those after it are the fork's own."""
    if job.fork is None or checkpoint is None:
        return False
    return checkpoint_step(checkpoint) == checkpoint_step(job.fork)


def _trainer(setting: _Setting, callback: Any, started_from: Path | None) -> Any:
    job, rows = setting.job, setting.objective.rows
    has_validation = rows.validation is not None
    arguments = trainer_arguments(
        job.section, has_validation=has_validation, on_cpu=pick_device() == "cpu"
    )
    return make_trainer(
        model=setting.model,
        tokenizer=setting.tokenizer,
        rows=rows.train,
        plan=_plan(setting, is_fork=_begins_fork(job, started_from)),
        arguments=arguments
        | tracker_arguments(job)
        | {"seed": job.seed, "eval_on_start": has_validation and started_from is None},
        callbacks=[callback],
    )


def _plan(setting: _Setting, *, is_fork: bool) -> TrainingPlan:
    job, section, objective = setting.job, setting.job.section, setting.objective
    ratio = section.lora.loraplus_lr_ratio if section.method != "full" else None
    shrinks = section.on_oom == "shrink" and section.processes == 1
    splits = setting.decisions.split_batches.on
    return TrainingPlan(
        batches=objective.batches,
        collate=CountingCollator(objective.collate, objective.count, keep_rows=shrinks or splits),
        loss=objective.loss,
        validate=objective.validate,
        step_metrics=objective.step_metrics,
        checkpoints=job.checkpoints,
        parameter_groups=lambda model: parameter_groups(
            model, section.learning_rate, section.weight_decay, ratio
        ),
        keep_checkpoints=section.keep_checkpoints,
        decay_fraction=(
            section.decay_fraction if section.schedule == "warmup_stable_decay" else None
        ),
        is_fork=is_fork,
        shards=section.sharding == "fsdp2",
        meter=setting.meter,
        most_tokens=PART_TOKENS[pick_device()] if splits else None,
        say_when_shrunk=setting.reporter.say if shrinks else None,
    )


def _facts(setting: _Setting, trained: _Trained, kept_step: int | None) -> dict[str, Any]:
    section, rows, state = setting.job.section, setting.objective.rows, trained.trainer.state
    meter = setting.meter
    return {
        "method": section.method,
        "dtype": base_dtype(section),
        "quantization": (section.quantization.key_fields() if section.method == "qlora" else None),
        "device": pick_device(),
        "steps": state.global_step,
        "kept_step": kept_step or state.global_step,
        "stop_reason": trained.stop_reason
        or ("max_steps" if section.max_steps else "epochs done"),
        "train_rows": len(rows.train),
        "trained_tokens": int(rows.lengths.sum() * state.epoch),
        "supervised_tokens": int(rows.supervised.sum() * state.epoch),
        "performance": setting.decisions.as_facts(),
        "resumed_at": trained.resumed_at,
        "batch_parts": trained.trainer.shrinking.parts if trained.trainer.shrinking else 1,
        "peak_memory_bytes": peak_memory_bytes(),
        "tokens_per_second": meter.total_real_tokens / trained.seconds,
    }
