"""Fixtures of the prepare stage's tests, a pytest plugin: two bases, made once a session."""

import shutil
from pathlib import Path

import pytest

from luthier.store.artifact import Artifact
from prepare_cases import sealed, write_base, write_config


@pytest.fixture(scope="session")
def smol_base(smol_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """SmolLM2's tokenizer and template, and the size of its embedding."""
    folder = tmp_path_factory.mktemp("base") / "smol"
    shutil.copytree(smol_tokenizer_dir, folder)
    write_config(folder, 49152)
    return sealed(folder)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A template like SmolLM2's, and a tokenizer of 800 tokens that loads in milliseconds."""
    folder = tmp_path_factory.mktemp("base") / "small"
    write_base(folder)
    return sealed(folder)
