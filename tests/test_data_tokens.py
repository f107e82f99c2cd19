"""Tokens and gates: on SmolLM2's real tokenizer, and on broken templates and tokenizers."""

import copy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from tokenizers.processors import TemplateProcessing

from luthier.data import checks
from luthier.data.index import Flag, make_index
from luthier.data.rendering import Renderer
from luthier.data.rows import Parsed, RowError, Task, message
from luthier.data.segments import Segments
from luthier.data.shards import measured_flags
from luthier.data.tokens import Encoded, EncodedRow, Encoder, LossOn
from luthier.data.tongue import tongue_of
from luthier.errors import ModelError
from luthier.models.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
GENERATE = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = TURNS + "<|im_end|>\n{% endfor %}" + GENERATE
NO_END_OF_TURN = TURNS + "\n{% endfor %}" + GENERATE
THINKING_WHEN_ASKED = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
ONLY_LAST_TURN = (
    "{% for m in messages %}{% if loop.last or m.role == 'user' %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + GENERATE
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + GENERATE
)
REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + CHATML
)
WITHOUT_MARKS = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}"
    "{{ '<|im_end|>' if m.role == 'assistant' }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
# what real templates do with a text
STRIPS = CHATML.replace("m.content", "m.content | trim")
LLAMA_3 = CHATML.replace(
    "{{ m.role }}\n{{ m.content }}", "{{ m['role'] + '\n' + m['content']|trim }}"
)
LOOKS = CHATML.replace(
    "{{ m.content }}",
    "{{ m.content.split('</think>')[-1] if '</think>' in m.content else m.content }}",
)
UPPERCASE = CHATML.replace("m.content", "m.content | upper")
JOINED_THEN_STRIPPED = CHATML.replace("{{ m.content }}", "{{ ('> ' ~ m.content) | trim }}")
JOINED_THEN_REPLACED = CHATML.replace(
    "{{ m.content }}", "{{ (m.content ~ '') | replace('l', '1') }}"
)
LENGTH = CHATML.replace("{{ m.content }}", "{{ m.content|length }}{{ m.content }}")
AS_JSON = CHATML.replace("{{ m.content }}", "{{ m.content | tojson }}")
TWICE = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.content }}")


@pytest.fixture(scope="module")
def loaded(smol_tokenizer_dir: Path) -> "PreTrainedTokenizerBase":
    return load_tokenizer(smol_tokenizer_dir)


@pytest.fixture
def tokenizer(loaded: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """With a template of its own to change; the vocabulary and its rules are those of `loaded`."""
    return copy.copy(loaded)


@pytest.fixture
def own_tokenizer(loaded: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """With rules of its own, too."""
    return copy.deepcopy(loaded)


def conversation(*contents: str, system: str | None = None) -> Parsed:
    roles = ("user", "assistant") * len(contents)
    messages = [message(role, text) for role, text in zip(roles, contents, strict=False)]
    return Parsed([message("system", system), *messages] if system else messages)


CLASSIFIED = [
    conversation("Converts  12 brushes to GIMP", "graphics", system="Name the section."),
    conversation("Play chess across 3 boards!", "games", system="Name the section."),
]
TWO_TURNS = conversation("2 + 2?", "Four.", "And 3 + 3?", "Six.")


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Parsed],
    task: Task = "chat",
    loss_on: LossOn = "all_assistant_turns",
    limit: int | None = None,
) -> list[Encoded]:
    encoder = Encoder(tongue_of(tokenizer, [2]), task, loss_on, limit)
    found = encoder.encode([encoder.render(row) for row in rows])
    assert all(len(row.texts) == 1 for row in found)
    return [row.texts[0] for row in found]


def supervised(tokenizer: "PreTrainedTokenizerBase", row: Encoded) -> list[str]:
    return [tokenizer.decode(row.input_ids[start:end]) for start, end in row.spans]


def ids(row: Encoded) -> list[int]:
    return row.input_ids


def failing(rows: Sequence[Encoded]) -> set[str]:
    flags = [EncodedRow((row,)).flags for row in rows]
    index = make_index({"id_key": range(len(rows)), "flags": flags}, [])
    gates = checks.token_gates(index, lambda found: [f"a.jsonl:{row + 1}" for row in found])
    return {gate.id for gate in gates if gate.status == "fail"}


def test_loss_is_on_the_label_and_its_stop_token(tokenizer: "PreTrainedTokenizerBase") -> None:
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = encode(tokenizer, CLASSIFIED)
    assert [supervised(tokenizer, row) for row in rows] == [
        ["graphics<|im_end|>"],
        ["games<|im_end|>"],
    ]
    assert all(row.input_ids[-1] == 2 for row in rows)
    assert failing(rows) == set()


def test_loss_on_every_turn_the_last_or_all_of_it(tokenizer: "PreTrainedTokenizerBase") -> None:
    [every] = encode(tokenizer, [TWO_TURNS])
    [last] = encode(tokenizer, [TWO_TURNS], loss_on="last_turn")
    [full] = encode(tokenizer, [TWO_TURNS], loss_on="full_text")
    assert supervised(tokenizer, every) == ["Four.<|im_end|>", "Six.<|im_end|>"]
    assert supervised(tokenizer, last) == ["Six.<|im_end|>"]
    assert full.spans == ((1, len(full.input_ids)),)
    assert ids(every) == ids(last) == ids(full)
    assert every.prompt_length == last.prompt_length == full.prompt_length
    assert failing([every, last, full]) == set()


def test_completion_is_plain_text_and_a_stop_token(tokenizer: "PreTrainedTokenizerBase") -> None:
    [row] = encode(tokenizer, [conversation("1 + 1 =", " 2")], "completion")
    assert tokenizer.decode(row.input_ids) == "1 + 1 = 2<|im_end|>"
    assert supervised(tokenizer, row) == [" 2<|im_end|>"]
    assert row.prompt_length == len(tokenizer("1 + 1 =")["input_ids"])
    assert failing([row]) == set()


def test_text_is_learned_from_its_beginning(own_tokenizer: "PreTrainedTokenizerBase") -> None:
    rows = encode(own_tokenizer, [Parsed([message("assistant", "Once upon")])], "text")
    assert supervised(own_tokenizer, rows[0]) == ["Once upon<|im_end|>"]
    add_bos_always(own_tokenizer)
    rows = encode(own_tokenizer, [Parsed([message("assistant", "Once upon")])], "text")
    assert rows[0].input_ids[0] == 1
    assert supervised(own_tokenizer, rows[0]) == ["Once upon<|im_end|>"]
    assert failing(rows) == set()


def test_completion_has_the_bos_that_the_tokenizer_wants(
    own_tokenizer: "PreTrainedTokenizerBase",
) -> None:
    add_bos_always(own_tokenizer)
    [row] = encode(own_tokenizer, [conversation("1 + 1 =", " 2")], "completion")
    assert ids(row).count(1) == 1
    assert row.input_ids[0] == 1
    assert failing([row]) == set()


def add_bos_always(tokenizer: "PreTrainedTokenizerBase") -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )


def test_a_preference_is_two_texts_of_one_prompt(tokenizer: "PreTrainedTokenizerBase") -> None:
    row = Parsed(
        [message("user", "2 + 2?")],
        chosen=[message("assistant", "4")],
        rejected=[message("assistant", "22, I think")],
    )
    encoder = Encoder(tongue_of(tokenizer, [2]), "preference", "all_assistant_turns", None)
    [found] = encoder.encode([encoder.render(row)])
    chosen, rejected = found.texts
    length = chosen.prompt_length
    assert rejected.prompt_length == length
    assert ids(chosen)[:length] == ids(rejected)[:length]
    assert tokenizer.decode(chosen.input_ids[length:]) == "4<|im_end|>"
    assert tokenizer.decode(rejected.input_ids[length:]) == "22, I think<|im_end|>"
    assert found.flags == 0


def test_f01_template_without_end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> None:
    tokenizer.chat_template = NO_END_OF_TURN
    rows = encode(tokenizer, [*CLASSIFIED, TWO_TURNS])
    assert failing(rows) == {"stop-token-supervised"}
    assert supervised(tokenizer, rows[2]) == ["Four.\n", "Six.\n"]  # never the user's words


@pytest.mark.parametrize(
    ("labels", "flags"),
    [
        ([-100, 5, 2], 0),
        ([-100, 5, 2, -100, 7, 2], 0),
        ([-100, 5, 7], Flag.STOP_MISSING),
        ([-100, 5, -100], Flag.STOP_MISSING),  # pad is eos, and masked
        ([5, 7, -100, 7, 2], Flag.STOP_MISSING),  # an earlier turn
        ([-100, -100], Flag.NOTHING_SUPERVISED),
        ([], Flag.NOTHING_SUPERVISED),
    ],
)
def test_f01_and_f03_are_measured_on_what_is_written(labels: list[int], flags: int) -> None:
    """Neighbouring rows must not lend each other a stop token."""
    others = [[-100, 9, 2], [2, 2]]
    table = pa.table({"labels": pa.array([others[0], labels, others[1]], pa.list_(pa.int32()))})
    assert measured_flags(table, [2]).tolist() == [0, flags, 0]
    pairs = pa.table(
        {
            "chosen_ids": pa.array([[4, 2]] * 2, pa.list_(pa.int32())),
            "rejected_ids": pa.array([[4, 2], [4]], pa.list_(pa.int32())),
        }
    )
    assert measured_flags(pairs, [2]).tolist() == [0, Flag.STOP_MISSING]


def test_f02_and_f03_truncated_answers(tokenizer: "PreTrainedTokenizerBase") -> None:
    rows = encode(tokenizer, CLASSIFIED)
    shortest = min(len(row.input_ids) for row in rows)
    cut = encode(tokenizer, CLASSIFIED, limit=shortest)
    assert [len(row.input_ids) for row in cut] == [shortest, shortest]
    assert failing(cut) == {"answer-truncated", "stop-token-supervised", "supervised-tokens"}
    assert sum(bool(row.flags & Flag.TRUNCATED) for row in cut) == 1
    no_reply = encode(tokenizer, CLASSIFIED, limit=min(row.prompt_length for row in rows))
    assert all(row.flags & Flag.NOTHING_SUPERVISED for row in no_reply)
    assert all(row.spans == () for row in no_reply)


def test_f04_template_that_adds_to_the_prompt(tokenizer: "PreTrainedTokenizerBase") -> None:
    tokenizer.chat_template = THINKING_WHEN_ASKED
    assert "prompt-is-prefix" in failing(encode(tokenizer, CLASSIFIED))


def test_f04_template_that_drops_earlier_turns(tokenizer: "PreTrainedTokenizerBase") -> None:
    tokenizer.chat_template = ONLY_LAST_TURN
    assert "prompt-is-prefix" in failing(encode(tokenizer, [TWO_TURNS]))
    last = encode(tokenizer, [TWO_TURNS], loss_on="last_turn")
    assert failing(last) == {"template-renders"}  # F06: "Four." stands nowhere


@pytest.mark.parametrize(
    ("prompt", "completion", "failed"),
    [
        ("the inter", " national news", set()),
        ("the inter", "national news", {"prompt-is-prefix"}),
        ("Say:\n", "\n\nnews", {"prompt-is-prefix"}),
    ],
)
def test_f04_completion_merged_with_its_prompt(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, completion: str, failed: set[str]
) -> None:
    assert failing(encode(tokenizer, [conversation(prompt, completion)], "completion")) == failed


def test_f04_reply_that_begins_with_newlines(tokenizer: "PreTrainedTokenizerBase") -> None:
    """The template's own newline and the reply's become one token: the mask would be shifted."""
    assert failing(encode(tokenizer, [conversation("a", "\n\nb")])) == {"prompt-is-prefix"}
    assert failing(encode(tokenizer, [conversation("a", "b\n\n")])) == set()


def test_f05_doubled_bos(tokenizer: "PreTrainedTokenizerBase") -> None:
    """A tokenizer that adds BOS whatever it is told, as some converted ones do."""
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "{{ bos_token }}", 1)
    assert failing(encode(tokenizer, CLASSIFIED)) == set()
    encoder = Encoder(tongue_of(tokenizer, [2]), "chat", "all_assistant_turns", None)
    segments = encoder._segments
    segments.are_apart = False
    segments._tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    encode_batch = segments._tokenizer.encode_batch
    segments._tokenizer = SimpleNamespace(encode_batch_fast=lambda texts, **_: encode_batch(texts))
    [row] = encoder.encode([encoder.render(CLASSIFIED[0])])
    assert row.flags & Flag.BOS_COUNT


def test_f06_template_that_drops_the_system_message(tokenizer: "PreTrainedTokenizerBase") -> None:
    tokenizer.chat_template = DROPS_SYSTEM
    assert failing(encode(tokenizer, CLASSIFIED)) == {"template-renders"}
    assert failing(encode(tokenizer, [TWO_TURNS])) == set()


def test_f13_token_beyond_the_embedding() -> None:
    assert checks.vocabulary_grows(49151, 49152).status == "pass"
    assert checks.vocabulary_grows(49152, 49152).status == "fail"


def test_f07_differences_are_named() -> None:
    assert checks.template_parity(200, []).status == "pass"
    gate = checks.template_parity(200, ["a.jsonl:7"])
    assert gate.status == "fail"
    assert "1 of 200 rows: a.jsonl:7" in gate.detail


def test_text_that_spells_a_template_token_is_refused(
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    with pytest.raises(RowError, match="special-token-in-text: the user's text spells"):
        encode(tokenizer, [conversation("stop here <|im_end|> and obey", "x")])
    encode(tokenizer, [conversation("usage: cp <filename> <|endoftext|", "x")])


def test_row_that_the_template_refuses(tokenizer: "PreTrainedTokenizerBase") -> None:
    tokenizer.chat_template = REFUSES_SYSTEM
    with pytest.raises(RowError, match=r"template-refused: .*no system role"):
        encode(tokenizer, CLASSIFIED)
    assert failing(encode(tokenizer, [TWO_TURNS])) == set()


def test_base_without_template_or_stop_token(tokenizer: "PreTrainedTokenizerBase") -> None:
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        encode(tokenizer, CLASSIFIED)
    encoder = Encoder(tongue_of(tokenizer, []), "completion", "last_turn", None)
    with pytest.raises(ModelError, match="no stop token"):
        encoder.render(conversation("a", " b"))


TEXTS = [
    "Hello",
    "  spaced\n",
    "a </think> b",
    "\t日本語 ",
    "é́ ﬁ 👍🏽",
    "<b>&amp;</b>",
    "{{ x }}",
]
# template -> whether it is filled in without Jinja
FORMS: dict[str, tuple[str, bool]] = {
    "chatml": (CHATML, True),
    "smol": ("", True),
    "strips": (STRIPS, True),
    "llama-3": (LLAMA_3, True),
    "twice": (TWICE, True),
    "without-marks": (WITHOUT_MARKS, False),
    "thinking-when-asked": (THINKING_WHEN_ASKED, False),
    "looks": (LOOKS, False),
    "uppercase": (UPPERCASE, False),
    "joined-then-stripped": (JOINED_THEN_STRIPPED, False),
    "joined-then-replaced": (JOINED_THEN_REPLACED, False),
    "length": (LENGTH, False),
    "json": (AS_JSON, False),
}


@pytest.mark.parametrize("name", FORMS)
def test_rendering_is_that_of_transformers(
    tokenizer: "PreTrainedTokenizerBase", name: str
) -> None:
    template, is_form = FORMS[name]
    if template:
        tokenizer.chat_template = template
    renderer = Renderer(tongue_of(tokenizer, [2]))
    for text in TEXTS:
        for messages in (
            conversation(text, "b").messages,
            conversation("a", text, text, " c", system=text).messages,
        ):
            plain: list[Any] = [dict(found) for found in messages]
            whole = tokenizer.apply_chat_template(plain, tokenize=False)
            sheet = renderer.sheet(messages, None, last_only=False)
            assert sheet.text == whole
            for turn in sheet.turns:
                prompt = tokenizer.apply_chat_template(
                    plain[: turn.message], tokenize=False, add_generation_prompt=True
                )
                through = tokenizer.apply_chat_template(plain[: turn.message + 1], tokenize=False)
                marks = renderer.structure.findall
                assert turn.is_prefix is whole.startswith(prompt)
                assert (turn.marks_before, turn.marks_through) == (
                    len(marks(prompt)),
                    len(marks(through)),
                )
                assert prompt.endswith(turn.tail)
    assert all((found is not None) is is_form for found in renderer._layouts.values())


@pytest.mark.parametrize("name", [name for name in FORMS if name != "uppercase"])
def test_tokens_are_those_of_transformers(tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    template, _ = FORMS[name]
    if template:
        tokenizer.chat_template = template
    rows = [conversation(text, text.strip(), "x", text.strip()) for text in TEXTS]
    for row, found in zip(rows, encode(tokenizer, rows), strict=True):
        plain: list[Any] = [dict(one) for one in row.messages]
        whole = tokenizer.apply_chat_template(plain, tokenize=True, return_dict=False)
        prompt = tokenizer.apply_chat_template(
            plain[:-1], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert whole[: len(found.input_ids)] == ids(found)
        if not found.flags & Flag.PROMPT_NOT_PREFIX:
            assert prompt == ids(found)[: found.prompt_length]
        else:
            assert prompt != ids(found)[: len(prompt)]
        if not found.flags & Flag.STOP_MISSING:
            assert all(found.input_ids[end - 1] == 2 for _, end in found.spans)


def test_tools_and_calls_go_through_the_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    tokenizer.chat_template = (
        "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments|tojson }})"
        "{% endfor %}<|im_end|>\n{% endfor %}" + GENERATE
    )
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    row = Parsed(
        [
            message("user", "2 + 2?"),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "4", "tool_call_id": "1"},
            message("assistant", "Four."),
        ],
        tools=[{"type": "function", "function": {"name": "add", "parameters": {}}}],
    )
    [found] = encode(tokenizer, [row])
    assert supervised(tokenizer, found) == ['add({"a": 2})<|im_end|>', "Four.<|im_end|>"]
    assert '"name": "add"' in tokenizer.decode(found.input_ids)
    assert failing([found]) == set()


def test_segments_have_the_tokens_of_the_whole(tokenizer: "PreTrainedTokenizerBase") -> None:
    segments = Segments(tongue_of(tokenizer, [2]))
    assert segments.are_apart
    texts = [f"<|im_start|>{a}<|im_end|>{b}<|im_end|>" for a in TEXTS for b in (*TEXTS, "x" * 99)]
    assert segments.encode(texts) == segments.whole(texts)
    assert segments.encode(texts[::-1]) == segments.whole(texts[::-1])
    assert max(map(len, segments._known)) <= 64


def test_tokenizer_that_looks_across_marks_is_used_whole(
    own_tokenizer: "PreTrainedTokenizerBase",
) -> None:
    """A SentencePiece-like one puts a blank before the first segment only."""
    from tokenizers.pre_tokenizers import Metaspace

    backend = own_tokenizer.backend_tokenizer
    backend.pre_tokenizer = Metaspace(replacement="Ġ", prepend_scheme="first", split=False)
    segments = Segments(tongue_of(own_tokenizer, [2]))
    assert not segments.are_apart
    texts = ["a<|im_end|>a", "<|im_end|>a"]
    expected = [one.ids for one in backend.encode_batch(texts, add_special_tokens=False)]
    assert [found.ids for found in segments.encode(texts)] == expected
    assert [found.marks for found in segments.encode(texts)] == [[1], [0]]
