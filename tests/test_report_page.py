"""The HTML page: numbers, escaping, no network, missing stages."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from luthier.report import write_report
from luthier.store import Store
from report_cases import Sample, finished, make_config, make_run, sample
from report_contents import EVIL, LABELS

__all__ = ["finished", "sample"]
_VOID = {"meta", "link", "br", "img", "input", "hr"}
_LOADS = ("src", "href", "srcset", "data", "action", "poster")


class Page(HTMLParser):
    """What a browser would see: text outside scripts, tags, what is loaded, plots' data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.loads: list[str] = []
        self.headings: list[int] = []
        self.scripts: list[str] = []
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == [], "a tag is not closed"

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in _LOADS]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.words.append(data)

    def plot_data(self) -> str:
        return " ".join(script for script in self.scripts if script.startswith('{"data"'))


def page_of(run: Sample, until: str = "export") -> Page:
    return Page(write_report(run.config, run.until(until), run.store))


def test_page_shows_what_was_measured(sample: Sample) -> None:
    path = write_report(sample.config, sample.artifacts, sample.store)
    assert path == Path("artifacts/reports/package-router.html")
    page = Page(path)
    for expected in (
        "The tuned model beats the best prompted baseline, base 8-shot, free answer: +54.8 points",
        "p < 0.0001 (exact McNemar, 210 rows)", "tuned, free answer 84.3 % 78.8 to 88.6 %",
        "GGUF q8_0 as served 82.0 %", "280 rows, 94 steps, 812 tokens/s", "adapter 19.0 kB",
        "550 records read, 532 rows kept", "same row stands earlier in its split -13 532",
        "kept = 532 532", "10 of 33 wrong answers",
        "adapter-moved F15: the adapter learned", "passed 0.99871 ≥ 0.9",
        sample.artifacts["sft"].digest[:12], "learning_rate: 0.0005", "python 3.",
        "luthier run", "--set sft.learning_rate=5e-4", "vllm serve",
        "ollama create package-router",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert list(path.parent.iterdir()) == [path]


def test_each_class_has_its_row(sample: Sample) -> None:
    page = page_of(sample)
    for label in LABELS:
        assert re.search(rf"{label} [01]\.\d{{3}} [01]\.\d{{3}} [01]\.\d{{3}} 15", page.text), (
            label
        )


def test_page_is_whole_and_loads_nothing(sample: Sample) -> None:
    page = page_of(sample)
    assert page.loads, "the links inside the page"
    assert all(load.startswith("#") for load in page.loads)
    assert "link" not in page.tags
    assert "default-src 'none'" in page.source
    assert page.headings[0] == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:]))  # noqa: B905
    assert page.tags.count("caption") == page.tags.count("table")
    assert page.source.count("plotly.js v") == 1


def test_text_of_users_is_never_markup(sample: Sample) -> None:
    page = page_of(sample)
    assert EVIL in page.text
    assert "alert(1)" not in "".join(page.scripts)
    assert page.handlers == []
    evil = make_run(
        Store(Path("other")), make_config(Path()), labels=("a", EVIL, '<img src=x onerror="b()">')
    )
    page = page_of(evil)
    assert "img" not in page.tags
    assert page.handlers == []
    assert json.loads(page.scripts[2])["layout"]["yaxis"]["ticktext"] == [
        "a", "&lt;script&gt;alert(1)&lt;/script&gt;", '&lt;img src=x onerror="b()"&gt;'
    ]  # fmt: skip


def test_plots_hold_the_numbers(sample: Sample) -> None:
    figures = [json.loads(text) for text in page_of(sample).scripts if text.startswith('{"data"')]
    by_type = {trace["type"]: trace for figure in figures for trace in figure["data"]}
    assert len(figures) == 5
    assert len(by_type["heatmap"]["y"]) == len(LABELS)
    assert [sum(line) for line in by_type["heatmap"]["z"]] == pytest.approx([1.0] * len(LABELS))
    names = [trace.get("name") for figure in figures for trace in figure["data"]]
    assert {"validation", "learning rate", "train", "test"} <= set(names)


@pytest.mark.parametrize("until", ["base", "prepare", "baseline", "sft", "merge"])
def test_missing_stages_leave_their_part_out(sample: Sample, until: str) -> None:
    page = page_of(sample, until)
    assert ("Training" in page.text) == (until in ("sft", "merge"))
    assert ("Where it is right and wrong" in page.text) == (until == "merge")
    assert ("Data" in page.text) == (until != "base")
    assert "vllm serve" not in page.text
    assert "Plotly.react" in "".join(page.scripts) or until == "base"


def test_failed_gate_is_the_verdict(tmp_path: Path) -> None:
    run = make_run(Store(tmp_path / "s"), make_config(tmp_path), tuned=0.5, prompted=0.5)
    page = page_of(run, "evaluate")
    assert "stopped Stage evaluate stopped the run: its gate beats-baseline" in page.text
    assert "failed cannot tell = better" in page.text


def test_without_baseline(tmp_path: Path) -> None:
    page = page_of(make_run(Store(tmp_path / "s"), make_config(tmp_path, baseline=False)))
    assert "There is no baseline to compare it with" in page.text
    assert "base 8-shot" not in page.text


def test_free_text_task_has_no_confusion(tmp_path: Path) -> None:
    config = make_config(tmp_path, baseline=False, task="chat")
    page = page_of(make_run(Store(tmp_path / "s"), config, labels=()))
    assert "exact match" in page.text
    assert "nats a token" in page.text
    assert "Confusion" not in page.text
    assert "Each class" not in page.text
    assert re.search(rf"reply \d+ {re.escape(EVIL)}", page.text)
    assert "heatmap" not in page.plot_data()


def test_lost_input_is_marked(sample: Sample) -> None:
    folder = sample.artifacts["merge"].path
    shutil.rmtree(folder)
    assert re.search("merge: package-router/model@v1 [0-9a-f]{12} missing", page_of(sample).text)
