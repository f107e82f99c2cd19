"""Trials as tasks of a Ray cluster, on one store that all its nodes see.

The process that a person started decides what runs next, as on one machine, and hands it to Ray;
the task takes the unit's lock, runs it and writes into the same study. When a node dies, Ray gives
its task to another one, which finds the lock free and goes on from the checkpoint in the store.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.errors import ConfigError, LuthierError
from luthier.models.shared_base import sharing_bases
from luthier.sweeping.jobs import Job, next_job
from luthier.sweeping.state import describe_trial
from luthier.sweeping.study import Study
from luthier.sweeping.trial import Bench, run_job
from luthier.sweeping.working import refuse_hopeless

_LOOK_EVERY_SECONDS = 0.5
_KNOCK_SECONDS = 10.0


@dataclass
class _Flight:
    """Tasks by their unit."""

    tasks: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)


def work_on_ray(bench: Bench) -> None:
    """Run jobs on the cluster until none is left.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
        InterruptedRunError: a stop was requested; tasks end where they are, and go on with the
            next call.
        LuthierError: a task could not be run, or all that was tried failed.
    """
    import_ray()
    study, flight = bench.study, _Flight()
    with _connected(study.plan.section.ray.address):
        try:
            while _dispatch(bench, flight):
                bench.stop.raise_if_requested()
                _collect(bench, flight)
        finally:
            _cancel(flight)


def import_ray() -> Any:
    """The module, with what it would send to its makers switched off.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "sweep.executor: ray needs Ray, which is not installed. Install it with: "
            "pip install luthier[cluster]"
        ) from error
    return ray


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connected to the cluster, or to what this process is connected to already."""
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        _knock(address)
        with redirect_stdout(sys.stderr):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"sweep.ray.address: {address}: no Ray cluster answers there ({error}). Start one "
            "with: ray start --head"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would try for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()


def _dispatch(bench: Bench, flight: _Flight) -> bool:
    """Hand out what can run now; false when nothing runs and nothing is left."""
    study = bench.study

    def claim(unit: str) -> bool | None:
        return None if unit in flight.tasks or study.is_held(unit) else True

    most = _at_once(study)
    while len(flight.tasks) < most:
        with study.deciding():
            job = next_job(study, claim)
        if job == "done":
            return bool(flight.tasks)
        if job == "wait":
            return True
        assert isinstance(job, Job)
        bench.reporter.say(describe_trial(study, job.number))
        flight.tasks[job.unit] = _submit(study, job)
        flight.jobs[job.unit] = job
    return True


def _at_once(study: Study) -> int:
    """Trials that the cluster can run at once, or that the config allows."""
    import ray

    wanted, section = study.plan.section.concurrency, study.plan.section.ray
    if isinstance(wanted, int):
        return wanted
    there = ray.cluster_resources()
    fits = [
        there.get(name, 0.0) // share
        for name, share in (("GPU", section.gpus_per_trial), ("CPU", section.cpus_per_trial))
        if share
    ]
    return max(1, int(min(fits, default=1)))


def _submit(study: Study, job: Job) -> Any:
    import ray

    section, plan = study.plan.section.ray, study.plan
    task = ray.remote(_run_remotely).options(
        name=f"luthier {plan.config.name} {job.unit}",
        num_cpus=section.cpus_per_trial,
        num_gpus=section.gpus_per_trial,
        max_retries=section.retries,
        retry_exceptions=False,
    )
    return task.remote(
        {
            "folder": str(Path.cwd()),
            "config": str(plan.config.path),
            "overrides": list(plan.config.overrides),
            "store": str(study.store.root.absolute()),
            "key": plan.key,
            "number": job.number,
            "seeds": list(job.seeds),
            "unit": job.unit,
            "is_trial": job.is_trial,
        }
    )


def _run_remotely(told: dict[str, Any]) -> None:
    """A task: the job, on whichever node this is."""
    from luthier.store import Store
    from luthier.sweeping.plan import plan_sweep

    os.chdir(told["folder"])  # paths in a config are relative to it
    study = Study(plan_sweep(told["config"], told["overrides"]), Store(Path(told["store"])))
    if study.plan.key != told["key"]:
        raise LuthierError(
            "this node sees another config, data or packages than the one that decides: the "
            "study's key differs. All nodes must see the same files and have the same environment"
        )
    with study.holding(told["unit"]) as free, sharing_bases():
        if free:
            job = Job(told["number"], told["seeds"], told["unit"], told["is_trial"], None)
            run_job(Bench(study), job)


def _collect(bench: Bench, flight: _Flight) -> None:
    """Wait a moment for tasks, and say what those came to that ended.

    Raises:
        LuthierError: a task could not be run.
    """
    import ray

    if not flight.tasks:
        time.sleep(_LOOK_EVERY_SECONDS)
        return
    ended, _ = ray.wait(list(flight.tasks.values()), timeout=_LOOK_EVERY_SECONDS)
    for task in ended:
        unit = next(unit for unit, one in flight.tasks.items() if one == task)
        del flight.tasks[unit]
        try:
            ray.get(task)
        except ray.exceptions.RayError as error:
            raise LuthierError(
                f"{unit}: its Ray task failed: {_last_line(error)}. What is done stays; the same "
                "command goes on."
            ) from error
        bench.reporter.say(describe_trial(bench.study, flight.jobs[unit].number))
    refuse_hopeless(bench.study)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def _cancel(flight: _Flight) -> None:
    import ray

    for task in flight.tasks.values():
        ray.cancel(task)
