"""Several trials at once on one machine: helper processes that work on the same study.

A helper is told what to work on by its standard input, which is also its lifeline: when the
process that a person started ends, for whatever reason, the helper stops after its step, keeps a
checkpoint and ends. It is nothing that the first process depends on: they meet in the study alone.
"""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.children import Child, end_child, start_child
from luthier.errors import InterruptedRunError, LuthierError
from luthier.progress import PlainReporter
from luthier.sweeping.trial import Bench

_GPUS = "CUDA_VISIBLE_DEVICES"
_THREADS = "OMP_NUM_THREADS"
_END_WITHIN_SECONDS = 600.0  # a step, a checkpoint


@contextmanager
def helping(bench: Bench, count: int, gpus: int) -> Iterator[None]:
    """Keep `count` helpers at work within the block; with several GPUs each helper has one.

    Raises:
        LuthierError: a helper died of a bug or an error of its own; what the others did stays.
    """
    threads = {_THREADS: str(_threads(count + 1))}
    shares = [_gpu(place + 1, gpus) for place in range(count)]
    helpers = [_start(bench, threads | ({_GPUS: gpu} if gpu else {})) for gpu in shares]
    try:
        yield
        for helper in helpers:
            helper.wait()
    finally:
        for helper in helpers:
            end_child(helper, _END_WITHIN_SECONDS)
    failed = [helper.returncode for helper in helpers if helper.returncode != 0]
    bench.stop.raise_if_requested()
    if failed:
        raise LuthierError(
            f"{len(failed)} of {count} helpers ended with exit code {failed[0]}; what they said "
            "stands above. The same command goes on from what is done."
        )


@contextmanager
def own_share(slots: int, gpus: int) -> Iterator[None]:
    """Within it this process, the first of so many, uses its share of the machine."""
    import torch
    from accelerate.utils import patch_environment

    threads, mine = torch.get_num_threads(), _gpu(0, gpus)
    torch.set_num_threads(_threads(slots))
    try:
        with patch_environment(**({_GPUS: mine} if mine is not None else {})):
            yield
    finally:
        torch.set_num_threads(threads)


def _threads(slots: int) -> int:
    """Of each of so many processes: more than there are cores would wait for one another."""
    return max(1, int(os.environ.get(_THREADS) or os.cpu_count() or 1) // slots)


def _gpu(place: int, gpus: int) -> str | None:
    """The GPU of one of several processes, by what is visible here; None to leave it as it is."""
    if gpus < 2:
        return None
    visible = os.environ.get(_GPUS)
    names = visible.split(",") if visible else [str(number) for number in range(gpus)]
    return names[place % len(names)]


def _start(bench: Bench, share: dict[str, str]) -> Child:
    plan = bench.study.plan
    told = {
        "config": str(plan.config.path),
        "overrides": list(plan.config.overrides),
        "store": str(bench.study.store.root),
        "key": plan.key,
    }
    helper = start_child(["-m", "luthier.sweeping.helpers"], environment=share)
    assert helper.stdin is not None
    helper.stdin.write(json.dumps(told).encode() + b"\n")
    helper.stdin.flush()
    return helper


def main() -> int:
    """One helper; its exit code."""
    from luthier.store import Store
    from luthier.sweeping.plan import plan_sweep
    from luthier.sweeping.study import Study
    from luthier.sweeping.working import work

    told = json.loads(sys.stdin.readline())
    study = Study(plan_sweep(told["config"], told["overrides"]), Store(Path(told["store"])))
    if study.plan.key != told["key"]:
        sys.stderr.write("error: the config or its data changed since the sweep was started.\n")
        return LuthierError.exit_code
    bench = Bench(study, PlainReporter())
    bench.stop.install()
    threading.Thread(target=_watch, args=(bench,), daemon=True).start()
    try:
        work(bench)
    except InterruptedRunError:
        return 0
    except LuthierError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _watch(bench: Bench) -> None:
    """Stop when the pipe ends."""
    while sys.stdin.read(1):
        pass
    bench.stop.requested = True


if __name__ == "__main__":
    sys.exit(main())
