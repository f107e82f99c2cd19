"""The summary of a run: numbers, verdicts, missing stages."""

import json
import math
from pathlib import Path

from luthier.report import Summary, summarise
from luthier.store import Store
from report_cases import Sample, finished, make_config, make_run, sample
from report_contents import LABELS, answers_of

__all__ = ["finished", "sample"]


def test_sample_is_in_order(sample: Sample) -> None:
    assert list(sample.artifacts) == list(sample.config.sections)
    for artifact in sample.artifacts.values():
        sample.store.verify(artifact)


def test_summary_has_every_number(sample: Sample) -> None:
    summary = summarise(sample.config, sample.artifacts)
    by_system = {score.system: score for score in summary.systems}
    assert [score.role for score in summary.systems] == ["baseline", "baseline", "tuned", "served"]
    right = sum(answer.correct for answer in answers_of("tuned/generation", 0.83, LABELS))
    assert by_system["tuned/generation"].score == right / 210
    assert by_system["few-shot/generation"].title == "base 8-shot, free answer"
    assert by_system["gguf/q8_0"].score == 0.82
    assert by_system["gguf/q8_0"].low < 0.82 < by_system["gguf/q8_0"].high
    assert summary.sizes_bytes == {"adapter": 19000, "merged": 54000, "model-q8_0.gguf": 14500}
    assert summary.seconds["sft"] == 195.9
    assert summary.training["seconds"] == 187.2
    assert summary.target is not None
    assert summary.target.advice == "fine-tune"
    assert [one.stage for one in summary.gates] == [
        "base", "prepare", "sft", "evaluate", "merge", "export",
    ]  # fmt: skip
    assert summary.verdict.tone == "good"
    assert "beats the best prompted baseline, base 8-shot, free answer" in summary.verdict.sentence


def test_summary_is_json(sample: Sample) -> None:
    read = json.loads(json.dumps(summarise(sample.config, sample.artifacts).as_json()))
    assert read["name"] == "package-router"
    assert read["comparison"]["verdict"] == "better"
    assert read["gates"]["merge"][0]["id"] == "merge-parity"
    assert read["bundle"] == str(sample.artifacts["export"].path)
    assert read["serving"][0]["lines"][0].startswith("vllm serve artifacts/export/")
    assert summarise(sample.config, {}).as_json()["bundle"] is None


def judged(tmp_path: Path, *, baseline: bool = True, **shares: float) -> tuple[Sample, Summary]:
    run = make_run(Store(tmp_path / "s"), make_config(tmp_path, baseline=baseline), **shares)  # type: ignore[arg-type]
    return run, summarise(run.config, run.artifacts)


def test_close_scores_cannot_tell_and_the_gate_stopped_it(tmp_path: Path) -> None:
    run, summary = judged(tmp_path, tuned=0.5, prompted=0.5)
    assert summary.comparison is not None
    assert summary.comparison.verdict == "cannot tell"
    assert summary.verdict.word == "stopped"
    assert "beats-baseline (measured cannot tell, wanted == better)" in summary.verdict.sentence
    assert "These rows cannot tell whether" in summary.verdict.sentence
    lowered = make_config(tmp_path)
    lowered = type(lowered)(**{**vars(lowered), "gates": {"beats-baseline": "warn"}})
    verdict = summarise(lowered, run.artifacts).verdict
    assert (verdict.tone, verdict.word) == ("unsure", "cannot tell")
    needed = summary.comparison.rows_needed
    assert needed is None or needed > summary.comparison.rows


def test_too_few_rows_say_how_many_would_do(tmp_path: Path) -> None:
    _, summary = judged(tmp_path, tuned=0.52, prompted=0.48)
    assert summary.comparison is not None
    assert summary.comparison.rows_needed is not None
    rounded = math.ceil(summary.comparison.rows_needed / 100) * 100
    assert f"about {rounded:,} rows would do" in summary.verdict.sentence


def test_worse_than_the_baseline_says_so(tmp_path: Path) -> None:
    _, summary = judged(tmp_path, tuned=0.2, prompted=0.6)
    assert summary.verdict.tone == "bad"
    assert "The tuned model is worse than the best prompted baseline" in summary.verdict.sentence


def test_without_baseline_there_is_a_score_and_no_comparison(tmp_path: Path) -> None:
    _, summary = judged(tmp_path, baseline=False)
    assert summary.comparison is None
    assert summary.verdict.word == "not compared"
    assert "add a baseline section" in summary.verdict.sentence


def test_run_until_sft_is_not_evaluated(sample: Sample) -> None:
    summary = summarise(sample.config, sample.until("sft"))
    assert summary.verdict.word == "not evaluated"
    assert [score.role for score in summary.systems] == ["baseline", "baseline"]
    assert summary.serving == []
