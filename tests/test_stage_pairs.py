"""Pairs of a model's own answers: the rules, the judge, the drawing, and the stage to the end."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation_cases import (
    make_teachable,
    make_teachable_base,
    run_stage,
    train_adapter,
)
from luthier.errors import ConfigError, DataError, InterruptedRunError
from luthier.evaluation.engine import Asked, Sampling
from luthier.evaluation.judging import JudgeSection, ask_judge
from luthier.evaluation.pair_rules import (
    Drawn,
    MadePair,
    drawn_from,
    gold,
    judged,
    shorter,
    valid_json,
)
from luthier.evaluation.rows import AskedRow
from luthier.evaluation.systems import LocalSystem, Prompt, Reply, Sample
from luthier.stages.pairs import STAGE, PairsSection
from luthier.stages.preferences import STAGE as PREFERENCES
from luthier.store.artifact import Workspace
from project import luthier, read_dpo_config, write_project

LABELS = ["fonts", "games", "science"]
LIGHT_ON = '{"intent": "HassTurnOn", "slots": {"area": "kitchen"}}'


def drawn(expected: str, *texts: str, labels: list[str] | None = None, cut: int = 0) -> Drawn:
    """Of a reply whose greedy answer is the first text and whose last `cut` ones did not end."""
    ends = ["stop"] * (len(texts) - cut) + ["length"] * cut
    samples = tuple(Sample(text, end) for text, end in zip(texts[1:], ends[1:], strict=True))  # type: ignore[arg-type]
    row = AskedRow("r", ({"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}),
                   expected, None, (1,), (2,))  # fmt: skip
    return drawn_from(row, Reply("r", texts[0], "stop", samples=samples), labels or [])


def test_the_most_frequent_wrong_label_is_rejected() -> None:
    pair = gold(drawn("games", "games", "fonts", "science", "science", " science", labels=LABELS))
    assert pair == MadePair("games", "science", {"times_drawn": 3})


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (drawn("games", "games", "Games", labels=LABELS), "no wrong answer"),
        (drawn("a reply", "A  reply"), "near tie"),
        (drawn(LIGHT_ON, LIGHT_ON.replace(" ", "")), "no wrong answer"),
        (drawn("games", "", labels=LABELS), "no answer ended by itself"),
    ],
)
def test_without_a_wrong_answer_there_is_no_pair(found: Drawn, why: str) -> None:
    assert gold(found) == why


def test_an_answer_that_was_cut_off_is_none() -> None:
    assert gold(drawn("games", "games", "fonts", labels=LABELS, cut=1)) == "no wrong answer"


def test_json_against_what_is_none() -> None:
    own = LIGHT_ON.replace(" ", "")
    pair = valid_json(drawn(LIGHT_ON, own, "Sure: {", "Sure: {"))
    assert pair == MadePair(own, "Sure: {", {"times_drawn": 2, "is_own": True})
    pair = valid_json(drawn(LIGHT_ON, "{}", "Sure: {"))
    assert pair == MadePair(LIGHT_ON, "Sure: {", {"times_drawn": 1, "is_own": False})
    assert valid_json(drawn(LIGHT_ON, "{}")) == "no invalid answer"


def test_the_shorter_of_two_right_answers() -> None:
    long = "The section of it is games."
    pair = shorter(drawn("games", long, "games", "fonts", labels=LABELS))
    assert pair == MadePair("games", long, {"length_ratio": 0.185})
    assert shorter(drawn("games", "games", labels=LABELS)) == "fewer than two right answers"
    assert shorter(drawn("games", "games", "games.", labels=LABELS)) == "near tie"


def test_a_judge_decides_by_its_scores() -> None:
    from dataclasses import replace

    two = replace(drawn("x", "bad", "good"), scores=(0.1, 0.8))
    assert judged(two, 0.1) == MadePair("good", "bad", {"scores": [0.8, 0.1]})
    assert judged(two, 0.9) == "near tie"
    assert judged(replace(two, scores=None), 0.1) == "not scored"


def judge(code: str) -> list[str]:
    return [sys.executable, "-c", code]


LENGTHS = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    assert asked["prompt"][0]["role"] == "user" and asked["expected"]
    print(json.dumps([len(answer) for answer in asked["answers"]]))
"""


def test_the_judge_is_a_program(tmp_path: Path) -> None:
    found = ask_judge(
        JudgeSection(command=judge(LENGTHS)),
        [drawn("x", "bad", "good"), drawn("x", "abc")],
        "a",
        Workspace(tmp_path),
    )
    assert [one.scores for one in found] == [[3.0, 4.0], [3.0]]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["no-such-judge"], "cannot be started"),
        (judge("import sys; sys.exit('it broke')"), "ended with 1: it broke"),
        (judge("import time; time.sleep(60)"), "took more than 1 s"),
        (judge("print('[1.0]\\n[2.0]')"), "gave 2 lines for 1 prompts"),
        (judge("print('[1.0]')"), "not a list of 2 numbers"),
        (judge("print('[1.0, NaN]')"), "not a list of 2 numbers"),
        (judge("print('well')"), "not a list of 2 numbers: well"),
    ],
)
def test_a_judge_that_fails_is_said(command: list[str], said: str, tmp_path: Path) -> None:
    section = JudgeSection(command=command, timeout_seconds=1)
    with pytest.raises(DataError, match=r"pairs\.judge\.command") as caught:
        ask_judge(section, [drawn("x", "bad", "good")], "pairs.judge", Workspace(tmp_path))
    assert said in str(caught.value)


@pytest.fixture(scope="module")
def teachable(smol_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A base, rows of three classes and an adapter that knows them a little."""
    folder = tmp_path_factory.mktemp("pairs")
    base, dataset = make_teachable(folder, smol_tokenizer_dir, test=10)
    adapter = train_adapter(base.path, dataset.path, folder / "adapter", steps=10)
    return {"base": base, "dataset": dataset, "adapter": adapter}


def test_answers_are_drawn_as_often_as_they_are_likely(teachable: Any) -> None:
    """First tokens of 4,000 answers against the softmax at this temperature; the same seed draws
    the same, whatever the rows are cut into."""
    import torch

    from luthier.models.loading import load_model, load_tokenizer

    base = teachable["base"].path
    model, tokenizer = load_model(base), load_tokenizer(base)
    prompt = tuple(tokenizer("Which one is it?")["input_ids"])
    sampling = Sampling(400, temperature=0.7, top_k=5, seed=3)
    system = LocalSystem("drawn", model, tokenizer, Asked((2,), 1, sampling=sampling))
    prompts = [Prompt(str(n), prompt) for n in range(10)]
    replies = [one for chunk in system.replies(prompts, 0) for one in chunk]
    texts = [sample.text for reply in replies for sample in reply.samples]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    top, ids = logits.topk(5)
    for share, token in zip((top / 0.7).softmax(0).tolist(), ids.tolist(), strict=True):
        text = tokenizer.decode([token], skip_special_tokens=True)
        assert texts.count(text) / len(texts) == pytest.approx(share, abs=0.03)
    last = system.replies(prompts[:1], 0)
    assert next(last)[0].samples == replies[0].samples
    assert replies[0].samples != replies[1].samples


def test_the_stage_writes_pairs_with_where_they_come_from(
    teachable: Any, workspace: Workspace
) -> None:
    section = PairsSection(samples=3, limit_rows=30, min_pairs=2)
    result = run_stage(STAGE, section, teachable, workspace)
    lines = (workspace.path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == result.metrics["pairs"] >= 2
    assert result.metrics["prompts"] == 30 == len(rows) + sum(result.metrics["no_pair"].values())
    assert all(row["chosen"] != row["rejected"] for row in rows)
    assert rows[0]["provenance"]["adapter_digest"] == teachable["adapter"].digest
    assert rows[0]["provenance"]["sampling"]["count"] == 3
    assert [gate.status for gate in result.gates] == ["pass"]


def test_stopped_it_goes_on_with_the_same_answers(teachable: Any, tmp_path: Path) -> None:
    section = PairsSection(samples=2, min_pairs=1)
    whole, parts = Workspace(tmp_path / "whole"), Workspace(tmp_path / "parts")
    for workspace in (whole, parts):
        workspace.path.mkdir()
    run_stage(STAGE, section, teachable, whole)
    parts.stop.requested = True
    stops = 0
    while True:
        try:
            run_stage(STAGE, section, teachable, parts)
            break
        except InterruptedRunError:
            stops += 1
            parts.stop.requested = stops < 2
    made = [(one.path / "pairs.jsonl").read_bytes() for one in (whole, parts)]
    assert made[0] == made[1]


def test_too_few_pairs_fail(teachable: Any, workspace: Workspace) -> None:
    section = PairsSection(samples=1, limit_rows=4, min_pairs=50)
    (gate,) = run_stage(STAGE, section, teachable, workspace).gates
    assert (gate.id, gate.status) == ("pairs-made", "fail")


def test_a_rule_and_its_judge_belong_together() -> None:
    for section in (
        PairsSection(rule="judge"),
        PairsSection(judge=JudgeSection(command=["true"])),
    ):
        with pytest.raises(ConfigError, match="belong together"):
            STAGE.check(section, frozenset())


@pytest.mark.parametrize(
    ("path", "filled", "said"),
    [("pairs:", [], "the config has no section pairs"), ("x.jsonl", ["pairs"], "nobody reads")],
)
def test_pairs_and_who_reads_them_belong_together(path: str, filled: list[str], said: str) -> None:
    section = PREFERENCES.section.model_validate(
        {"task": "preference", "sources": [{"path": path, "split": "train"}]}
    )
    with pytest.raises(ConfigError, match=said):
        PREFERENCES.check(section, frozenset(filled))


def test_from_own_answers_to_dpo(smol_tokenizer_dir: Path, tmp_path: Path) -> None:
    """Pairs are made after sft, and preferences read after them."""
    path = write_project(tmp_path, make_teachable_base(tmp_path / "base", smol_tokenizer_dir))
    config = read_dpo_config(path)
    config["sft"] |= {"epochs": 6, "lora": {"r": 16, "alpha": 32}}
    config["pairs"] = {"samples": 6, "min_pairs": 8, "max_new_tokens": 6, "temperature": 1.5}
    config["preferences"] = {
        "task": "preference",
        "sources": [{"path": "pairs:", "split": "train"}],
        "validation_fraction": 0.25,
        "max_length_tokens": 256,
    }
    config["dpo"] = {"learning_rate": 1e-3, "epochs": 1, "per_device_batch_size": 4}
    config["gates"]["validation-improves"] = "warn"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    done = luthier(tmp_path, "run", "run.yaml", "--json")
    assert done.returncode == 0, done.stderr
    stages = [step["stage"] for step in json.loads(done.stdout)["stages"]]
    assert stages == ["base", "prepare", "sft", "pairs", "preferences", "dpo", "evaluate"]
    again = luthier(tmp_path, "run", "run.yaml", "--json")
    assert {step["state"] for step in json.loads(again.stdout)["stages"]} == {"reuse"}
