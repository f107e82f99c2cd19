"""Fixtures of the serving tests, a pytest plugin: what takes seconds is made once a session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.serving.llama_server import LlamaServer
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
