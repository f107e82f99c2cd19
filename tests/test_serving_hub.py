"""The folder for the hub, and `luthier upload` against a hub on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from card_cases import facts_of
from hub_cases import COMMIT, TOKEN, LocalHub, local_hub
from luthier.cli import call
from luthier.errors import ServingError
from luthier.gates import check
from luthier.serving.bundle import write_documents
from luthier.serving.hub import link_or_copy, planned_upload, write_hub_folder
from luthier.store import Artifact
from report_cases import KINDS, SLOTS, Sample, finished, sample, seal

__all__ = ["finished", "sample"]  # fixtures
WEIGHTS = b"weights" * 1000


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        (folder / name).write_text(f'{{"of": "{name}"}}')
    (folder / "model-00001-of-00002.safetensors").write_bytes(WEIGHTS)
    (folder / "model-00002-of-00002.safetensors").write_bytes(WEIGHTS[::-1])
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "serve.yaml").write_text("x: 1\n")
    return folder


def test_weights_are_on_the_disk_once(tmp_path: Path) -> None:
    vllm, hub = model_folder(tmp_path / "vllm"), tmp_path / "hub"
    write_hub_folder(hub, vllm)
    names = {path.name for path in vllm.iterdir()} - {"serve.yaml"}
    assert {path.name for path in hub.iterdir()} == names | {".gitattributes"}
    for path in hub.glob("*.safetensors"):
        assert path.samefile(vllm / path.name)
    assert not (hub / "config.json").samefile(vllm / "config.json")
    assert (hub / ".gitattributes").read_text() == (
        "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
    )
    # Once more, as after a killed run whose config was written anew.
    (vllm / "config.json").write_text("{}")
    write_hub_folder(hub, vllm)
    assert (hub / "config.json").read_text() == "{}"


def test_large_tokenizers_are_kept_as_lfs(tmp_path: Path) -> None:
    vllm = model_folder(tmp_path / "vllm")
    (vllm / "tokenizer.json").write_bytes(bytes(10_000_001))
    write_hub_folder(tmp_path / "hub", vllm)
    assert "tokenizer.json filter=lfs" in (tmp_path / "hub" / ".gitattributes").read_text()


def test_without_hard_links_it_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_source: Path, _target: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "source").write_bytes(WEIGHTS)
    (tmp_path / "target").write_bytes(b"old")
    link_or_copy(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == WEIGHTS
    assert not (tmp_path / "target").samefile(tmp_path / "source")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_sealed_bundle_keeps_the_links(sample: Sample) -> None:
    bundle = make_bundle(sample)
    assert (bundle.path / "hub" / "model-00001-of-00002.safetensors").stat().st_nlink == 2
    sample.store.verify(bundle)


def make_bundle(sample: Sample, **more: Any) -> Artifact:
    """The sample's bundle again, with a hub folder and all documents."""

    def write(folder: Path) -> None:
        write_hub_folder(folder / "hub", model_folder(folder / "vllm"))
        write_documents(folder, facts_of(sample))

    sample.config.sections["export"] = sample.config.sections["export"].model_copy(
        update={"probe_rows": 99}
    )
    return seal(sample, "export", {}, write=write, **more)


def judge(sample: Sample, bundle: Artifact, word: str) -> None:
    """An evaluation of the bundle, as `accept` seals it."""
    sample.artifacts["bundle"] = bundle
    sections = sample.config.sections
    sections["accept"] = sections["evaluate"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SLOTS, "accept", ("base", "prepare", "bundle"))
        patch.setitem(KINDS, "accept", "evaluation")
        seal(sample, "accept", {"evaluation.json": b"{}"}, metrics={"ship": word})


@dataclass
class Project:
    """A store with a bundle, and a hub to send it to."""

    sample: Sample
    hub: LocalHub
    folder: Path

    def upload(self, *arguments: str, token: str = TOKEN) -> "subprocess.CompletedProcess[str]":
        environment = {
            **os.environ,
            "HF_ENDPOINT": self.hub.url,
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # its service is no part of this hub
            "HF_HOME": str(self.folder / "hf"),
            "LUTHIER_STORE": str(self.sample.store.root.resolve()),
        }
        command = [sys.executable, "-m", "luthier", "upload", "package-router/bundle"]
        return subprocess.run(
            [*command, "--repo", "someone/router", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture
def project(sample: Sample, tmp_path: Path) -> Iterator[Project]:
    with local_hub() as hub:
        yield Project(sample, hub, tmp_path)


def test_it_shows_and_sends_nothing_unasked(project: Project) -> None:
    bundle = make_bundle(project.sample)
    done = project.upload()
    assert done.returncode == 0, done.stderr
    assert f"{bundle.ref} to someone/router, public" in done.stdout
    assert "model-00001-of-00002.safetensors" in done.stdout
    assert "Nothing was uploaded" in done.stdout
    assert "never evaluated" in done.stdout
    assert project.hub.requests == []


def test_what_arrives_is_what_is_in_the_bundle(project: Project) -> None:
    bundle = make_bundle(project.sample)
    judge(project.sample, bundle, "ship")
    done = project.upload("--yes", "--private", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["uploaded"].endswith(f"/commit/{COMMIT}")
    assert said["word"] == "ship"
    [created] = project.hub.created
    assert (created["organization"], created["name"]) == ("someone", "router")
    assert created["visibility"] == "private"
    assert bundle.ref in project.hub.message

    hub = bundle.path / "hub"
    received = dict(project.hub.files)
    card = received.pop("README.md").decode()
    assert card.startswith((hub / "README.md").read_text("utf-8"))
    assert card.endswith((bundle.path / "measured" / "RUN.md").read_text("utf-8"))
    assert "## This run" in card
    there = {path.name: path.read_bytes() for path in hub.iterdir() if path.name != "README.md"}
    assert received == there
    assert dict(said["files"]).keys() == project.hub.files.keys()
    # Only the two large files went by LFS.
    assert sum(method == "PUT" for method, _ in project.hub.requests) == 2


def test_what_is_not_to_be_shipped_stays(project: Project) -> None:
    bundle = make_bundle(project.sample)
    judge(project.sample, bundle, "do not ship")
    done = project.upload("--yes")
    assert done.returncode == 3
    assert "says do not ship" in done.stderr
    assert "--force" in done.stderr
    assert project.hub.requests == []
    assert project.upload("--yes", "--force").returncode == 0
    assert "README.md" in project.hub.files


def test_a_failed_gate_keeps_it_here(project: Project) -> None:
    gates = [check("gguf-ids", 3, "==", 0, "q8_0: 1312 texts compared")]
    make_bundle(project.sample, gates=gates)
    done = project.upload("--yes")
    assert done.returncode == 3
    assert "gguf-ids: measured 3, wanted == 0" in done.stderr
    assert project.hub.requests == []


def test_damage_is_not_uploaded(project: Project) -> None:
    bundle = make_bundle(project.sample)
    path = bundle.path / "hub" / "config.json"
    path.chmod(0o644)
    path.write_text("{}")
    done = project.upload("--yes")
    assert done.returncode == 2
    assert "hub/config.json" in done.stderr
    assert project.hub.requests == []


def test_without_a_right_token_it_says_how_to_log_in(project: Project) -> None:
    make_bundle(project.sample)
    done = project.upload("--yes", token="hf_" + "b" * 34)
    assert done.returncode == 2
    assert "refused someone/router (401)" in done.stderr
    assert "hf auth login" in done.stderr
    assert "Traceback" not in done.stderr
    assert project.hub.files == {}


def test_a_card_that_the_hub_refuses_stops_it_before_the_weights(project: Project) -> None:
    make_bundle(project.sample)
    project.hub.refuses_card = True
    done = project.upload("--yes")
    assert done.returncode == 2
    assert "license is not a licence" in done.stderr
    assert "Traceback" not in done.stderr
    assert project.hub.objects == {}


def test_offline_is_said_plainly(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(sample)
    assert call(["upload", "package-router/bundle", "--repo", "someone/router", "--yes"]) == 2
    said = capsys.readouterr().err
    assert "someone/router was not uploaded" in said
    assert "HF_HUB_OFFLINE" in said


@pytest.mark.parametrize("repo", ["router", "some one/router", "a/b/c", "someone/-router-"])
def test_what_cannot_be_a_repository_is_refused(sample: Sample, repo: str) -> None:
    with pytest.raises(ServingError, match="--repo"):
        planned_upload(make_bundle(sample).path, repo, is_private=False)


def test_a_bundle_without_the_target_says_how_to_get_it(sample: Sample) -> None:
    with pytest.raises(ServingError, match=r"Add hub to export\.targets"):
        planned_upload(sample.artifacts["export"].path, "someone/router", is_private=False)
