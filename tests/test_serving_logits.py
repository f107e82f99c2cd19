"""Logits of a GGUF by llama.cpp itself: those of transformers, and what its server answers by."""

from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.errors import ServingError
from luthier.models.loading import load_model
from luthier.serving.converter import convert
from luthier.serving.gguf_logits import gguf_logits
from luthier.serving.llama_server import LlamaServer
from luthier.store.artifact import Workspace
from serving_cases import QUESTIONS

pytest_plugins = "serving_fixtures"

ROWS = ([1, 4093, 198, 504, 2070, 314, 253], [1, 2, 3, 28, 17, 504, 17, 2070, 49151, 1201])


@pytest.fixture(scope="module")
def tuned_f16(tuned_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("f16")
    (folder / "w").mkdir()
    target = folder / "f16.gguf"
    convert(tuned_dir, target, quantization="f16", name="t", workspace=Workspace(folder / "w"))
    return target


def test_logits_are_those_of_transformers(tuned_dir: Path, tuned_f16: Path) -> None:
    model = load_model(tuned_dir)
    for row, served_TV in zip(ROWS, gguf_logits(tuned_f16, ROWS, threads=1), strict=True):
        with torch.inference_mode():
            logits_TV = model(input_ids=torch.tensor([row])).logits[0].numpy()
        assert served_TV.shape == logits_TV.shape
        assert served_TV.dtype == np.float32
        # weights and activations rounded to 11 bits, some 64 products summed up
        np.testing.assert_allclose(served_TV, logits_TV, atol=2**-9 * np.abs(logits_TV).max())


def test_wanted_positions_are_those_of_the_whole_row(tuned_f16: Path) -> None:
    whole = list(gguf_logits(tuned_f16, ROWS, threads=1))
    again = list(gguf_logits(tuned_f16, ROWS[::-1], threads=2))
    some = list(gguf_logits(tuned_f16, ROWS, [[], [3, 9]], threads=1))
    for one, other in zip(whole, again[::-1], strict=True):
        assert np.array_equal(one, other)
    assert some[0].shape == (0, 49152)
    assert np.array_equal(some[1], whole[1][[3, 9]])
    assert list(gguf_logits(tuned_f16, [])) == []


def test_the_server_answers_by_these_logits(tuned_f16: Path) -> None:
    with LlamaServer(tuned_f16, context_tokens=256) as server:
        prompts = [server.tokenize([question])[0] for question in QUESTIONS[:3]]
        replies = [server.complete(prompt, 6) for prompt in prompts]
    rows = [[*prompt, *reply.token_ids] for prompt, reply in zip(prompts, replies, strict=True)]
    wanted = [
        range(len(prompt) - 1, len(row) - 1) for prompt, row in zip(prompts, rows, strict=True)
    ]
    for reply, logits_TV in zip(replies, gguf_logits(tuned_f16, rows, wanted), strict=True):
        assert tuple(logits_TV.argmax(-1)) == reply.token_ids
        scores_TV = torch.tensor(logits_TV).log_softmax(-1)
        scores_T = scores_TV.gather(-1, torch.tensor(reply.token_ids)[:, None])[:, 0]
        # The server's cache is 16 bits wide, and it takes prompt and reply in other batches
        np.testing.assert_allclose(scores_T, reply.token_log_probabilities, atol=0.01)


def test_a_token_outside_the_vocabulary_is_an_error(tuned_f16: Path) -> None:
    with pytest.raises(ServingError, match="cannot compute 2 tokens"):
        list(gguf_logits(tuned_f16, [[1, 49152]]))


def test_what_is_no_gguf_is_an_error_with_the_log(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("<html>404</html>")
    with pytest.raises(ServingError, match=r"(?s)no logits.*invalid magic.*cannot load"):
        list(gguf_logits(path, [[1]]))
