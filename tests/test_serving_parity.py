"""The gates of serving, each with a case that it must catch and one that it must pass."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.errors import ServingError
from luthier.gates import Gate
from luthier.models.loading import load_tokenizer
from luthier.serving.answers import (
    Answer,
    ProbeSet,
    ServedAnswers,
    read_probes,
    served_answers,
    transformers_answers,
    until_stop,
)
from luthier.serving.corpus import nasty_texts
from luthier.serving.llama_server import LlamaServer
from luthier.serving.parity import (
    AnswerLimits,
    AnswerParity,
    answer_gates,
    compare_prompts,
    compare_texts,
    ids_gate,
    measure_answers,
    parity_texts,
    reference_ids,
    tokenizer_parity,
    training_ids,
)
from luthier.store.artifact import Workspace
from serving_cases import LABELS, write_dataset

pytest_plugins = "serving_fixtures"

LIMITS = AnswerLimits(min_greedy_agreement=0.98, max_score_drop=0.02)
AnswersOf = Callable[[Path], list[Answer]]


@pytest.fixture(scope="session")
def probes(dataset_dir: Path) -> ProbeSet:
    return read_probes(dataset_dir, count=8, text_count=4)


@pytest.fixture(scope="session")
def answers_of(
    probes: ProbeSet, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], list[Answer]]:
    workspace = Workspace(tmp_path_factory.mktemp("answers"))
    return lambda folder: transformers_answers(folder, probes, workspace, "answers")


def gate_statuses(gates: list[Gate]) -> dict[str, str]:
    return {gate.id: gate.status for gate in gates}


def copy_with_tokenizer(base: Path, folder: Path, change: Callable[[dict], None]) -> Path:
    shutil.copytree(base, folder)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_corpus_is_large_distinct_and_always_the_same() -> None:
    texts = nasty_texts(["<|im_end|>"])
    assert len(texts) == len(set(texts)) >= 1000
    assert texts == nasty_texts(["<|im_end|>"])
    assert "<|im_end|>" in texts
    assert "  12" in texts


def test_ids_agree_on_the_corpus(
    tiny_base: Path, tuned_server: LlamaServer, probes: ProbeSet
) -> None:
    tokenizer = load_tokenizer(tiny_base)
    comparisons = compare_texts(tokenizer, tuned_server, parity_texts(tokenizer, probes.texts))
    comparisons += compare_prompts(tuned_server, probes)
    gate = ids_gate("gguf-ids", comparisons)
    assert gate.status == "pass", gate.detail
    assert len(comparisons) > 800


def test_ids_catch_a_wrong_pre_tokenizer(
    tiny_base: Path, tuned_server: LlamaServer, tmp_path: Path
) -> None:
    def lose_digits(tokenizer: dict) -> None:
        tokenizer["pre_tokenizer"] = tokenizer["pre_tokenizer"]["pretokenizers"][1]

    tokenizer = load_tokenizer(copy_with_tokenizer(tiny_base, tmp_path / "bad", lose_digits))
    gate = ids_gate("gguf-ids", compare_texts(tokenizer, tuned_server, ["fine", "  12"]), "q8_0: ")
    assert (gate.status, gate.measured) == ("fail", 2)
    assert gate.detail.startswith("q8_0: 4 texts compared; '  12' (special tokens parsed)")


def test_ids_catch_a_changed_merge(
    tiny_base: Path, tuned_server: LlamaServer, tmp_path: Path
) -> None:
    def lose_a_merge(tokenizer: dict) -> None:
        tokenizer["model"]["merges"].remove(["Ġg", "ames"])

    tokenizer = load_tokenizer(copy_with_tokenizer(tiny_base, tmp_path / "bad", lose_a_merge))
    gate = ids_gate("gguf-ids", compare_texts(tokenizer, tuned_server, ["two games"]))
    assert gate.status == "fail"


def test_ids_catch_a_template_that_trained_otherwise(
    tuned_server: LlamaServer, probes: ProbeSet
) -> None:
    doubled = [
        dataclasses.replace(probe, prompt_ids=(1, *probe.prompt_ids)) for probe in probes.probes
    ]
    other = dataclasses.replace(probes, probes=tuple(doubled))
    assert ids_gate("gguf-ids", compare_prompts(tuned_server, other)).measured == len(doubled)


def test_comparing_nothing_proves_nothing() -> None:
    with pytest.raises(ServingError, match="no texts"):
        ids_gate("gguf-ids", [])


def test_base_import_checks_its_tokenizer(tiny_base: Path, tuned_gguf: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    assert tokenizer_parity(tokenizer, tuned_gguf).status == "pass"
    texts = ["  12", "<|im_end|>"]
    assert reference_ids(tuned_gguf, texts) == training_ids(tokenizer, texts)
    as_text = reference_ids(tuned_gguf, texts, parse_special=False)
    assert as_text == training_ids(tokenizer, texts, parse_special=False)
    assert as_text[1] != [2]


def test_probes_are_held_out_rows_spread_evenly(dataset_dir: Path) -> None:
    probes = read_probes(dataset_dir, count=4, text_count=2)
    assert [probe.expected for probe in probes.probes] == list(LABELS[::2])
    assert probes.stop_token_ids == (2,)
    assert probes.max_new_tokens >= 2 + 8
    assert probes.probes[0].messages[-1]["role"] == "user"


def test_a_dataset_without_rows_cannot_probe(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(ServingError, match="no rows"):
        read_probes(tmp_path, 1, 1)


def test_until_stop_leaves_the_stop_token_out() -> None:
    assert until_stop([5, 6, 2, 7], [2, 9]) == Answer((5, 6), stopped=True)
    assert until_stop([5, 6], [2]) == Answer((5, 6), stopped=False)


def test_padding_changes_no_answer(
    tuned_dir: Path, probes: ProbeSet, answers_of: AnswersOf, workspace: Workspace
) -> None:
    together = answers_of(tuned_dir)
    for probe, answer in zip(probes.probes[:3], together, strict=False):
        alone = dataclasses.replace(probes, probes=(probe,))
        assert transformers_answers(tuned_dir, alone, workspace, "alone") == [answer]


def test_served_as_trained_passes_every_gate(
    tiny_base: Path,
    tuned_dir: Path,
    tuned_server: LlamaServer,
    probes: ProbeSet,
    answers_of: AnswersOf,
    workspace: Workspace,
) -> None:
    served = served_answers(tuned_server, probes, workspace)
    parity = measure_answers(
        load_tokenizer(tiny_base), probes, answers_of(tiny_base), answers_of(tuned_dir), served
    )
    assert set(gate_statuses(answer_gates(parity, LIMITS)).values()) == {"pass"}
    assert (parity.merged_score, parity.told_apart, parity.miscounted) == (1.0, 8, 0)


def test_the_base_served_in_its_place_fails(
    tiny_base: Path,
    tuned_dir: Path,
    base_gguf: Path,
    probes: ProbeSet,
    answers_of: AnswersOf,
    workspace: Workspace,
) -> None:
    with LlamaServer(base_gguf, context_tokens=256) as server:
        served = served_answers(server, probes, workspace)
    parity = measure_answers(
        load_tokenizer(tiny_base), probes, answers_of(tiny_base), answers_of(tuned_dir), served
    )
    gates = answer_gates(parity, LIMITS)
    assert set(gate_statuses(gates).values()) == {"fail"}
    assert parity.served_as_tuned == 0.0


def test_a_tuned_model_that_answers_as_the_base_cannot_pass(
    tiny_base: Path, probes: ProbeSet
) -> None:
    answers = [Answer((5,), stopped=True) for _ in probes.probes]
    served = ServedAnswers(answers, answers, miscounted=0)
    parity = measure_answers(load_tokenizer(tiny_base), probes, answers, answers, served)
    statuses = gate_statuses(answer_gates(parity, LIMITS))
    assert statuses["served-is-tuned"] == "fail"
    assert statuses["gguf-answers"] == "pass"


def test_one_answer_that_does_not_stop_fails(tiny_base: Path, probes: ProbeSet) -> None:
    merged = [Answer((5,), stopped=True) for _ in probes.probes]
    rambling = [Answer((5,), stopped=False), *merged[1:]]
    served = ServedAnswers(merged, rambling, miscounted=0)
    parity = measure_answers(load_tokenizer(tiny_base), probes, rambling, merged, served)
    assert gate_statuses(answer_gates(parity, LIMITS))["stop-at-serve"] == "fail"


def test_a_score_lost_by_exactly_the_limit_passes() -> None:
    """0.81 - 0.79 is more than 0.02 in binary."""
    parity = AnswerParity(
        probes=100,
        agreement=0.99,
        merged_score=0.81,
        served_score=0.79,
        stopped=1.0,
        told_apart=100,
        served_as_tuned=0.99,
        miscounted=0,
    )
    assert [gate.status for gate in answer_gates(parity, LIMITS)] == ["pass"] * 4


def test_completions_are_asked_by_ids_alone(
    tiny_base: Path, tuned_server: LlamaServer, tmp_path: Path, workspace: Workspace
) -> None:
    folder = write_dataset(tmp_path / "plain", tiny_base, task="completion", rows=2)
    probes = read_probes(folder, count=2, text_count=2)
    served = served_answers(tuned_server, probes, workspace)
    assert served.by_messages is None
    assert len(served.by_ids) == 2
    assert compare_prompts(tuned_server, probes) == []
