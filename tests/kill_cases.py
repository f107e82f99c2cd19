"""Training runs that are killed, asked to stop or given damaged checkpoints, and then run again.

Every run is a child of a fork server, so it costs no imports. What runs must end with alike is in
`result`; both the tests and benchmarks/kill_training.py compare it.
"""

import json
import random
import shutil
import signal
import time
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from kill_child import ENDED, KILLED_AT, Moment, train_here
from luthier.store.files import sha256_file
from luthier.training.checkpoints import checkpoint_folder
from luthier.training.job import TrainingJob
from luthier.training.sft_section import SFTSection
from pair_cases import pair_job, write_pairs
from tiny_llama import tiny_llama
from training_cases import LIGHT, make_job, write_dataset
from warm_children import child_process, join

LORA = {"r": 4, "alpha": 8}
# 12 rows of 3 a batch for 3 epochs are 12 steps; checkpoints after 3, 6, 9, 12 and each best one.
EPOCHS = 3
# On top of LIGHT; None takes a field of it away.
CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "dropout": {"lora": LORA | {"dropout": 0.1}},
    "qlora-nf4": {"method": "qlora", "lora": LORA | {"dropout": 0.1}},
    "packing": {
        "batch_tokens": 96,
        "per_device_batch_size": None,
        "performance": {"packing": True},
        "lora": LORA | {"dropout": 0.1},
    },
    "early-stopping": {
        "learning_rate": 0.1,
        "schedule": "constant",
        "evaluate_every_steps": 1,
        "early_stopping": {"patience": 4},
        "checkpoint_every_steps": 2,
    },
    "batch-tokens": {
        "batch_tokens": 96,
        "per_device_batch_size": None,
        "checkpoint_every_steps": 2,
    },
    "accumulation": {"gradient_accumulation_steps": 2, "epochs": 6},
    "gradient-checkpointing": {"gradient_checkpointing": True, "lora": LORA | {"dropout": 0.1}},
    "neftune": {"neftune_noise_alpha": 5.0},
    # bitsandbytes keeps states of matrices under 4,096 elements in 32 bits.
    "adamw-8bit": {"optimizer": "adamw_8bit", "lora": {"r": 64, "alpha": 64}},
    "lion-8bit": {"optimizer": "lion_8bit", "learning_rate": 1e-3, "lora": {"r": 64, "alpha": 64}},
    "adafactor": {"optimizer": "adafactor"},
    "wsd": {"schedule": "warmup_stable_decay", "decay_fraction": 0.3, "weight_decay": 0.1},
    "dora": {"lora": LORA | {"use_dora": True}},
    # The base's weights are changed before the first step, again in every process.
    "pissa": {"lora": LORA | {"init_lora_weights": "pissa"}},
    "olora": {"lora": LORA | {"init_lora_weights": "olora"}},
    "eva": {"lora": LORA | {"init_lora_weights": "eva"}},
    "full": {"method": "full", "learning_rate": 1e-3, "lora": None},
    "fork": {"learning_rate": 5e-3, "lora": LORA | {"dropout": 0.1}},
    "ddp": {
        "processes": 2,
        "epochs": 2 * EPOCHS,
        "lora": LORA | {"dropout": 0.1},
        "checkpoint_every_steps": 2,
    },
}
# Preference optimisation, on from an adapter that is made first: 80 pairs of 20 a batch, whose
# reference takes three batches.
PAIR_CASES: dict[str, dict[str, Any]] = {
    "dpo": {"loss_type": ["sigmoid", "sft"], "per_device_batch_size": 20},
    "dpo-qlora": {"per_device_batch_size": 20, "method": "qlora"},
}
CASES |= PAIR_CASES
# Case: what it is forked from, at a step whose best weights so far are of an earlier one.
PARENTS: dict[str, dict[str, Any]] = {"fork": {"lora": LORA | {"dropout": 0.1}}}
FORK_STEP = 7
# What a clock or the machine's memory says, and where a run was gone on with.
UNCOMPARED = {
    "memory",
    "peak_memory_bytes",
    "resumed_at",
    "reused",
    "supervised_tokens_per_second",
    "tokens_per_second",
}
VICTIMS = ("starter", "rank")


def write_base(folder: Path) -> None:
    """A two-layer random Llama of 4,096 tokens, with a tokenizer that knows a few words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tiny_llama(11, vocab_size=4096).save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    ).save_pretrained(folder)


@dataclass
class History:
    """One training that was killed, once or more, and gone on with to its end."""

    kills: list[Moment] = field(default_factory=list)
    resumed_at: int = 0
    result: dict[str, Any] = field(default_factory=dict)


class Runs:
    """The training runs of one case, each in a folder of its own below `root`."""

    def __init__(self, case: str, root: Path, base: Path, dataset: Path) -> None:
        self._fields, self._root = {"epochs": EPOCHS} | CASES[case], root / case
        self._base, self._dataset = base, dataset
        self._start = self._adapter() if case in PAIR_CASES else None
        self._fork = self._parent(PARENTS[case]) if case in PARENTS else None
        started = time.monotonic()
        self.expected = self.run("whole")
        self.seconds = time.monotonic() - started
        whole = self.ended("whole")
        self.changes: int = whole["changes"]
        self.steps: int = whole["outcome"]["facts"]["training"]["steps"]
        self.training_seconds: float = whole["outcome"]["timings_seconds"]["train"]

    def job(self, name: str) -> TrainingJob:
        """The job that works in folder `name`."""
        return self._job(name, self._fields, self._fork)

    def _job(self, name: str, fields: dict[str, Any], fork: Path | None) -> TrainingJob:
        if self._start is not None:
            return self._pair_job(name, fields)
        values = {name: value for name, value in (LIGHT | fields).items() if value is not None}
        section = SFTSection.model_validate(values)
        job = make_job(self._base, self._dataset, self._root / name)
        return job.model_copy(update={"section": section, "fork": fork})

    def _pair_job(self, name: str, fields: dict[str, Any]) -> TrainingJob:
        """Its reference is stored in its own folder: another run of the case has another."""
        pairs = self._base.parent / "pairs"
        job = pair_job(self._base, pairs, self._root / name, start=self._start, **fields)
        return job.model_copy(update={"shared": self._root / name / "shared"})

    def _adapter(self) -> Path:
        method = self._fields.get("method", "lora")
        job = make_job(self._base, self._dataset, self._root / "sft", method=method, max_steps=4)
        join(child_process(train_here, job))
        return job.outputs

    def _parent(self, fields: dict[str, Any]) -> Path:
        """A checkpoint of another training to fork."""
        job = self._job("parent", {"epochs": EPOCHS} | fields, None)
        join(child_process(train_here, job, signal_after=(FORK_STEP, signal.SIGTERM)))
        return checkpoint_folder(job.checkpoints, FORK_STEP)

    def ended(self, name: str) -> dict[str, Any]:
        """What the last run of a folder said of itself."""
        found: dict[str, Any] = json.loads((self._root / name / ENDED).read_text())
        return found

    def run(self, name: str) -> dict[str, Any]:
        """Train to the end; the result."""
        join(self.start(name))
        return result(self._root / name)

    def start(self, name: str, **how: Any) -> ForkServerProcess:
        """Begin, or go on with, the training in folder `name`; `how` as `train_here`."""
        return child_process(train_here, self.job(name), **how)

    def killed(self, name: str, rng: random.Random, kills: int | None = None) -> History:
        """One to three kills at random moments, or `kills`, then to the end."""
        history = History()
        wanted = kills or rng.choice((1, 1, 2, 3))
        while len(history.kills) < wanted:
            moment = self._kill(name, rng)
            if moment is not None:
                history.kills.append(moment)
            elif history.kills:
                break
            else:
                # It was over before it could be killed.
                shutil.rmtree(self._root / name)
        history.result = self.run(name)
        history.resumed_at = self.ended(name)["outcome"]["facts"]["training"]["resumed_at"]
        return history

    def _kill(self, name: str, rng: random.Random) -> Moment | None:
        """Run until a random moment; None when the run came to its end before."""
        moment = self._moment(rng)
        process = self.start(name, killed_at=moment)
        if moment.victim is None and moment.seconds is not None:
            process.join(moment.seconds)
            process.kill()
        process.join()
        if process.exitcode == 0:
            return None
        assert process.exitcode == -signal.SIGKILL, f"{self._root / name}: {process.exitcode}"
        if moment.change is None:
            return moment
        return replace(moment, what=(self._root / name / KILLED_AT).read_text())

    def _moment(self, rng: random.Random) -> Moment:
        if self._fields.get("processes", 1) > 1:
            return Moment(rng.uniform(0, self.training_seconds), victim=rng.choice(VICTIMS))
        if rng.random() < 0.5:
            return Moment(rng.uniform(0, self.seconds))
        return Moment(change=rng.randint(1, self.changes))

    def stopped_at_every_step(self, name: str) -> tuple[int, dict[str, Any]]:
        """SIGTERM and SIGINT by turns after the first step of every run; (stops, result)."""
        stops = 0
        while True:
            asked = (signal.SIGTERM, signal.SIGINT)[stops % 2]
            join(self.start(name, signal_after=(1, asked)))
            if self.ended(name)["outcome"] is not None:
                return stops, result(self._root / name)
            stops += 1

    def stopped(self, name: str, step: int) -> Path:
        """A training that was asked to stop after a step; its folder."""
        join(self.start(name, signal_after=(step, signal.SIGTERM)))
        assert self.ended(name)["outcome"] is None
        return self._root / name

    def copy(self, source: Path, name: str) -> Path:
        """A folder as another is; the job in it goes on with what is there."""
        return Path(shutil.copytree(source, self._root / name))


def write_inputs(root: Path) -> tuple[Path, Path]:
    """(base, dataset) for every case."""
    join(child_process(write_base, root / "base"))
    write_pairs(root / "pairs", train=80)
    return root / "base", write_dataset(root / "dataset")


def result(folder: Path) -> dict[str, Any]:
    """All that two runs of the same job must have in common, bit by bit: the losses and rates of
    every step, the digest of every other output file, metrics, gates with dtypes, and facts."""
    outputs = folder / "outputs"
    log = outputs / "measured" / "training_log.jsonl"
    files = [path for path in outputs.rglob("*") if path.is_file() and path != log]
    outcome = json.loads((folder / ENDED).read_text())["outcome"]
    outcome["facts"] = {name: _compared(part) for name, part in outcome["facts"].items()}
    return {
        "log": [_compared(json.loads(line)) for line in log.read_text().splitlines()],
        "files": {str(path.relative_to(outputs)): sha256_file(path) for path in sorted(files)},
        "metrics": outcome["metrics"],
        "gates": outcome["gates"],
        "facts": outcome["facts"],
    }


def _compared(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in UNCOMPARED}
