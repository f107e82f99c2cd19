"""A value that may be several things gets one sentence, about what it comes nearest to."""

from pathlib import Path
from typing import Annotated, Literal

import pytest

from luthier.config import Field, Section, load_config
from luthier.errors import ConfigError


class Replay(Section):
    path: Path


class LogUniform(Section):
    log_uniform: tuple[float, float]


class Choice(Section):
    choice: list[float | int | str] = Field(min_length=1)


class Hub(Section):
    kind: Literal["hub"]
    revision: str


class Folder(Section):
    kind: Literal["folder"]
    hub: Replay | None = None


class Sweep(Section):
    parameters: dict[str, LogUniform | Choice] = Field(default_factory=dict)
    base: Annotated[Hub | Folder, Field(discriminator="kind")] | None = None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "sweep: {parameters: {a: {chioce: [1]}}}",
            "sweep.parameters.a.choice is missing\n"
            "x.yaml:2: sweep.parameters.a.chioce is unknown. Did you mean choice?",
        ),
        (
            "sweep: {parameters: {a: {log_uniform: [1, 2, 3]}}}",
            "sweep.parameters.a.log_uniform must have at most 2 items, got 3",
        ),
        (
            "sweep: {parameters: {a: {log_uniform: [1]}}}",
            "sweep.parameters.a.log_uniform[1] is missing",
        ),
        (
            "sweep: {parameters: {a: {choice: []}}}",
            "sweep.parameters.a.choice must have at least 1 item, got 0",
        ),
        (
            "sweep: {parameters: {a: {choice: [1, [2]]}}}",
            "sweep.parameters.a.choice[1] must be a number or text, got a list",
        ),
        ("sweep: {parameters: {a: {}}}", "sweep.parameters.a must have log_uniform, or choice"),
        ("sweep: {parameters: {a: 4}}", "sweep.parameters.a must be a mapping, got the number 4"),
        (
            "sweep: {base: {kind: hubb, revision: a}}",
            "sweep.base.kind must be one of 'hub', 'folder', got the text 'hubb'. "
            "Did you mean hub?",
        ),
        ("sweep: {base: {revision: a}}", "sweep.base.kind is missing"),
        ("sweep: {base: {kind: hub}}", "sweep.base.revision is missing"),
        ("sweep: {base: {kind: folder, hub: {}}}", "sweep.base.hub.path is missing"),
        ("sweep: {base: [1]}", "sweep.base must be a mapping, got a list"),
    ],
)
def test_one_mistake(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(f"name: x\n{text}")
    with pytest.raises(ConfigError) as caught:
        load_config("x.yaml", {"sweep": Sweep})
    assert str(caught.value) == f"x.yaml:2: {said}"
