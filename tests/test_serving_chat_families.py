"""Go templates for Ollama: what a real Go writes is what the models' own Jinja templates write."""

from collections.abc import Sequence

import pytest

from chat_jinja import BOS, jinja_templates, tokenizer_with, trl_template
from go_cases import go_prompts
from luthier.errors import ServingError
from luthier.models.chat import Message
from luthier.serving.chat_families import (
    FAMILIES,
    ChatFamily,
    ollama_template,
    renderings,
    stored_renderings,
)
from luthier.serving.golden import Renderer, golden_conversations, template_renderer
from luthier.serving.ollama import quoted, read_value

NAMES = [family.name for family in FAMILIES]
CHATML = trl_template("qwen3_instruct_2507")


def own(chat_template: str) -> Renderer:
    return template_renderer(tokenizer_with(chat_template))


@pytest.fixture(scope="module")
def written_by_go() -> dict[str, dict[str, str]]:
    conversations = [one for one in golden_conversations() if one.reaches_ollama_templates]
    templates = [family.template for family in FAMILIES]
    return dict(zip(NAMES, go_prompts(templates, conversations), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_go_writes_what_is_stored(name: str, written_by_go: dict[str, dict[str, str]]) -> None:
    stored = stored_renderings()[name]
    kept = {key: prompt for key, prompt in stored.items() if prompt is not None}
    assert len(kept) >= len(stored) // 2
    assert {key: written_by_go[name][key] for key in kept} == kept


@pytest.mark.parametrize("name", NAMES)
def test_the_models_own_template_writes_what_is_stored(name: str) -> None:
    assert renderings(own(jinja_templates()[name]), BOS) == stored_renderings()[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_family_is_found_by_its_renderings(name: str) -> None:
    family = FAMILIES[NAMES.index(name)]
    assert ollama_template(own(jinja_templates()[name]), BOS) == family.template


def test_thinking_qwen3_is_chatml_in_what_reaches_the_template() -> None:
    assert ollama_template(own(trl_template("qwen3")), BOS) == FAMILIES[0].template


def test_families_are_told_apart() -> None:
    prompts = [tuple(stored.values()) for stored in stored_renderings().values()]
    assert len(set(prompts)) == len(prompts) == len(NAMES)


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
def test_a_modelfile_holds_the_template(family: ChatFamily) -> None:
    assert ".Messages" in family.template  # without it, Ollama executes a template turn by turn
    assert read_value(quoted(family.template, "the template") + "\n") == family.template


@pytest.mark.parametrize(
    ("old", "new", "differing"),
    [
        ("'<|im_end|>' + '\\n'", "'<|im_end|> ' + '\\n'", "34"),
        ("assistant\\n'", "assistant'", "34"),
        # only conversations with white space at the ends of a question can tell
        ("message.role + '\\n' + content +", "message.role + '\\n' + content | trim +", "1?[0-9]"),
    ],
)
def test_a_template_that_differs_is_refused(old: str, new: str, differing: str) -> None:
    assert old in CHATML
    told = f"of chatml, differs in {differing} of 34 .* Leave out export.ollama_template"
    with pytest.raises(ServingError, match=told):
        ollama_template(own(CHATML.replace(old, new)), BOS)


def test_the_date_of_the_day_is_refused() -> None:
    with pytest.raises(ServingError, match=r"of llama-3\.1, differs .* Date: 26 Jul 2024"):
        ollama_template(own(trl_template("llama3_2")), BOS)


def test_refusing_more_than_the_family_is_a_difference() -> None:
    def refuses_systems(messages: Sequence[Message]) -> str | None:
        system = any(message["role"] == "system" for message in messages)
        return None if system else own(CHATML)(messages)

    with pytest.raises(ServingError, match="the model's own has a refusal"):
        ollama_template(refuses_systems, None)
