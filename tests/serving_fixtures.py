"""Fixtures of the serving tests, a pytest plugin: what takes seconds is made once a session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.models.loading import load_tokenizer
from luthier.serving.answers import read_probes
from luthier.serving.llama_server import LlamaServer
from luthier.serving.reference import Reference, make_reference
from luthier.serving.serve_probes import Served, ServeProbes, build_probes, write_probes
from luthier.store.artifact import Workspace
from serving_cases import convert_folder, tune, write_dataset


@pytest.fixture(scope="session")
def serving_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="session")
def dataset_dir(tiny_base: Path, serving_folder: Path) -> Path:
    """A dataset artifact's files: eight rows of classification."""
    return write_dataset(serving_folder / "dataset", tiny_base)


@pytest.fixture(scope="session")
def tuned_dir(tiny_base: Path, dataset_dir: Path, serving_folder: Path) -> Path:
    """The tiny base, trained until it answers the dataset's rows."""
    return tune(tiny_base, serving_folder / "tuned", dataset_dir)


@pytest.fixture(scope="session")
def tuned_gguf(tuned_dir: Path, serving_folder: Path) -> Path:
    return convert_folder(tuned_dir, serving_folder / "tuned.gguf")


@pytest.fixture(scope="session")
def base_gguf(tiny_base: Path, serving_folder: Path) -> Path:
    return convert_folder(tiny_base, serving_folder / "base.gguf")


@pytest.fixture(scope="session")
def tuned_server(tuned_gguf: Path) -> Iterator[LlamaServer]:
    with LlamaServer(tuned_gguf, context_tokens=256) as server:
        yield server


@pytest.fixture(scope="session")
def reference(
    tiny_base: Path, tuned_dir: Path, dataset_dir: Path, serving_folder: Path
) -> Reference:
    """The answers of base and tuned model to the dataset's rows."""
    probes = read_probes(dataset_dir, count=8, text_count=4)
    workspace = Workspace(serving_folder)
    return make_reference(load_tokenizer(tiny_base), probes, tiny_base, tuned_dir, workspace)


@pytest.fixture(scope="session")
def serve_probes(reference: Reference) -> ServeProbes:
    """What a bundle of the tuned model carries, for a context of 512 tokens."""
    return build_probes(reference, Served("planted", 512))


@pytest.fixture(scope="session")
def probes_bundle(serve_probes: ServeProbes, serving_folder: Path) -> Path:
    """A bundle's folder, copied elsewhere without its manifest."""
    folder = serving_folder / "bundle"
    folder.mkdir()
    write_probes(folder, serve_probes)
    return folder
