"""Starts the ranks under accelerate's launcher: `python -m luthier.training.spawn FOLDER N`.

A process of its own because the launcher needs torch and takes the process's signals.
"""

import os
import sys
from pathlib import Path

from luthier.errors import ModelError
from luthier.training.mailbox import Mailbox


def main() -> None:
    """Start N ranks, wait for them, and leave in the mailbox which of them failed, and how."""
    mailbox, processes = Mailbox(Path(sys.argv[1])), int(sys.argv[2])
    try:
        _require_gpus(processes)
    except ModelError as error:
        mailbox.put_failure(0, error)
        sys.exit(error.exit_code)
    # The user's own number counts; torchrun's default of 1 leaves the other cores idle.
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = launch_command_parser().parse_args(_arguments(mailbox, processes))
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        mailbox.put_deaths({rank: one.exitcode for rank, one in error.failures.items()})
        sys.exit(1)


def _require_gpus(processes: int) -> None:
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise ModelError(
            f"sft.processes: {processes} processes need {processes} GPUs, and there are {gpus}. "
            f"Set sft.processes: {gpus}."
        )


def _arguments(mailbox: Mailbox, processes: int) -> list[str]:
    """`accelerate launch` (1.15, commands/launch.py) on this machine, whatever it has.

    `--multi_gpu` means torchrun, on processors too: what a rank computes on, it finds itself, and
    `--cpu` would start a single process. A config file of ours, so that the user's own accelerate
    settings, meant for other programs, change nothing. Port 0: any that is free.
    """
    settings = mailbox.folder / "accelerate.yaml"
    settings.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\ndebug: false\n"
        f"num_machines: 1\nmachine_rank: 0\nnum_processes: {processes}\ngpu_ids: all\n"
        "mixed_precision: 'no'\nmain_training_function: main\nuse_cpu: false\n",
        encoding="utf-8",
    )
    return [
        *("--config_file", str(settings)),
        *("--multi_gpu", "--num_machines", "1", "--num_processes", str(processes)),
        *("--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--num_cpu_threads_per_process", os.environ["OMP_NUM_THREADS"]),
        *("--module", "luthier.training.rank", str(mailbox.folder)),
    ]


if __name__ == "__main__":
    main()
