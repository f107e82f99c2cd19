"""Predicted against measured memory of real training steps on this CPU, seven configurations.

    python benchmarks/cpu_memory.py [--only NAME] [--allocator glibc] [--out FILE.json]

Each runs in a process of its own: random weights of a real model's shape (fewer layers, a smaller
vocabulary) are saved, loaded with `luthier.models.loading`, adapted, and trained for three steps
with `training/loss.py` and AdamW. Measured is what the process grows by: the peak of its resident
memory (VmHWM of /proc/self/status, reset first) less what was resident before loading, libraries
imported. Weights count once: safetensors maps the file, and its pages become resident as they are
read. glibc keeps freed tensors of up to 32 MiB in a heap that it cannot fill again (2.36: aligned
requests do not fit the holes that aligned blocks leave), so the heap grows to about twice what is
in use; with `--allocator mapped`, the default, tensors from 1 MiB on are mapped and given back, as
`luthier sft` has it.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.estimate.architecture import read_architecture
from luthier.estimate.hardware import cpu
from luthier.estimate.memory import predict_memory
from luthier.estimate.shape import AdapterShape, TrainingShape

CONFIGS = Path(__file__).parent.parent / "tests" / "model_configs"
STEPS = 3
MIB = 2**20
MAX_ERROR = 0.15


@dataclass(frozen=True)
class Case:
    """One configuration; `changes` shrink the real config."""

    model: str
    changes: dict[str, int]
    shape: TrainingShape
    stored_dtype: str = "float32"


QWEN = {"num_hidden_layers": 6, "vocab_size": 20_000}
LLAMA = {"num_hidden_layers": 3, "vocab_size": 12_000}
NO_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LORA = TrainingShape(
    fused_kernels=True,
    adapter=AdapterShape(r=16),
    rows=4,
    tokens_per_row=192,
    supervised_tokens_per_row=32,
)
CASES = {
    "qwen2.5-0.5b lora": Case("Qwen2.5-0.5B-Instruct", QWEN, LORA),
    "qwen2.5-0.5b lora, checkpointing": Case(
        "Qwen2.5-0.5B-Instruct",
        QWEN,
        replace(LORA, gradient_checkpointing=True, tokens_per_row=256),
    ),
    "qwen2.5-0.5b qlora": Case(
        "Qwen2.5-0.5B-Instruct",
        QWEN,
        replace(LORA, method="qlora", quantization="nf4", rows=2, tokens_per_row=256),
    ),
    "llama-3.2-1b lora, all supervised": Case(
        "Llama-3.2-1B-Instruct",
        LLAMA,
        replace(LORA, tokens_per_row=128, supervised_tokens_per_row=127),
    ),
    "llama-3.2-1b full": Case(
        "Llama-3.2-1B-Instruct",
        LLAMA | {"num_hidden_layers": 1},
        replace(
            LORA,
            method="full",
            adapter=None,
            fused_kernels=False,
            rows=2,
            tokens_per_row=128,
        ),
    ),
    "llama-3.2-1b lora, shared prefix": Case(
        "Llama-3.2-1B-Instruct",
        LLAMA,
        replace(LORA, rows=12, tokens_per_row=96, shared_prefix_tokens=63),
    ),
    "smollm2-135m lora, bfloat16 file": Case(
        "SmolLM2-135M-Instruct",
        {},
        replace(LORA, rows=2, tokens_per_row=48, supervised_tokens_per_row=8),
        stored_dtype="bfloat16",
    ),
}


def configuration(case: Case) -> dict[str, Any]:
    text = (CONFIGS / f"{case.model}.json").read_text(encoding="utf-8")
    return json.loads(text) | case.changes | NO_SPECIAL | {"torch_dtype": case.stored_dtype}


def predicted(case: Case, *, mapped: bool) -> dict[str, int]:
    """Bytes by part, and the total."""
    architecture = read_architecture(configuration(case))
    prediction = predict_memory(architecture, case.shape, cpu(2**34, 2, maps_tensors=mapped))
    return prediction.parts() | {"total": prediction.total}


def save_random(case: Case, folder: Path) -> None:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(1)
    found = configuration(case)
    config = CONFIG_MAPPING[found.pop("model_type")](**found)
    dtype = getattr(torch, case.stored_dtype)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)


def resident(name: str) -> int:
    """A field of /proc/self/status in bytes: VmRSS, VmHWM, RssAnon, RssFile."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def train(case: Case, folder: Path, *, mapped: bool) -> dict[str, int]:
    """Grown by, in bytes; and what was resident with the libraries alone."""
    import_libraries()
    from luthier.models.loading import load_model
    from luthier.models.lora import LoraSection, attach
    from luthier.training.kernels import speed_up
    from luthier.training.meter import map_tensors

    if mapped:
        map_tensors()
    libraries = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    import torch

    shape = case.shape
    model: Any = load_model(folder, quantization=shape.quantization)
    after_load = resident("VmHWM")
    if shape.adapter is not None:
        model = attach(model, LoraSection(r=shape.adapter.r), seed=1)
    if shape.fused_kernels:
        speed_up(model)
    if shape.gradient_checkpointing:
        model.enable_input_require_grads()
        # transformers before 5.23 knows the old name only.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model.train()
    for _ in range(STEPS):
        step(model, shape)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {
        "libraries": libraries,
        "loading": after_load - libraries,
        "trained": resident("VmHWM") - libraries,
        "anonymous_after": resident("RssAnon"),
        "file_after": resident("RssFile"),
        "growth": resident("VmHWM") - libraries,
    }


def import_libraries() -> None:
    """All that a training process imports before it loads a model."""
    import bitsandbytes  # noqa: F401
    import peft.tuners.lora.bnb  # noqa: F401
    import transformers.models.llama.modeling_llama
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401
    import trl  # noqa: F401
    from trl import SFTTrainer  # noqa: F401


def step(model: Any, shape: TrainingShape) -> None:
    import torch

    from luthier.training.loss import summed_loss

    ids = torch.randint(5, 9000, (shape.rows, shape.tokens_per_row))
    prefix = shape.shared_prefix_tokens
    if prefix:
        ids[:, : prefix + 1] = ids[:1, : prefix + 1]
    labels = torch.full_like(ids, -100)
    labels[:, -shape.supervised_tokens_per_row :] = ids[:, -shape.supervised_tokens_per_row :]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    loss = summed_loss(model, inputs, share_prefix=prefix > 0, head="pairs")
    loss.backward()


def measured(name: str, allocator: str) -> dict[str, int]:
    """Of a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("--save", "--train"):
            command = [sys.executable, "-W", "ignore", __file__, "--only", name, part, folder]
            done = subprocess.run(
                [*command, "--allocator", allocator],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-3000:]}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(names: list[str], allocator: str) -> list[dict[str, Any]]:
    print(f"{'configuration':36} {'measured':>9} {'predicted':>9} {'error':>7}   MiB")
    rows = []
    for name in names:
        found = measured(name, allocator)
        said = predicted(CASES[name], mapped=allocator == "mapped")
        error = said["total"] / found["growth"] - 1
        rows.append({"name": name, "measured": found, "predicted": said, "error": error})
        print(
            f"{name:36} {found['growth'] / MIB:9.0f} {said['total'] / MIB:9.0f} {error:+7.1%}"
            f"   libraries {found['libraries'] / MIB:.0f}, loading {found['loading'] / MIB:.0f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    parser.add_argument("--allocator", choices=["mapped", "glibc"], default="mapped")
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save:
        save_random(CASES[arguments.only], arguments.save)
        return
    if arguments.train:
        case, mapped = CASES[arguments.only], arguments.allocator == "mapped"
        print(json.dumps(train(case, arguments.train, mapped=mapped)))
        return
    rows = compare([arguments.only] if arguments.only else list(CASES), arguments.allocator)
    if arguments.out:
        import torch

        facts = {
            "machine": platform.platform(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "allocator": arguments.allocator,
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    worst = max(abs(row["error"]) for row in rows)
    print(f"largest error {worst:.1%} (aim: {MAX_ERROR:.0%})")


if __name__ == "__main__":
    main()
