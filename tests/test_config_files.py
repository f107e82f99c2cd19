"""Config files that cannot be read, and what importing the reader costs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.config import load_config
from luthier.errors import ConfigError


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs/deep").mkdir(parents=True)


def complaints(path: str = "configs/x.yaml") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    return str(caught.value).split("\n")


def test_files_that_cannot_be_read() -> None:
    for name in ("smoke", "other"):
        Path("configs", f"{name}.yaml").write_text("name: x\n")
    listed = "configs/other.yaml, configs/smoke.yaml"
    assert complaints("configs/smok.yaml") == [
        "configs/smok.yaml does not exist. Did you mean configs/smoke.yaml?"
    ]
    assert complaints("configs/smoke") == [
        "configs/smoke does not exist. Did you mean configs/smoke.yaml?"
    ]
    assert complaints("configs/zzz") == [
        "configs/zzz does not exist. YAML files there: other.yaml, smoke.yaml"
    ]
    assert complaints("configs") == [f"configs is a folder. Name a config file. In it: {listed}"]
    assert complaints("configs/deep/a.yaml") == [
        "configs/deep/a.yaml does not exist. No YAML files are there"
    ]
    assert complaints("configs/deep") == [
        "configs/deep is a folder. Name a config file. It has no YAML files"
    ]
    assert complaints("configs/smoke.yaml/x") == [
        "configs/smoke.yaml/x cannot be read: not a directory. Check the path and its rights"
    ]


def test_bytes_that_are_no_config() -> None:
    path = Path("configs/x.yaml")
    path.write_bytes(b"name: x\nsft: \xff\n")
    assert complaints() == ["configs/x.yaml:2: not UTF-8 (byte 0xff). Save the file as UTF-8"]
    path.write_bytes(b"#" * (1 << 20) + b"\n")
    assert complaints() == [
        "configs/x.yaml is larger than 1048576 bytes, too large for a config. Is it the data?"
    ]
    path.write_bytes(b"")
    assert complaints() == ["configs/x.yaml:1: the file is empty. Write a config"]
    path.write_bytes(b"hello")
    assert complaints() == [
        "configs/x.yaml:1: a config must be a mapping (key: value), not the single value 'hello'"
    ]


def test_importing_is_cheap() -> None:
    code = (
        "import sys; before = set(sys.modules); import luthier.config;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names;"
        "print(sorted(new))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    allowed = {"luthier", "pydantic", "pydantic_core", "yaml", "annotated_types"}
    allowed |= {"typing_extensions", "typing_inspection", "cython_runtime"}
    new = json.loads(done.stdout.replace("'", '"'))
    assert {name for name in new if not name.startswith("_")} <= allowed
