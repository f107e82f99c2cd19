"""`luthier cost`: what is measured and what is not, errors, terminal, JSON and the page."""

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from cost_cases import COST, STATED, make_sample, steps_of, write_cost_config
from luthier.cli import call
from luthier.costing import Costing, reckon
from luthier.errors import ConfigError
from luthier.estimate.architecture import read_architecture
from luthier.estimate.hardware import GPUS
from luthier.estimate.throughput import predict_throughput
from luthier.pipeline import Pipeline, load_run
from luthier.report.cost import cost_json, verdict
from luthier.store import Store
from project import ROOT, write_project
from test_report_page import Page

TODAY = date(2026, 11, 24)
OWN: Mapping[str, Any] = COST["own"]
RTX = "NVIDIA GeForce RTX 4090"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTHIER_STORE", "store")
    monkeypatch.setenv("COLUMNS", "220")
    return tmp_path


def known(costing: Costing) -> dict[str, tuple[float, str]]:
    return {one.what: (one.known.value, one.known.origin) for one in costing.assumptions}


def test_costs_and_crossover_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in tests/test_estimate_cost.py by hand: 0.0045 USD a request against 280 USD a month."""
    write_cost_config(here, STATED)
    assert call(["cost", "run.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["priced_on"] == "2026-11-01"
    assert found["tokens_per_request"] == 200
    crossing = found["crossover"]["API"]
    assert crossing["verdict"] == "from"
    assert crossing["requests_per_month"] == [[pytest.approx(280 / 0.0045), None]]
    assert crossing["tokens_per_month"] == [[pytest.approx(200 * 280 / 0.0045), None]]
    volumes = {round(one["tokens_per_month"]): one for one in found["volumes"]}
    assert set(volumes) > {1_000_000, 5_000_000, 10_000_000, 50_000_000, 100_000_000}
    assert volumes[1_000_000]["usd"] == pytest.approx({"API": 22.5, "own model": 280})
    assert volumes[1_000_000]["cheapest"] == ["API"]
    assert volumes[1_000_000]["payback_months"] == {"API": None}
    at = volumes[round(200 * 280 / 0.0045)]
    assert at["cheapest"] == ["API", "own model"]
    assert volumes[100_000_000]["cheapest"] == ["own model"]
    assert volumes[100_000_000]["payback_months"]["API"] == pytest.approx(1200 / (2250 - 180))
    row = next(one for one in found["sensitivity"]["API"] if one["what"] == "training, USD")
    assert row["half"]["requests_per_month"] == [[pytest.approx(230 / 0.0045), None]]
    assert {one["origin"] for one in found["assumptions"]} == {"yours", "default"}


def test_the_terminal_says_what_where_from_and_when(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    retrieval = {"extra_input_tokens": 2000, "price_usd_per_month": 70}
    write_cost_config(here, {**STATED, "retrieval": retrieval, "requests_per_month": 100_000})
    assert call(["cost", "run.yaml"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for expected in (
        "monthly cost in USD, your prices of 2026-11-01",
        "price of a GPU hour 1.8 USD yours (of 2026-11-01)",
        "utilisation of a GPU 1 of full load default",
        "20 M 100,000 450.00 1,120.00 * 280.00 4.4 1.3",
        "the own model costs less from 12.4 M tokens a month, that is from 62,223 requests",
        "training, USD 1,200 600 from 10.2 M 2,400 from 16.9 M",
        "200 a request",
    ):
        assert expected in said


def test_the_page_has_the_plot_and_the_tables(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cost_config(here, STATED)
    assert call(["cost", "run.yaml", "--plot", "cost.html"]) == 0
    assert "cost.html" in capsys.readouterr().out
    page = Page(here / "cost.html")
    assert page.loads == []
    for expected in ("from 12.4 M tokens a month", "* 280.00", "yours (of 2026-11-01)"):
        assert expected in page.text
    data = json.loads(page.plot_data())["data"]
    assert [trace["name"] for trace in data] == ["API", "own model", "crossover"]
    assert data[2]["x"] == pytest.approx([200 * 280 / 0.0045])
    assert data[2]["y"] == pytest.approx([280])


def test_a_page_that_cannot_be_written_is_said(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cost_config(here, STATED)
    assert call(["cost", "run.yaml", "--plot", "no/such/cost.html"]) == 2
    assert "error: --plot no/such/cost.html: No such file" in capsys.readouterr().err


def test_measured_on_the_gpu_that_is_priced(here: Path) -> None:
    sample = make_sample(here, COST)
    found = known(reckon(sample.config, steps_of(sample, gpu=RTX), TODAY))
    assert found["prompt of the tuned model"] == (120.5, "measured")
    assert found["answer of the tuned model"] == (4.5, "measured")
    assert found["prompt of the API"] == (940.0, "measured")
    assert found["answer of the API"] == (4.5, "measured")
    assert found["requests of one GPU"] == (3.5, "measured")
    assert found["training"] == (pytest.approx(0.5), "measured")  # an hour


def test_what_a_cpu_measured_is_no_cost_of_a_gpu(here: Path) -> None:
    sample = make_sample(here, COST)
    costing = reckon(sample.config, steps_of(sample), TODAY)
    found = known(costing)
    config = json.loads((sample.artifacts["base"].path / "config.json").read_text("utf-8"))
    predicted = predict_throughput(read_architecture(config), GPUS["rtx-4090"], 120.5, 4.5)
    assert found["requests of one GPU"] == (predicted.requests_per_second, "predicted")
    assert found["training"][1] == "predicted"
    assert 0 < found["training"][0] < 0.5
    assert found["prompt of the tuned model"] == (120.5, "measured")  # the same anywhere
    notes = " ".join(costing.notes)
    assert "sft took 3,600 s on a CPU. Those are no hours of rtx-4090" in notes
    assert "3.5 requests a second were measured (evaluate, tuned/generation, on a CPU)" in notes


def test_another_gpu_is_not_the_one_that_is_priced(here: Path) -> None:
    sample = make_sample(here, COST)
    costing = reckon(sample.config, steps_of(sample, gpu="NVIDIA H100 80GB HBM3"), TODAY)
    assert known(costing)["requests of one GPU"][1] == "predicted"
    assert "no hours of rtx-4090" in " ".join(costing.notes)


def test_without_a_name_the_price_is_of_the_gpu_that_measured(here: Path) -> None:
    sample = make_sample(here, {**COST, "own": {"price_usd_per_gpu_hour": 2.0}})
    costing = reckon(sample.config, steps_of(sample, gpu="NVIDIA L4"), TODAY)
    assert known(costing)["requests of one GPU"] == (3.5, "measured")
    assert known(costing)["training"] == (2.0, "measured")
    assert "taken to be that of the GPU that was measured" in " ".join(costing.notes)
    with pytest.raises(ConfigError, match=r"cost\.own\.gpu: cpu takes what a CPU measured"):
        reckon(sample.config, steps_of(sample), TODAY)


def test_a_priced_cpu_takes_what_the_cpu_measured(here: Path) -> None:
    own = {"price_usd_per_gpu_hour": 0.1, "gpu": "cpu"}
    sample = make_sample(here, {**COST, "own": own})
    costing = reckon(sample.config, steps_of(sample), TODAY)
    assert known(costing)["requests of one GPU"] == (3.5, "measured")
    assert known(costing)["training"] == (pytest.approx(0.1), "measured")
    assert costing.notes == (
        "tokens are counted by the base's tokenizer; your provider's counts the same text "
        "differently",
    )


def test_what_is_not_measured_follows_from_the_rows(here: Path) -> None:
    """Training rows of report_contents: 30 to 90 tokens, 3 of them answer; 8 examples."""
    sample = make_sample(here, COST)
    steps = steps_of(sample, without=("baseline", "sft", "evaluate"))
    costing = reckon(sample.config, steps, TODAY)
    lengths = [30 + row * 7 % 61 for row in range(280)]
    prompt = sum(lengths) / len(lengths) - 3
    found = known(costing)
    assert found["prompt of the tuned model"] == (pytest.approx(prompt), "measured")
    assert found["answer of the tuned model"] == (3.0, "measured")
    assert found["prompt of the API"] == (pytest.approx(prompt + 8 * (prompt + 3)), "predicted")
    assert found["training"][1] == "predicted"


def test_what_the_user_says_comes_first(here: Path) -> None:
    own = {**OWN, "requests_per_second": 50.0, "training_usd": 700}
    stated = {**COST, "own": own, "prompt_tokens": 99, "tokens_per_month": 1e6}
    sample = make_sample(here, stated)
    costing = reckon(sample.config, steps_of(sample, gpu=RTX), TODAY)
    assert known(costing)["requests of one GPU"] == (50.0, "yours")
    assert known(costing)["training"] == (700, "yours")
    assert known(costing)["prompt of the tuned model"] == (99, "yours")
    assert costing.requests_per_month == pytest.approx(1e6 / (99 + 4.5))


@pytest.mark.parametrize("content", [b"not json", b"[]", b'{"tuned/generation": 3}', b"{}"])
def test_a_speed_file_that_says_nothing_is_as_none(here: Path, content: bytes) -> None:
    sample = make_sample(here, COST)
    for stage in ("baseline", "evaluate"):
        path = sample.artifacts[stage].path / "measured" / "speed.json"
        path.chmod(0o644)
        path.write_bytes(content)
    costing = reckon(sample.config, steps_of(sample, gpu=RTX), TODAY)
    assert known(costing)["requests of one GPU"][1] == "predicted"


def test_an_example_price_is_marked_wherever_it_is_shown(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"gpu": "a100-80gb", "price": "example-table", **STATED["own"]}
    del own["price_usd_per_gpu_hour"]
    write_cost_config(here, {**STATED, "own": own})
    assert call(["cost", "run.yaml", "--plot", "cost.html"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert call(["cost", "run.yaml", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    price = next(one for one in values["assumptions"] if one["what"] == "price of a GPU hour")
    assert (price["value"], price["origin"]) == (2.45, "example table")
    assert "March 2026" in price["detail"]
    for text in (said, Page(here / "cost.html").text, " ".join(values["notes"])):
        assert "is an example, not an offer: a100-80gb, RunPod on demand" in text


def test_old_and_future_prices_are_pointed_out(here: Path) -> None:
    config = load_run(str(write_cost_config(here, STATED)), [])
    assert reckon(config, [], TODAY).notes == ()
    assert "365 days old" in reckon(config, [], date(2027, 11, 1)).notes[0]
    assert "in the future" in reckon(config, [], date(2026, 10, 1)).notes[0]


def own(**values: Any) -> dict[str, Any]:
    return {**COST, "own": values}


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ({"priced_on": "2026-11-01", "own": OWN}, "run.yaml:2: cost.api is missing"),
        (
            {**COST, "api": {"price_usd_per_million_input_tokens": 3.0}},
            "run.yaml:4: cost.api.price_usd_per_million_output_tokens is missing (US dollars for",
        ),
        (
            {"api": COST["api"], "own": OWN},
            "run.yaml:2: cost.priced_on is missing (day on which your prices held",
        ),
        ({**COST, "priced_on": "soon"}, "run.yaml:3: cost.priced_on must be a valid date"),
        (own(gpu="rtx-4090"), "run.yaml:7: cost.own must have price_usd_per_gpu_hour, what you"),
        (own(gpu="rtx-4090", price_usd_per_gpu_hour=-1), "must be greater than 0, got -1"),
        (own(gpu="rtx-4090", price_usd_per_gpu_hour=0), "must be greater than 0, got 0"),
        (own(gpu="rtx-4091", price_usd_per_gpu_hour=1), "Did you mean rtx-4090?"),
        (own(price="example-table"), "cost.own: price: example-table needs the name of the GPU"),
        (
            own(gpu="rtx-4090", price="example-table", price_usd_per_gpu_hour=1),
            "one of the two",
        ),
        (
            own(price_usd_per_gpu_hour=1, whole_gpus=True, gpu_hours_per_month=0),
            "Give the hours of one GPU",
        ),
        (
            own(price_usd_per_gpu_hour=1, utilisation=1.5),
            "cost.own.utilisation must be at most 1, got 1.5",
        ),
        (
            {**COST, "api": dict.fromkeys(COST["api"], 0.0)},
            "cost.api: both prices are 0",
        ),
        (
            {**COST, "api": {**COST["api"], "price_usd_per_million_input_tokens": 3e-6}},
            "3e-06 USD for a million tokens looks like the price of one token",
        ),
        ({**COST, "retrieval": {}}, "cost.retrieval must have extra_input_tokens or"),
        (
            {**COST, "requests_per_month": 10, "tokens_per_month": 10},
            "cost must have requests_per_month or tokens_per_month, not both",
        ),
    ],
)
def test_prices_that_make_no_sense_are_refused_with_their_line(
    here: Path, cost: Mapping[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cost_config(here, cost)
    assert call(["cost", "run.yaml"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (COST, "cost.prompt_tokens is not known. Give it (tokens, the mean over your requests)"),
        ({**COST, "prompt_tokens": 9, "answer_tokens": 1}, "Give it, or run: luthier base"),
        (
            {**COST, "prompt_tokens": 9, "answer_tokens": 1}
            | {"own": {**OWN, "requests_per_second": 1}},
            "cost.own.training_usd is not known: the config has no section sft or dpo",
        ),
    ],
)
def test_what_is_neither_given_nor_measured_is_asked_for(
    here: Path, cost: Mapping[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cost_config(here, cost)
    assert call(["cost", "run.yaml"]) == 2
    assert message in capsys.readouterr().err


def test_without_the_section_the_command_says_where_to_begin(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "run.yaml").write_text("name: router\n", encoding="utf-8")
    assert call(["cost", "run.yaml"]) == 2
    assert "there is no section cost, and luthier ships no prices" in capsys.readouterr().err


def test_prices_change_no_stage_and_no_plan(here: Path, tiny_base: Path) -> None:
    path = write_project(here, tiny_base)
    plain = Pipeline(load_run(str(path), []), Store.default())
    path.write_text(
        path.read_text(encoding="utf-8") + "cost:\n  priced_on: 2026-11-01\n"
        "  api: {price_usd_per_million_input_tokens: 3, price_usd_per_million_output_tokens: 15}\n"
        "  own: {gpu: rtx-4090, price: example-table}\n",
        encoding="utf-8",
    )
    priced = Pipeline(load_run(str(path), []), Store.default())
    assert "cost" in priced.config.sections

    def keys(pipeline: Pipeline) -> list[str]:
        done = [pipeline.run_stage(name) for name in ("base", "prepare")]
        return [one.artifact.key for one in done]

    assert keys(plain) == keys(priced)
    assert [step.stage for step in priced.plan()] == [step.stage for step in plain.plan()]

    found = reckon(priced.config, priced.plan(), TODAY)
    assert {what: origin for what, (_, origin) in known(found).items()} == {
        "prompt of the tuned model": "measured",
        "answer of the tuned model": "measured",
        "prompt of the API": "predicted",
        "answer of the API": "measured",
        "price of 1 M input tokens": "yours",
        "price of 1 M output tokens": "yours",
        "price of a GPU hour": "example table",
        "requests of one GPU": "predicted",
        "training": "predicted",
        "GPU hours paid anyway": "default",
        "utilisation of a GPU": "default",
        "amortisation of training": "default",
        "trained again": "default",
    }


def test_the_example_of_the_document_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    example = document.partition("```yaml\n")[2].partition("```")[0]
    (here / "run.yaml").write_text(f"name: router\n{example}", encoding="utf-8")
    said = (
        "prompt_tokens=200", "answer_tokens=10", "own.training_usd=300",
        "own.requests_per_second=8",
    )  # fmt: skip
    arguments = [part for one in said for part in ("--set", f"cost.{one}")]
    assert call(["cost", "run.yaml", *arguments]) == 0
    assert "retrieval + API  the own model costs less from" in capsys.readouterr().out


def test_ranges_have_ends_in_words_and_in_json(here: Path) -> None:
    """As by hand in tests/test_estimate_cost.py: one GPU from 25,000 to 36,000 requests."""
    section = {
        **STATED,
        "api": {
            "price_usd_per_million_input_tokens": 4.0,
            "price_usd_per_million_output_tokens": 0.0,
            "prompt_tokens": 1000,
        },
        "own": {
            "price_usd_per_gpu_hour": 10, "requests_per_second": 1.0, "training_usd": 0,
            "gpu_hours_per_month": 10, "whole_gpus": True,
        },
    }  # fmt: skip
    config = load_run(str(write_cost_config(here, section)), [])
    costing = reckon(config, [], TODAY)
    found = cost_json(costing)["crossover"]["API"]
    assert found["verdict"] == "ranges"
    assert found["requests_per_month"][0] == [pytest.approx(25_000), 36_000]
    assert found["requests_per_month"][-1] == [pytest.approx(75_000), None]
    assert verdict(costing, costing.asked[0]) == (
        "the own model costs less from 5 M to 7.2 M, from 10 M to 14.4 M, from 15 M tokens a "
        "month, that is from 25,000 requests; outside, further GPU hours make it the dearer one"
    )
