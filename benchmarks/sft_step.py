"""Training step of the quickstart's shape, three ways in one run: tokens a second, and ratios.

    python benchmarks/sft_step.py MODEL_FOLDER [--repeats 5]

MODEL_FOLDER is a base artifact, such as artifacts/base/<key>. Rows are random tokens with the
quickstart's lengths: 16 rows, a shared prefix of 16 tokens, 17 tokens of their own, 3 supervised.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from luthier.models.loading import load_model
from luthier.models.lora import LoraSection, attach
from luthier.training.loss import summed_loss

ROWS, PREFIX, OWN, SUPERVISED = 16, 16, 17, 3


def batch(device: torch.device) -> dict[str, torch.Tensor]:
    ids = torch.randint(100, 4000, (ROWS, PREFIX + OWN), device=device)
    ids[:, :PREFIX] = ids[:1, :PREFIX]
    labels = torch.full_like(ids, -100)
    labels[:, -SUPERVISED:] = ids[:, -SUPERVISED:]
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def full_head(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs, use_cache=False).loss


def seconds_a_step(
    model: torch.nn.Module,
    loss: Callable[[torch.nn.Module, dict[str, torch.Tensor]], torch.Tensor],
    repeats: int,
) -> float:
    times = []
    for _ in range(repeats + 1):
        inputs = batch(next(model.parameters()).device)
        started = time.perf_counter()
        loss(model, inputs).backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
        model.zero_grad()
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, {dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    model = attach(load_model(arguments.model, dtype=dtype), LoraSection(), seed=1)
    model.train()
    ways = {
        "head on every position": full_head,
        "head on supervised positions": lambda m, i: summed_loss(m, i, share_prefix=False),
        "and the shared prefix once": lambda m, i: summed_loss(m, i, share_prefix=True),
    }
    first = None
    for name, loss in ways.items():
        seconds = seconds_a_step(model, loss, arguments.repeats)
        first = first or seconds
        tokens = ROWS * (PREFIX + OWN)
        print(f"{name:32} {tokens / seconds:8.0f} tokens/s   x {first / seconds:.2f}")


if __name__ == "__main__":
    main()
