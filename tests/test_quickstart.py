"""The quickstart's own configs on SmolLM2 itself, with fewer rows."""

import json
import os
from pathlib import Path

import pytest

from project import luthier

ROOT = Path(__file__).parent.parent
FEWER_ROWS = "prepare.limit={train: 160, validation: 32, test: 48}"
# 160 rows teach little: whether that beats prompting is not what is tested here.
WARN_ONLY = "gates={beats-baseline: warn}"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for both configs: they share base, dataset and baseline."""
    return str(tmp_path_factory.mktemp("quickstart") / "artifacts")


@pytest.mark.slow
@pytest.mark.xdist_group("quickstart")
@pytest.mark.parametrize("config", ["quickstart.yaml", "quickstart_qlora.yaml"])
def test_quickstart(config: str, store: str) -> None:
    done = luthier(
        ROOT, "run", f"configs/{config}", "--json", "--set", FEWER_ROWS, "--set", WARN_ONLY,
        "--set", "export.probe_rows=24", store=store,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    steps = {step["stage"]: step for step in result["stages"]}
    gates = {gate["id"]: gate for step in steps.values() for gate in step["gates"]}
    assert {gate["status"] for gate in gates.values() if gate["id"] != "beats-baseline"} == {
        "pass"
    }
    assert gates["merge-parity"]["measured"] <= 2e-5
    assert gates["gguf-answers"]["measured"] >= 0.98
    bundle = Path(steps["export"]["path"])
    assert (bundle / "ollama" / "Modelfile").read_text(encoding="utf-8").startswith("FROM ")
    assert (bundle / "ollama" / "model-q8_0.gguf").stat().st_size > 100_000_000
    assert (bundle / "vllm" / "config.json").exists()
    assert os.access(result["report"], os.R_OK)
    if "qlora" in config:
        assert steps["base"]["state"] == steps["baseline"]["state"] == "reuse"
        facts = json.loads((Path(steps["merge"]["path"]) / "manifest.json").read_text("utf-8"))
        assert facts["facts"]["base_weights"] in ("original", "dequantized")
        assert set(facts["metrics"]["validation_loss"]) == {"original", "dequantized"}
