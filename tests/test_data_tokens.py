"""Tokens and gates: on SmolLM2's real tokenizer, and on broken templates and tokenizers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from luthier.data import checks
from luthier.data.formats import ROW_FORMATS, to_row
from luthier.data.rows import Ledger, RawRow, Row, RowError, Split, Task
from luthier.data.tokens import IGNORE_INDEX, Encoding, LossOn, TokenizedRow, fit, tokenize
from luthier.errors import DataError, ModelError
from luthier.gates import Gate
from luthier.models.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
GENERATE = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
NO_END_OF_TURN = TURNS + "\n{% endfor %}" + GENERATE
THINKING_WHEN_ASKED = (
    TURNS + "<|im_end|>\n{% endfor %}" + GENERATE.replace("{% endif %}", "<think>\n{% endif %}")
)
ONLY_LAST_TURN = (
    "{% for m in messages %}{% if loop.last or m.role == 'user' %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + GENERATE
)
REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + TURNS
    + "<|im_end|>\n{% endfor %}"
    + GENERATE
)


@pytest.fixture
def tokenizer(smol_tokenizer_dir: Path) -> "PreTrainedTokenizerBase":
    return load_tokenizer(smol_tokenizer_dir)


def rows_of(task: Task, *values: dict[str, Any], system: str | None = None) -> list[Row]:
    return [
        to_row(RawRow("a.jsonl", line, value, "raw"), ROW_FORMATS[task], {}, "train", system)
        for line, value in enumerate(values, start=1)
    ]


def classified(tokenizer: "PreTrainedTokenizerBase", **options: Any) -> list[TokenizedRow]:
    rows = rows_of(
        "classification",
        {"text": "Converts  12 brushes to GIMP", "label": "graphics"},
        {"text": "Play chess across 3 boards!", "label": "games"},
        system="Name the section.",
    )
    return tokenize(rows, encoding(tokenizer, **options), Ledger())


def encoding(
    tokenizer: "PreTrainedTokenizerBase",
    task: Task = "classification",
    loss_on: LossOn = "all_assistant_turns",
    stops: Sequence[int] = (2,),
) -> Encoding:
    return Encoding(tokenizer, stops, task, loss_on)


def chat(
    tokenizer: "PreTrainedTokenizerBase", loss_on: LossOn = "all_assistant_turns"
) -> TokenizedRow:
    messages = [
        {"role": role, "content": content}
        for role, content in [
            ("user", "2 + 2?"),
            ("assistant", "Four."),
            ("user", "And 3 + 3?"),
            ("assistant", "Six."),
        ]
    ]
    rows = rows_of("chat", {"messages": messages})
    return tokenize(rows, encoding(tokenizer, "chat", loss_on), Ledger())[0]


def supervised(tokenizer: "PreTrainedTokenizerBase", row: TokenizedRow) -> list[str]:
    """The decoded stretches that have a loss."""
    pieces: list[list[int]] = [[]]
    for label in row.labels:
        if label == IGNORE_INDEX:
            pieces.append([])
        else:
            pieces[-1].append(label)
    return [tokenizer.decode(piece) for piece in pieces if piece]


def all_gates(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[TokenizedRow]
) -> dict[str, Gate]:
    gates = [
        checks.stop_token_supervised(rows, [2]),
        checks.answer_truncated(rows),
        checks.supervised_tokens(rows),
        checks.prompt_is_prefix(rows),
        checks.single_bos(rows, tokenizer.bos_token, tokenizer.bos_token_id),
    ]
    return {gate.id: gate for gate in gates}


def failing(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[TokenizedRow]) -> set[str]:
    return {name for name, gate in all_gates(tokenizer, rows).items() if gate.status == "fail"}


def test_loss_is_on_the_label_and_its_stop_token(tokenizer: "PreTrainedTokenizerBase") -> None:
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = classified(tokenizer)
    assert supervised(tokenizer, rows[0]) == ["graphics<|im_end|>"]
    assert supervised(tokenizer, rows[1]) == ["games<|im_end|>"]
    for row in rows:
        assert row.input_ids[-1] == row.labels[-1] == 2
        assert tokenizer.decode(row.input_ids) == row.text.removesuffix("\n")
        assert list(row.input_ids[: row.prompt_length]) == list(row.prompts[0])
        assert set(row.labels[: row.prompt_length]) == {IGNORE_INDEX}
    assert failing(tokenizer, rows) == set()


def test_loss_on_every_turn_or_the_last(tokenizer: "PreTrainedTokenizerBase") -> None:
    every, last = chat(tokenizer), chat(tokenizer, "last_turn")
    assert supervised(tokenizer, every) == ["Four.<|im_end|>", "Six.<|im_end|>"]
    assert supervised(tokenizer, last) == ["Six.<|im_end|>"]
    assert every.input_ids == last.input_ids
    assert every.prompt_length == last.prompt_length
    assert failing(tokenizer, [every, last]) == set()


def test_completion_is_plain_text_and_a_stop_token(tokenizer: "PreTrainedTokenizerBase") -> None:
    rows = rows_of("completion", {"prompt": "1 + 1 =", "completion": " 2"})
    [row] = tokenize(rows, encoding(tokenizer, "completion"), Ledger())
    assert tokenizer.decode(row.input_ids) == "1 + 1 = 2<|im_end|>"
    assert supervised(tokenizer, row) == [" 2<|im_end|>"]
    assert failing(tokenizer, [row]) == set()


def test_completion_has_the_bos_that_the_tokenizer_wants(
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    add_bos_always(tokenizer)
    rows = rows_of("completion", {"prompt": "1 + 1 =", "completion": " 2"})
    [row] = tokenize(rows, encoding(tokenizer, "completion"), Ledger())
    assert list(row.input_ids).count(1) == 1
    assert row.input_ids[0] == 1
    assert failing(tokenizer, [row]) == set()


def add_bos_always(tokenizer: "PreTrainedTokenizerBase") -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )


def test_f01_template_without_end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> None:
    tokenizer.chat_template = NO_END_OF_TURN
    rows = classified(tokenizer)
    assert failing(tokenizer, rows) == {"stop-token-supervised"}
    detail = all_gates(tokenizer, rows)["stop-token-supervised"].detail
    assert detail.startswith("2 of 2 rows: a.jsonl:1, a.jsonl:2; ")


def test_f01_pad_is_eos_and_masked(tokenizer: "PreTrainedTokenizerBase") -> None:
    pad = tokenizer.pad_token_id
    rows = [
        replace(row, labels=[IGNORE_INDEX if i == pad else i for i in row.labels])
        for row in classified(tokenizer)
    ]
    assert failing(tokenizer, rows) == {"stop-token-supervised"}


def test_f01_sees_every_turn(tokenizer: "PreTrainedTokenizerBase") -> None:
    row = chat(tokenizer)
    first_stop = next(i for i, label in enumerate(row.labels) if label == 2)
    without_stop, without_turn = list(row.labels), list(row.labels)
    without_stop[first_stop] = IGNORE_INDEX
    without_turn[: first_stop + 1] = [IGNORE_INDEX] * (first_stop + 1)
    for labels in (without_stop, without_turn):
        broken = replace(row, labels=labels)
        assert failing(tokenizer, [row, broken]) == {"stop-token-supervised"}


def test_f02_and_f03_truncated_answers(tokenizer: "PreTrainedTokenizerBase") -> None:
    rows = classified(tokenizer)
    shortest = min(len(row.input_ids) for row in rows)
    ledger = Ledger()
    cut = fit(rows, shortest, "truncate", ledger)
    assert [len(row.input_ids) for row in cut] == [shortest, shortest]
    assert failing(tokenizer, cut) >= {"answer-truncated", "stop-token-supervised"}
    assert all_gates(tokenizer, cut)["answer-truncated"].measured == 1
    no_reply = fit(rows, min(row.prompt_length for row in rows), "truncate", ledger)
    assert all_gates(tokenizer, no_reply)["supervised-tokens"].measured == 2


def test_overlong_rows_dropped_or_named(tokenizer: "PreTrainedTokenizerBase") -> None:
    rows = classified(tokenizer)
    lengths = [len(row.input_ids) for row in rows]
    ledger = Ledger()
    assert fit(rows, max(lengths), "fail", ledger) == rows
    assert len(fit(rows, min(lengths), "drop", ledger)) == 1
    assert ledger.dropped == {"overlong": 1}
    with pytest.raises(DataError, match=rf"a\.jsonl:\d \({max(lengths)}\).*Raise it to"):
        fit(rows, min(lengths), "fail", ledger)


def test_f04_template_that_adds_to_the_prompt(tokenizer: "PreTrainedTokenizerBase") -> None:
    tokenizer.chat_template = THINKING_WHEN_ASKED
    assert "prompt-is-prefix" in failing(tokenizer, classified(tokenizer))


def test_f04_template_that_drops_earlier_turns(tokenizer: "PreTrainedTokenizerBase") -> None:
    tokenizer.chat_template = ONLY_LAST_TURN
    assert "prompt-is-prefix" in failing(tokenizer, [chat(tokenizer)])
    assert failing(tokenizer, [chat(tokenizer, "last_turn")]) == set()


def test_f04_completion_merged_with_its_prompt(tokenizer: "PreTrainedTokenizerBase") -> None:
    rows = rows_of("completion", {"prompt": "the inter", "completion": "national news"})
    merged = tokenize(rows, encoding(tokenizer, "completion"), Ledger())
    assert "prompt-is-prefix" in failing(tokenizer, merged)


def test_f05_doubled_bos(tokenizer: "PreTrainedTokenizerBase") -> None:
    add_bos_always(tokenizer)
    rows = classified(tokenizer)
    assert failing(tokenizer, rows) == set()
    doubled = [replace(row, input_ids=tokenizer(row.text)["input_ids"]) for row in rows]
    assert "single-bos" in failing(tokenizer, doubled)


def test_f08_text_or_group_in_two_splits() -> None:
    def row(text: str, split: Split, group: str | None = None) -> Row:
        [made] = rows_of("classification", {"text": text, "label": "x"})
        return replace(made, split=split, group=group)

    apart = [row("a", "train", "g"), row("b", "test", "h"), row("c", "validation")]
    assert checks.split_leakage(apart).status == "pass"
    assert checks.split_leakage([*apart, row("a", "test")]).measured == 1
    assert checks.split_leakage([*apart, row("d", "validation", "h")]).status == "fail"


def test_f12_share_of_quarantined_records() -> None:
    ledger = Ledger()
    ledger.read = 200
    assert checks.quarantine_share(ledger, 0.01).status == "pass"
    [row] = rows_of("classification", {"text": "a", "label": "x"})
    for _ in range(2):
        ledger.quarantine_row(row, RowError("label-unknown", "'y'"))
    assert checks.quarantine_share(ledger, 0.01).status == "pass"
    ledger.quarantine_row(row, RowError("label-unknown", "'y'"))
    gate = checks.quarantine_share(ledger, 0.01)
    assert (gate.status, gate.measured) == ("fail", 0.015)
    assert "3 label-unknown; the first is a.jsonl:1: label-unknown: 'y'" in gate.detail


def test_text_that_spells_a_template_token_is_quarantined(
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    ledger = Ledger()
    rows = rows_of(
        "classification",
        {"text": "stop here <|im_end|> and obey", "label": "x"},
        {"text": "usage: cp <filename> <|endoftext|", "label": "x"},
    )
    kept = tokenize(rows, encoding(tokenizer), ledger)
    assert [row.row.source_line for row in kept] == [2]
    assert ledger.quarantined_by_kind == {"special-token-in-text": 1}


def test_row_that_the_template_refuses_is_quarantined(
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    tokenizer.chat_template = REFUSES_SYSTEM
    ledger = Ledger()
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    system = {"role": "system", "content": "s"}
    rows = rows_of("chat", {"messages": messages}, {"messages": [system, *messages]})
    assert len(tokenize(rows, encoding(tokenizer, "chat"), ledger)) == 1
    assert "template-refused" in ledger.quarantined[0].reason
    assert "no system role" in ledger.quarantined[0].reason


def test_base_without_template_or_stop_token(tokenizer: "PreTrainedTokenizerBase") -> None:
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        classified(tokenizer)
    rows = rows_of("completion", {"prompt": "a", "completion": " b"})
    with pytest.raises(ModelError, match="no stop token"):
        tokenize(rows, encoding(tokenizer, "completion", stops=()), Ledger())
