"""What people see of a dataset, on the page and in the terminal, when only it is there."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from dataset_cases import FAMILY, HEBREW, full_info, make_dataset
from dataset_files import said
from luthier.cli import call
from luthier.data.index import Fate
from luthier.data.summary import DatasetCounts
from luthier.pipeline import DoneStep
from luthier.report import closing_table, show_artifact, stage_closing, summarise, write_report
from luthier.report.dataset_view import EXAMPLES_SHOWN, REASONS, books, findings
from luthier.report.plots import tokens_plot
from luthier.report.spelling import NOTHING
from luthier.store import Store
from report_cases import Sample
from report_contents import EVIL
from test_report_page import Page

TASKS = ("classification", "preference")


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory, smol_tokenizer_dir: Path) -> dict[str, Sample]:
    """A dataset and preferences, with something in every field of dataset.json."""
    return {
        task: make_dataset(tmp_path_factory.mktemp(task), smol_tokenizer_dir, task=task)
        for task in TASKS
    }


@pytest.fixture(params=TASKS)
def run(request: pytest.FixtureRequest, both: dict[str, Sample]) -> Sample:
    return both[request.param]


def page_of(run: Sample) -> Page:
    return Page(write_report(run.config, run.artifacts, run.store))


def counts(**changed: Any) -> DatasetCounts:
    info = full_info(
        {"train": [{"prompt_ids": [1], "chosen_ids": [1], "rejected_ids": [1]}]}, "chat"
    )
    return info.counts.model_copy(update=changed)


def test_the_books_add_up_line_by_line() -> None:
    found = books(counts(read=100, generated=5, kept=64, quarantined={"a": 1, "b": 20},
                         dropped={"duplicate": 20}, changed={}))  # fmt: skip
    assert [(step.what, step.reason, step.records, step.left) for step in found.steps] == [
        ("read", "", 100, 100), ("made here", "", 5, 105), ("quarantined", "b", -20, 85),
        ("quarantined", "a", -1, 84), ("dropped", "duplicate", -20, 64),
    ]  # fmt: skip
    assert (found.kept, found.missing) == (64, 0)


def test_books_that_do_not_add_up_say_so(tmp_path: Path, both: dict[str, Sample]) -> None:
    assert books(counts(kept=20)).missing == 1 + 38 + 2 - 40 - 20
    run = both["classification"]
    store = Store(tmp_path / "store")
    shutil.copytree(run.store.root, store.root)
    path = store.root / run.artifacts["prepare"].path.relative_to(run.store.root) / "dataset.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    info["counts"]["read"] += 3
    path.write_text(json.dumps(info), encoding="utf-8")
    artifact = type(run.artifacts["prepare"])(path.parent, run.artifacts["prepare"].manifest)
    page = Page(write_report(run.config, run.artifacts | {"prepare": artifact}, store))
    assert "These numbers do not add up: +3 rows are unaccounted for." in page.text
    assert "do not add up" not in page_of(run).text


def test_every_fate_of_a_row_has_its_meaning() -> None:
    assert set(REASONS) == {fate.reason for fate in Fate if fate is not Fate.KEPT}


def test_page_shows_the_whole_account(run: Sample) -> None:
    page = page_of(run)
    for expected in (
        "data prepared Nothing is trained yet. The rows: 20 train, 4 test.",
        f"Look at this Only 24 rows. {EVIL}", "Good to know Two classes of the same size.",
        "62 records read, 24 rows kept", f"System prompt: Be good. {EVIL}",
        "read +62 62 made here +2 64 quarantined empty-text -12 52",
        "dropped leak-near nearly the same text stands in a split that is held out -7 24",
        "kept = 24 24", f"data/{EVIL}/train.jsonl train messages every record has a list",
        "train 20 83.3 %", "reach 73.1 % accuracy and 0.710 macro-F1",
        "always the largest class reaches 21.0 %. That is the target", "unicode-nfc 3",
        "1,234 rows compared", f"bench/{EVIL}.jsonl 3",
        f"91.3 % leak-near data/train.jsonl:91 a text {EVIL} one data/test.jsonl:4 a text that is",
        "It is still in the rows", "email 4", "data/train.jsonl:9", "20 of 13 records",
        f'data/train.jsonl:20 empty-text: nothing in it {{"text": "{EVIL} 19"}}',
    ):  # fmt: skip
        assert expected in page.text, expected
    assert "data/train.jsonl:21 empty-text" not in page.text, "the first 20"
    assert "None" not in page.text


def test_page_of_a_dataset_is_safe_and_whole(run: Sample) -> None:
    page = page_of(run)
    assert all(load.startswith("#") for load in page.loads)
    assert set(page.loads) >= {"#data-prepare", "#lineage"}
    assert "alert(1)" not in "".join(page.scripts)
    assert page.tags.count("script") == page.source.count("</script>"), "no markup out of a row"
    assert page.tags.count("caption") == page.tags.count("table")
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:]))  # noqa: B905


def marked(page: Page) -> list[str]:
    """The text of every <mark> in the rows shown."""
    rows = page.source[page.source.index("Rows as the model sees them") :]
    return re.findall(r"<mark[^>]*>(.*?)</mark>", rows, re.DOTALL)[2:]  # two are the legend's


def test_page_marks_what_is_supervised(both: dict[str, Sample]) -> None:
    page = page_of(both["classification"])
    assert marked(page) == [
        "games", "&lt;|im_end|&gt;■", "science↵\nand two⇥lines", "&lt;|im_end|&gt;■",
        FAMILY, "&lt;|im_end|&gt;■", "games", "&lt;|im_end|&gt;■", FAMILY, "&lt;|im_end|&gt;■",
        "science↵\nand two⇥lines", "&lt;|im_end|&gt;■",
    ]  # fmt: skip
    assert f"Name it: {EVIL} & <b>more</b>" in page.text
    assert HEBREW in page.text
    assert "train row 13 · id train000d · data/train.jsonl:14" in page.text
    assert page.source.count('class="row"') == 2 * EXAMPLES_SHOWN


def test_page_shows_both_replies_of_a_preference(both: dict[str, Sample]) -> None:
    page = page_of(both["preference"])
    assert "Short." in "".join(marked(page))
    assert 'class="said rejected"' in page.source
    assert "luthier inspect rows/preferences@v1" in page.text
    assert "Classes" not in page.text


def test_page_shows_a_dataset_and_preferences_side_by_side(both: dict[str, Sample]) -> None:
    chat, pairs = both["classification"], both["preference"]
    artifacts = chat.artifacts | {"preferences": pairs.artifacts["prepare"]}
    page = Page(write_report(chat.config, artifacts, chat.store))
    assert {"#data-prepare", "#data-preferences"} <= set(page.loads)
    assert "Data: rows/dataset@v1" in page.text
    assert "Data: rows/preferences@v1" in page.text
    assert page.source.count('id="plot-preferences-tokens"') == 1


def test_page_without_the_base_shows_messages(both: dict[str, Sample], tmp_path: Path) -> None:
    run = both["classification"]
    page = Page(write_report(run.config, run.artifacts, Store(tmp_path / "empty")))
    assert "Shown as messages, without what the template adds: The tokens of rows/dataset@v1" in (
        page.text
    )
    assert f"user Name it: {EVIL} & <b>more</b> assistant games" in page.text
    assert marked(page) == []


def test_long_rows_lose_their_middle_on_the_page(
    tmp_path: Path, smol_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [[said("user", "abc " * 2000 + "end"), said("assistant", "yes")]]
    monkeypatch.setattr("dataset_cases.TEXTS", texts)
    page = page_of(make_dataset(tmp_path, smol_tokenizer_dir, sizes={"train": 1}))
    [text] = re.findall(r"(?:abc )+… .*?end", page.text)
    assert len(text) < 1300


def test_show_prints_the_account(
    run: Sample, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    show_artifact(run.artifacts["prepare"])
    text = capsys.readouterr().out
    words = re.sub(r"\s+", " ", text)
    for expected in (
        f"warn Only 24 rows. {EVIL}", "step reason records left read +62 62 made here +2 64",
        "dropped leak-near -7 24 kept = 24 24", "train 20 83.3 %", "tokens a row (limit 1,024)",
        "messages: every record has a", "unicode-nfc 3", "compared 1,234 rows",
        "data/train.jsonl:91 is like data/test.jsonl:4", "email 4", "reaches_target yes",
        f"data/train.jsonl:9 {EVIL}",
    ):  # fmt: skip
        assert expected in words, expected
    assert all(len(line) <= 80 for line in text.splitlines())
    assert ("games 10 (50.0 %) 2 (50.0 %)" in words) == (
        run.artifacts["prepare"].kind == "dataset"
    )


def test_show_of_a_dataset_that_an_older_version_wrote(
    both: dict[str, Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = both["classification"]
    shutil.copytree(run.store.root, tmp_path / "store")
    monkeypatch.setenv("LUTHIER_STORE", str(tmp_path / "store"))
    folder = tmp_path / "store" / run.artifacts["prepare"].path.relative_to(run.store.root)
    path = folder / "dataset.json"
    path.write_text('{"schema_version": 1}'.ljust(path.stat().st_size), encoding="utf-8")
    assert call(["show", "rows/dataset"]) == 0
    assert "rows.train" in capsys.readouterr().out
    assert call(["inspect", "rows/dataset"]) == 2
    assert "not a dataset of Luthier" in capsys.readouterr().err


def test_the_end_of_prepare_says_where_to_look(
    run: Sample, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = run.artifacts["prepare"]
    stage_closing(DoneStep("prepare", "run", dataset, dataset.ref, 1.0), "my.yaml")
    text = capsys.readouterr().out
    assert text.startswith(f"{dataset.ref}  {dataset.path}\n")
    assert "Only 24 rows." in text
    assert re.search(r"kept\s+= 24\s+24\n", text)
    for command in (f"inspect {dataset.ref}", f"show {dataset.ref}", "report my.yaml"):
        assert f"  luthier {command}\n" in text
    base = run.artifacts["base"]
    stage_closing(DoneStep("base", "run", base, base.ref, 1.0), "my.yaml")
    assert capsys.readouterr().out == f"{base.ref}  {base.path}\n"


def test_a_run_until_prepare_is_data_prepared(
    run: Sample, capsys: pytest.CaptureFixture[str]
) -> None:
    closing_table(summarise(run.config, run.artifacts), Path("page.html"))
    assert "rows: data prepared\nNothing is trained yet." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("bins", "names", "shares"),
    [
        ({"train": [0, 0, 1, 3]}, ["2 to 3", "4 to 7"], [[25.0, 75.0]]),
        ({"train": [1, 1]}, ["0", "1"], [[50.0, 50.0]]),
        ({"train": [0, 2], "test": [0, 0, 1]}, ["1", "2 to 3"], [[100.0, 0.0], [0.0, 100.0]]),
        ({"train": [0] * 10 + [4], "test": []}, ["512 to 1,023"], [[100.0]]),
    ],
)
def test_length_histogram(
    bins: dict[str, list[int]], names: list[str], shares: list[list[float]]
) -> None:
    plot = tokens_plot("tokens", "Length", bins)
    assert plot is not None
    traces = json.loads(plot.json)["data"]
    assert [trace["x"] for trace in traces] == [names] * len(shares)
    assert [trace["y"] for trace in traces] == shares


def test_no_histogram_of_nothing() -> None:
    assert tokens_plot("tokens", "Length", {"train": [0, 0]}) is None


def test_findings_become_facts_and_tables() -> None:
    found = findings({"share_wrong": 0.0312, "rows": [{"id": "a", "says": "x"}, {"id": "b"}],
                      "none": []})  # fmt: skip
    assert found.facts == {"share wrong": "0.0312", "none": NOTHING}
    assert found.tables == [("rows", ["id", "says"], [["a", "x"], ["b", NOTHING]])]
