"""Packed, shared and pruned answers equal those of one prompt at a time, done plainly (F36)."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.errors import ModelError
from luthier.evaluation.engine import Asked, RowResult, answer_chunk
from luthier.evaluation.labels import LabelTrie
from luthier.evaluation.packing import SharedPrefix, common_prefix
from luthier.models.loading import load_model, load_tokenizer
from luthier.models.lora import LoraSection, attach
from tiny_llama import tiny_llama

TOLERANCE = 1e-4
STOP = 2
LABELS = ((700,), (701, 702), (701, 703), (704, 705, 706), (701,), (707,))


def random_prompts(count: int, *, shared: int = 17, longest: int = 30) -> list[list[int]]:
    rng = random.Random(5)
    prefix = [rng.randrange(100, 1000) for _ in range(shared)]
    return [
        prefix + [rng.randrange(100, 1000) for _ in range(rng.randint(1, longest))]
        for _ in range(count)
    ]


def log_p(model: Any, prompt: list[int], reply: list[int]) -> float:
    """Plainly: one row, no cache, no mask."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + reply])).logits[0].double()
    after = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return float(after[range(len(reply)), reply].sum())


def greedy(
    model: Any, prompt: list[int], stops: tuple[int, ...], limit: int
) -> tuple[list[int], str]:
    tokens: list[int] = []
    while len(tokens) < limit:
        with torch.inference_mode():
            token = int(model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].argmax())
        if token in stops:
            return tokens, "stop"
        tokens.append(token)
    return tokens, "length"


def answers(
    model: Any,
    prompts: list[list[int]],
    asked: Asked,
    *,
    shared: int | None = None,
    references: list[list[int]] | None = None,
) -> list[RowResult]:
    length = common_prefix(prompts) if shared is None else shared
    prefix = SharedPrefix(model, prompts[0][:length])
    return answer_chunk(prefix, [prompt[length:] for prompt in prompts], asked, references)


def assert_equals_plain(
    model: Any, prompts: list[list[int]], asked: Asked, results: list[RowResult]
) -> None:
    for prompt, result in zip(prompts, results, strict=True):
        tokens, reason = greedy(model, prompt, asked.stop_token_ids, asked.max_new_tokens)
        assert (list(result.tokens), result.stop_reason) == (tokens, reason)
        assert result.label_log_p is not None
        plain = [log_p(model, prompt, [*label, STOP]) for label in asked.labels]
        known = [found for found in result.label_log_p if found is not None]
        for found, expected in zip(result.label_log_p, plain, strict=True):
            assert (
                found == pytest.approx(expected, abs=TOLERANCE) if found else expected < max(known)
            )
        best = max(range(len(plain)), key=plain.__getitem__)
        assert result.label_log_p[best] == max(known)


def random_model() -> Any:
    """Untied and with wide weights, so that what comes next depends on all that came before."""
    return tiny_llama(
        4, vocab_size=1000, initializer_range=0.2, tie_word_embeddings=False, eos_token_id=STOP
    ).eval()


@pytest.fixture(scope="module")
def tiny() -> Any:
    return random_model()


def test_packed_rows_equal_plain_rows(tiny: Any) -> None:
    prompts = random_prompts(9)
    asked = Asked((STOP,), 6, LABELS)
    assert_equals_plain(tiny, prompts, asked, answers(tiny, prompts, asked))


def test_every_label_is_scored_where_all_are_asked_for(tiny: Any) -> None:
    prompts = random_prompts(5)
    asked = Asked((STOP,), 3, LABELS, all_labels=True)
    found = answers(tiny, prompts, asked)
    assert_equals_plain(tiny, prompts, asked, found)
    assert all(None not in (result.label_log_p or [None]) for result in found)
    few = answers(tiny, prompts, Asked((STOP,), 3, LABELS))
    assert any(None in (result.label_log_p or []) for result in few)


def test_with_an_adapter_packed_rows_equal_plain_rows() -> None:
    model = attach(random_model(), LoraSection(r=4, alpha=8), seed=2).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    prompts = random_prompts(4)
    asked = Asked((STOP,), 4, LABELS)
    assert_equals_plain(model, prompts, asked, answers(model, prompts, asked))


@pytest.mark.parametrize("shared", [0, 5, 17])
def test_sharing_less_of_the_prefix_changes_nothing(tiny: Any, shared: int) -> None:
    prompts = random_prompts(5)
    asked = Asked((STOP,), 5, LABELS)
    assert_close(answers(tiny, prompts, asked, shared=shared), answers(tiny, prompts, asked))


def test_a_row_alone_equals_the_row_among_longer_ones(tiny: Any) -> None:
    prompts = [*random_prompts(1, longest=2), *random_prompts(3, longest=120)]
    asked = Asked((STOP,), 5, LABELS)
    together = answers(tiny, prompts, asked, shared=3)
    alone = [answers(tiny, [prompt], asked, shared=3)[0] for prompt in prompts]
    assert_close(together, alone)


def test_equals_generate_with_padding(tiny: Any) -> None:
    prompts = random_prompts(5)
    longest = max(map(len, prompts))
    ids = torch.tensor([[STOP] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    made = tiny.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    found = [list(result.tokens) for result in answers(tiny, prompts, Asked((STOP,), 5))]
    assert found == made[:, longest:].tolist()


def test_stops_at_any_stop_token_and_counts_it_in_the_limit(tiny: Any) -> None:
    prompt = random_prompts(1)
    free = answers(tiny, prompt, Asked((STOP,), 6))[0].tokens
    assert len(set(free[:4])) == 4, "the case needs four different tokens"
    stopped = answers(tiny, prompt, Asked((STOP, free[3]), 6))[0]
    assert (stopped.tokens, stopped.stop_reason) == (free[:3], "stop")
    cut = answers(tiny, prompt, Asked((STOP, free[3]), 3))[0]
    assert (cut.tokens, cut.stop_reason) == (free[:3], "length")


def test_two_stop_tokens_add_their_probabilities(tiny: Any) -> None:
    prompts = random_prompts(2)
    scored = answers(tiny, prompts, Asked((STOP, 9), 0, ((700,),)))
    for prompt, result in zip(prompts, scored, strict=True):
        either = [torch.tensor(log_p(tiny, prompt, [700, stop])) for stop in (STOP, 9)]
        assert result.label_log_p is not None
        assert result.label_log_p[0] == pytest.approx(
            float(torch.logaddexp(*either)), abs=TOLERANCE
        )


def test_a_label_that_is_sure_leaves_the_others_unscored(tiny: Any) -> None:
    prompt = random_prompts(1)
    likely = answers(tiny, prompt, Asked((STOP,), 1))[0].tokens[0]
    after = answers(tiny, [[*prompt[0], likely]], Asked((STOP,), 1))[0].tokens[0]
    result = answers(tiny, prompt, Asked((after,), 0, ((likely,), (700,), (701, 702))))[0]
    assert result.label_log_p is not None
    assert result.label_log_p[0] is not None
    assert log_p(tiny, prompt[0], [700, after]) < result.label_log_p[0]
    assert result.label_log_p[2] is None


def test_reference_log_probability_equals_the_plain_one(tiny: Any) -> None:
    prompts = random_prompts(4)
    references = [[700], [701, 702, STOP], [5, 5, 5, 5, STOP], []]
    found = answers(tiny, prompts, Asked((STOP,), 3), references=references)
    for prompt, reply, result in zip(prompts, references, found, strict=True):
        expected = log_p(tiny, prompt, reply) if reply else 0.0
        assert result.reference_log_p == pytest.approx(expected, abs=TOLERANCE)


def test_beyond_the_models_positions_is_an_error(tiny: Any) -> None:
    with pytest.raises(ModelError, match="max_position_embeddings is 512"):
        answers(tiny, [[5] * 600], Asked((STOP,), 1))


def test_common_prefix_leaves_every_prompt_a_token() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_prefix([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert common_prefix([[1, 2], [3]]) == 0
    assert common_prefix([[4, 4, 4]]) == 2
    assert common_prefix([]) == 0


def test_label_trie_knows_labels_that_begin_others() -> None:
    trie = LabelTrie.of([(1,), (1, 2), (3, 4)])
    assert trie.children[1].label == 0
    assert trie.children[1].children[2].label == 1
    assert trie.tokens() == {1, 2, 3, 4}


@pytest.mark.slow
def test_packed_rows_equal_plain_rows_on_smollm2(smol_dir: Path) -> None:
    model, tokenizer = load_model(smol_dir), load_tokenizer(smol_dir)
    texts = ["Web browser", "Puzzle game for two players", "mail client", "Hello, who are you?"]
    prompts = [
        list(tokenizer(f"Packages and their sections.\n{text}: ")["input_ids"]) for text in texts
    ]
    labels = tuple(
        tuple(tokenizer(label)["input_ids"]) for label in ("editors", "games", "mail", "web")
    )
    asked = Asked((STOP,), 6, labels)
    assert_equals_plain(model, prompts, asked, answers(model, prompts, asked))


def assert_close(found: list[RowResult], expected: list[RowResult]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        assert one.label_log_p is not None
        assert other.label_log_p is not None
        known = [(a, b) for a, b in zip(one.label_log_p, other.label_log_p, strict=True) if a or b]
        for a, b in known:
            assert a == pytest.approx(b, abs=TOLERANCE)
