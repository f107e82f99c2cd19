"""Golden conversations: what a server's chat template must render as the model's own does (F07).

They hold what templates are known to treat unlike each other: no system message, an empty or a
later one, white space at the ends (which some templates trim), text that spells special tokens or
template code, several scripts. None calls a tool.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import TYPE_CHECKING

from luthier.errors import ModelError
from luthier.models.chat import Message, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The prompt for messages, with what makes the model answer; None when the template refuses them.
Renderer = Callable[[Sequence[Message]], str | None]


@dataclass(frozen=True)
class Conversation:
    """Messages of the roles system, user and assistant; the last one is the user's."""

    name: str
    messages: tuple[Message, ...]

    @property
    def reaches_ollama_templates(self) -> bool:
        """Whether Ollama hands the messages to its template as they are.

        It joins neighbours of one role first (`collate`, template/template.go) and cuts thinking
        out of earlier replies of Qwen3 models (`filterThinkTags`, server/routes.go), v0.33.
        """
        roles = [message["role"] for message in self.messages]
        replies = [one["content"] for one in self.messages if one["role"] == "assistant"]
        has_neighbours = any(role == following for role, following in pairwise(roles))
        return not has_neighbours and not any("<think>" in reply for reply in replies)


@cache
def golden_conversations() -> tuple[Conversation, ...]:
    """The conversations, each under a name of its own; the same ones every time."""
    stored = json.loads(
        files(__package__).joinpath("golden_conversations.json").read_text("utf-8")
    )
    return tuple(Conversation(one["name"], tuple(one["messages"])) for one in stored)


def template_renderer(tokenizer: "PreTrainedTokenizerBase") -> Renderer:
    """The model's own chat template, through transformers, with the generation prompt.

    Raises:
        ModelError: there is no chat template.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "The model has no chat template to compare with. Use an instruction-tuned base."
        )

    def rendered(messages: Sequence[Message]) -> str | None:
        try:
            return render(tokenizer, messages, add_generation_prompt=True)
        except ModelError:
            return None

    return rendered


def added_bos(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The BOS token where the tokenizer begins every text by it, as servers then do too.

    A token that only the template writes, as SmolLM2's <|im_start|>, is not one.
    """
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return str(tokenizer.bos_token) if begins else None


def accepted(renderer: Renderer) -> list[tuple[Conversation, str]]:
    """The golden conversations that a template does not refuse, with the prompt of each.

    Templates may refuse a system message (Gemma 2), or roles that do not alternate (Gemma,
    Mistral). llama.cpp's server refuses less: it rewrites the messages for some of them. So only
    what the model's own template accepts can be compared with it.
    """
    prompts = [(one, renderer(one.messages)) for one in golden_conversations()]
    return [(one, prompt) for one, prompt in prompts if prompt is not None]
