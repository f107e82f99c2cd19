"""The libraries' own habits, set once: no telemetry, no progress bars of theirs, no chatter."""

import os
import warnings
from functools import cache


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
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
