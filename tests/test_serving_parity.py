"""The gates of serving, each with a case that it must catch and one that it must pass."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.errors import ServingError
from luthier.models.loading import load_tokenizer
from luthier.serving.answers import (
    Answer,
    ProbeSet,
    read_probes,
    served_answers,
    transformers_answers,
    until_stop,
)
from luthier.serving.corpus import nasty_texts
from luthier.serving.llama_server import LlamaServer
from luthier.serving.parity import (
    compare_chats,
    compare_prompts,
    compare_texts,
    ids_gate,
    parity_texts,
    reference_ids,
    tokenizer_parity,
    training_ids,
)
from luthier.store.artifact import Workspace
from serving_cases import LABELS, write_dataset

pytest_plugins = "serving_fixtures"

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


def test_golden_conversations_are_rendered_alike(
    tiny_base: Path, tuned_server: LlamaServer, tmp_path: Path
) -> None:
    comparisons = compare_chats(load_tokenizer(tiny_base), tuned_server)
    assert len(comparisons) >= 20
    assert ids_gate("gguf-chats", comparisons).status == "pass"

    folder = tmp_path / "other"
    shutil.copytree(tiny_base, folder)
    template = (folder / "chat_template.jinja").read_text("utf-8")
    (folder / "chat_template.jinja").write_text(template.replace("<|im_end|>", "<|im_end|> "))
    others = compare_chats(load_tokenizer(folder), tuned_server)
    assert ids_gate("gguf-chats", others).measured == len(comparisons)


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


def test_completions_are_asked_by_ids_alone(
    tiny_base: Path, tuned_server: LlamaServer, tmp_path: Path, workspace: Workspace
) -> None:
    folder = write_dataset(tmp_path / "plain", tiny_base, task="completion", rows=2)
    probes = read_probes(folder, count=2, text_count=2)
    served = served_answers(tuned_server, probes, workspace)
    assert served.by_messages is None
    assert len(served.by_ids) == 2
    assert compare_prompts(tuned_server, probes) == []
