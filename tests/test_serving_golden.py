"""The golden conversations, and what renders them: a tokenizer's template, llama.cpp's server."""

from pathlib import Path

import pytest

from chat_jinja import jinja_templates, tokenizer_with
from luthier.errors import ModelError
from luthier.models.loading import load_tokenizer
from luthier.serving.golden import accepted, golden_conversations, template_renderer
from luthier.serving.llama_server import LlamaServer

pytest_plugins = "serving_fixtures"


def test_conversations_differ_in_what_templates_treat_unlike() -> None:
    conversations = golden_conversations()
    assert len(conversations) >= 20
    assert len({one.name for one in conversations}) == len(conversations)
    assert len({str(one.messages) for one in conversations}) == len(conversations)
    assert all(one.messages[-1]["role"] == "user" for one in conversations)
    texts = [message["content"] for one in conversations for message in one.messages]
    joined = "\n".join(texts)
    for piece in (
        "<|im_end|>",
        "<|eot_id|>",
        "</s>",
        "{{ .System }}",
        "```python",
        "\u200d",
        '"""',
    ):
        assert piece in joined
    assert any(text != text.strip() for text in texts)
    assert any(text == "" for text in texts)
    systems = [one.messages[0]["role"] == "system" for one in conversations]
    assert any(systems)
    assert not all(systems)


def test_what_ollama_changes_before_its_template_is_known() -> None:
    changed = [one.name for one in golden_conversations() if not one.reaches_ollama_templates]
    assert changed == ["two questions in a row", "thinking in an earlier reply"]


def test_refused_conversations_are_left_out() -> None:
    templates = jinja_templates()
    whole = len(golden_conversations())
    assert len(accepted(template_renderer(tokenizer_with(templates["chatml"])))) == whole
    gemma = accepted(template_renderer(tokenizer_with(templates["gemma"])))
    assert 10 < len(gemma) < whole
    assert all(one.messages[0]["role"] == "user" for one, _ in gemma)


def test_a_tokenizer_without_a_template_is_told() -> None:
    with pytest.raises(ModelError, match="no chat template"):
        template_renderer(tokenizer_with(None))


def test_llama_cpp_renders_every_conversation_alike(
    tuned_server: LlamaServer, tuned_dir: Path
) -> None:
    wanted = accepted(template_renderer(load_tokenizer(tuned_dir)))
    assert len(wanted) == len(golden_conversations())
    differing = [
        one.name for one, prompt in wanted if tuned_server.apply_template(one.messages) != prompt
    ]
    assert differing == []
