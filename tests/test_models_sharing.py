"""A base loaded once for several trainings: the next user sees nothing of the one before."""

import gc
import shutil
import threading
import weakref
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.models import loading
from luthier.models.loading import load_model
from luthier.models.lora import LoraSection, attach
from luthier.models.quantization import Quantization
from luthier.models.shared_base import load_shared, sharing_bases
from luthier.pipeline import Pipeline, load_run
from luthier.store import Store
from luthier.training.kernels import speed_up
from luthier.training.packed_attention import use_packing_attention
from project import add_preferences, read_dpo_config, write_project
from training_cases import make_job, run_job, write_dataset


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the models that are really loaded, as it happens."""
    from transformers import AutoModelForCausalLM

    folders: list[Path] = []
    load = AutoModelForCausalLM.from_pretrained

    def counted(folder: Path, **options: Any) -> Any:
        folders.append(folder)
        return load(folder, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    return folders


class Describer:
    """All that a model holds: every module's attributes, down to the bytes of tensors; what was
    described before by its number."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def describe(self, value: Any) -> Any:
        if isinstance(value, str | int | float | bool | type(None) | type):
            return value
        if id(value) in self.seen:
            return f"object {self.seen[id(value)]}"
        self.seen[id(value)] = len(self.seen)
        return type(value).__qualname__, self._parts(value)

    def _parts(self, value: Any) -> Any:
        import torch
        from torch.nn.modules.module import _WrappedHook

        if isinstance(value, torch.Tensor):
            own = value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            kind = (value.dtype, value.shape, value.requires_grad)
            return kind, sha256(own).hexdigest(), self.describe(vars(value))
        if isinstance(value, dict):
            # Numbers are those of hooks, which are counted through all models of a process.
            names = [key for key in value if not isinstance(key, int)]
            return names, [self.describe(one) for one in value.values()]
        if isinstance(value, list | tuple):
            return [self.describe(one) for one in value]
        if isinstance(value, set | frozenset):
            return sorted(map(str, value))
        if isinstance(value, _WrappedHook):  # a copy loses the hook's name, which is for reading
            return self.describe(value.hook)
        return self._object(value)

    def _object(self, value: Any) -> Any:
        if callable(value) and hasattr(value, "__qualname__"):
            return value.__qualname__, self.describe(getattr(value, "__self__", None))
        return self.describe(vars(value)) if hasattr(value, "__dict__") else repr(value)


def described(model: Any) -> dict[str, Any]:
    describer = Describer()
    return {name: describer.describe(vars(module)) for name, module in model.named_modules()}


def misuse(model: Any) -> None:
    """What a training does to a model, and more."""
    adapted: Any = attach(model, LoraSection(r=2, alpha=4, dropout=0.5), seed=1)
    use_packing_attention(model, "varlen")
    speed_up(adapted)
    adapted.train()
    adapted.gradient_checkpointing_enable()
    adapted.enable_input_require_grads()
    model.config.use_cache = False
    model.generation_config.max_new_tokens = 3
    model.model.rotary_emb.inv_freq.zero_()
    model.model.norm.register_forward_hook(lambda *_: None)
    model.accepts_loss_kwargs = False


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
def test_the_next_user_gets_what_a_load_gives(
    tiny_base: Path, quantization: Quantization | None, loads: list[Path]
) -> None:
    def load() -> Any:
        return load_model(tiny_base, quantization=quantization)

    fresh = described(load())
    with sharing_bases():
        first = load()
        weights = {name: one.data_ptr() for name, one in first.named_parameters()}
        misuse(first)
        del first
        gc.collect()
        again = load()
    assert len(loads) == 2, "one fresh, one shared"
    assert {name: one.data_ptr() for name, one in again.named_parameters()} == weights
    assert described(again) == fresh


def test_a_changed_weight_is_not_given_again(tiny_base: Path, loads: list[Path]) -> None:
    fresh = described(load_model(tiny_base))
    with sharing_bases():
        model = load_model(tiny_base)
        model.get_input_embeddings().weight.data[7, 7] += 1
        del model
        assert described(load_model(tiny_base)) == fresh
        assert described(load_model(tiny_base)) == fresh
    assert len(loads) == 3


def test_two_at_once_have_nothing_in_common(tiny_base: Path, loads: list[Path]) -> None:
    with sharing_bases():
        first, second = load_model(tiny_base), load_model(tiny_base)
        assert len(loads) == 2
        second.get_input_embeddings().weight.data.zero_()
        assert first.get_input_embeddings().weight.any()
        del first
        assert load_model(tiny_base).get_input_embeddings().weight.any()
    assert len(loads) == 3


def _others() -> list[Callable[[Path], object]]:
    return [
        lambda base: load_model(base, dtype="bfloat16"),
        lambda base: load_model(base, quantization={"type": "nf4", "double_quantization": False}),
        lambda base: load_model(shutil.copytree(base, base.with_name("copy"))),
        lambda base: load_model(base, private=True),
    ]


@pytest.mark.parametrize("other", _others(), ids=["dtype", "quantization", "folder", "private"])
def test_one_base_is_kept_and_goes_before_another_comes(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: Callable[[Path], object],
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    alive: list[bool] = []
    kept: list[weakref.ref[Any]] = []
    load = loading._load

    def watched(*arguments: Any) -> Any:
        gc.collect()
        alive.append(any(one() is not None for one in kept))
        kept.append(weakref.ref(model := load(*arguments)))
        return model

    monkeypatch.setattr(loading, "_load", watched)
    with sharing_bases():
        load_model(base)
        load_model(base)
        other(base)
    gc.collect()
    assert alive == [False, False]
    assert all(one() is None for one in kept), "nothing is kept afterwards"


def test_what_cannot_be_copied_is_loaded_every_time() -> None:
    from torch import nn

    def load() -> Any:
        module = nn.Linear(2, 2)
        module.lock = threading.Lock()  # type: ignore[assignment]
        return module

    with sharing_bases():
        first = load_shared("x", load)
        assert load_shared("x", load) is not first


def test_full_fine_tuning_between_does_no_harm(
    tiny_base: Path, tmp_path: Path, loads: list[Path]
) -> None:
    rows = write_dataset(tmp_path / "rows")

    def trained(name: str, **fields: Any) -> bytes:
        job = make_job(tiny_base, rows, tmp_path / name, **fields)
        assert run_job(job) is not None
        gc.collect()
        return (job.outputs / "adapter_model.safetensors").read_bytes() if not fields else b""

    alone = trained("alone")
    with sharing_bases():
        trained("full", method="full", learning_rate=1e-3)
        first = trained("first")
        again = trained("again")
    assert first == again == alone
    assert len(loads) == 3


TRIALS = {
    "lora": [],
    "packed": [
        "sft.learning_rate=0.005",
        "sft.lora.r=8",
        "sft.lora.dropout=0.1",
        "sft.batch_tokens=256",
        "sft.per_device_batch_size=null",
        "sft.performance={packing: true}",
        "sft.gradient_checkpointing=true",
    ],
    "changes the base": ["sft.lora.init_lora_weights=pissa"],
    "lora again": ["sft.learning_rate=0.01"],
    "qlora": ["sft.method=qlora", "sft.lora.r=8"],
}
# Each but the last of a base is followed by one that would show what it left behind.
DPO_TRIALS = {
    "whole modules": ["sft.lora.train_embeddings=true", "sft.lora.modules_to_save=[norm]"],
    "packed": TRIALS["packed"],
    "qlora": ["sft.method=qlora", "sft.lora.r=2"],
    "lora": TRIALS["lora"],
    "dora": ["sft.lora.use_dora=true", "sft.dtype=bfloat16"],
}
# Few, for trainings of several steps each.
ROWS = {"train": 12, "validation": 3, "test": 3}
PAIRS = {"train": 6, "validation": 2, "test": 2}


@pytest.fixture(scope="module")
def project(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config whose trials are sft, dpo and evaluate; beside it one without dpo, and a store
    where all that trials begin with is made."""
    folder = tmp_path_factory.mktemp("sharing")
    path = write_project(folder, tiny_base, train=ROWS["train"], test=ROWS["test"])
    rows = folder / "validation.jsonl"
    kept = rows.read_text(encoding="utf-8").splitlines(keepends=True)[: ROWS["validation"]]
    rows.write_text("".join(kept), encoding="utf-8")
    config = read_dpo_config(path)
    config["sft"] |= {"epochs": 1, "per_device_batch_size": 4}
    config["evaluate"] = {"speed_rows": 0, "max_new_tokens": 4}
    config["gates"]["validation-improves"] = "warn"
    _write(folder / "sft.yaml", config)
    add_preferences(config, folder, PAIRS)
    config["dpo"] = {"learning_rate": 1e-3, "epochs": 1, "per_device_batch_size": 3}
    _write(path, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("base", "prepare", "preferences"):
            Pipeline(load_run(path.name, []), Store(Path("begun"))).run_stage(stage)
    return path


def _write(path: Path, config: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def _trial(config: Path, store: str, overrides: list[str]) -> dict[str, str]:
    """The digest of what each stage made."""
    done = Pipeline(load_run(str(config), overrides), Store(Path(store))).run()
    return {step.stage: step.artifact.manifest.digest for step in done}


def _compare(config: Path, trials: dict[str, list[str]], loads: list[Path]) -> tuple[int, int]:
    """Run the trials each alone, then sharing a base; how many loads each took."""
    one, other = (f"{config.stem}-{store}" for store in ("alone", "shared"))
    for store in (one, other):
        shutil.copytree("begun", store)
    alone = {name: _trial(config, one, overrides) for name, overrides in trials.items()}
    count = len(loads)
    loads.clear()
    with sharing_bases():
        for name, overrides in trials.items():
            assert _trial(config, other, overrides) == alone[name], name
    return count, len(loads)


def test_trials_one_after_another_are_as_each_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch, loads: list[Path]
) -> None:
    monkeypatch.chdir(project.parent)
    alone, shared = _compare(Path("sft.yaml"), TRIALS, loads)
    assert alone == 2 * len(TRIALS)
    assert shared == 2, "the base in float32 and in NF4; PiSSA changed copies of its weights"


@pytest.mark.slow
def test_trials_with_dpo_are_as_each_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch, loads: list[Path]
) -> None:
    monkeypatch.chdir(project.parent)
    alone, shared = _compare(project, DPO_TRIALS, loads)
    assert alone == 4 * len(DPO_TRIALS), "sft, dpo, and evaluate before and after"
    assert shared == 4, "float32, NF4, then float32 again, and bfloat16 in the end"
