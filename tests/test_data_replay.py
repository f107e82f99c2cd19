"""Replay: the base answers instructions once, whatever interrupts it; the share is exact."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from pydantic import ValidationError

from luthier.data import replay
from luthier.data.replay import (
    JOURNAL_NAME,
    Answer,
    ReplayPrompt,
    ReplaySection,
    draw,
    generate_answers,
    read_prompts,
    shortage,
    wanted,
    write_rows,
)
from luthier.data.rows import RawRow, Rejected
from luthier.errors import DataError, InterruptedRunError
from luthier.interrupts import StopFlag
from luthier.progress import Reporter, Task
from luthier.store.artifact import Workspace
from tiny_llama import tiny_llama

PROMPTS = [
    ReplayPrompt(text, "prompts.jsonl", line)
    for line, text in enumerate(
        (
            "Why is the sky blue?",
            "Name three rivers.",
            "Write a haiku about the first snow of the year, and then explain what a haiku is.",
            "What is 15 times 24?",
            "Translate into French: the train leaves at half past seven.",
            "Which planets have rings?",
            "List five vegetables.",
            "What is inflation? Explain it with the price of bread.",
            "Give me a synonym of generous.",
        ),
        start=1,
    )
]
BATCH_TOKENS = {"cpu": 130, "cuda": 130}  # two or three of these prompts a batch
STOPS = range(0, 49152, 3)
SECTION = ReplaySection(prompts="prompts.jsonl", max_new_tokens=6)


@pytest.fixture(scope="module")
def talkative(smol_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model that says varied things. A third of its tokens end an answer, and its
    generation_config wants no answer to end early."""
    from transformers import GenerationConfig

    folder = tmp_path_factory.mktemp("talkative")
    shutil.copytree(smol_tokenizer_dir, folder, dirs_exist_ok=True)
    model = tiny_llama(
        3,
        hidden_size=32,
        intermediate_size=64,
        num_key_value_heads=4,
        initializer_range=0.4,
        tie_word_embeddings=False,
    )
    model.generation_config = GenerationConfig(eos_token_id=list(STOPS), min_new_tokens=5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_BATCH_TOKENS", BATCH_TOKENS)


def open_workspace(folder: Path, reporter: Reporter | None = None) -> Workspace:
    folder.mkdir(exist_ok=True)
    return Workspace(folder, reporter or Reporter(), StopFlag())


class StopsAfter(Reporter):
    """Asks for a stop after so many batches."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.workspace: Workspace | None = None

    @contextmanager
    def task(self, label: str, total: int, unit: str = "") -> Iterator[Task]:  # noqa: ARG002
        reporter = self

        class Counting:
            def advance(self, count: int = 1, **facts: object) -> None:  # noqa: ARG002
                reporter.batches -= 1
                if reporter.batches == 0 and reporter.workspace is not None:
                    reporter.workspace.stop.requested = True

            def resize(self, total: int, done: int = 0) -> None:
                """Nothing to count."""

        yield Counting()


class Whole(NamedTuple):
    """What a run that nothing interrupted said, and its journal."""

    answers: list[Answer]
    journal: bytes


@pytest.fixture(scope="module")
def whole(talkative: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    workspace = open_workspace(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "_BATCH_TOKENS", BATCH_TOKENS)
        answers = generate_answers(talkative, PROMPTS, SECTION, workspace)
    return Whole(answers, (workspace.scratch / JOURNAL_NAME).read_bytes())


def finished(folder: Path, whole: Whole) -> Workspace:
    """A workspace in which all prompts are answered."""
    workspace = open_workspace(folder)
    (workspace.scratch / JOURNAL_NAME).write_bytes(whole.journal)
    return workspace


def test_answers_stand_in_the_order_of_the_prompts_and_are_the_same_again(
    talkative: Path, whole: Whole, tmp_path: Path
) -> None:
    again = generate_answers(talkative, PROMPTS, SECTION, open_workspace(tmp_path / "a"))
    assert [answer.number for answer in again] == list(range(len(PROMPTS)))
    assert again == whole.answers
    assert {"answered", "cut", "empty"} <= {answer.outcome for answer in again}


def test_batched_answers_are_those_of_one_prompt_alone(
    talkative: Path, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_BATCH_TOKENS", {"cpu": 1, "cuda": 1})
    alone = generate_answers(talkative, PROMPTS, SECTION, open_workspace(tmp_path / "a"))
    assert whole.answers == alone


def test_answers_are_greedy_whatever_the_base_prefers(talkative: Path, whole: Whole) -> None:
    import torch

    from luthier.models.chat import encode, render
    from luthier.models.loading import load_model, load_tokenizer

    model, tokenizer = load_model(talkative), load_tokenizer(talkative)
    for prompt, answer in zip(PROMPTS, whole.answers, strict=True):
        messages = [{"role": "user", "content": prompt.text}]
        ids = encode(tokenizer, render(tokenizer, messages, add_generation_prompt=True))
        said: list[int] = []
        while len(said) < SECTION.max_new_tokens:
            with torch.inference_mode():
                best = int(model(torch.tensor([ids + said])).logits[0, -1].argmax())
            if best in STOPS:
                break
            said.append(best)
        assert answer.text == tokenizer.decode(said)
        assert (answer.outcome == "cut") == (len(said) == SECTION.max_new_tokens)


@pytest.mark.parametrize("batches", [1, 2])
def test_an_interrupted_stage_goes_on_and_ends_the_same(
    talkative: Path, whole: Whole, tmp_path: Path, batches: int
) -> None:
    reporter = StopsAfter(batches)
    reporter.workspace = open_workspace(tmp_path / "stopped", reporter)
    with pytest.raises(InterruptedRunError):
        generate_answers(talkative, PROMPTS, SECTION, reporter.workspace)
    journal = reporter.workspace.scratch / JOURNAL_NAME
    assert len(journal.read_bytes().splitlines()) == batches
    again = open_workspace(tmp_path / "stopped")
    assert generate_answers(talkative, PROMPTS, SECTION, again) == whole.answers
    assert journal.read_bytes() == whole.journal


def test_no_answer_is_given_twice_and_a_torn_line_is_given_again(
    talkative: Path, whole: Whole, tmp_path: Path
) -> None:
    workspace = finished(tmp_path / "a", whole)
    journal = workspace.scratch / JOURNAL_NAME
    first, *others = journal.read_bytes().splitlines(keepends=True)
    kept = json.loads(first)
    kept[0][1] = "said by the run before"
    journal.write_bytes(json.dumps(kept).encode() + b"\n" + others[0][:-5])
    again = generate_answers(talkative, PROMPTS, SECTION, workspace)
    assert again[kept[0][0]].text == "said by the run before"
    assert [a for a in again if a.number != kept[0][0]] == [
        a for a in whole.answers if a.number != kept[0][0]
    ]
    assert journal.read_bytes().splitlines(keepends=True)[1:] == others


def test_a_finished_journal_needs_no_model(talkative: Path, whole: Whole, tmp_path: Path) -> None:
    workspace = finished(tmp_path / "a", whole)
    bare = tmp_path / "bare"
    shutil.copytree(talkative, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    assert generate_answers(bare, PROMPTS, SECTION, workspace) == whole.answers


def test_a_prompt_beyond_the_context_is_named(talkative: Path, tmp_path: Path) -> None:
    prompts = [*PROMPTS, ReplayPrompt("word " * 600, "long.jsonl", 44)]
    with pytest.raises(DataError, match=r"long\.jsonl:44: .* context is 512"):
        generate_answers(talkative, prompts, SECTION, open_workspace(tmp_path / "a"))


def test_rows_say_where_they_are_from_and_unfinished_answers_are_left_out(tmp_path: Path) -> None:
    answers = [
        Answer(0, "Because of Rayleigh scattering. Größe!", "answered"),
        Answer(1, "The Nile, the", "cut"),
        Answer(2, "", "empty"),
    ]
    write_rows(tmp_path / "replay.jsonl", PROMPTS[:3], answers, "sha256:abc")
    lines = (tmp_path / "replay.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "messages": [
                {"role": "user", "content": "Why is the sky blue?"},
                {"role": "assistant", "content": "Because of Rayleigh scattering. Größe!"},
            ],
            "origin": "replay",
            "prompt": "prompts.jsonl:1",
            "base": "sha256:abc",
        }
    ]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"text": "Why?"}, "column-missing"),
        ({"prompt": 3}, "prompt-not-text"),
        ({"prompt": " \n"}, "prompt-empty"),
    ],
)
def test_a_record_that_is_no_prompt_is_quarantined(
    values: Mapping[str, object], kind: str
) -> None:
    broken = Rejected("p.jsonl", 1, "not-json: x", "{")
    good = RawRow("p.jsonl", 3, {"prompt": "Why?"})
    prompts, rejected = read_prompts([broken, RawRow("p.jsonl", 2, values), good])
    assert prompts == [ReplayPrompt("Why?", "p.jsonl", 3)]
    assert [(r.line, r.kind) for r in rejected] == [(1, "not-json"), (2, kind)]


def test_the_prompts_that_luthier_ships_are_usable() -> None:
    path = Path(__file__).parent.parent / "data" / "general" / "prompts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    records = [RawRow("p", n, json.loads(line)) for n, line in enumerate(lines, start=1)]
    prompts, rejected = read_prompts(records)
    assert rejected == []
    assert len({prompt.text for prompt in prompts}) == len(lines) >= 200


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.05, 1 / 3, 0.5])
@pytest.mark.parametrize("count_train", [1, 40, 997])
def test_the_fraction_is_met_to_the_nearest_row(count_train: int, fraction: float) -> None:
    keys = np.arange(1, 2000, dtype=np.uint64)
    chosen = draw(count_train, keys, fraction, seed=7)
    assert len(chosen) == len(set(chosen.tolist())) == wanted(count_train, fraction)
    assert abs(len(chosen) - fraction * (count_train + len(chosen))) <= 0.5
    assert shortage(count_train, len(keys), fraction) is None


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    keys = np.arange(1, 501, dtype=np.uint64) * np.uint64(7919)
    chosen = keys[draw(100, keys, 0.5, seed=7)]
    turned = keys[::-1][draw(100, keys[::-1].copy(), 0.5, seed=7)]
    assert set(chosen) == set(turned)
    assert set(chosen) != set(keys[draw(100, keys, 0.5, seed=8)])


def test_too_few_rows_all_go_in_and_it_is_said() -> None:
    keys = np.arange(1, 11, dtype=np.uint64)
    assert draw(90, keys, 0.5, seed=7).tolist() == list(range(10))
    advice = shortage(90, 10, 0.5)
    assert advice is not None
    assert (advice.id, advice.level) == ("replay-short", "warn")
    assert advice.text.startswith("replay is 10.0% of train, not 50.0%")
    assert "80 more" in advice.text


@pytest.mark.parametrize(
    "given", [{}, {"path": "a.jsonl", "prompts": "b.jsonl"}, {"path": "a", "fraction": 0.6}]
)
def test_a_section_names_one_way_and_a_share(given: Mapping[str, object]) -> None:
    with pytest.raises(ValidationError):
        ReplaySection.model_validate(given)
