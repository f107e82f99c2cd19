"""The shape of the code base: layers, cheap start, complete configs and documents."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.config import json_schema, load_config
from luthier.gates import GATES
from luthier.pipeline import all_sections
from luthier.stages import discover, headings

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "luthier"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

LAYERS = [
    {"children", "errors", "gates", "interrupts", "progress", "watching"},
    {"config", "store"},
    {"advice", "data", "estimate", "models", "training", "evaluation", "serving"},
    {"stages"},
    {
        *("pipeline", "planning", "refusing", "forking", "foretelling", "costing", "promoting"),
        "sweeping",
    },
    {"report"},
    {"cli", "commands"},
]


def layer(module: str) -> int:
    part = module.split(".")[1] if "." in module else ""
    return next((rank for rank, names in enumerate(LAYERS) if part in names), -1)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name.startswith("luthier.")}


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE))
)
def test_imports_point_down(path: Path) -> None:
    own = layer("luthier." + ".".join(path.relative_to(SOURCE).with_suffix("").parts))
    if own < 0:
        return
    for name in imports(path):
        assert layer(name) <= own, f"{path} imports {name}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_configs_load(path: Path) -> None:
    config = load_config(path, all_sections())
    assert config.sections
    assert path.read_text(encoding="utf-8").startswith(
        "# yaml-language-server: $schema=run-config.schema.json"
    )


def test_schema_file_is_current() -> None:
    """Renew it with: luthier schema > configs/run-config.schema.json"""
    written = json.loads((ROOT / "configs" / "run-config.schema.json").read_text(encoding="utf-8"))
    assert written == json_schema(all_sections())


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom luthier.cli import call\ncode = call(['--help'])\n"
        "light = {'luthier.cli', 'luthier.errors', 'luthier.stages'}\n"
        "light |= {'luthier.commands', 'luthier.commands.advise', 'luthier.commands.tagging'}\n"
        "light |= {'luthier.commands.cost', 'luthier.commands.options'}\n"
        "light |= {'luthier.commands.compare', 'luthier.commands.serving'}\n"
        "light |= {'luthier.commands.uploading', 'luthier.commands.sweep'}\n"
        "own = {m for m in sys.modules if m.startswith('luthier.')}\n"
        "assert own <= light, own - light\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'trl', 'pyarrow', 'scipy', 'numpy'"
        ", 'plotly', 'bitsandbytes', 'accelerate', 'gguf', 'httpx'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for stage in discover():
        assert re.search(rf"^\s+{stage}\s", done.stdout, re.MULTILINE), stage


def test_headings_are_those_of_the_stages() -> None:
    stages = [(stage.name, stage.order, stage.summary) for stage in discover().values()]
    assert [(h.name, h.order, h.summary) for h in headings()] == stages


def test_every_gate_that_exists_is_used_and_tested() -> None:
    used = "\n".join(
        p.read_text(encoding="utf-8") for p in SOURCE.rglob("*.py") if p.name != "gates.py"
    )
    for gate in GATES:
        assert f'"{gate}"' in used, gate


def test_every_stage_has_a_script() -> None:
    scripts = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "scripts").glob("*.py"))
    for stage in discover():
        assert f'run_script("{stage}")' in scripts, stage


def test_every_dependency_is_explained() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    explained = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    for name in re.findall(r'^\s+"([a-z0-9-]+)>=', project, re.MULTILINE):
        assert name in explained, name


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE))
)
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 320


def readme_blocks(language: str) -> list[str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", readme, re.DOTALL)


def test_the_readmes_stage_is_a_stage_and_its_format_a_format(tmp_path: Path) -> None:
    """The two examples run: the stage on a dataset that `prepare`'s own writer made."""
    from types import SimpleNamespace

    import pyarrow as pa
    import pyarrow.parquet as parquet

    from luthier.data import formats
    from luthier.stages.contract import StageInputs
    from luthier.store.artifact import Workspace

    stage_example, format_example, _ = readme_blocks("python")
    imports = (
        "import json\nfrom luthier.config import Field, Section\n"
        "from luthier.data.dataset import load_split\n"
        "from luthier.stages.contract import Slot, Stage, StageInputs, StageResult\n"
        "from luthier.store.artifact import Workspace\n"
        "from luthier.store.files import write_atomically\n"
    )
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(imports + stage_example, "README", "exec"), names)
    parquet.write_table(
        pa.table({"input_ids": [[1] * 65, [1] * 3]}), tmp_path / "train-00000.parquet"
    )
    stage = names["STAGE"]
    inputs = StageInputs("x", 7, {"dataset": SimpleNamespace(path=tmp_path)})  # type: ignore[dict-item]
    result = stage.run(stage.section(), inputs, Workspace(tmp_path))  # type: ignore[attr-defined]
    assert result.metrics == {"long": 1}

    registered = dict(formats.ROW_FORMATS)
    try:
        exec(compile(format_example, "README", "exec"), {})
        values = {"question": "why?", "answer": "so"}
        made = formats.ROW_FORMATS["question"].parse(values, formats.FormatOptions())
    finally:
        formats.ROW_FORMATS.clear()
        formats.ROW_FORMATS.update(registered)
    assert [message["content"] for message in made.messages] == ["why?", "so"]


def test_the_readmes_metric_is_measured() -> None:
    from luthier.evaluation.answers import Answer
    from luthier.evaluation.metrics import METRICS, Answered, measure

    example = readme_blocks("python")[2]
    registered = dict(METRICS)
    said = [
        Answer("s", "r", "x", text, text, False, "stop", None, None, None) for text in ("a", "bcd")
    ]
    try:
        exec(compile(example, "README", "exec"), {})
        found = measure(Answered(said, [], seed=7), "chat")
    finally:
        METRICS.clear()
        METRICS.update(registered)
    assert found["metrics"]["mean_answer_characters"] == 2
