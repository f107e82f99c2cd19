"""Artifacts that a section names in a list or a mapping, each in a slot of its own."""

from pathlib import Path
from typing import Any

import pytest

from luthier.config import Field, Section, result_free
from luthier.errors import ConfigError
from luthier.interrupts import StopFlag
from luthier.pipeline import Choices, DoneStep, Pipeline, load_run
from luthier.progress import Reporter
from luthier.stages.contract import Slot, Stage, StageInputs, StageResult
from luthier.store import Store, Workspace


class FitSection(Section):
    text: str = Field("a", description="text")


class One(Section):
    ref: str = Field(json_schema_extra=result_free, description="adapter")
    weight: float = Field(1.0, description="weight")


class MixSection(Section):
    parts: list[One] = Field(default_factory=list, description="adapters")
    plain: list[str] = Field(
        default_factory=list, json_schema_extra=result_free, description="adapters"
    )
    names: dict[str, str] = Field(
        default_factory=dict, json_schema_extra=result_free, description="adapters"
    )


def fit(section: FitSection, _inputs: StageInputs, workspace: Workspace) -> StageResult:
    (workspace.path / "text").write_text(section.text)
    return StageResult(metrics={}, gates=[])


def mix(section: MixSection, inputs: StageInputs, workspace: Workspace) -> StageResult:
    def read(slot: str) -> list[str]:
        found = inputs.several(slot).items()
        return [f"{key}={artifact.path.joinpath('text').read_text()}" for key, artifact in found]

    texts = [" ".join(read(slot)) for slot in ("parts", "plain", "names")]
    texts.append(" ".join(str(one.weight) for one in section.parts))
    (workspace.path / "mixed").write_text("; ".join(texts))
    return StageResult(metrics={}, gates=[])


STAGES: dict[str, Stage[Any]] = {
    "fit": Stage("fit", 10, "fit", "adapter", 1, FitSection, fit),
    "mix": Stage(
        "mix",
        20,
        "mix",
        "model",
        1,
        MixSection,
        mix,
        slots=(
            Slot("adapter", "adapter", ("fit",)),
            *(
                Slot(field, "adapter", optional=True, field=field)
                for field in ("parts", "plain", "names")
            ),
        ),
    ),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("planning", "pipeline"):
        monkeypatch.setattr(f"luthier.{module}.discover", lambda: STAGES)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("name: try\nfit: {}\nmix: {}\n", encoding="utf-8")
    for text in ("a", "b", "c"):
        run(f"fit.text={text}", until="fit")


def run(*overrides: str, until: str = "mix", pins: dict[str, str] | None = None) -> DoneStep:
    config = load_run("run.yaml", list(overrides))
    choices = Choices(pins or {})
    return Pipeline(config, Store(Path("store")), Reporter(), StopFlag(), choices).run(until)[-1]


def mixed(done: DoneStep) -> str:
    return (done.artifact.path / "mixed").read_text()


WHOLE = (
    "mix.parts=[{ref: try/adapter@v2, weight: 0.5}, {ref: try/adapter@v3}]",
    "mix.plain=[try/adapter@v3]",
    "mix.names={left: try/adapter@v1, right: try/adapter@v2}",
)


def test_each_item_fills_a_slot_of_its_own() -> None:
    done = run(*WHOLE)
    assert mixed(done) == "1=b 2=c; 1=c; left=a right=b; 0.5 1.0"
    refs = {ref.slot: ref.ref for ref in done.artifact.manifest.inputs}
    assert refs == {
        "adapter": "try/adapter@v1",
        "parts-1": "try/adapter@v2",
        "parts-2": "try/adapter@v3",
        "plain-1": "try/adapter@v3",
        "names-left": "try/adapter@v1",
        "names-right": "try/adapter@v2",
    }


def test_what_is_named_is_in_the_key_by_its_content_alone() -> None:
    first = run(*WHOLE)
    key = Store(Path("store")).resolve("try/adapter@v3").key[:12]
    assert run(*WHOLE[:1], f"mix.plain=[{key}]", *WHOLE[2:]).state == "reuse"
    others = [
        ("mix.parts=[{ref: try/adapter@v3, weight: 0.5}, {ref: try/adapter@v2}]", *WHOLE[1:]),
        ("mix.parts=[{ref: try/adapter@v2}, {ref: try/adapter@v3}]", *WHOLE[1:]),
        (*WHOLE[:2], "mix.names={left: try/adapter@v1, other: try/adapter@v2}"),
    ]
    keys = {run(*other).artifact.key for other in others}
    assert len(keys | {first.artifact.key}) == 4


def test_without_any_the_slot_is_empty() -> None:
    assert mixed(run()) == "; ; ; "


def test_the_command_line_takes_the_place_of_one() -> None:
    done = run(*WHOLE, pins={"parts-2": "try/adapter@v1"})
    assert mixed(done).startswith("1=b 2=a; ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "mix.parts=[{ref: try/adapter@v1}, {ref: try/adapter@v9}]",
            r"run.yaml: mix.parts\[1\].ref: try/adapter@v9: .* is no artifact",
        ),
        (
            "mix.plain=[try/model@v1]",
            r"mix.plain\[0\]: try/model@v1: .* of kind model, and plain-1",
        ),
        ("mix.names={left: nowhere}", "run.yaml: mix.names.left: nowhere: "),
    ],
)
def test_a_wrong_one_is_named_with_its_place(override: str, message: str) -> None:
    run()
    with pytest.raises(ConfigError, match=message):
        run(override)
