"""Q6_K, Q5_K_M, Q4_K_M, Q4_0: llama.cpp's own bytes, little memory, what is refused."""

import hashlib
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from gguf_cases import SHAPES, Shape, numbers, write_gguf, write_importance
from luthier.errors import ServingError
from luthier.serving import gguf_quantizing, llama_library
from luthier.serving.gguf_file import tensor_types
from luthier.serving.gguf_quantizing import quantize_file

# SHA-256, first 16 digits, of what `llama_model_quantize` of llama.cpp b11739 makes of the same
# files (the wheel llama-cpp-py-sync 0.11739 under glibc 2.41, 2026-12)
LLAMA_CPP_SHA256 = {
    "llama": {
        "q6_k": "09cc0ddecc4f8dbd",
        "q5_k_m": "639d3569f57e53f3",
        "q4_k_m": "1c92215ca891579e",
        "q4_0": "4c41638669d704e7",
    },
    "llama+importance": {
        "q6_k": "2a781d66c2ababf2",
        "q5_k_m": "d8fb1bb57a3ed6c3",
        "q4_k_m": "d25909bb7dee66b0",
        "q4_0": "c219d25201c54c83",
    },
    "tied-bf16": {
        "q6_k": "ebece97f89189f34",
        "q5_k_m": "0faec16f8e13bcee",
        "q4_k_m": "6cfd78232ac331c5",
        "q4_0": "2432ad027a27c5ec",
    },
    "rows-of-64": {
        "q6_k": "f5eabc893272760b",
        "q5_k_m": "7b0057fa73ca1c0e",
        "q4_k_m": "e8c86c9bf03d02fd",
        "q4_0": "0c5262e617ef566f",
    },
    "rows-of-72": {
        "q6_k": "3aaebad7b6c61c82",
        "q5_k_m": "53a0cbf8db18c31c",
        "q4_k_m": "824eadf0ea151715",
        "q4_0": "f4e5e9f351533dce",
    },
    "phi3": {
        "q6_k": "ab5834eba88af8ce",
        "q5_k_m": "6dfa280b3e30817b",
        "q4_k_m": "44ec2c10bee3fdc3",
        "q4_0": "07250e7596f6fea8",
    },
    "gemma2": {
        "q6_k": "5018b2e109e1f31a",
        "q5_k_m": "c49cde7af059ad22",
        "q4_k_m": "31a3e4e3628faa6f",
        "q4_0": "f6f54f210a1e772f",
    },
    "mixtral": {
        "q6_k": "406bba5c87fbd8af",
        "q5_k_m": "22d005cbdff1c35a",
        "q4_k_m": "4335057d22a7ebe7",
        "q4_0": "9a26ffc0fa9bdf64",
    },
    "four-experts": {
        "q6_k": "b26c291666aed433",
        "q5_k_m": "5891ab82db1fa8ee",
        "q4_k_m": "46c3526f47ea5176",
        "q4_0": "68f3837e20b9665b",
    },
    "seventy-billion": {
        "q6_k": "30344e3d5fbbcf51",
        "q5_k_m": "b8ec29fa26638d63",
        "q4_k_m": "70d048b726768641",
        "q4_0": "da2d9e20ef0951ef",
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of `SHAPES`, and an importance matrix for the first."""
    folder = tmp_path_factory.mktemp("shapes")
    for name, shape in SHAPES.items():
        write_gguf(folder / f"{name}.gguf", shape)
    write_importance(folder / "importance.gguf")
    return folder


@pytest.mark.parametrize("case", LLAMA_CPP_SHA256)
def test_the_bytes_are_those_of_llama_quantize(folder: Path, tmp_path: Path, case: str) -> None:
    name, _, weighted = case.partition("+")
    importance = folder / "importance.gguf" if weighted else None
    for mixture, digest in LLAMA_CPP_SHA256[case].items():
        target = tmp_path / f"{mixture}.gguf"
        quantize_file(folder / f"{name}.gguf", target, mixture, importance, threads=2)  # type: ignore[arg-type]
        assert hashlib.sha256(target.read_bytes()).hexdigest()[:16] == digest, mixture


def test_slabs_and_threads_change_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_quantizing, "_SLAB_BYTES", 5000)  # 4 rows of 256
    target = tmp_path / "q.gguf"
    for threads in (1, 3):
        quantize_file(folder / "llama.gguf", target, "q4_k_m", None, threads)
        digest = hashlib.sha256(target.read_bytes()).hexdigest()[:16]
        assert digest == LLAMA_CPP_SHA256["llama"]["q4_k_m"]


def test_types_of_rows_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "q.gguf"
    quantize_file(folder / "llama.gguf", target, "q4_k_m", None, 1)
    assert tensor_types(target) == {"f32": 19, "q4_k": 109, "q6_k": 19}
    quantize_file(folder / "rows-of-64.gguf", target, "q4_k_m", None, 1)
    assert tensor_types(target) == {"f32": 10, "q5_0": 54, "q8_0": 11}
    quantize_file(folder / "rows-of-72.gguf", target, "q4_k_m", None, 1)
    assert tensor_types(target) == {"f16": 65, "f32": 10}


def test_no_number_among_the_weights_is_refused(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "s.gguf", Shape(layers=1, dtype="f32"))
    data = bytearray(source.read_bytes())
    data[-4:] = np.float32(np.inf).tobytes()  # of output.weight, the last tensor
    source.write_bytes(data)
    with pytest.raises(ServingError, match=r"output\.weight: infinite or no numbers"):
        quantize_file(source, tmp_path / "q.gguf", "q6_k", None, 1)


def test_quantising_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.gguf"
    quantize_file(folder / "llama.gguf", first, "q6_k", None, 1)
    with pytest.raises(ServingError, match="quantised already"):
        quantize_file(first, tmp_path / "second.gguf", "q4_0", None, 1)


def test_architectures_with_rules_of_their_own_are_refused(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "s.gguf", Shape("falcon", layers=1))
    with pytest.raises(ServingError, match=r"falcon: llama\.cpp has rules of its own"):
        quantize_file(source, tmp_path / "q.gguf", "q4_k_m", None, 1)


def test_importance_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="importance matrix has 256 columns, the tensor 512"):
        quantize_file(
            folder / "tied-bf16.gguf", tmp_path / "q.gguf", "q4_0", folder / "importance.gguf", 1
        )
    with pytest.raises(ServingError, match="not an importance matrix"):
        quantize_file(folder / "llama.gguf", tmp_path / "q.gguf", "q4_0", folder / "llama.gguf", 1)


def test_another_build_of_llama_cpp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llama_library.CONTEXT_DEFAULTS, "n_batch", 4711)
    llama_library.library.cache_clear()
    with pytest.raises(ServingError, match=r"n_batch is 2048, not 4711.*xllamacpp=="):
        llama_library.library()


def test_memory_is_that_of_some_slabs(tmp_path: Path) -> None:
    """100 MB of weights in one tensor, quantised in a process of 150 MB at most."""
    source, rows = tmp_path / "s.gguf", 100_000
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_block_count(1)
    writer.add_quantization_version(2)
    block = np.tile(numbers(1 << 18, 1).astype(np.float16).reshape(-1, 512), (rows // 512 + 1, 1))
    writer.add_tensor("token_embd.weight", block[:rows])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    script = (
        "import pathlib, re, sys\n"
        "from luthier.serving.gguf_quantizing import quantize_file\n"
        "source, target = map(pathlib.Path, sys.argv[1:])\n"
        "quantize_file(source, target, 'q4_0', None, 1)\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(tmp_path / "q.gguf")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout.split()[-1]) < 150_000  # KiB
