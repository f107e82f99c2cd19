"""The llama.cpp server in its child process: it answers, fails plainly, never stays behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.errors import ServingError
from luthier.serving.llama_server import LlamaServer

pytest_plugins = "serving_fixtures"
PROMPT_IDS = [1, 4093, 198, 33, 2]
MESSAGES = [{"role": "user", "content": "a chess program"}]


def test_a_reply_depends_on_its_prompt_alone(tuned_gguf: Path) -> None:
    with LlamaServer(tuned_gguf, context_tokens=256) as server:
        first = server.complete(PROMPT_IDS, 6)
        server.complete([*PROMPT_IDS, 5, 6, 7], 3)
        assert server.complete(PROMPT_IDS, 6) == first
    assert first.prompt_tokens == len(PROMPT_IDS)
    assert len(first.token_ids) == len(first.token_log_probabilities) == 6 or first.stopped


def test_chat_reads_the_prompt_that_the_template_makes(tuned_gguf: Path) -> None:
    with LlamaServer(tuned_gguf, context_tokens=256) as server:
        prompt = server.apply_template(MESSAGES)
        (prompt_ids,) = server.tokenize([prompt])
        chat = server.chat(MESSAGES, 5)
        assert chat.prompt_tokens == len(prompt_ids)
        assert chat.token_ids == server.complete(prompt_ids, 5).token_ids
        assert server.properties()["eos_token"] == "<|im_end|>"


def test_special_tokens_as_tokens_and_as_text(tuned_gguf: Path) -> None:
    with LlamaServer(tuned_gguf, context_tokens=256) as server:
        assert server.tokenize(["<|im_end|>", ""]) == [[2], []]
        assert len(server.tokenize(["<|im_end|>"], parse_special=False)[0]) > 1


def test_texts_of_one_request_are_tokenised_each_by_itself(tuned_gguf: Path) -> None:
    """Words that would be one token with their neighbour, texts of nothing, and many of them."""
    texts = ["", "Hel", "lo", "", " ", "<|im_start|>user\n", "it's -1", ""] * 80
    with LlamaServer(tuned_gguf, context_tokens=256) as server:
        for options in ({}, {"parse_special": False}, {"add_special": True}):
            alone = [server.tokenize([text], **options)[0] for text in texts[:8]]
            assert server.tokenize(texts, **options) == alone * 80
        assert server.tokenize([]) == []


def test_a_gguf_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.gguf"
    path.write_text("hello")
    with (
        pytest.raises(ServingError, match=r"none\.gguf: llama\.cpp cannot serve this file"),
        LlamaServer(path),
    ):
        pass


def test_a_refused_request_keeps_the_server(tuned_gguf: Path) -> None:
    with LlamaServer(tuned_gguf, context_tokens=64) as server:
        with pytest.raises(ServingError, match="refused /completion: 400"):
            server.complete([5] * 500, 4)
        assert server.complete(PROMPT_IDS, 2).token_ids


def test_a_server_that_died_is_an_error_of_ours(tuned_gguf: Path) -> None:
    with LlamaServer(tuned_gguf, context_tokens=64) as server:
        os.kill(server.process_id, signal.SIGKILL)
        with pytest.raises(ServingError, match="no answer to /completion"):
            server.complete(PROMPT_IDS, 2)


def test_an_exception_ends_the_server(tuned_gguf: Path) -> None:
    server = LlamaServer(tuned_gguf, context_tokens=64)
    with pytest.raises(ZeroDivisionError), server:
        server.complete(PROMPT_IDS, 1 // 0)
    assert not _runs(server.process_id)


def test_the_server_dies_with_a_killed_parent(tuned_gguf: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from luthier.serving.llama_server import LlamaServer\n"
        "with LlamaServer(Path(sys.argv[1]), context_tokens=64) as server:\n"
        "    print(server.process_id, flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tuned_gguf)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process_id: int) -> bool:
    """Whether it is there and not merely waiting for somebody to read its exit status."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")
