"""Every training option is real: what it does to gradients, rates and weights, by own formulas.

b1, b2, b3: decays of moments. m, v: first and second moment. g: gradient. p: weight.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from luthier.errors import ConfigError
from luthier.training.checkpoints import sealed_steps
from luthier.training.section import Optimizer, Schedule
from training_cases import make_job, write_dataset
from training_watch import Tensors, Watched, light_sessions, same, saved, watch

__all__ = ["light_sessions"]

RATE, DECAY, EPSILON, BETAS = 1e-2, 0.3, 1e-3, (0.8, 0.95)
# A matrices of 64 x 64 elements: bitsandbytes keeps smaller tensors than 4096 in 32 bits.
WIDE = {"r": 64, "alpha": 64}
Formula = Callable[[torch.Tensor, torch.Tensor, dict[str, Any], int, float], torch.Tensor]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"), validation=0)


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("validated"))


@pytest.fixture
def run(tiny_base: Path, dataset: Path, tmp_path: Path) -> Callable[..., Watched]:
    """Train with some fields, `max_steps` 3 unless told."""

    def run(at_start: Callable[[Any], None] = lambda _: None, **fields: Any) -> Watched:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        if "epochs" not in fields:
            fields = {"max_steps": 3} | fields
        return watch(make_job(tiny_base, dataset, folder, **fields), at_start=at_start)

    return run


def adamw(
    p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], step: int, rate: float
) -> torch.Tensor:
    b1, b2 = BETAS
    state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
    state["v"] = b2 * state.get("v", 0) + (1 - b2) * g**2
    root = (state["v"] / (1 - b2**step)).sqrt() + EPSILON
    return p * (1 - rate * DECAY) - rate * (state["m"] / (1 - b1**step)) / root


def ademamix(
    p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], step: int, rate: float
) -> torch.Tensor:
    (b1, b2), b3, share_of_slow = BETAS, 0.9999, 5
    state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
    state["slow"] = b3 * state.get("slow", 0) + (1 - b3) * g
    state["v"] = b2 * state.get("v", 0) + (1 - b2) * g**2
    root = (state["v"] / (1 - b2**step)).sqrt() + EPSILON
    mixed = state["m"] / (1 - b1**step) + share_of_slow * state["slow"]
    return p * (1 - rate * DECAY) - rate * mixed / root


def lion(
    p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], _step: int, rate: float
) -> torch.Tensor:
    (b1, b2), m = BETAS, state.get("m", torch.zeros_like(g))
    state["m"] = b2 * m + (1 - b2) * g
    return p * (1 - rate * DECAY) - rate * torch.sign(b1 * m + (1 - b1) * g)


def sgd(
    p: torch.Tensor, g: torch.Tensor, _state: dict[str, Any], _step: int, rate: float
) -> torch.Tensor:
    return p * (1 - rate * DECAY) - rate * g


def adafactor(
    p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], step: int, rate: float
) -> torch.Tensor:
    """arXiv 1804.04235, algorithm 4, without relative step sizes."""
    b2 = 1 - step**-0.8
    state["rows"] = b2 * state.get("rows", 0) + (1 - b2) * (g**2 + 1e-30).mean(1, keepdim=True)
    state["columns"] = b2 * state.get("columns", 0) + (1 - b2) * (g**2 + 1e-30).mean(0)
    rows = state["rows"] / state["rows"].mean()
    update = g / (rows.sqrt() * state["columns"].sqrt())
    update = update / max(1.0, float(update.square().mean().sqrt()))
    return p * (1 - rate * DECAY) - rate * update


MOMENTS = {"adam_beta1": BETAS[0], "adam_beta2": BETAS[1]}
ADAM = MOMENTS | {"adam_epsilon": EPSILON}
# name: class, bits of its states, formula, fields
OPTIMIZERS: dict[str, tuple[str, int, Formula, dict[str, float]]] = {
    "adamw_torch": ("torch.optim.adamw.AdamW", 32, adamw, ADAM),
    "adamw_torch_fused": ("torch.optim.adamw.AdamW", 32, adamw, ADAM),
    "adamw_8bit": ("bitsandbytes.optim.adamw.AdamW", 8, adamw, ADAM),
    "paged_adamw_32bit": ("bitsandbytes.optim.adamw.AdamW", 32, adamw, ADAM),
    "paged_adamw_8bit": ("bitsandbytes.optim.adamw.AdamW", 8, adamw, ADAM),
    "ademamix_8bit": ("bitsandbytes.optim.ademamix.AdEMAMix", 8, ademamix, ADAM),
    "adafactor": ("transformers.optimization.Adafactor", 32, adafactor, {}),
    "lion_32bit": ("bitsandbytes.optim.lion.Lion", 32, lion, MOMENTS),
    "lion_8bit": ("bitsandbytes.optim.lion.Lion", 8, lion, MOMENTS),
    "paged_lion_8bit": ("bitsandbytes.optim.lion.Lion", 8, lion, MOMENTS),
    "sgd": ("torch.optim.sgd.SGD", 32, sgd, {}),
}


def by_formula(seen: Watched, formula: Formula) -> list[Tensors]:
    """The weights after each step, from the start, the gradients and the rates alone."""
    weights, states = seen.start, {name: {} for name in seen.start}
    found = []
    for step, (gradients, rates) in enumerate(zip(seen.gradients, seen.rates, strict=True), 1):
        weights = {
            name: formula(weights[name], gradients[name], states[name], step, rates[0])
            for name in weights
        }
        found.append(weights)
    return found


def test_every_optimizer_is_tried() -> None:
    assert set(OPTIMIZERS) == set(get_args(Optimizer))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_is_the_one_asked_for(name: str, run: Callable[..., Watched]) -> None:
    """Its class, the bits of its states, and weights as its formula has them: betas, epsilon,
    decay and rate with it."""
    kind, bits, formula, fields = OPTIMIZERS[name]
    seen = run(optimizer=name, weight_decay=DECAY, lora=WIDE, warmup_fraction=0, **fields)
    optimizer = seen.trainer.optimizer.optimizer
    assert f"{type(optimizer).__module__}.{type(optimizer).__name__}" == kind
    if name.startswith("adamw_torch"):
        assert bool(optimizer.defaults["fused"]) is (name == "adamw_torch_fused")
    for key, state in seen.states.items():
        is_small = seen.start[key].numel() < 4096
        expected = torch.float32 if bits == 32 or is_small else torch.uint8
        moments = [state[key] for key in state if key.startswith(("state", "exp_avg_sq"))]
        assert {moment.dtype for moment in moments if moment is not None} <= {expected}
        assert moments or name == "sgd"
    assert len(seen.weights) == 3
    furthest = 0.0
    for found, expected in zip(seen.weights, by_formula(seen, formula), strict=True):
        for key, weight in found.items():
            difference = (weight - expected[key]).abs()
            furthest = max(furthest, float(difference.mean()))
            if bits == 32:
                torch.testing.assert_close(weight, expected[key], rtol=1e-4, atol=1e-6)
    # Eight bits: near the formula, and not on it.
    assert bits == 32 or 1e-7 < furthest < 0.1 * RATE


def test_lion_forgets_faster_than_adam_unless_told(run: Callable[..., Watched]) -> None:
    betas = {
        name: run(optimizer=name, max_steps=1, warmup_fraction=0).trainer.optimizer.param_groups[0]
        for name in ("lion_32bit", "adamw_torch")
    }
    assert betas["lion_32bit"]["betas"] == (0.9, 0.99)
    assert betas["adamw_torch"]["betas"] == (0.9, 0.999)


def test_trained_embeddings_keep_32_bits_and_only_in_their_own_training(
    run: Callable[..., Watched],
) -> None:
    embeddings = run(optimizer="adamw_8bit", lora=WIDE | {"train_embeddings": True}, max_steps=2)
    states = {name: state["state1"].dtype for name, state in embeddings.states.items()}
    assert {name: dtype for name, dtype in states.items() if "embed_tokens" in name}
    for name, dtype in states.items():
        eight = "embed_tokens" not in name and embeddings.start[name].numel() >= 4096
        assert dtype == (torch.uint8 if eight else torch.float32), name
    after = run(optimizer="adamw_8bit", lora=WIDE, max_steps=2)
    for name, state in after.states.items():
        assert (state["state1"].dtype == torch.uint8) is (after.start[name].numel() >= 4096), name


def share(step: int, steps: int, schedule: str, options: dict[str, Any]) -> float:
    """The share of the peak rate at a step, counted from 0."""
    warmup = options.get("warmup_steps") or math.ceil(options.get("warmup_fraction", 0.05) * steps)
    floor = options.get("min_learning_rate_fraction", 0.0)
    if schedule == "constant" or (schedule == "constant_with_warmup" and step >= warmup):
        return 1.0
    if step < warmup:
        from_floor = floor if schedule == "warmup_stable_decay" else 0.0
        return from_floor + (1 - from_floor) * step / warmup
    done = (step - warmup) / (steps - warmup)
    match schedule:
        case "cosine" | "cosine_with_min_lr":
            return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
        case "cosine_with_restarts":
            return (1 + math.cos(math.pi * (options["schedule_cycles"] * done % 1))) / 2
        case "linear" | "polynomial":
            return floor + (1 - floor) * (1 - done) ** options.get("schedule_power", 1)
        case "inverse_sqrt":
            return math.sqrt(warmup / step)
        case _:
            assert schedule == "warmup_stable_decay"
            decay = min(math.ceil(options.get("decay_fraction", 0.1) * steps), steps - warmup)
            into = max(0, step - (steps - decay)) / decay
            return floor + (1 - floor) * (1 + math.cos(math.pi * into)) / 2


SCHEDULES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("linear", {"warmup_fraction": 0}),
    ("linear", {"warmup_fraction": 0.5}),
    ("linear", {"warmup_steps": 3}),
    ("cosine", {"warmup_steps": 2}),
    ("cosine_with_min_lr", {"min_learning_rate_fraction": 0.2}),
    ("cosine_with_restarts", {"schedule_cycles": 2}),
    ("polynomial", {"schedule_power": 2}),
    ("polynomial", {"min_learning_rate_fraction": 0.5}),
    ("inverse_sqrt", {"warmup_steps": 2}),
    ("warmup_stable_decay", {"warmup_fraction": 0.2}),
    ("warmup_stable_decay", {"decay_fraction": 0.5, "min_learning_rate_fraction": 0.1}),
    ("warmup_stable_decay", {"decay_fraction": 0.8, "warmup_fraction": 0.2}),
    ("constant", {}),
    ("constant_with_warmup", {"warmup_steps": 3}),
]


def test_every_schedule_is_tried() -> None:
    assert {schedule for schedule, _ in SCHEDULES} == set(get_args(Schedule))


@pytest.mark.parametrize(("schedule", "options"), SCHEDULES)
def test_logged_rates_are_the_formulas(
    schedule: str, options: dict[str, Any], run: Callable[..., Watched]
) -> None:
    """With LoRA+, so that two groups with rates of their own follow one schedule."""
    steps, ratio = 7, 4.0
    lora = {"r": 4, "alpha": 8, "loraplus_lr_ratio": ratio}
    seen = run(schedule=schedule, max_steps=steps, per_device_batch_size=1, lora=lora, **options)
    expected = [RATE * share(step, steps, schedule, options) for step in range(steps)]
    assert [line["learning_rate"] for line in seen.log] == pytest.approx(expected, abs=1e-9)
    assert [rates[0] for rates in seen.rates] == pytest.approx(expected, abs=1e-9)
    assert [rates[-1] for rates in seen.rates] == pytest.approx(
        [ratio * rate for rate in expected], abs=1e-9
    )
    fast = {id(p) for p in seen.trainer.optimizer.param_groups[-1]["params"]}
    names = {n for n, p in seen.trainer.model.named_parameters() if id(p) in fast}
    assert names == {name for name in seen.start if "lora_B" in name}


def test_warm_up_that_never_ends_is_refused(run: Callable[..., Watched]) -> None:
    with pytest.raises(ConfigError, match="warm-up takes 1 of 1 steps"):
        run(max_steps=1)
    with pytest.raises(ConfigError, match="warm-up takes 9 of 4 steps"):
        run(epochs=1, warmup_steps=9)


def norm(gradients: Tensors) -> float:
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))


def test_gradients_are_clipped_to_the_norm(run: Callable[..., Watched]) -> None:
    limit = 0.05
    free, clipped = run(max_grad_norm=0, max_steps=2), run(max_grad_norm=limit, max_steps=2)
    norms = [line["grad_norm"] for line in free.log]
    assert [norm(gradients) for gradients in free.gradients] == pytest.approx(norms, rel=1e-5)
    assert min(norms) > limit
    # The norm that is logged is that before clipping.
    assert clipped.log[0]["grad_norm"] == pytest.approx(norms[0], rel=1e-5)
    for gradients in clipped.gradients:
        assert norm(gradients) == pytest.approx(limit, rel=1e-4)
    direction = {n: g * limit / norms[0] for n, g in free.gradients[0].items()}
    torch.testing.assert_close(clipped.gradients[0], direction)


def test_checkpointed_activations_give_the_same_gradients(run: Callable[..., Watched]) -> None:
    plain, again = Calls(), Calls()
    off = run(at_start=plain.watch_layer, max_steps=2, performance={"share_prefix": False})
    on = run(at_start=again.watch_layer, max_steps=2, gradient_checkpointing=True)
    assert plain.training == off.trainer.state.global_step
    assert again.training == 2 * plain.training, "each layer runs again in the backward pass"
    for expected, found in zip(off.gradients, on.gradients, strict=True):
        assert any(float(gradient.abs().max()) > 0 for gradient in found.values())
        torch.testing.assert_close(found, expected)


class Calls:
    """Counts a layer's forward passes in training, and looks at what embeddings give."""

    def __init__(self) -> None:
        self.training = 0
        self.noise: dict[bool, list[float]] = {True: [], False: []}

    def watch_layer(self, trainer: Any) -> None:
        layer = trainer.model.get_base_model().model.layers[1].mlp
        # Before it: the second run ends as soon as it has what the backward pass reads.
        layer.register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, _inputs: Any) -> None:
        self.training += module.training

    def watch_embeddings(self, trainer: Any) -> None:
        class WhenHooked(TrainerCallback):  # type: ignore[misc]
            """NEFTune's hook is there when training begins; ours must come after it."""

            def on_train_begin(hook, *_: Any, **__: Any) -> None:  # noqa: N805
                embeddings = trainer.model.get_input_embeddings()
                embeddings.register_forward_hook(self._compare)

        trainer.add_callback(WhenHooked())

    def _compare(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        """The noise, as a share of the largest that alpha 1 allows: 1 / root of (T x width)."""
        clean = module.weight[inputs[0]]
        allowed = 1 / math.sqrt(output.shape[1] * output.shape[2])
        self.noise[module.training].append(float((output - clean).abs().max()) / allowed)


def test_neftune_is_noise_in_training_only(
    tiny_base: Path, validated: Path, tmp_path: Path
) -> None:
    calls, alpha = Calls(), 5.0
    noisy, plain = (
        watch(
            make_job(tiny_base, validated, tmp_path / name, max_steps=2, **fields),
            at_start=look,
        )
        for name, fields, look in (
            ("noisy", {"neftune_noise_alpha": alpha}, calls.watch_embeddings),
            ("plain", {"performance": {"share_prefix": False}}, lambda _: None),
        )
    )
    assert len(calls.noise[True]) == 2
    for found in calls.noise[True]:
        assert 0.9 * alpha < found <= alpha
    assert calls.noise[False]
    assert set(calls.noise[False]) == {0.0}
    assert noisy.evaluations[0] == plain.evaluations[0]
    assert noisy.log[0]["loss"] != plain.log[0]["loss"]
    embeddings = noisy.trainer.model.get_input_embeddings()
    assert not hasattr(embeddings, "neftune_noise_alpha")
    assert len(embeddings._forward_hooks) == 1, "that of this test"
    base = load_file(tiny_base / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(embeddings.weight, base)


def test_accumulated_batches_are_one_step(tiny_base: Path, tmp_path: Path) -> None:
    """F18 in the trainer: 1 batch of 6 rows and 2 of 3 and 6 of 1 make the same gradient."""
    rows = write_dataset(tmp_path / "six", train=6, validation=0)
    found = []
    for size, batches in ((6, 1), (3, 2), (1, 6)):
        fields = {"per_device_batch_size": size, "gradient_accumulation_steps": batches}
        job = make_job(tiny_base, rows, tmp_path / str(size), epochs=2, **fields)
        seen = watch(job)
        assert seen.trainer.state.global_step == 2
        assert len(seen.gradients) == 2
        found.append(seen)
    for other in found[1:]:
        torch.testing.assert_close(other.gradients[0], found[0].gradients[0])
        assert other.log[0]["loss"] == pytest.approx(found[0].log[0]["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"epochs": 0.5}, 2),
        ({"epochs": 1.5}, 6),
        ({"max_steps": 3}, 3),
        ({"epochs": 1, "per_device_batch_size": 5}, 3),
        ({"epochs": 1, "gradient_accumulation_steps": 2}, 2),
    ],
)
def test_training_is_as_long_as_asked(
    fields: dict[str, Any], steps: int, run: Callable[..., Watched]
) -> None:
    """Twelve rows, three a batch."""
    seen = run(**fields)
    assert len(seen.log) == seen.trainer.state.global_step == steps
    assert seen.outcome is not None
    facts = seen.outcome.facts["training"]
    assert facts["steps"] == steps
    assert facts["stop_reason"] == ("max_steps" if "max_steps" in fields else "epochs done")


def test_batches_fill_their_tokens(run: Callable[..., Watched]) -> None:
    shapes = {}
    for tokens in (80, 160):
        loader = run(batch_tokens=tokens, max_steps=2).trainer.get_train_dataloader()
        batches = [batch["input_ids"] for batch in loader]
        assert sum(len(batch) for batch in batches) == 12
        assert max(batch.numel() for batch in batches) <= tokens
        shapes[tokens] = len(batches)
    assert shapes[160] < shapes[80] < 12


def test_checkpoints_are_made_and_kept_as_asked(
    tiny_base: Path, dataset: Path, tmp_path: Path
) -> None:
    for every, keep, expected in ((3, 3, [8, 6, 3]), (2, 1, [8])):
        fields = {"checkpoint_every_steps": every, "keep_checkpoints": keep}
        job = make_job(tiny_base, dataset, tmp_path / f"{every}-{keep}", **fields)
        watch(job)
        assert sealed_steps(job.checkpoints) == expected


def test_base_has_the_dtype_asked_for_and_what_is_trained_float32(
    run: Callable[..., Watched],
) -> None:
    losses = {}
    for dtype in ("float32", "bfloat16"):
        seen = run(dtype=dtype, max_steps=2, per_device_batch_size=2)
        frozen = {p.dtype for p in seen.trainer.model.parameters() if not p.requires_grad}
        assert frozen == {getattr(torch, dtype)}
        assert {weight.dtype for weight in seen.weights[-1].values()} == {torch.float32}
        assert seen.outcome is not None
        assert seen.outcome.facts["training"]["dtype"] == dtype
        losses[dtype] = seen.log[0]["loss"]
    assert losses["float32"] == pytest.approx(losses["bfloat16"], rel=0.01)
    assert losses["float32"] != losses["bfloat16"]


def test_another_seed_is_another_training(tiny_base: Path, dataset: Path, tmp_path: Path) -> None:
    made = []
    for folder, seed in (("a", 5), ("b", 5), ("c", 6)):
        job = make_job(tiny_base, dataset, tmp_path / folder, max_steps=2)
        job = job.model_copy(update={"seed": seed})
        seen = watch(job)
        order = [batch["input_ids"].tolist() for batch in seen.trainer.get_train_dataloader()]
        made.append((saved(job), seen.start, order))
    assert same(made[0][0], made[1][0])
    assert made[0][2] == made[1][2] != made[2][2]
    assert not same(made[0][1], made[2][1])


def test_label_smoothing_is_in_the_loss(run: Callable[..., Watched]) -> None:
    """The first loss, before anything was learned, by torch's own on whole logits."""
    smoothing, expected = 0.3, []

    def loss_of_first_batch(trainer: Any) -> None:
        batch = next(iter(trainer.get_train_dataloader()))
        with torch.no_grad():
            logits = trainer.model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
        expected.append(
            torch.nn.functional.cross_entropy(
                logits, batch["labels"][:, 1:].flatten(), label_smoothing=smoothing
            ).item()
        )

    seen = run(label_smoothing=smoothing, max_steps=2, at_start=loss_of_first_batch)
    assert seen.log[0]["loss"] == pytest.approx(expected[0], rel=1e-5)
    assert seen.log[0]["loss"] != pytest.approx(run(max_steps=2).log[0]["loss"], rel=1e-3)
