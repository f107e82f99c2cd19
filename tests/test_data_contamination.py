"""What a benchmark file holds is not learned: copies of its texts leave train."""

import json
from pathlib import Path
from random import Random

import pytest

from luthier.data import contamination
from luthier.data.contamination import BenchmarkTexts, ContaminationFile
from luthier.data.index import Fate
from luthier.data.near import NearSection
from luthier.errors import DataError
from near_cases import Case, index_of, searched, text_of, vocabulary

WORDS = vocabulary(1)
QUESTION = text_of(Random(1), WORDS, 9)
PASSAGE = text_of(Random(2), WORDS, 40)
THIRTEEN = " ".join(PASSAGE.split()[5:18])
SECRET = text_of(Random(3), WORDS, 20)


def benchmark(folder: Path, *records: object, name: str = "benchmark.jsonl") -> ContaminationFile:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return ContaminationFile(path=path)


def other(seed: int, count: int = 30) -> str:
    return text_of(Random(f"other {seed}"), WORDS, count)


@pytest.mark.parametrize(
    ("row", "fate"),
    [
        (Case("train", QUESTION.upper() + "?", "yes"), Fate.CONTAMINATED),
        (
            Case("train", f"{other(1)} {' '.join(PASSAGE.split()[5:18])} {other(2)}"),
            Fate.CONTAMINATED,
        ),
        (Case("train", "say it", f"{other(1)} {PASSAGE} {other(2)}"), Fate.CONTAMINATED),
        (Case("train", f"{QUESTION}\nParis\nLondon in the rain", "A"), Fate.CONTAMINATED),
        (Case("train", f"{other(1)} {THIRTEEN.rpartition(' ')[0]} {other(2)}"), Fate.KEPT),
        (Case("train", "Paris", "yes"), Fate.KEPT),
        (Case("train", "London in the rain", "yes"), Fate.KEPT),
        (Case("train", other(3), "Paris"), Fate.KEPT),
        (Case("train", "", ""), Fate.KEPT),
    ],
    ids=[
        "near copy of a short question",
        "13 words in the prompt",
        "13 words in the reply",
        "question and choices in one prompt",
        "12 words",
        "a one-word answer",
        "an answer of four words",
        "a one-word answer as reply",
        "nothing",
    ],
)
def test_a_train_row_that_copies_a_benchmark_leaves(tmp_path: Path, row: Case, fate: Fate) -> None:
    file = benchmark(
        tmp_path,
        {"question": QUESTION, "choices": ["Paris", "London in the rain"]},
        {"context": {"passages": [PASSAGE]}, "answer": 4, "none": None},
    )
    index, counts = searched([row, Case("train", other(9))], tmp_path, contamination=[file])
    assert index.fate.tolist() == [fate, Fate.KEPT]
    assert counts.contaminated == {file.path.as_posix(): int(fate == Fate.CONTAMINATED)}
    assert counts.near_duplicates == counts.leaks == counts.ngram_leaks == 0


def test_validation_and_test_rows_are_counted_and_stay(tmp_path: Path) -> None:
    rows = [
        Case("train", f"{QUESTION} so"),
        Case("validation", f"a {QUESTION}"),
        Case("test", PASSAGE),
    ]
    file = benchmark(tmp_path, {"question": QUESTION}, {"passage": PASSAGE})
    index, counts = searched(rows[1:], tmp_path, contamination=[file])
    assert index.kept.all()
    assert counts.contaminated == {file.path.as_posix(): 2}
    index, counts = searched(rows, tmp_path, contamination=[file])
    assert index.fate.tolist() == [Fate.CONTAMINATED, Fate.KEPT, Fate.KEPT]
    assert counts.contaminated == {file.path.as_posix(): 3}


def test_failing_on_leaks_keeps_contaminated_rows_and_counts_the_same(tmp_path: Path) -> None:
    rows = [Case("train", QUESTION), Case("test", QUESTION), Case("train", other(1))]
    file = benchmark(tmp_path, {"question": QUESTION})
    failed, counts = searched(rows, tmp_path, contamination=[file], on_leak="fail")
    dropped, same = searched(rows, tmp_path, contamination=[file])
    assert failed.kept.all()
    assert dropped.fate.tolist() == [Fate.CONTAMINATED, Fate.KEPT, Fate.KEPT]
    assert counts == same
    assert counts.contaminated == {file.path.as_posix(): 2}
    assert counts.leaks == 0  # a row counts once


def test_a_row_counts_for_the_file_it_is_most_like(tmp_path: Path) -> None:
    first = benchmark(tmp_path, {"q": QUESTION + " and"}, name="a.jsonl")
    second = benchmark(tmp_path, {"q": QUESTION}, {"p": PASSAGE}, name="b.jsonl")
    rows = [
        Case("train", QUESTION),
        Case("train", f"{other(1)} {PASSAGE}"),
        Case("train", other(2)),
    ]
    _, counts = searched(rows, tmp_path, contamination=[first, second])
    assert counts.contaminated == {first.path.as_posix(): 0, second.path.as_posix(): 2}


def test_runs_of_words_that_many_train_rows_have_are_boilerplate(tmp_path: Path) -> None:
    file = benchmark(tmp_path, {"q": PASSAGE})
    run = " ".join(PASSAGE.split()[:14])
    for count, fate in ((10, Fate.CONTAMINATED), (11, Fate.KEPT)):
        rows = [Case("train", f"{other(n)} {run} {other(n + 50)}") for n in range(count)]
        index, _ = searched(rows, tmp_path, contamination=[file])
        assert set(index.fate.tolist()) == {fate}


def test_columns_choose_what_is_compared(tmp_path: Path) -> None:
    path = benchmark(tmp_path, {"question": QUESTION, "source": SECRET}).path
    rows = [Case("train", QUESTION), Case("train", SECRET)]
    file = ContaminationFile(path=path, columns=["question"])
    index, _ = searched(rows, tmp_path, contamination=[file])
    assert index.fate.tolist() == [Fate.CONTAMINATED, Fate.KEPT]


def test_a_text_file_gives_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_bytes(f"\ufeff{QUESTION}\r\n\r\n{SECRET}".encode())
    rows = [Case("train", QUESTION), Case("train", SECRET), Case("train", other(1))]
    index, counts = searched(rows, tmp_path, contamination=[ContaminationFile(path=path)])
    assert index.fate.tolist() == [Fate.CONTAMINATED, Fate.CONTAMINATED, Fate.KEPT]
    assert [example.because_of for example in counts.examples] == [f"{path}:1", f"{path}:3"]
    assert counts.examples[1].other == SECRET


def test_the_search_takes_files_in_parts_and_names_their_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [other(number, 12) for number in range(40)]
    file = benchmark(tmp_path, *({"id": str(n), "q": text} for n, text in enumerate(questions)))
    rows = [Case("train", questions[33]), Case("train", questions[7]), Case("test", other(99))]
    whole, counts = searched(rows, tmp_path, contamination=[file])
    monkeypatch.setattr(contamination, "_PART_BYTES", 300)
    assert BenchmarkTexts([file]).parts > 10
    index, same = searched(rows, tmp_path, contamination=[file], size=2)
    assert index.fate.tolist() == whole.fate.tolist()
    assert counts == same
    assert counts.examples[0].because_of == f"{file.path}:34"
    assert counts.examples[1].because_of == f"{file.path}:8"


def test_rows_of_a_benchmark_are_not_leaks_of_each_other(tmp_path: Path) -> None:
    file = benchmark(tmp_path, {"q": QUESTION}, {"q": QUESTION}, {"q": QUESTION.upper()})
    _, counts = searched([Case("train", other(1))], tmp_path, contamination=[file])
    assert (counts.rows, counts.near_duplicates, counts.leaks) == (1, 0, 0)


def test_processes_change_nothing(tmp_path: Path) -> None:
    file = benchmark(tmp_path, {"q": QUESTION}, {"p": PASSAGE})
    rows = [Case("train", QUESTION), Case("train", PASSAGE), Case("test", other(1))]
    index, counts = searched(rows, tmp_path, contamination=[file])
    other_index, same = searched(rows, tmp_path, contamination=[file], size=2, processes=2)
    assert index.fate.tolist() == other_index.fate.tolist()
    assert counts == same


@pytest.mark.parametrize(
    ("data", "columns", "message"),
    [
        (b'{"q": "x"}\n{"q": ', [], "benchmark.jsonl:2: cannot be read"),
        (b'{"q": "\xff"}', [], "benchmark.jsonl:1: cannot be read"),
        (b"[" * 100_000, [], "benchmark.jsonl:1: cannot be read"),
        (b'["x"]', [], "benchmark.jsonl:1: not a JSON object"),
        (b'{"question": "x"}', ["q"], "benchmark.jsonl:1: no 'q' among 'question'"),
        (b'{"q": 4}', [], "benchmark.jsonl: no texts"),
        (b"", [], "benchmark.jsonl: no texts"),
        (None, [], r"benchmark.jsonl: the contamination file cannot be read \(No such file"),
    ],
)
def test_a_bad_benchmark_file_is_explained(
    tmp_path: Path, data: bytes | None, columns: list[str], message: str
) -> None:
    path = tmp_path / "benchmark.jsonl"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        searched(
            [Case("train", QUESTION)],
            tmp_path,
            contamination=[ContaminationFile(path=path, columns=columns)],
        )


def test_a_folder_is_no_benchmark_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        BenchmarkTexts([ContaminationFile(path=tmp_path)])


def test_rows_that_left_before_are_not_contaminated(tmp_path: Path) -> None:
    import numpy as np

    rows = [Case("train", QUESTION), Case("train", other(1))]
    index = index_of(rows)
    index.leave(np.array([0]), Fate.DUPLICATE)
    file = benchmark(tmp_path, {"q": QUESTION})
    index, counts = searched(rows, tmp_path, NearSection(), [file], index=index)
    assert index.fate.tolist() == [Fate.DUPLICATE, Fate.KEPT]
    assert counts.contaminated == {file.path.as_posix(): 0}
