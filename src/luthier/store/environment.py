"""The code and the machine, as the manifest records them. None of it is part of a key."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from luthier import __version__
from luthier.store.manifest import Environment

RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "gguf",
    "xllamacpp",
)
_GIT_TIMEOUT_SECONDS = 2.0


def collect_environment() -> Environment:
    """What is known without loading anything heavy: CUDA and GPU only where torch is loaded."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    cuda, gpu = _cuda()
    return Environment(
        luthier=__version__,
        git_commit=commit,
        git_dirty=None if changes is None else bool(changes),
        python=platform.python_version(),
        packages=package_versions(RECORDED_PACKAGES),
        platform=platform.platform(),
        cpu_threads=_threads(),
        cuda=cuda,
        gpu=gpu,
    )


def package_versions(distributions: tuple[str, ...]) -> dict[str, str]:
    """Versions by distribution, of those that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str | None:
    """What git says of the current directory's repository; None without git or repository."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _threads() -> int:
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else os.cpu_count() or 1


def _cuda() -> tuple[str | None, str | None]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None, None
    return torch.version.cuda, torch.cuda.get_device_name(0)
