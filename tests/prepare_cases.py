"""The prepare stage as its tests run it: bases, rows, and what came of them."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from luthier.data.dataset import load_split, read_info, split_files
from luthier.data.rows import SPLITS, Split
from luthier.data.section import PrepareSection
from luthier.data.summary import DatasetInfo
from luthier.errors import InterruptedRunError
from luthier.gates import Gate, failures
from luthier.progress import Reporter, Task
from luthier.stages.contract import StageInputs, StageResult
from luthier.stages.prepare import STAGE
from luthier.store.artifact import Artifact, Workspace
from luthier.store.manifest import Manifest

SECTIONS = Path(__file__).parents[1] / "data" / "package_sections"
STOP = 2  # <|im_end|>, in SmolLM2's tokenizer and in the small one
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# ChatML with a system message of its own, as SmolLM2's template has it.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def sealed(folder: Path) -> Artifact:
    """A folder as a base artifact: of the manifest only what the stage reads."""
    manifest = Manifest.model_construct(kind="base", facts={"stop_token_ids": [STOP]})
    return Artifact(folder, manifest)


def write_config(folder: Path, vocabulary_size: int) -> None:
    (folder / "config.json").write_text(json.dumps({"vocab_size": vocabulary_size}))


def write_base(folder: Path, template: str = TEMPLATE) -> None:
    """A byte-level BPE of 800 tokens, trained on package_sections."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((row["text"] for row in section_rows("validation")), trainer)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        unk_token=SPECIAL[0],
        pad_token=SPECIAL[2],
        chat_template=template,
    )
    whole.save_pretrained(folder)
    write_config(folder, len(whole))


def section_rows(split: str, count: int | None = None) -> list[dict[str, Any]]:
    """Rows of package_sections as they are in the file."""
    lines = (SECTIONS / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def write(path: Path, rows: Iterable[Any]) -> str:
    """Rows as JSON Lines; the path as a config says it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a dataset."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file()
    }


@dataclass(frozen=True)
class Prepared:
    """What a run of the stage left."""

    result: StageResult
    path: Path

    @cached_property
    def info(self) -> DatasetInfo:
        return read_info(self.path)

    @property
    def quarantined(self) -> dict[str, int]:
        return self.info.counts.quarantined

    @property
    def dropped(self) -> dict[str, int]:
        return self.info.counts.dropped

    @property
    def gates(self) -> dict[str, Gate]:
        return {gate.id: gate for gate in self.result.gates}

    @property
    def failing(self) -> list[str]:
        return [gate.id for gate in failures(self.result.gates)]

    def rows(self, split: Split = "train") -> list[dict[str, Any]]:
        return list(load_split(self.path, split).to_list())

    @cached_property
    def quarantine(self) -> list[dict[str, Any]]:
        """The lines of quarantine.jsonl; only a newline ends one."""
        content = (self.path / "quarantine.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in content.split("\n")[:-1]]


def prepare(base: Artifact, target: Workspace | Path, seed: int = 7, **fields: Any) -> Prepared:
    """Run the stage; whatever the rows were, its books must balance and its files agree."""
    if isinstance(target, Path):
        target.mkdir(parents=True, exist_ok=True)
        target = Workspace(target)
    section = PrepareSection.model_validate({"task": "classification"} | fields)
    result = STAGE.run(section, StageInputs("test", seed, {"base": base}), target)
    json.dumps([result.metrics, result.facts])
    found = Prepared(result, target.path)
    check_books(found)
    return found


def check_books(found: Prepared) -> None:
    """Nothing appeared or vanished, and every file says the same."""
    counts, info = found.info.counts, found.info
    quarantined, dropped = sum(counts.quarantined.values()), sum(counts.dropped.values())
    assert counts.read + counts.generated == counts.kept + quarantined + dropped
    assert counts.read == sum(source.read for source in info.sources)
    lines = found.quarantine
    assert all(set(line) == {"file", "line", "reason", "raw"} for line in lines)
    kinds = Counter(line["reason"].partition(":")[0] for line in lines)
    assert dict(kinds) == counts.quarantined
    assert info.splits == {split: of.rows for split, of in counts.splits.items()}
    assert sum(info.splits.values()) == counts.kept
    for split in SPLITS:
        files = split_files(found.path, split)
        named = [pyarrow.parquet.read_table(path, columns=["split"]) for path in files]
        assert sum(table.num_rows for table in named) == info.splits.get(split, 0)
        assert all(set(table["split"].to_pylist()) == {split} for table in named)


def train(path: str | Path, **more: Any) -> dict[str, Any]:
    """A source of train rows."""
    return {"path": str(path), "split": "train"} | more


def sources(folder: Path, splits: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """A file for each split, as `prepare.sources` names them."""
    return [
        {"path": write(folder / f"{split}.jsonl", rows), "split": split}
        for split, rows in splits.items()
    ]


class StopsWhile(Reporter):
    """Asks for a stop when the task with this label has made so many steps."""

    def __init__(self, label: str, steps: int = 0) -> None:
        self.label, self.steps = label, steps
        self.workspace: Workspace | None = None

    @contextmanager
    def task(self, label: str, total: int, unit: str = "") -> Iterator[Task]:
        with super().task(label, total, unit) as task:
            yield _Counted(task, self, self.steps) if label == self.label else task

    def stop(self) -> None:
        assert self.workspace is not None
        self.workspace.stop.requested = True


class _Counted:
    """A task that has a stop requested after some steps."""

    def __init__(self, task: Task, owner: StopsWhile, left: int) -> None:
        self._task, self._owner, self._left = task, owner, left
        if not left:
            owner.stop()

    def resize(self, total: int, done: int = 0) -> None:
        self._task.resize(total, done)

    def advance(self, count: int = 1, **facts: object) -> None:
        self._task.advance(count, **facts)
        self._left -= 1
        if self._left == 0:
            self._owner.stop()


def stopped(base: Artifact, folder: Path, reporter: StopsWhile, **fields: Any) -> Workspace:
    """A run that was asked to stop; its workspace, to go on in."""
    folder.mkdir(parents=True)
    reporter.workspace = Workspace(folder, reporter)
    with pytest.raises(InterruptedRunError):
        prepare(base, reporter.workspace, **fields)
    return Workspace(folder)
