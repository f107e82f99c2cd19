"""What people see of a sweep: the page, the table and the JSON, of real studies."""

import json
import re
from pathlib import Path

import pytest

from luthier.report.sweep_figures import sweep_figures
from luthier.report.sweep_page import write_sweep_page
from luthier.report.sweep_terminal import sweep_json, sweep_table
from luthier.report.sweep_words import next_commands, short_names, spell_value
from report_contents import EVIL
from sweep_report_cases import ACCURACY, Sweep, make_sweep, whole_sweep
from test_report_page import Page
from test_report_terminal import columns, output, printed

__all__ = ["columns", "output"]
LOSS = "{metric: sft.validation_loss}"
RATE = "    sft.learning_rate: {log_uniform: [3.0e-4, 4.0e-3]}\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return whole_sweep(tmp_path_factory.mktemp("sweep"))


def page_of(sweep: Sweep) -> Page:
    return Page(write_sweep_page(sweep.study, sweep.state))


def worst_change(sweep: Sweep) -> str:
    """The interval of the last candidate's difference to the first."""
    ranking = sweep.state.ranking
    assert ranking is not None
    behind = ranking.ranked[-1].behind
    assert behind is not None
    assert behind.interval is not None
    return " to ".join(f"{100 * end:+.1f}" for end in behind.interval)


def table_of(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> str:
    sweep_table(sweep.state, Path("reports/router-sweep.html"))
    return re.sub(r"\s+", " ", capsys.readouterr().out)


def test_the_table_says_what_every_trial_came_to(
    whole: Sweep, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    sweep_table(whole.state, Path("reports/router-sweep.html"))
    # A config's path can be long, and commands are never wrapped.
    config = str(whole.study.plan.config.path)
    said = capsys.readouterr().out.replace(config, "router.yaml")
    print(said, end="")  # noqa: T201
    words = re.sub(r"\s+", " ", printed(capsys, output))
    for expected in (
        "router: not done yet accuracy (higher is better); trials: 4 done, 1 pruned, 1 gate "
        "failed, 1 failed, 1 interrupted, of 8 wanted",
        "77.6 % 70.4 to 83.5 % 3 min 6 s the winner", "2 55.0 %", "4 20 s pruned after 25 %",
        "5 20 s gate failed", "6 20 s failed", "7 0.0 s interrupted",
        "Their values", "0 learning_rate 0.000352, r 32, dropout 0.05, method qlora, type fp4",
        "Against trial 1; p allows for 6 comparisons (Holm) trial seeds deviation change",
        "1 3 0.4 the first", f"2 1 – -22.6 {worst_change(whole)} < 0.0001 worse",  # noqa: RUF001
        "cannot be told from", "77.6 % is the best of 4",
        "On 210 test rows trial 1 has accuracy 77.1 %, 95 % interval 71.0 to 82.3 %. "
        "Its rules say: ship.",
        "trial 6 failed: DataError: a row has <b>no</b> text time 9 min 16 s of all trials",
        "page reports/router-sweep.html", "luthier sweep router.yaml --retry-failed",
        "luthier sweep best router.yaml --write configs/best.yaml luthier run configs/best.yaml",
    ):  # fmt: skip
        assert expected in words, expected
    assert "second line" not in words


def test_few_parameters_have_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = make_sweep(tmp_path, parameters=RATE)
    sweep.done(0.7)
    words = table_of(sweep, capsys)
    assert "trial learning_rate accuracy 95 % interval time" in words
    assert "Their values" not in words
    assert "Against" not in words
    assert "Trial 0 was not asked the test rows yet." in words


def test_the_page_shows_all_of_it(whole: Sweep) -> None:
    path = write_sweep_page(whole.study, whole.state)
    assert path == whole.study.store.root / "reports" / "router-sweep.html"
    page = Page(path)
    for expected in (
        "not done yet Trial 1 (learning_rate 0.0019, r 8, dropout 0, method lora) is ahead with "
        "accuracy 77.6 % on the validation rows.",
        "77.6 % is the best of 4; allowing for that choice",
        "trial 1, the winner learning_rate 0.0019, r 8, dropout 0, method lora 77.6 % "
        "70.4 to 83.5 % 3 0.4 the first", f"-22.6 ({worst_change(whole)}) < 0.0001 worse",
        "On 210 test rows trial 1 has accuracy 77.1 %", "luthier show router/evaluation@v",
        "0.00226 16 0.1 qlora fp4 20 s pruned after 25 %",
        "Trial 6, failed: DataError: a row has <b>no</b> text",
        "DataError: a row has <b>no</b> text and a second line",
        "sft.learning_rate a number from 0.0003 to 0.004, on a logarithmic scale",
        "sft.lora.r one of 4, 8, 16, 32", "sft.lora.dropout a number from 0 to 0.1, in steps of",
        "sft.quantization.type one of nf4, fp4 sft.method is qlora",
        "the best 2, 3 seeds each", "0.39 USD at 2.5 USD an hour", whole.study.plan.key,
        f"luthier sweep {whole.study.plan.config.path}", "evaluate_every_fraction: 0.25",
    ):  # fmt: skip
        assert expected in page.text, expected


def test_the_page_is_whole_and_loads_nothing(whole: Sweep) -> None:
    page = page_of(whole)
    assert all(load.startswith("#") for load in page.loads)
    assert "link" not in page.tags
    assert "b" not in page.tags, "an error is text"
    assert page.handlers == []
    assert "default-src 'none'" in page.source
    assert page.tags.count("caption") == page.tags.count("table")
    assert page.source.count("plotly.js v") == 1


def test_plots_are_in_words_and_have_no_colour_of_one_theme(whole: Sweep) -> None:
    plots, left_out = sweep_figures(whole.study, whole.state)
    assert [one.id for one in plots] == ["importances", "slices", "parallel", "history", "losses"]
    assert left_out == []
    for one in plots:
        layout = json.loads(one.json)["layout"]
        assert layout["plot_bgcolor"] == layout["paper_bgcolor"] == "rgba(0,0,0,0)"
        assert layout["height"] == one.height_px
        assert "white" not in one.json
        assert "title" not in layout, "the caption says it"
    figures = {one.id: json.loads(one.json) for one in plots}
    slices = figures["slices"]
    names = {slices["layout"][key]["title"]["text"] for key in slices["layout"] if "axis" in key}
    assert {"learning_rate", "r", "dropout", "method", "type", "accuracy, %"} <= names
    points = {str(value) for trace in slices["data"] for value in trace["x"]}
    assert {"nf4", "fp4", "lora", "8"} <= points
    logarithmic = [one for one in slices["layout"].values() if "log" in str(one)]
    assert logarithmic[0]["ticktext"] == ["0.0002", "0.0005", "0.001", "0.002"]
    losses = {trace["name"]: trace for trace in figures["losses"]["data"]}
    assert set(losses) >= {"trial 1, the winner", "trial 4, pruned after 25 %", "trial 2, done"}
    assert losses["trial 1, the winner"]["y"] == pytest.approx(
        [1.22, 0.72, 0.5533, 0.47], abs=1e-3
    )


def test_candidates_have_intervals_and_single_seeds(whole: Sweep) -> None:
    text = next(text for text in page_of(whole).scripts if "single seeds" in text)
    means, seeds = json.loads(text)["data"]
    assert means["y"][0] == "trial 1  <b>77.6 %</b>"
    assert means["x"][0] + means["error_x"]["array"][0] == pytest.approx(83.5, abs=0.1)
    assert means["marker"]["color"][0] != means["marker"]["color"][-1]
    assert len(seeds["x"]) == 6
    assert sorted({line.split()[1] for line in seeds["y"]}) == ["1", "3"]


def test_json_has_all(whole: Sweep) -> None:
    found = json.loads(json.dumps(sweep_json(whole.state)))
    assert found["winner"] == 1
    assert found["trials"][1]["scores"].keys() == {"7", "8", "9"}
    assert found["trials"][6]["error"].endswith("a second line")
    assert found["ranking"]["ranked"][0]["name"] == "1"
    assert found["tested"]["rows"] == 210
    assert found["config"] == str(whole.study.plan.config.path)


def test_several_models_on_the_test_rows_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = make_sweep(tmp_path, parameters=RATE)
    sweep.done(0.7)
    sweep.test(0, 0.7)
    assert "these test rows" not in table_of(sweep, capsys)
    sweep.done(0.8)
    sweep.test(1, 0.8, error="gates failed: beats-baseline")
    words = table_of(sweep, capsys)
    assert "A gate stopped its run: gates failed: beats-baseline" in words
    assert "2 models of this store were asked these test rows by now" in words
    assert "2 models of this store" in page_of(sweep).text


def test_an_empty_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = make_sweep(tmp_path)
    words = table_of(sweep, capsys)
    assert "router: nothing yet" in words
    assert "trials: none begun, of 8 wanted" in words
    assert "luthier sweep best" not in words
    page = page_of(sweep)
    assert "nothing yet No trial is done." in page.text
    assert "No trial was begun." in page.text
    assert "plotly" not in page.source
    assert page.text.count("is left out") == 4
    assert "Validation losses while training are left out" in page.text


def test_one_trial_has_no_comparison(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    sweep.done(0.7)
    page = page_of(sweep)
    assert "The only candidate is trial 0" in page.text
    assert "Which parameters matter is left out: it needs 2 trials that are done." in page.text
    assert "Verdict" not in page.text


def test_all_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = make_sweep(tmp_path)
    for _ in range(8):
        sweep.ended("failed", "ModelError: no such folder")
    words = table_of(sweep, capsys)
    assert "router: no winner" in words
    assert "trial 7 failed: ModelError: no such folder" in words
    assert "--retry-failed" in words
    assert (
        "no winner No trial came to its end. trials: 8 failed, of 8 wanted" in page_of(sweep).text
    )


def test_equal_scores_leave_importances_out(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    for _ in range(3):
        sweep.done(0.7)
    _, left_out = sweep_figures(sweep.study, sweep.state)
    assert left_out[0] == "Which parameters matter is left out: all trials have the same score."


@pytest.mark.parametrize(
    "metrics", [["sft.adapter_bytes"], ["sft.adapter_bytes", "sft.train_seconds"]]
)
def test_several_objectives_have_a_front(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metrics: list[str]
) -> None:
    objective = f"[{', '.join([ACCURACY, *(f'{{metric: {one}}}' for one in metrics)])}]"
    sweep = make_sweep(tmp_path, objective=objective)
    for share, size in ((0.7, 4.2e6), (0.8, 9e6), (0.6, 8e6)):
        sweep.done(share, more=[size, 100.0][: len(metrics)])
    words = table_of(sweep, capsys)
    assert "accuracy (higher is better), adapter bytes (lower is better)" in words
    assert "4.2 MB" in words
    assert "front" in words
    page = page_of(sweep)
    assert page.text.count("The front of accuracy, % and") == len(metrics)
    assert "1 80.0 %" not in page.text
    assert "trial 1, the winner, on the front" in page.text
    assert "trial 0, on the front" in page.text
    fronts = [json.loads(text) for text in page.scripts if '"beaten by another"' in text]
    assert [len(trace["x"]) for trace in fronts[0]["data"]] == [1, 2]


def test_losses_are_ranked_without_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = make_sweep(tmp_path, objective=LOSS)
    for loss in (0.91234, 0.5, 0.7):
        number = sweep.begin()
        sweep.losses(number, 2.0, 1.5, 1.1, loss)
        sweep.lost(number, loss)
    words = table_of(sweep, capsys)
    assert "validation loss (lower is better)" in words
    assert "0.9123" in words
    assert "+0.4123 cannot tell" in words
    figures, _ = sweep_figures(sweep.study, sweep.state)
    losses = json.loads(next(one.json for one in figures if one.id == "losses"))
    assert losses["data"][0]["y"] == [2.0, 1.5, 1.1, 0.91234]


def test_text_of_users_is_never_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "Name the section of this package, and nothing else, "
    parameters = (
        f"    prepare.system_prompt: {{choice: ['{EVIL}', '{long}please', '{long}thanks']}}\n"
    )
    sweep = make_sweep(tmp_path, parameters=parameters + RATE)
    for share in (0.5, 0.6, 0.7, 0.8):
        sweep.done(share)
    page = page_of(sweep)
    assert EVIL in page.text
    assert "<script>alert" not in page.source
    assert page.text.count(f"{long}please") == 2, "in what was searched and in the config"
    slices = next(text for text in page.scripts if "categoryarray" in text)
    axes = [one for one in json.loads(slices)["layout"].values() if "categoryarray" in str(one)]
    assert axes[0]["categoryarray"] == [
        "&lt;script&gt;alert(1)&lt;/script&gt; (1)", "Name the section of this pa… (2)",
        "Name the section of this pa… (3)",
    ]  # fmt: skip
    assert f"{long}please" not in table_of(sweep, capsys)


def test_names_are_as_short_as_tells_them_apart() -> None:
    assert short_names(["sft.learning_rate", "dpo.learning_rate", "sft.lora.r", "a.lora.r.r"]) == {
        "sft.learning_rate": "sft.learning_rate", "dpo.learning_rate": "dpo.learning_rate",
        "sft.lora.r": "lora.r", "a.lora.r.r": "r.r",
    }  # fmt: skip
    assert [spell_value(one) for one in ("nf4", 8, 0.00123456, True, None, ["q"])] == [
        "nf4", "8", "0.00123", "true", "null", '["q"]',
    ]  # fmt: skip


def test_commands_repeat_the_overrides(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, overrides=["sft.epochs=2"])
    assert next_commands(sweep.state) == [
        f"luthier sweep {sweep.study.plan.config.path} --set sft.epochs=2"
    ]
