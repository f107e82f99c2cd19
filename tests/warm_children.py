"""Processes of their own whose libraries are loaded already: children of a fork server.

Each has its own memory, signals, exit code, streams and current folder, and runs its module from
the start. Only the imports of libraries, seconds each, are shared.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any
from unittest.mock import patch

from luthier import children

PRELOADED = "training_preload"


def running_server() -> Any:
    """The fork server of this process, started if need be."""
    server = forkserver._forkserver  # type: ignore[attr-defined]
    server.set_forkserver_preload([PRELOADED])
    # Python 3.11's server ignores the search path that it is given.
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    with patch.dict(os.environ, own):
        server.ensure_running()
    return server


def use_server(address: str) -> None:
    """Share another process's server."""
    server = forkserver._forkserver  # type: ignore[attr-defined]
    server._forkserver_address, server.ensure_running = address, lambda: None


def child_process(
    target: Callable[..., None], *arguments: Any, **options: Any
) -> ForkServerProcess:
    """A started child of the fork server, which calls `target`."""
    running_server()
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_call, args=(target, arguments, options))
    process.start()
    return process


def _call(
    target: Callable[..., None], arguments: Sequence[Any], options: Mapping[str, Any]
) -> None:
    assert PRELOADED in sys.modules, "the fork server says nothing when it cannot import"
    target(*arguments, **options)


def join(process: ForkServerProcess) -> None:
    """Wait for a child that must not fail."""
    process.join()
    assert process.exitcode == 0, f"{process} failed; what it said stands above"


class WarmPopen(subprocess.Popen[Any]):
    """`Popen([sys.executable, "-m", MODULE, ...])`, or `"-P", SCRIPT, ...`. What it takes over of
    CPython's (3.11, 3.12) class is how a child is started, and how its end is learned."""

    def _execute_child(self, arguments: Sequence[str], *given: Any) -> None:
        executable, kind, name, *rest = arguments
        assert executable == sys.executable, arguments
        cwd, env, new_session = given[4], given[5], given[20]
        pipes = given[9:15]  # of standard input, output and error: the end read from, written to
        theirs = [pipes[0], pipes[3], pipes[5]]
        streams = [_Descriptor(end if end >= 0 else place) for place, end in enumerate(theirs)]
        start = Start(
            arguments=(name, *rest),
            folder=str(cwd or Path.cwd()),
            environment=dict(os.environ if env is None else env),
            streams=streams,
            new_session=new_session,
            server=running_server()._forkserver_address,
        )
        self.process = child_process(RUN[kind], start)
        self.pid = self.process.ident or 0
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            self.returncode = self.process.exitcode  # type: ignore[assignment]
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        self.process.join(timeout)
        if self._internal_poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode


class _Descriptor:
    """A file descriptor that is another process's once it is there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _detached, (DupFd(self._descriptor),)


def _detached(descriptor: Any) -> int:
    return int(descriptor.detach())


@dataclass(frozen=True)
class Start:
    """What a new process is started with."""

    arguments: Sequence[str]
    folder: str
    environment: Mapping[str, str]
    streams: Sequence[Any]
    new_session: bool
    server: str


def run_module(start: Start) -> None:
    """`python -m MODULE ARGUMENTS`, within a child of the fork server."""
    _become(start)
    # It may have been imported by the server; here it runs again.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
    runpy.run_module(start.arguments[0], run_name="__main__", alter_sys=True)


def run_script(start: Start) -> None:
    """`python -P SCRIPT ARGUMENTS`, within a child of the fork server."""
    _become(start)
    runpy.run_path(start.arguments[0], run_name="__main__")


RUN = {"-m": run_module, "-P": run_script}


def _become(start: Start) -> None:
    if start.new_session:
        os.setsid()
    for number, stream in enumerate(start.streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing gave it another
    os.chdir(start.folder)
    os.environ.clear()
    os.environ.update(start.environment)
    sys.path[:0] = filter(None, start.environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = list(start.arguments)
    # Its own children are warm too, and of the same server.
    children.Popen = WarmPopen  # type: ignore[misc]
    use_server(start.server)
