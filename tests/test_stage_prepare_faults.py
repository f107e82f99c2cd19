"""Faults planted in good data, by three seeds each: every one is caught, and healthy data passes.

Rows are package_sections. What is planted is counted, and so is what is caught.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import DataError
from luthier.store.artifact import Artifact
from prepare_cases import (
    TEMPLATE,
    Prepared,
    prepare,
    sealed,
    section_rows,
    sources,
    train,
    write,
    write_base,
    write_config,
)

pytest_plugins = "prepare_fixtures"

Rows = list[dict[str, Any]]
SEEDS = (1, 2, 3)
TRAIN_ROWS = 1500
SYSTEM = "Name the section."
NO_NEAR = {"near": {"enabled": False}}

by_seed = pytest.mark.parametrize("seed", SEEDS)


def shuffled(split: str, seed: int) -> Rows:
    rows = section_rows(split)
    random.Random(seed).shuffle(rows)
    return rows


def splits(seed: int) -> dict[str, Rows]:
    """1,500 train rows and all rows of validation and test, in an order of the seed."""
    return {
        "train": shuffled("train", seed)[:TRAIN_ROWS],
        "validation": shuffled("validation", seed),
        "test": shuffled("test", seed),
    }


def another(label: str, labels: Sequence[str], draw: random.Random) -> str:
    return draw.choice([one for one in labels if one != label])


def flipped(rows: Rows, share: float, seed: int) -> Rows:
    """The rows, a share of their labels turned to another one at random."""
    draw = random.Random(seed)
    labels = sorted({row["label"] for row in rows})
    chosen = set(draw.sample(range(len(rows)), round(share * len(rows))))
    return [
        row | {"label": another(row["label"], labels, draw)} if place in chosen else row
        for place, row in enumerate(rows)
    ]


@pytest.fixture(scope="module", params=SEEDS)
def healthy(
    base: Artifact, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[int, Prepared]:
    """A seed and its data, prepared as it is."""
    folder = tmp_path_factory.mktemp("healthy")
    found = prepare(
        base,
        folder / "workspace",
        sources=sources(folder, splits(request.param)),
        group_by="source",
        system_prompt=SYSTEM,
    )
    return request.param, found


def test_healthy_data_passes_all_gates(healthy: tuple[int, Prepared]) -> None:
    _, found = healthy
    assert found.failing == []
    assert len(found.gates) == 13
    assert found.quarantined == {}
    assert set(found.dropped) <= {"leak-near", "leak-ngram", "duplicate"}
    assert found.info.splits["train"] > 0.98 * TRAIN_ROWS


@by_seed
@pytest.mark.parametrize("share", [0.1, 0.2])
def test_flipped_labels_are_caught(
    base: Artifact, tmp_path: Path, seed: int, share: float
) -> None:
    rows = {"train": flipped(shuffled("train", seed)[:TRAIN_ROWS], share, seed)}
    found = prepare(base, tmp_path / "workspace", sources=sources(tmp_path, rows), **NO_NEAR)
    assert found.failing == ["label-noise"]
    assert found.info.label_noise is not None
    assert share / 2 < found.info.label_noise["at_least"] <= share + 0.05
    assert "correct the suspects" in found.gates["label-noise"].detail


@by_seed
def test_shuffled_labels_of_test_are_caught(base: Artifact, tmp_path: Path, seed: int) -> None:
    rows = splits(seed)
    labels = [row["label"] for row in rows["test"]]
    random.Random(seed).shuffle(labels)
    rows["test"] = [
        row | {"label": label} for row, label in zip(rows["test"], labels, strict=True)
    ]
    found = prepare(base, tmp_path / "workspace", sources=sources(tmp_path, rows), **NO_NEAR)
    assert found.failing == ["label-shift"]


def is_long(row: dict[str, Any]) -> bool:
    """Whether a word more or less makes a near copy, and a benchmark is known by the text."""
    return len(row["text"].split()) > 7


CONTRADICTIONS, EXACT, NEAR_EACH, GROUPS, COPIED, REPEATED = 20, 25, 15, 10, 20, 30
NEAR_WAYS: tuple[Callable[[str], str], ...] = (
    str.upper,
    lambda text: "«" + text.replace(" ", ", ") + "!»",
    lambda text: f"{text} again",
)
NEAR = NEAR_EACH * len(NEAR_WAYS)


@pytest.fixture(scope="module")
def planted(
    healthy: tuple[int, Prepared], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Rows that nothing is wrong with, and with them some of every fault between rows."""
    seed, clean = healthy
    folder, draw = tmp_path_factory.mktemp("planted"), random.Random(seed)
    rows = {
        split: [
            {"text": row["messages"][-2]["content"], "label": row["label"], "source": row["group"]}
            for row in clean.rows(split)
        ]
        for split in ("train", "test")
    }
    train_rows = draw.sample(rows["train"], 500)
    test_rows = draw.sample([row for row in rows["test"] if is_long(row)], 90)
    labels = sorted({row["label"] for row in train_rows})
    added: Rows = []
    for row in train_rows[:CONTRADICTIONS]:
        added.append(row | {"label": another(row["label"], labels, draw)})
    added += train_rows[-REPEATED:]
    for row in test_rows[:EXACT]:
        added.append(row | {"source": "exact"})
    for number, row in enumerate(test_rows[EXACT : EXACT + NEAR]):
        way = NEAR_WAYS[number % len(NEAR_WAYS)]
        added.append(row | {"text": way(row["text"]), "source": "near"})
    for row in test_rows[-GROUPS:]:
        words = " ".join("".join(draw.choices("bcdfglmnprst", k=6)) for _ in range(8))
        added.append({"text": words, "label": row["label"], "source": row["source"]})
    benchmark = folder / "benchmark.txt"
    copied = [row for row in train_rows[CONTRADICTIONS:-REPEATED] if is_long(row)][:COPIED]
    benchmark.write_text("".join(f"{row['text']}\n" for row in copied), encoding="utf-8")
    mixed = [*train_rows, *added]
    draw.shuffle(mixed)
    return {
        "sources": sources(folder, {"train": mixed, "test": test_rows}),
        "group_by": "source",
        "contamination": [{"path": str(benchmark)}],
        "max_quarantine_fraction": 0.1,
        "labels": labels,
    }


def test_every_planted_row_is_found_and_left_out(
    base: Artifact, planted: dict[str, Any], tmp_path: Path
) -> None:
    found = prepare(base, tmp_path / "workspace", **planted)
    assert found.quarantined == {"contradiction": 2 * CONTRADICTIONS}
    assert found.dropped == {
        "contaminated": COPIED,
        "duplicate": REPEATED,
        "leak-group": GROUPS,
        "leak-near": NEAR,
        "leak-text": EXACT,
    }
    assert found.failing == []
    near = found.info.near
    assert near is not None
    assert (near.leaks, sum(near.contaminated.values())) == (NEAR, COPIED)


def test_every_planted_leak_fails_the_gate(
    base: Artifact, planted: dict[str, Any], tmp_path: Path
) -> None:
    found = prepare(base, tmp_path / "workspace", on_leak="fail", **planted)
    assert found.failing == ["split-leakage"]
    detail = found.gates["split-leakage"].detail
    assert detail.startswith(f"{EXACT} text, {GROUPS} group, {NEAR + EXACT} near copy")
    assert found.dropped == {"duplicate": REPEATED}


@by_seed
def test_rows_of_a_benchmark_fail_the_gate(base: Artifact, tmp_path: Path, seed: int) -> None:
    rows = [row for row in shuffled("train", seed) if is_long(row)][:60]
    (tmp_path / "bench.txt").write_text("".join(f"{row['text']}\n" for row in rows[:5]))
    found = prepare(
        base,
        tmp_path / "workspace",
        sources=sources(tmp_path, {"train": rows}),
        contamination=[{"path": str(tmp_path / "bench.txt")}],
        on_leak="fail",
    )
    assert found.info.counts.kept == 60
    assert found.failing == ["split-leakage"]


WITHOUT_STOP = TEMPLATE.replace("message['content'] + '<|im_end|>'", "message['content']")
WITHOUT_SYSTEM = TEMPLATE.replace(
    "{{ '<|im_start|>' +", "{% if message['role'] != 'system' %}{{ '<|im_start|>' +"
).replace("{% endfor %}", "{% endif %}{% endfor %}")
CUT_AT_20 = TEMPLATE.replace("message['content'] +", "message['content'][:20] +")


@pytest.fixture(scope="module")
def broken_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    def make(template: str = TEMPLATE, vocabulary_size: int | None = None) -> Artifact:
        folder = tmp_path_factory.mktemp("broken") / "base"
        write_base(folder, template)
        if vocabulary_size is not None:
            write_config(folder, vocabulary_size)
        return sealed(folder)

    return make


TEMPLATES = {
    "no stop token": (WITHOUT_STOP, "stop-token-supervised", 60),
    "no system message": (WITHOUT_SYSTEM, "template-renders", 60),
}


@pytest.mark.parametrize(("template", "gate", "rows"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_broken_template_is_caught_in_every_row(
    broken_base: Callable[..., Artifact], tmp_path: Path, template: str, gate: str, rows: int
) -> None:
    broken = broken_base(template)
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        found = prepare(
            broken,
            folder / "workspace",
            sources=sources(folder, {"train": shuffled("train", seed)[:60]}),
            system_prompt=SYSTEM,
            **NO_NEAR,
        )
        assert found.failing == [gate]
        assert found.gates[gate].measured == rows


def test_a_template_that_cuts_texts_is_caught_where_it_does(
    broken_base: Callable[..., Artifact], tmp_path: Path
) -> None:
    rows = shuffled("train", 1)[:60]
    found = prepare(
        broken_base(CUT_AT_20),
        tmp_path / "workspace",
        sources=sources(tmp_path, {"train": rows}),
        **NO_NEAR,
    )
    assert found.failing == ["template-renders"]
    longer = sum(len(row["text"].strip()) > 20 for row in rows)
    assert found.gates["template-renders"].measured == longer


def test_tokens_beyond_the_embedding_are_caught(
    broken_base: Callable[..., Artifact], tmp_path: Path
) -> None:
    fields = {"sources": sources(tmp_path, {"train": shuffled("train", 1)[:60]}), **NO_NEAR}
    found = prepare(broken_base(vocabulary_size=300), tmp_path / "small", **fields)
    assert found.failing == ["vocabulary-grows"]
    largest = max(max(row["input_ids"]) for row in found.rows())
    assert found.gates["vocabulary-grows"].measured == largest >= 300
    exact = prepare(broken_base(vocabulary_size=largest + 1), tmp_path / "exact", **fields)
    assert exact.failing == []


def test_tokens_of_rejected_replies_count_for_the_embedding(
    broken_base: Callable[..., Artifact], tmp_path: Path
) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c package"}]
    fields = {
        "task": "preference",
        "sources": [train(write(tmp_path / "rows.jsonl", rows))],
        **NO_NEAR,
    }
    whole = prepare(broken_base(), tmp_path / "whole", **fields)
    [row] = whole.rows()
    largest = max(row["rejected_ids"])
    assert largest > max(row["prompt_ids"] + row["chosen_ids"])
    found = prepare(broken_base(vocabulary_size=largest), tmp_path / "small", **fields)
    assert found.failing == ["vocabulary-grows"]


BLOWN_UP = 7


def too_long(rows: Rows, seed: int) -> Rows:
    """Some of the rows, their texts blown up."""
    chosen = set(random.Random(seed).sample(range(len(rows)), BLOWN_UP))
    return [
        row | {"text": f"{row['text']} " * 60} if place in chosen else row
        for place, row in enumerate(rows)
    ]


@by_seed
def test_rows_blown_up_are_caught(base: Artifact, tmp_path: Path, seed: int) -> None:
    rows = too_long(shuffled("train", seed)[:60], seed)
    fields = {
        "sources": sources(tmp_path, {"train": rows}),
        "max_length_tokens": 128,
        "labels": sorted({row["label"] for row in rows} | {"x", "y"}),
        **NO_NEAR,
    }
    with pytest.raises(DataError, match=rf"^{BLOWN_UP} of 60 rows are longer"):
        prepare(base, tmp_path / "fail", **fields)

    dropped = prepare(base, tmp_path / "drop", on_overlong="drop", **fields)
    assert dropped.dropped == {"overlong": BLOWN_UP}
    assert max(len(row["input_ids"]) for row in dropped.rows()) <= 128

    cut = prepare(base, tmp_path / "truncate", on_overlong="truncate", **fields)
    for gate in ("answer-truncated", "supervised-tokens"):
        assert gate in cut.failing
        assert cut.gates[gate].measured == BLOWN_UP


@by_seed
def test_replies_cut_half_way_are_caught(base: Artifact, tmp_path: Path, seed: int) -> None:
    texts = [row["text"] for row in shuffled("train", seed)[:60]]
    long = set(random.Random(seed).sample(range(60), BLOWN_UP))
    rows = [
        {"prompt": f"{number}:", "completion": f" {text}" * (60 if number in long else 1)}
        for number, text in enumerate(texts)
    ]
    found = prepare(
        base,
        tmp_path / "workspace",
        task="completion",
        sources=sources(tmp_path, {"train": rows}),
        max_length_tokens=128,
        on_overlong="truncate",
        **NO_NEAR,
    )
    assert set(found.failing) == {"answer-truncated", "stop-token-supervised"}
    assert {found.gates[gate].measured for gate in found.failing} == {BLOWN_UP}


def test_prompts_that_merge_with_their_replies_are_caught(base: Artifact, tmp_path: Path) -> None:
    merging = [{"prompt": f"{number} pack", "completion": "age"} for number in range(5)]
    apart = [{"prompt": f"{number} pack", "completion": " age"} for number in range(20)]
    found = prepare(
        base,
        tmp_path / "workspace",
        task="completion",
        sources=sources(tmp_path, {"train": merging + apart}),
        **NO_NEAR,
    )
    assert "prompt-is-prefix" in found.failing
    assert found.gates["prompt-is-prefix"].measured == len(merging)
