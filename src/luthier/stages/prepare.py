"""Stage `prepare`: raw files become the tokenised rows that training and evaluation read.

Every record is read strictly; what cannot be used goes to quarantine.jsonl with file, line and
reason. Worker processes parse, clean, render with the base's own template and tokenise, once,
into a spool; then every rule about rows (labels, contradictions, duplicates, leaks, splits, near
copies, limits) is decided on an index of some 70 bytes a row, and the rows that are left are
written. The gates measure the tokens. Stopped half-way, it keeps the parts that are complete.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data import checks, decisions, golden, splits, verdict
from luthier.data.advice import advice
from luthier.data.advising import LabelFindings, look_at_labels
from luthier.data.copies import look_for_copies
from luthier.data.counting import count
from luthier.data.dataset import INFO_NAME, SCHEMA_NAME
from luthier.data.formats import label_list, options_of
from luthier.data.index import RowIndex
from luthier.data.ingest import Recipe, set_up
from luthier.data.reading import (
    Reading,
    plan_files,
    read_all,
    source_files,
    sources_read,
    worker_count,
)
from luthier.data.replay_source import draw_replay, replay_files
from luthier.data.section import PrepareSection
from luthier.data.shards import Target, write_shards
from luthier.data.sources import expand
from luthier.data.spool import Spool
from luthier.data.spooled import Places
from luthier.data.summary import DatasetCounts, DatasetInfo, NearCounts, PiiCounts
from luthier.data.tongue import tongue_of
from luthier.data.workers import Workers
from luthier.errors import ConfigError
from luthier.gates import Gate
from luthier.models.loading import load_tokenizer
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.store.artifact import Artifact, Workspace
from luthier.store.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class _Clock:
    """Seconds of each phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[phase] = time.monotonic() - started


def run(section: PrepareSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    """Read, decide, search for near copies, write, measure.

    Raises:
        DataError: a source cannot be read, no row is left to train on, or a row is too long.
    """
    clock, base = _Clock(), inputs["base"]
    tokenizer = load_tokenizer(base.path)
    recipe = _recipe(section, inputs, workspace, tokenizer)
    with Workers(worker_count(section, recipe.files), set_up, recipe) as pool:
        with clock("read"):
            reading = read_all(recipe, pool, workspace)
        index = recipe.spool.index()
        places = Places(recipe.spool, reading.starts, reading.files)
        replayed = index.source >= len(section.sources)
        with clock("decide"):
            found = verdict.judge(section, index, replayed)
            verdict.apply_length_limit(section, index, places)
            with index.aside(replayed):
                splits.cut(index, section.fractions, inputs.seed, section.split_by)
        with clock("near"):
            near = look_for_copies(section, index, recipe.spool, pool, workspace)
        with index.aside(replayed):
            splits.mixture(index, [source.weight for source in section.sources], inputs.seed)
            splits.limited(index, section.limit, inputs.seed)
        short = draw_replay(section, index, replayed, inputs.seed)
        verdict.require_splits(section, index, reading)
        with clock("write"):
            target = Target(
                recipe.spool,
                workspace.path,
                recipe.tongue.stop_token_ids,
                is_pairs=section.task == "preference",
            )
            write_shards(target, index, found.faults, reading.sizes, pool, workspace)
    with clock("measure"):
        counts = count(index, found.labels, reading)
        gates = _gates(section, index, places, counts, reading, near)
        gates += [
            _vocabulary(base, reading),
            golden.parity(section.task, index, places, tokenizer),
        ]
        if section.task == "classification":
            gates += [decisions.label_hygiene(decisions.class_counts(index, found.labels))]
        labels = look_at_labels(section, index, places, inputs.seed)
        gates += labels.gates
    info = _info(recipe, found.labels, counts, reading, near, labels)
    told = [*short, *advice(info, section.target_accuracy)]
    info = info.model_copy(update={"advice": told})
    if section.extraction.json_schema is not None:
        write_atomically(workspace.path / SCHEMA_NAME, section.extraction.json_schema.read_bytes())
    write_atomically(workspace.path / INFO_NAME, info.model_dump_json(indent=2) + "\n")
    return StageResult(
        _metrics(counts), gates, {"counts": counts.model_dump(mode="json")}, clock.seconds
    )


def _recipe(
    section: PrepareSection,
    inputs: StageInputs,
    workspace: Workspace,
    tokenizer: "PreTrainedTokenizerBase",
) -> Recipe:
    stops = [int(token_id) for token_id in inputs["base"].manifest.facts["stop_token_ids"]]
    spool = Spool(workspace.scratch / "spool")
    spool.folder.mkdir(exist_ok=True)
    return Recipe(
        section=_with_label_list(section),
        options=options_of(
            section.classification, section.extraction, section.grounded, section.answer_regex
        ),
        tongue=tongue_of(tokenizer, stops),
        files=(*plan_files(section), *replay_files(section, inputs["base"], workspace)),
        spool=spool,
        seed=inputs.seed,
    )


def _with_label_list(section: PrepareSection) -> PrepareSection:
    descriptions = section.classification.label_descriptions
    if section.system_prompt is None or section.labels is None:
        return section
    labels = label_list(section.labels, descriptions)
    filled = section.system_prompt.replace("{labels}", labels)
    return section.model_copy(update={"system_prompt": filled})


def _gates(
    section: PrepareSection,
    index: RowIndex,
    places: Places,
    counts: DatasetCounts,
    reading: Reading,
    near: NearCounts | None,
) -> list[Gate]:
    shared = decisions.shared(index)
    if near is not None and section.on_leak == "fail":
        benchmark = sum(near.contaminated.values())
        shared |= {"near copy": near.leaks, "13-gram": near.ngram_leaks, "benchmark": benchmark}
    quarantined = sum(counts.quarantined.values())
    return [
        *checks.token_gates(index, places.where),
        checks.split_leakage(shared),
        checks.quarantine_share(
            quarantined,
            counts.read,
            section.max_quarantine_fraction,
            reading.why() if quarantined else "",
        ),
    ]


def _vocabulary(base: Artifact, reading: Reading) -> Gate:
    config: dict[str, Any] = json.loads((base.path / "config.json").read_text(encoding="utf-8"))
    rows = config.get("vocab_size") or config["text_config"]["vocab_size"]
    return checks.vocabulary_grows(reading.largest_id, int(rows))


def _info(
    recipe: Recipe,
    labels: list[str],
    counts: DatasetCounts,
    reading: Reading,
    near: NearCounts | None,
    found: LabelFindings,
) -> DatasetInfo:
    section = recipe.section
    return DatasetInfo(
        task=section.task,
        labels=labels,
        system_prompt=section.system_prompt,
        answer_regex=section.answer_regex,
        splits={split: of.rows for split, of in counts.splits.items()},
        stop_token_ids=list(recipe.tongue.stop_token_ids),
        max_length_tokens=section.max_length_tokens,
        counts=counts,
        sources=sources_read(recipe.files, reading),
        near=near,
        pii=PiiCounts(
            rows=dict(sorted(reading.pii.items())),
            redacted=section.pii.action == "redact",
            examples=reading.pii_examples,
        ),
        classical=found.classical,
        label_noise=found.noise,
    )


def _metrics(counts: DatasetCounts) -> dict[str, Any]:
    train = counts.splits["train"]
    return {
        "rows": {split: found.rows for split, found in counts.splits.items()},
        "quarantined": sum(counts.quarantined.values()),
        "dropped": sum(counts.dropped.values()),
        "train_tokens": train.tokens.total,
        "train_supervised_tokens": train.supervised_tokens.total,
        "majority_class_share": {
            split: found.majority_class_share for split, found in counts.splits.items()
        },
    }


def files(section: PrepareSection) -> Sequence[Path]:
    """What the section reads from outside the store; hub data sets are pinned by revision."""
    found = [
        file.path
        for source in section.sources
        if not source.path.startswith("hub:")
        for file in source_files(source)
    ]
    found += [file.path for file in section.contamination]
    if section.replay is not None:
        found += [file.path for file in expand(str(section.replay.path or section.replay.prompts))]
    schema = section.extraction.json_schema
    return [*found, *([schema] if schema is not None else [])]


def _refuse_preferences(section: PrepareSection, _filled: frozenset[str]) -> None:
    if section.task == "preference":
        raise ConfigError(
            "prepare.task is preference: sft cannot learn from pairs. Put the section under "
            "`preferences:`, which dpo reads."
        )


STAGE = Stage(
    name="prepare",
    order=20,
    summary="read, clean, split and tokenise the data",
    makes="dataset",
    version=4,
    section=PrepareSection,
    run=run,
    slots=(Slot("base", "base", ("base",)),),
    uses_seed=True,
    packages=(
        "jinja2",
        "jsonschema-rs",
        "kingfisher-secret-scanner",
        "phonenumbers",
        "py3langid",
        "pyarrow",
        "rensa",
        "scikit-learn",
        "tokenizers",
        "transformers",
    ),
    files=files,
    check=_refuse_preferences,
)
