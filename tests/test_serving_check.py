"""`luthier serve-check` against real servers, and what it says where there is none."""

import json
from pathlib import Path

import pytest

from luthier.cli import call
from luthier.serving.llama_server import LlamaServer
from luthier.serving.serve_probes import ServeProbes, read_serve_probes

pytest_plugins = "serving_fixtures"


def test_a_server_of_the_right_model_passes(
    probes_bundle: Path, tuned_server: LlamaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(["serve-check", str(probes_bundle), "--endpoint", tuned_server.url, "--json"])
    printed = capsys.readouterr().out
    found = json.loads(printed)
    assert code == 0, printed
    assert found["server"]["kind"] == "llama.cpp"
    assert found["not_checked"] == []
    assert {gate["id"]: gate["status"] for gate in found["gates"]} == {}
