"""Predicted against measured memory of training on a GPU: random weights of real models' shapes.

    PYTHONPATH=src python benchmarks/gpu_memory.py [--models NAME ...] [--lengths 512 2048] \
        [--methods lora qlora] [--rows 2] [--out FILE.json]

Three optimizer steps each; measured is `torch.cuda.max_memory_allocated`, compared with the sum of
the predicted parts that torch allocates, and `max_memory_reserved`. Needs torch, transformers and
peft; without bitsandbytes the QLoRA rows say that they were not measured.
"""

import argparse
import gc
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.estimate.architecture import read_architecture
from luthier.estimate.hardware import GIB, GPUS
from luthier.estimate.memory import MemoryPrediction, predict_memory
from luthier.estimate.shape import AdapterShape, TrainingShape

CONFIGS = Path(__file__).parent.parent / "tests" / "model_configs"
MODELS = ["Llama-3.2-1B-Instruct", "Llama-3.2-3B-Instruct", "Llama-3.1-8B-Instruct"]
STEPS = 3
SUPERVISED = 256
COMPARED_WITH = GPUS[
    "h100-80gb"
]  # which GPU matters to the context only, and that is not compared


@dataclass(frozen=True)
class Case:
    model: str
    shape: TrainingShape

    @property
    def name(self) -> str:
        shape = self.shape
        checkpointing = " checkpointing" if shape.gradient_checkpointing else ""
        return f"{self.model} {shape.method} {shape.rows} x {shape.tokens_per_row}{checkpointing}"

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((CONFIGS / f"{self.model}.json").read_text("utf-8"))
        return found

    def predicted(self) -> MemoryPrediction:
        return predict_memory(read_architecture(self.config), self.shape, COMPARED_WITH)


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    for model in arguments.models:
        for method in arguments.methods:
            for tokens in arguments.lengths:
                for checkpointing in (False, True):
                    shape = TrainingShape(
                        method=method,
                        dtype="bfloat16",
                        compute_dtype="bfloat16",
                        quantization="nf4" if method == "qlora" else None,
                        adapter=AdapterShape(r=16),
                        rows=arguments.rows,
                        tokens_per_row=tokens,
                        supervised_tokens_per_row=min(SUPERVISED, tokens - 1),
                        gradient_checkpointing=checkpointing,
                    )
                    yield Case(model, shape)


def build(case: Case, device: str) -> Any:
    """The model with its adapter, random weights made on `device` ("meta": none at all)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    fields = {k: v for k, v in case.config.items() if k not in {"auto_map", "torch_dtype"}}
    config = CONFIG_MAPPING[fields.pop("model_type")](**fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if case.shape.quantization is not None and device != "meta":
        _quantize(model)
    if device != "meta":
        _fill(model, device)
    assert case.shape.adapter is not None
    model = get_peft_model(
        model,
        LoraConfig(task_type="CAUSAL_LM", r=case.shape.adapter.r, target_modules="all-linear"),
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _quantize(model: Any) -> None:
    """Put bitsandbytes' 4-bit layers where linear ones are; they quantise when moved."""
    import torch
    from bitsandbytes.nn import Linear4bit

    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear and child is not head:
                quantized = Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=child.bias is not None,
                    compute_dtype=torch.bfloat16,
                    quant_type="nf4",
                )
                setattr(module, name, quantized.to(torch.bfloat16))
    model.is_loaded_in_4bit = True


def _fill(model: Any, device: str) -> None:
    """Real storage for meta weights, a module at a time, so that no full copy is ever there."""
    import torch

    for module in model.modules():
        own = list(module.named_parameters(recurse=False)) + list(
            module.named_buffers(recurse=False)
        )
        if not any(tensor.device.type == "meta" for _, tensor in own):
            if own:
                module.to(device)
            continue
        module.to_empty(device=device, recurse=False)
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                torch.nn.init.normal_(parameter, std=0.02)
    model.tie_weights()
    for module in model.modules():  # rotary tables are buffers that no checkpoint holds
        if hasattr(module, "inv_freq"):
            module.__init__(module.config)
            module.to(device)


def measure(case: Case) -> dict[str, int]:
    """Bytes allocated and reserved at most by three steps."""
    import torch

    from luthier.training.loss import summed_loss

    model = build(case, "cuda")
    shape = case.shape
    if shape.gradient_checkpointing:
        model.enable_input_require_grads()
        # transformers before 5.23 knows the old name only.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    model.train()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS):
        ids = torch.randint(5, 9000, (shape.rows, shape.tokens_per_row), device="cuda")
        labels = torch.full_like(ids, -100)
        supervised = shape.supervised_tokens_per_row
        labels[:, -supervised:] = ids[:, -supervised:]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        summed_loss(model, inputs, share_prefix=False, head="pairs").backward()
        optimizer.step()
        optimizer.zero_grad()
    return {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
    }


def compare(case: Case) -> dict[str, Any]:
    """One row of the table; `measured` is None, with the reason, where it was not."""
    import torch

    predicted = case.predicted()
    row: dict[str, Any] = {"name": case.name, "predicted": predicted.parts(), "measured": None}
    said = f"{case.name:58} predicted {predicted.allocated / GIB:7.2f}"
    if case.shape.quantization and importlib.util.find_spec("bitsandbytes") is None:
        row["why"] = "bitsandbytes is not installed"
    elif not torch.cuda.is_available():
        row["why"] = "no CUDA device"
    else:
        try:
            row["measured"] = measure(case)
        except torch.cuda.OutOfMemoryError:
            row["why"] = "out of memory"
        gc.collect()
        torch.cuda.empty_cache()
    if row["measured"] is None:
        print(f"{said} GiB   not measured: {row['why']}", flush=True)
        return row
    allocated, reserved = row["measured"]["allocated"], row["measured"]["reserved"]
    row["error"] = predicted.allocated / allocated - 1
    print(
        f"{said} measured {allocated / GIB:7.2f} GiB  {row['error']:+6.1%}"
        f"   reserved {reserved / GIB:.2f}",
        flush=True,
    )
    return row


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--methods", nargs="+", default=["lora", "qlora"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048])
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    return parser.parse_args(words)


def main() -> None:
    arguments = parse()
    rows = [compare(case) for case in cases(arguments)]
    errors = [abs(row["error"]) for row in rows if "error" in row]
    if errors:
        print(f"largest error {max(errors):.1%} over {len(errors)} measured (aim: 10%)")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
