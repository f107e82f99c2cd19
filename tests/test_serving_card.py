"""Model card and README: what they say, that they invent nothing, and that texts stay texts."""

import hashlib
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from card_cases import changed, facts_of, parity
from luthier.errors import DataError
from luthier.serving.bundle import write_documents
from luthier.serving.card import base_licence, model_card
from luthier.serving.parity_tables import parity_tables
from luthier.serving.run_record import run_record
from luthier.store import Artifact, Store
from report_cases import Sample, finished, make_config, make_run, sample
from report_contents import EVIL

__all__ = ["finished", "sample"]  # fixtures

RENDERER = MarkdownIt("commonmark").enable("table")


def shown(text: str) -> str:
    """What a reader of the rendered Markdown sees, without tags."""
    return html.unescape(re.sub(r"<[^>]*>", "", RENDERER.render(text)))


def section(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def cells(card: str, first: str) -> list[str]:
    """The row of a table whose first cell is `first`."""
    rows = [line.strip("| ").split("|") for line in card.splitlines() if line.startswith("|")]
    return next([cell.strip() for cell in row] for row in rows if row[0].strip() == first)


def test_the_card_says_what_the_manifests_say(sample: Sample) -> None:
    facts = facts_of(sample)
    card = model_card(facts)
    fields = ModelCard(card).data
    assert fields.license == "apache-2.0"
    assert fields.library_name == "transformers"
    assert fields.pipeline_tag == "text-generation"
    assert {"luthier", "lora", "sft", "classification"} <= set(fields.tags)
    assert fields.language is None, "no manifest names it"
    assert fields.model_name == "package-router"
    evaluation = Path(sample.artifacts["evaluate"].path / "evaluation.json").read_text("utf-8")
    accuracy = next(one for one in fields.eval_results if one.metric_type == "accuracy")
    assert f'"accuracy": {accuracy.metric_value}'[:16] in evaluation
    assert accuracy.dataset_split == "test"

    assert cells(section(card, "Data"), "records read")[1] == "550"
    assert cells(section(card, "Data"), "quarantined, could not be used")[1] == "5"
    assert cells(section(card, "Data"), "dropped by a rule")[1:] == ["13", "duplicate 13"]
    assert cells(section(card, "Data"), "train")[1] == "280"
    training = section(card, "Training")
    assert cells(training, "LoRA")[1] == "rank 16, alpha 32, dropout 0.0"
    assert cells(training, "learning rate")[1].startswith("0.0005")
    assert cells(training, "steps")[1].startswith("94")
    assert cells(training, "seed")[1] == "7"
    measured = section(card, "Evaluation")
    assert "the adapter on the base in float32" in measured
    score, interval = cells(measured, "`tuned/generation`")[1].split(" ", 1)
    assert score == f"{accuracy.metric_value:.3f}"
    assert re.fullmatch(r"\[0\.\d{3}, 0\.\d{3}\]", interval)
    assert "`zero-shot/generation`" in measured
    assert "F27: merged logits equal base + adapter: pass" in shown(section(card, "Merge"))
    for artifact in facts.artifacts.values():
        assert artifact.key[:16] in section(card, "Lineage")
        assert artifact.digest[:16] in section(card, "Lineage")


def test_no_text_of_a_user_becomes_markup(sample: Sample) -> None:
    facts = facts_of(sample, system_prompt=f"{EVIL}\n---\n````\n# not a heading\n{{{{ 7 * 7 }}}}")
    card = model_card(facts)
    body = card.split("\n---\n", 1)[1]
    rendered = RENDERER.render(body)
    assert "<script" not in rendered
    assert rendered.count("<h1>") == 1
    assert shown(body).count("{{ 7 * 7 }}") == 2, "as it is, in the prompt and in the snippet"
    assert f"{EVIL} 1" in shown(section(card, "Data")), "a reason of quarantine"
    assert "<script" not in RENDERER.render(parity_tables(facts.parity))


def test_the_same_artifacts_give_the_same_card(sample: Sample, tmp_path: Path) -> None:
    """Versions, times and machine are in the record of the run alone."""
    config = make_config(tmp_path)
    other = make_run(Store(tmp_path / "other"), config)
    late = {"created_at": "2031-01-01T00:00:00+00:00", "timings_seconds": {"stage": 9999.0}}
    again = {
        slot: changed(artifact, version=9, **late)
        for slot, artifact in facts_of(other).artifacts.items()
    }
    assert model_card(facts_of(other, artifacts=again)) == model_card(facts_of(sample))
    record = run_record(again)
    assert "`package-router/adapter@v9`" in record
    assert "167 min" in record
    assert record.count("2031-01-01") == len(again)


def test_what_no_manifest_says_is_said_to_be_unknown(sample: Sample) -> None:
    facts = facts_of(sample)
    bare = changed(facts.artifacts["base"], facts=None)
    kept = {"base": bare, "dataset": facts.artifacts["dataset"], "model": facts.artifacts["model"]}
    card = model_card(replace(facts, artifacts=kept, parity=[]))
    fields = ModelCard(card).data
    assert fields.license == "unknown"
    assert fields.base_model is None
    assert fields.eval_results is None
    assert "`license: unknown`" in section(card, "Licence")
    assert "was not evaluated on its task" in section(card, "Evaluation")
    assert "Nothing is recorded of the training" in section(card, "Training")
    assert "Not measured: the task itself." in section(card, "Limits")
    assert "Exported types" not in card
    assert cells(section(card, "Base model"), "architecture")[1] == "unknown"


def test_a_hub_base_and_its_relation(sample: Sample) -> None:
    source = {"source": {"kind": "hub", "name": "owner/tiny", "revision": "ab" * 20}}
    base = changed(sample.artifacts["base"], facts=source)
    facts = facts_of(sample, artifacts={"base": base})
    fields = ModelCard(model_card(facts)).data
    assert fields.base_model == "owner/tiny"
    assert fields.get("base_model_relation") == "finetune"
    adapter = ModelCard(model_card(facts, "adapter")).data
    assert adapter.get("base_model_relation") == "adapter"
    assert adapter.library_name == "peft"
    assert "ab" * 20 in model_card(facts)


def test_long_label_lists_are_counted(tmp_path: Path) -> None:
    labels = [f"label {number} | `x`" for number in range(77)]
    made = make_run(Store(tmp_path / "store"), make_config(tmp_path), labels=labels)
    card = model_card(facts_of(made))
    data = section(card, "Data")
    assert "Labels (77):" in data
    assert "and 47 more." in data
    assert "label 29 | `x`" in shown(data)
    assert "label 30" not in data
    assert "the 47 best are left out" in section(card, "Evaluation")
    assert re.search(r">label \d+ \| `x`</code></td>", RENDERER.render(card)), "a cell of its own"


def test_qlora_says_on_which_base_it_was_measured(sample: Sample) -> None:
    training = {"method": "qlora", "quantization": {"type": "nf4"}, "dtype": "bfloat16"}
    adapter = changed(sample.artifacts["sft"], facts={"training": training})
    card = model_card(facts_of(sample, artifacts={"adapter": adapter}))
    assert "quantised as in training (nf4), not the merged weights" in section(card, "Evaluation")
    assert "qlora" in ModelCard(card).data.tags


def test_after_dpo_both_trainings_are_told(sample: Sample, tmp_path: Path) -> None:
    """The shape of an adapter that went on from another is its files', not its config's."""
    saved = {
        "r": 5, "lora_alpha": 10, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": True, "use_dora": False,
        "modules_to_save": ["lm_head"],
    }  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved))
    before = sample.artifacts["sft"]
    config = {"reference": "sft", "beta": 0.2, "loss_type": ["sigmoid", "sft"], "lora": {"r": 16}}
    changes: dict[str, Any] = {"stage": "dpo", "config": config}
    dpo = Artifact(tmp_path, changed(before, **changes).manifest)
    card = model_card(facts_of(sample, artifacts={"before": before, "adapter": dpo}))
    first, last = section(card, "Training").split("Last, DPO:")
    assert "First, SFT:" in first
    assert cells(first, "LoRA")[1].startswith("rank 16")
    assert cells(last, "LoRA")[1] == "rank 5, alpha 10, dropout 0.0"
    assert cells(last, "besides")[1] == "rsLoRA, lm_head whole"
    assert cells(last, "loss")[1] == "sigmoid, sft"
    assert cells(last, "reference, beta")[1] == "sft, 0.2"
    assert "tuned by DPO with LoRA" in card
    assert [line.split("|")[1].strip() for line in section(card, "Lineage").splitlines()[6:]] == [
        *("base", "dataset", "before", "adapter", "baseline", "evaluation", "model"),
    ]


def test_what_is_left_of_general_skills(sample: Sample) -> None:
    assert "general skills" in section(model_card(facts_of(sample)), "Limits")
    path = sample.artifacts["evaluate"].path / "evaluation.json"
    path.chmod(0o644)
    found = json.loads(path.read_text("utf-8"))
    texts = {
        "before_nats": 3.1,
        "after_nats": 3.14,
        "increase_nats": 0.04,
        "interval": [0.01, 0.07],
    }
    path.write_text(json.dumps(found | {"retention": {"texts": texts, "questions": None}}))
    card = model_card(facts_of(sample))
    assert "general text: 3.140 nats a token, base 3.100; +0.040 [+0.010, +0.070]" in shown(card)
    assert "general skills" not in section(card, "Limits")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"licence": "Apache-2.0"}, ("apache-2.0", None)),
        ({"licence": "llama3.1"}, ("llama3.1", None)),
        ({"licence": "other", "licence_name": "gemma-terms"}, ("other", "gemma-terms")),
        ({"licence": "My own: [licence]"}, ("other", "my-own-licence")),
        ({"licence": ""}, ("unknown", None)),
        ({}, ("unknown", None)),
    ],
)
def test_licences_as_the_hub_spells_them(
    sample: Sample, facts: dict[str, Any], expected: tuple[str, str | None]
) -> None:
    base = changed(changed(sample.artifacts["base"], facts=None), facts=facts)
    found = base_licence(base)
    assert (found.id, found.name) == expected


def test_documents_and_checksums(sample: Sample, tmp_path: Path) -> None:
    (sample.artifacts["base"].path / "LICENSE").write_bytes(b"mine\n")
    bundle = tmp_path / "bundle"
    for name in ("vllm", "ollama", "hub", "_scratch"):
        (bundle / name).mkdir(parents=True)
    (bundle / "vllm" / "model.safetensors").write_bytes(b"weights")
    (bundle / "hub" / "model.safetensors").hardlink_to(bundle / "vllm" / "model.safetensors")
    (bundle / "ollama" / "Modelfile").write_text("FROM x\n")
    (bundle / "_scratch" / "left").write_text("x")
    command = ("vllm serve owner/tiny --enable-lora --max-lora-rank 16",)
    facts = facts_of(sample, adapter_command=command)
    write_documents(bundle, facts)
    first = (bundle / "SHA256SUMS").read_bytes()
    write_documents(bundle, facts)
    assert (bundle / "SHA256SUMS").read_bytes() == first

    sums = dict(line.split("  ")[::-1] for line in first.decode().splitlines())
    for name, digest in sums.items():
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest
    left_out = {"SHA256SUMS", "measured/RUN.md", "_scratch/left"}
    there = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert set(sums) == there - left_out
    assert (bundle / "hub" / "README.md").read_bytes() == (bundle / "MODEL_CARD.md").read_bytes()
    assert (bundle / "LICENSE").read_bytes() == b"mine\n"
    assert (bundle / "hub" / "LICENSE").read_bytes() == b"mine\n"
    assert "`LICENSE`" in section((bundle / "MODEL_CARD.md").read_text(), "Licence")

    readme = (bundle / "README.md").read_text("utf-8")
    assert "vllm serve ./vllm --config vllm/serve.yaml" in readme
    assert command[0] in readme
    assert "ollama create package-router:q8_0 -f ollama/Modelfile" in readme
    assert "llama-server -m ollama/model-q8_0.gguf -c 2048" in readme
    assert "luthier upload . --repo OWNER/NAME" in readme
    for port in (8000, 11434, 8080):
        assert f"luthier serve-check . --endpoint http://127.0.0.1:{port}/v1" in readme


def test_only_targets_that_are_there_are_told_of(sample: Sample, tmp_path: Path) -> None:
    (tmp_path / "bundle" / "vllm").mkdir(parents=True)
    write_documents(tmp_path / "bundle", facts_of(sample, parity=[]))
    readme = (tmp_path / "bundle" / "README.md").read_text("utf-8")
    for absent in ("ollama", "llama-server", "upload", "## Measured"):
        assert absent not in readme


def test_the_parity_tables() -> None:
    lossy = parity(
        "q4_0",
        is_too_lossy=True,
        would_pass="q8_0",
        failed_gates=("gguf-answers",),
        modelfile=None,
    )
    unsure = parity("q2_k", is_too_lossy=True, mean_kl_nats=None, score_difference=None)
    wrong = parity("f16", failed_gates=("gguf-ids", "served-is-tuned"), text_mismatches=3)
    tables = parity_tables([parity(), lossy, unsure, wrong])
    verdicts, tokens, answers = re.findall(r"(?:^\|.*\n)+", tables, re.MULTILINE)
    assert cells(verdicts, "q8_0")[1:] == ["pass", "144.8 MB", "model-q8_0.gguf"]
    assert cells(verdicts, "q4_0")[1] == "too lossy: q8_0 would pass"
    assert cells(verdicts, "q2_k")[1] == "too lossy: no type tried would pass"
    assert cells(verdicts, "f16")[1] == "failed: gguf-ids, served-is-tuned"
    assert cells(tokens, "q8_0")[1:] == ["0 of 1,312", "1 of 40", "0.0012", "0.021", "99.3 %"]
    assert cells(tokens, "f16")[1] == "3 of 1,312"
    assert cells(tokens, "q2_k")[3] == "not measured"
    assert cells(answers, "q8_0")[1:] == [
        *("99.0 %", "83.0 %", "82.0 %", "-3.0 to +1.0 points", "100.0 %", "100.0 % of 97"),
    ]
    for one in (verdicts, tokens, answers):
        assert len({len(line) for line in one.splitlines()}) == 1, "it lines up in a terminal"


def test_a_damaged_evaluation_is_named(sample: Sample) -> None:
    path = sample.artifacts["evaluate"].path / "evaluation.json"
    path.chmod(0o644)
    path.write_text("{")
    with pytest.raises(DataError, match=r"evaluation\.json"):
        model_card(facts_of(sample))
