"""`luthier inspect`: the right rows, what is supervised marked, any text printed safely."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataset_cases import FAMILY, HEBREW, STOP, make_dataset, tokenizer_of
from luthier.cli import call
from luthier.report.token_text import Decoder, decoder_of
from report_cases import Sample
from report_contents import EVIL

Inspect = Callable[..., str]
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, smol_tokenizer_dir: Path) -> dict[str, Sample]:
    """A dataset and preferences, of 20 train and 4 test rows each."""
    return {
        task: make_dataset(tmp_path_factory.mktemp(task), smol_tokenizer_dir, task=task)
        for task in ("classification", "preference")
    }


@pytest.fixture
def inspect(
    made: dict[str, Sample], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Inspect:
    """Runs `luthier inspect` on one of them, expects an exit code, returns what it printed."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def run(*options: str, ref: str = "rows/dataset", code: int = 0) -> str:
        task = "preference" if ref == "rows/preferences" else "classification"
        monkeypatch.setenv("LUTHIER_STORE", str(made[task].store.root))
        assert call(["inspect", ref, *options]) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    return run


def heads(text: str) -> list[int]:
    """The numbers of the rows shown, in order."""
    return [int(number) for number in re.findall(r"^\w+ row (\d+) ·", text, re.MULTILINE)]


def test_rows_are_spread_over_the_split_and_bracketed_in_a_pipe(inspect: Inspect) -> None:
    text = inspect()
    assert heads(text) == [0, 4, 8, 12, 16]
    assert "\x1b" not in text
    assert "20 rows of train in rows/dataset@v1" in text
    assert (
        "train row 0 · id train0000 · data/train.jsonl:1 · 32 tokens, 2 supervised · label games\n"
        f"<|im_start|>user↵\nName it: {EVIL} & <b>more</b><|im_end|>↵\n"
        "<|im_start|>assistant↵\n⟦games<|im_end|>■⟧\n"
    ) in text


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (1, f"⟦{FAMILY}<|im_end|>■⟧"),
        (2, f"{HEBREW}<|im_end|>↵"),
        (2, "⟦science↵\nand two⇥lines<|im_end|>■⟧"),
        (
            3,
            '⟦[{"function": {"name": "get_weather"}}]<|im_end|>■⟧↵\n<|im_start|>tool↵\n4 degrees<',
        ),
        (3, "⟦Four degrees.<|im_end|>■⟧↵\n<|im_start|>user↵\nThanks \\x1b[2J<|im_end|>↵"),
        (3, " · group group 3\n"),
        (5, "data/train.jsonl:6 (replay) · "),
        (19, "train row 19 · id train0013 · data/train.jsonl:20"),
    ],
)
def test_one_row(inspect: Inspect, row: int, expected: str) -> None:
    text = inspect("--row", str(row))
    assert heads(text) == [row]
    assert expected in text
    assert "\x1b" not in text
    assert "�" not in text


def test_a_terminal_shows_supervised_text_on_green(
    inspect: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    text = inspect("--row", "3")
    assert "\x1b[30;42mFour degrees.\x1b[0m\x1b[1;30;43m<|im_end|>■\x1b[0m" in text
    assert "\x1b[2m4 degrees\x1b[0m\x1b[2;36m<|im_end|>\x1b[0m" in text
    assert "⟦" not in text
    assert "\x1b[2J" not in text, "what a row holds must not steer the terminal"
    assert "⟦" not in _ESCAPE.sub("", inspect("--row", "3"))


def test_a_terminal_without_colour_gets_brackets(
    inspect: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "⟦Four degrees.<|im_end|>■⟧" in _ESCAPE.sub("", inspect("--row", "3"))


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (("--worst", "length", "--count", "1"), [7]),
        (("--worst", "length", "--count", "3"), [7, 3, 11]),
        (("--worst", "supervised", "--count", "3"), [0, 4, 8]),
        (("--grep", "WEATHER in oslo"), [3, 11, 15, 19]),
        (("--grep", "GET_weather", "--count", "2"), [3, 11]),
        (("--grep", "naïve 数据", "--split", "test"), [1]),
        (("--grep", "(1)</script>", "--count", "1"), [0]),
        (("--count", "100"), list(range(20))),
        (("--split", "test"), [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_which_rows(inspect: Inspect, options: tuple[str, ...], rows: list[int]) -> None:
    text = inspect(*options)
    assert heads(text) == rows
    assert ("with this text" in text) == ("--grep" in options)


def test_grep_counts_all_that_match(inspect: Inspect) -> None:
    assert "20 rows of train in rows/dataset@v1, 4 with this text." in inspect(
        "--grep", "weather", "--count", "1"
    )


@pytest.mark.parametrize("row", range(8))
def test_json_holds_every_token_of_the_row(
    inspect: Inspect, row: int, smol_tokenizer_dir: Path
) -> None:
    read = json.loads(inspect("--row", str(row), "--json"))
    assert (read["dataset"], read["split"], read["split_rows"]) == ("rows/dataset@v1", "train", 20)
    [shown] = read["rows"]
    [part] = shown["parts"]
    text = "".join(stretch["text"] for stretch in part["stretches"])
    tokenizer = tokenizer_of(smol_tokenizer_dir)
    assert len(tokenizer(text)["input_ids"]) == shown["tokens"]
    supervised = "".join(s["text"] for s in part["stretches"] if s["supervised"])
    assert len(tokenizer(supervised)["input_ids"]) == shown["supervised_tokens"]
    stops = [stretch for stretch in part["stretches"] if stretch["stop"]]
    assert stops
    assert all(s["text"] == "<|im_end|>" and s["special"] and s["supervised"] for s in stops)


def test_preferences_show_prompt_chosen_and_rejected(inspect: Inspect) -> None:
    text = inspect("--row", "2", ref="rows/preferences")
    assert (
        f"prompt:\n<|im_start|>user↵\nWhich is it, number 2? {EVIL}<|im_end|>\n"
        "chosen:\n⟦<|im_start|>assistant↵\nShort.<|im_end|>■⟧\n"
        "rejected:\n⟦<|im_start|>assistant↵\nVery very very long.<|im_end|>■⟧\n"
    ) in text
    longest = inspect("--worst", "length", "--count", "1", ref="rows/preferences")
    assert heads(longest) == [19]
    assert "39 tokens, 17 supervised" in text
    assert heads(inspect("--worst", "supervised", "--count", "1", ref="rows/preferences")) == [0]
    assert heads(inspect("--grep", "VERY " * 10, "--count", "1", ref="rows/preferences")) == [9]


@pytest.mark.parametrize(
    ("ref", "options", "message"),
    [
        ("rows/dataset", ["--split", "validation"], "no validation rows. It has: train (20), te"),
        ("rows/dataset", ["--split", "../test"], "has no ../test rows"),
        ("rows/dataset", ["--row", "20"], "train has 20 rows, numbered 0 to 19"),
        ("rows/dataset", ["--row", "-1"], "train has 20 rows, numbered 0 to 19"),
        ("rows/dataset", ["--grep", "no such text"], "none of the 20 rows of train has this text"),
        ("rows/dataset", ["--row", "1", "--grep", "a"], "one of --row, --worst and --grep"),
        ("rows/dataset", ["--worst", "loss"], "is not one of 'length', 'supervised'"),
        ("rows/dataset", ["--count", "0"], "--count"),
        ("rows/base", [], "is of kind base, which has no rows"),
        ("rows/nothing", [], "is no artifact"),
    ],
)
def test_mistakes_are_one_message(
    inspect: Inspect, ref: str, options: list[str], message: str
) -> None:
    errors = inspect(*options, ref=ref, code=2)
    assert errors.startswith("error: ")
    assert message in errors
    assert "Traceback" not in errors


@pytest.fixture
def copied(
    made: dict[str, Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Path]:
    """A copy of the dataset's store to damage: the folders of its artifacts."""
    root = tmp_path / "copy"
    shutil.copytree(made["classification"].store.root, root)
    monkeypatch.setenv("LUTHIER_STORE", str(root))
    return {
        stage: root / artifact.path.relative_to(made["classification"].store.root)
        for stage, artifact in made["classification"].artifacts.items()
    }


def test_without_the_base_it_says_what_to_do(
    copied: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied["base"])
    assert call(["inspect", "rows/dataset"]) == 2
    error = capsys.readouterr().err
    assert "are those of rows/base@v1, which is no longer in the store" in error
    assert "luthier run CONFIG" in error


def test_reads_only_the_row_groups_it_needs(
    copied: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shard = copied["prepare"] / "train-00000.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:4] + bytes(2000) + content[2004:])
    assert call(["inspect", "rows/dataset", "--row", "19"]) == 0
    assert heads(capsys.readouterr().out) == [19]
    assert call(["inspect", "rows/dataset", "--row", "0"]) == 2
    assert "train-00000.parquet: cannot be read" in capsys.readouterr().err


def test_a_tokenizer_that_is_not_all_in_its_file_is_loaded_whole(
    tmp_path: Path, smol_tokenizer_dir: Path
) -> None:
    """tokenizer_config.json may add tokens; they would be decoded to nothing."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(smol_tokenizer_dir, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["extra_special_tokens"] = ["<|im_start|>", "<|added|>"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = tokenizer_of(folder)
    assert tokenizer.convert_tokens_to_ids("<|added|>") == len(tokenizer) - 1
    run = make_dataset(tmp_path, folder, sizes={"train": 4})
    decoder = decoder_of(run.artifacts["prepare"], run.store, [STOP])
    assert [s.text for s in decoder.stretches([len(tokenizer) - 1], [False])] == ["<|added|>"]


def metaspace() -> Any:
    """A tokenizer of SentencePiece's kind: its decoder drops the blank that begins a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words = {"▁the": 0, "▁cat": 1, "▁sat": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


def test_stretches_keep_the_blanks_between_words() -> None:
    found = Decoder(metaspace(), [3]).stretches([0, 1, 2, 3], [False, True, True, True])
    assert [stretch.text for stretch in found] == ["the", " cat sat", "</s>"]
    assert [stretch.stop for stretch in found] == [False, False, True]


def test_a_character_cut_in_two_is_shown_as_broken(smol_tokenizer_dir: Path) -> None:
    tokenizer = tokenizer_of(smol_tokenizer_dir)
    ids = tokenizer("🦊")["input_ids"]
    assert len(ids) > 1
    found = Decoder(tokenizer.backend_tokenizer, []).stretches(
        ids, [True, *[False] * (len(ids) - 1)]
    )
    assert [stretch.supervised for stretch in found] == [True, False]
    assert all("�" in stretch.text for stretch in found)
