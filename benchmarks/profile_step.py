"""Where the time of a training step goes, and how near its matrix products are to the machine's.

    python benchmarks/profile_step.py MODEL_FOLDER [--repeats 5] [--rows 16] [--prefix 16]
        [--own 17] [--supervised 3] [--json FILE]

MODEL_FOLDER is a base artifact, such as artifacts/base/<key>. Rows are random tokens, as many of
them and as long as said; the defaults are the quickstart's. First tokens a second in four ways of
computing the same step, by turns; then, of the fastest, seconds by kind of work (torch.profiler,
time in each operator itself) and the floor: the same frozen products alone, one after another.
"""

import argparse
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from luthier.models.loading import load_model
from luthier.models.lora import LoraSection, attach
from luthier.training.batches import PaddedCollator
from luthier.training.kernels import slow_down, speed_up
from luthier.training.loss import summed_loss

Product = tuple[int, int, int]  # (N, I) x (I, O)
KINDS = {
    "attention": ("scaled_dot_product",),
    "loss": ("log_softmax", "nll_loss", "cross_entropy"),
    "norms, gates, rotation, residuals": (
        *("mul", "add", "pow", "mean", "rsqrt", "silu", "neg", "sum", "div", "vecdot", "bmm"),
        *("addcmul", "sub", "sqrt"),
    ),
    "copies and fills": ("copy", "cat", "fill", "zero", "clone", "index", "embedding", "slice"),
}


def batch(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows with a shared prefix, the last tokens supervised."""
    shared = torch.randint(100, 4000, (arguments.prefix,)).tolist()
    rows = []
    for _ in range(arguments.rows):
        own = torch.randint(100, 4000, (arguments.own,)).tolist()
        reply = own[-arguments.supervised :]
        unsupervised = arguments.prefix + arguments.own - len(reply)
        rows.append({"input_ids": shared + own, "labels": [-100] * unsupervised + reply})
    return PaddedCollator(0)(rows)


def full_head(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    ids = inputs["input_ids"]
    labels = inputs["labels"]
    loss: torch.Tensor = model(input_ids=ids, labels=labels, use_cache=False).loss
    return loss


def supervised_head(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    return summed_loss(model, inputs, share_prefix=False)


def shared_prefix(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    return summed_loss(model, inputs, share_prefix=True)


WAYS: dict[str, tuple[Callable[..., torch.Tensor], bool]] = {
    "head on every position": (full_head, False),
    "head on supervised positions": (supervised_head, False),
    "and the shared prefix once": (shared_prefix, False),
    "and fused LoRA, norms, gates": (shared_prefix, True),
}


def step(model: Any, optimizer: Any, loss: Callable[..., torch.Tensor], inputs: Any) -> None:
    loss(model, inputs).backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(model: Any, optimizer: Any, inputs: Any, repeats: int) -> dict[str, Any]:
    """Seconds a step of wall and processor time, medians of turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for _ in range(repeats + 1):
        for name, (loss, fused) in WAYS.items():
            speed_up(model) if fused else slow_down(model)
            started, cpu = time.perf_counter(), time.process_time()
            step(model, optimizer, loss, inputs)
            times[name].append((time.perf_counter() - started, time.process_time() - cpu))
    return {
        name: {
            "seconds": statistics.median(wall for wall, _ in found[1:]),
            "cpu_seconds": statistics.median(cpu for _, cpu in found[1:]),
        }
        for name, found in times.items()
    }


def profiled(model: Any, optimizer: Any, inputs: Any) -> tuple[dict[str, float], Counter[Product]]:
    """Seconds by kind of work of one step, and the frozen products in it."""
    from torch.profiler import ProfilerActivity, profile

    seconds: Counter[str] = Counter()
    products: Counter[Product] = Counter()
    vocabulary = model.config.vocab_size
    weights = [weight for weight in model.parameters() if not weight.requires_grad]
    shapes = {tuple(weight.shape) for weight in weights if weight.dim() == 2}
    frozen = shapes | {shape[::-1] for shape in shapes}
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as forward_backward:
        shared_prefix(model, inputs).backward()
    with profile(activities=[ProfilerActivity.CPU]) as update:
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for entry in forward_backward.key_averages(group_by_input_shape=True):
        kind, product = kind_of(entry.key, entry.input_shapes, frozen, vocabulary)
        seconds[kind] += entry.self_cpu_time_total / 1e6
        if kind == "frozen products":
            assert product is not None
            products[product] += entry.count
    seconds["clipping and optimizer"] = sum(
        entry.self_cpu_time_total / 1e6 for entry in update.key_averages()
    )
    return dict(seconds.most_common()), products


def kind_of(
    name: str, shapes: Any, frozen: set[tuple[int, int]], vocabulary: int
) -> tuple[str, Product | None]:
    if name in {"aten::mm", "aten::addmm", "aten::addmm_"}:
        left, right = [shape for shape in shapes if len(shape) == 2][-2:]
        product = (left[0], left[1], right[1])
        if vocabulary in product:
            return "head", product
        return ("frozen products" if product[1:] in frozen else "LoRA products"), product
    if not name.startswith("aten::"):
        return "autograd and Python", None
    for kind, words in KINDS.items():
        if any(word in name for word in words):
            return kind, None
    return "other operators", None


def floor_seconds(products: Counter[Product], dtype: torch.dtype, device: Any) -> float:
    """The frozen products alone, the best of five each."""
    total = 0.0
    for (rows, inner, outer), count in products.items():
        left = torch.randn(rows, inner, dtype=dtype, device=device)
        right = torch.randn(inner, outer, dtype=dtype, device=device)
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            left @ right
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
        total += best * count
    return total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--prefix", type=int, default=16)
    parser.add_argument("--own", type=int, default=17)
    parser.add_argument("--supervised", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    dtype = "bfloat16" if cuda else "float32"
    device = torch.cuda.get_device_name() if cuda else "CPU"
    print(f"{device}, {dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    model = attach(load_model(arguments.model, dtype=dtype), LoraSection(), seed=1).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    inputs = {name: value.to(model.device) for name, value in batch(arguments).items()}
    tokens = arguments.rows * (arguments.prefix + arguments.own)
    ways = compare(model, optimizer, inputs, arguments.repeats)
    first = next(iter(ways.values()))
    for name, found in ways.items():
        rate, ratio = tokens / found["seconds"], first["seconds"] / found["seconds"]
        cpu = first["cpu_seconds"] / found["cpu_seconds"]
        print(f"{name:32} {rate:8.0f} tokens/s   x {ratio:.2f}   x {cpu:.2f} by processor time")
    seconds, products = profiled(model, optimizer, inputs)
    work = sum(2 * n * i * o * count for (n, i, o), count in products.items())
    floor = floor_seconds(products, model.dtype, model.device)
    whole = sum(seconds.values())
    print(f"\nOne step of the last, {whole:.2f} s under the profiler:")
    for kind, found_seconds in seconds.items():
        print(f"{kind:36} {found_seconds:7.3f} s  {found_seconds / whole:6.1%}")
    print(
        f"The frozen products alone: {floor:.3f} s, {work / floor / 1e9:.0f} GFLOP/s; "
        f"in the step {work / seconds['frozen products'] / 1e9:.0f} GFLOP/s"
    )
    if arguments.json:
        report = {
            "device": device,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "tokens": tokens,
            "ways": ways,
            "profile_seconds": seconds,
            "frozen_gflop": work / 1e9,
            "floor_seconds": floor,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
