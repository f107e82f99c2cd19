"""The libraries' own habits: no telemetry, no progress bars of theirs, no chatter, and a quicker
start."""

import gc
import importlib.metadata
import logging
import os
import warnings
from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Compile = Callable[..., Callable[..., Any]]


@cache
def quiet_libraries() -> None:
    """Call before the first use of transformers. Opting out of telemetry is the default here."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRACKIO_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # transformers 5.23 renames it; peft 0.21, trl 1.16 and transformers 5.17 have the old name.
    warnings.filterwarnings(
        "ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning
    )
    # bitsandbytes 0.50 says on some CPUs that it finds no quicker kernels on the hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # lm-eval 0.4.13 says on every model and task what it makes of its own defaults.
    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
    from transformers.utils import logging as chatter

    chatter.set_verbosity_error()
    chatter.disable_progress_bar()


@contextmanager
def quick_imports() -> "Iterator[None]":
    """Import the libraries inside; it takes two thirds of the time.

    Collecting garbage while nothing is garbage takes 1.5 s of 10. bitsandbytes 0.50 compiles some
    functions when it is imported (`backends/default/ops.py`), which loads torch's inductor, 1.5 s:
    here they are compiled when they are first called, as torch itself does the rest of compiling.
    transformers and trl each list all that is installed, 0.4 s: here it is listed once.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        import torch

        compile_now, list_now = torch.compile, importlib.metadata.packages_distributions
        torch.compile = partial(_compile_later, compile_now)
        importlib.metadata.packages_distributions = cache(list_now)
        try:
            yield
        finally:
            torch.compile, importlib.metadata.packages_distributions = compile_now, list_now
    finally:
        if was_on:
            _freeze()
            gc.enable()


@cache
def _freeze() -> None:
    """Once: a full collection is quicker without all that was imported."""
    if gc.get_freeze_count() == 0:  # takes 0.1 s when there are many
        # torch 2.13 makes garbage (`fx.wrap`) that holds the frames of whoever imports it, and so
        # the model that they train: frozen it would never go.
        gc.collect()
        gc.freeze()


def _compile_later(
    compile_now: "Compile", function: "Callable[..., Any] | None" = None, **options: Any
) -> "Callable[..., Any]":
    if function is None:
        return partial(_compile_later, compile_now, **options)
    compiled = cache(partial(compile_now, function, **options))

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call
