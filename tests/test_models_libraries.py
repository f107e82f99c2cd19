"""Importing the libraries quickly leaves nothing behind."""

import gc
import subprocess
import sys

import pytest
import torch

from luthier.models.libraries import quick_imports


def test_functions_are_compiled_when_they_are_first_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = []

    def compile_now(function: object, **options: object) -> object:
        compiled.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile_now)
    with quick_imports():

        @torch.compile
        def double(x: int) -> int:
            return 2 * x

        @torch.compile(dynamic=False)
        def triple(x: int) -> int:
            return 3 * x

    assert compiled == []
    assert [double(2), double(3), triple(2)] == [4, 6, 6]
    assert compiled == [{}, {"dynamic": False}]
    assert double.__name__ == "double"
    assert torch.compile is compile_now


@pytest.mark.parametrize("was_on", [True, False])
def test_what_was_set_is_set_again_after_an_error(was_on: bool) -> None:
    compile_now = torch.compile
    (gc.enable if was_on else gc.disable)()
    try:
        with pytest.raises(ImportError, match="collecting: False"), quick_imports():
            raise ImportError(f"collecting: {gc.isenabled()}")
        assert gc.isenabled() == was_on
        assert torch.compile is compile_now
    finally:
        gc.enable()


def test_nothing_that_is_not_used_is_compiled_by_importing() -> None:
    """bitsandbytes alone would load torch's inductor, 1.5 s of every start."""
    code = (
        "import sys\n"
        "from luthier.training.trainer import supervised_trainer_class\n"
        "supervised_trainer_class()\n"
        "assert 'bitsandbytes' in sys.modules\n"
        "sys.exit('torch._inductor.compile_fx' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_who_imports_is_not_kept_in_memory() -> None:
    """A model in a frame that imported torch.fx stayed for good, once frozen."""
    code = (
        "import gc, sys, weakref\n"
        "from luthier.training.trainer import supervised_trainer_class\n"
        "class Model: pass\n"
        "def train():\n"
        "    supervised_trainer_class()\n"
        "    model = Model()\n"
        "    return weakref.ref(model)\n"
        "left = train()\n"
        "gc.collect()\n"
        "sys.exit(left() is not None)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
