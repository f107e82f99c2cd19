"""Columns kept with the rows, and the score broken down by them."""

from pathlib import Path

import pytest

from luthier.errors import DataError
from luthier.evaluation.answers import Answer
from luthier.evaluation.rows import AskedRow, load_rows
from luthier.evaluation.slices import analyse_errors
from luthier.store.artifact import Artifact
from prepare_cases import prepare, sealed, sources, write_base

NO_NEAR = {"near": {"enabled": False}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("base")
    write_base(folder)
    return sealed(folder)


def rows(count: int, first: int) -> list[dict[str, object]]:
    return [
        {
            "text": f"text {n}",
            "label": "xy"[n % 2],
            "channel": ("mail", "chat")[n // 2 % 2],
            "priority": n % 3,
            **({"language": "de"} if n % 4 == 0 else {"language": None}),
        }
        for n in range(first, first + count)
    ]


def test_the_score_is_broken_down_by_any_column(base: Artifact, tmp_path: Path) -> None:
    found = prepare(
        base,
        tmp_path / "workspace",
        sources=sources(tmp_path, {"train": rows(20, 0), "test": rows(12, 100)}),
        slice_by=["channel", "priority", "language"],
        **NO_NEAR,
    )
    asked = load_rows(found.path, "test")
    number = {row.id: int(row.question.split()[1]) for row in asked}
    assert dict(asked[0].slices)["priority"] == str(number[asked[0].id] % 3)
    errors = analyse_errors([answer(row, number[row.id] % 4 < 2) for row in asked], asked, None)
    shares = {
        name: {one["value"]: (one["share"], one["rows"]) for one in of}
        for name, of in errors["slices"].items()
    }
    assert shares["channel"] == {"mail": (1.0, 6), "chat": (0.0, 6)}
    assert set(shares["priority"]) == {"0", "1", "2"}
    assert shares["language"] == {"de": (1.0, 3)}  # rows without one are in no slice


def answer(row: AskedRow, is_right: bool) -> Answer:
    said = row.expected if is_right else "?"
    return Answer("s", row.id, row.expected, said, said, is_right, "stop", None, None, None)


def test_without_columns_there_is_nothing_kept(base: Artifact, tmp_path: Path) -> None:
    found = prepare(
        base,
        tmp_path / "workspace",
        sources=sources(tmp_path, {"train": rows(20, 0), "test": rows(12, 100)}),
        **NO_NEAR,
    )
    assert {row["slices"] for row in found.rows("test")} == {None}
    assert dict(load_rows(found.path, "test")[0].slices) == {}


def test_a_column_that_no_source_has_is_refused(base: Artifact, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the column chanel .* Did you mean channel\?"):
        prepare(
            base,
            tmp_path / "workspace",
            sources=sources(tmp_path, {"train": rows(20, 0), "test": rows(12, 100)}),
            slice_by=["chanel"],
            **NO_NEAR,
        )
