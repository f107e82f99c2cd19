"""kill -9 at every instant of making an artifact: all or nothing, and the next run goes on.

As a script (`python test_store_kill.py FOLDER`) this file makes one artifact over and over in
forked children. The n-th child kills itself before its n-th call that changes the disk.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.store import Store, compute_key
from test_store_making import identity, make

CHANGES = ("fsync", "replace", "rename", "unlink", "rmdir", "chmod", "mkdir", "open")


def _kill_before(count: int) -> None:
    left = count

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def deadly(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return deadly

    for name in CHANGES:
        setattr(os, name, wrap(getattr(os, name)))


def killed_before(count: int, work: Callable[[], Any]) -> bool:
    """Do `work` in a forked child that dies before its count-th change; whether it was killed."""
    child = os.fork()
    if child == 0:
        _kill_before(count)
        work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFEXITED(status)


def _check_all_or_nothing(root: Path) -> bool:
    """Whether the killed run left a sealed artifact; the next run ends with one in any case."""
    store, key = Store(root), compute_key(identity())
    left = store.find(key)
    assert not store.contents().problems
    if left is not None:
        store.verify(left)
    artifact = make(store)
    store.verify(artifact)
    assert artifact.ref == "demo/dataset@v1"
    assert [version.ref for version in store.versions()] == ["demo/dataset@v1"]
    assert store.resolve("demo/dataset") == artifact
    names = sorted(path.name for path in (root / "prepare").iterdir())
    assert [name for name in names if not name.endswith((".owner", ".lock"))] == [key[:16]]
    assert not [path for path in root.rglob("*") if "tmp" in path.name]
    return left is not None


def _kill_everywhere(folder: Path) -> None:
    sealed = []
    for count in range(1, 1000):
        root = folder / str(count)
        killed = killed_before(count, lambda root=root: make(Store(root)))
        sealed.append(_check_all_or_nothing(root))
        if not killed:
            break
    print(f"{len(sealed)} instants, {sum(sealed)} of them after the seal")  # noqa: T201
    assert sealed == sorted(sealed)


def _kill_again_and_again(root: Path) -> None:
    """One store, each attempt killed one step later: what was begun is gone on with."""
    for count in range(1, 1000):
        if not killed_before(count, lambda: make(Store(root))):
            break
    _check_all_or_nothing(root)


def test_kill_at_every_instant_leaves_all_or_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    instants, sealed = (int(word) for word in done.stdout.split() if word.isdigit())
    assert instants > 40
    assert 0 < sealed < instants


if __name__ == "__main__":
    _kill_everywhere(Path(sys.argv[1]) / "once")
    _kill_again_and_again(Path(sys.argv[1]) / "again")
