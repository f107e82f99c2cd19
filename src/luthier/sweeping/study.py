"""The state of a sweep, in the store: Optuna's journal of trials, and locks of who runs what.

Below `<store>/.sweeps/<name>/<key16>/`: `journal.log` (lines of JSON, appended, by Optuna, whose
tools read it too), `lock` around every decision about what runs next, `locks/` one for each unit
of work, held while it runs. The locks are the kernel's: what a killed process ran is free at once,
and its trial is gone on with by whoever looks next.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from luthier.errors import StoreError
from luthier.store import Store
from luthier.store.problems import storage_errors
from luthier.sweeping.plan import SweepPlan
from luthier.sweeping.proposing import as_trial, params_of, propose
from luthier.sweeping.space import quiet_optuna

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

SWEEPS_FOLDER = ".sweeps"
RunState = Literal["done", "pruned", "gate failed", "failed"]
_JOURNAL = "journal.log"


@dataclass(frozen=True)
class RunRecord:
    """What one training run of a candidate came to. `values`: one for each objective; `keys`: of
    the artifacts it made or reused, by stage; `seconds` over all processes that worked on it."""

    number: int
    seed: int
    state: RunState
    values: Sequence[float] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None
    progress: float = 1.0


@dataclass(frozen=True)
class Study:
    """One sweep's state. Values may be read at any time; trials are begun under `deciding`."""

    plan: SweepPlan
    store: Store

    @property
    def folder(self) -> Path:
        """Where the state is."""
        return self.store.root / SWEEPS_FOLDER / self.plan.config.name / self.plan.key[:16]

    @property
    def exists(self) -> bool:
        """Whether anything was ever run of it."""
        return (self.folder / _JOURNAL).exists()

    @cached_property
    def optuna(self) -> "optuna.Study":
        """The study as Optuna has it, made if it is new."""
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        library = quiet_optuna()
        with storage_errors(self.store.root):
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            path = self.folder / _JOURNAL
            backend = JournalFileBackend(str(path), _journal_lock(path))
            with FileLock(self.folder / "opening.lock"):
                made: optuna.Study = library.create_study(
                    storage=JournalStorage(backend),
                    study_name=self.plan.key[:16],
                    directions=[measure.direction for measure in self.plan.measures],
                    pruner=_pruner(self.plan),
                    load_if_exists=True,
                )
        return made

    def trials(self) -> "list[FrozenTrial]":
        """All trials, by number."""
        found: list[FrozenTrial] = self.optuna.get_trials()
        return found

    def params(self, trial: "FrozenTrial") -> dict[str, Any]:
        """A trial's values as the config gets them."""
        return params_of(self.plan.section.parameters, trial)

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Alone with the decision what runs next."""
        with FileLock(self.folder / "lock"):
            yield

    @contextmanager
    def holding(self, unit: str) -> Iterator[bool]:
        """Hold a unit of work; false when a living process has it."""
        lock = self.try_lock(unit)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                lock.release()

    def try_lock(self, unit: str) -> FileLock | None:
        """The lock of a unit of work, taken; None when a living process has it."""
        lock = FileLock(self.folder / "locks" / f"{unit}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return lock

    def is_held(self, unit: str) -> bool:
        """Whether a living process works on a unit."""
        with self.holding(unit) as free:
            return not free

    def begin(self) -> int | None:
        """A new trial by the sampler, as running; its number, None when the space has no more.
        Only within `deciding`."""
        past = self.trials()
        directions = [measure.direction for measure in self.plan.measures]
        params = propose(self.plan.section, directions, past, self.plan.config.seed)
        if params is None:
            return None
        return self._add(params, {})

    def repeat(self, failed: "FrozenTrial") -> int:
        """A new trial with the values of one that failed. Only within `deciding`."""
        return self._add(self.params(failed), {"repeats": failed.number})

    def _add(self, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> int:
        from optuna.trial import TrialState, create_trial

        made = as_trial(self.plan.section.parameters, params)
        trial = create_trial(state=TrialState.RUNNING, user_attrs=dict(attributes), **made)
        # One record of the journal: a process that is killed leaves no trial without its values.
        self.optuna.add_trial(trial)
        return len(self.trials()) - 1

    def records(self) -> dict[tuple[int, int], RunRecord]:
        """What every run came to, by trial and seed."""
        found = {}
        for name, value in self.optuna.user_attrs.items():
            if name.startswith("run:"):
                record = RunRecord(**json.loads(value))
                found[record.number, record.seed] = record
        return found

    def keep(self, record: RunRecord) -> None:
        """Write down what a run came to."""
        name = f"run:{record.number}:{record.seed}"
        self.optuna.set_user_attr(name, json.dumps(asdict(record)))

    def spent(self, number: int, seed: int) -> float:
        """Seconds that processes which did not end it spent on a run."""
        return float(self.optuna.user_attrs.get(f"spent:{number}:{seed}", 0.0))

    def note_spent(self, number: int, seed: int, seconds: float) -> None:
        """Write down the seconds of a run that goes on."""
        self.optuna.set_user_attr(f"spent:{number}:{seed}", seconds)

    def tested(self) -> dict[int, dict[str, Any]]:
        """What winners came to on the test rows, by trial, in the order they were asked."""
        found = {}
        for name, value in self.optuna.user_attrs.items():
            if name.startswith("test:"):
                found[int(name.removeprefix("test:"))] = json.loads(value)
        return found

    def keep_test(self, number: int, found: Mapping[str, Any]) -> None:
        """Write down what a winner came to."""
        self.optuna.set_user_attr(f"test:{number}", json.dumps(dict(found)))


def siblings(study: Study) -> list[str]:
    """Keys of other studies of the same name: of a sweep that asked for something else."""
    if not study.folder.parent.is_dir():
        return []
    found = sorted(one.name for one in study.folder.parent.iterdir() if (one / _JOURNAL).exists())
    return [key for key in found if key != study.folder.name]


def _journal_lock(path: Path) -> Any:
    from optuna.storages.journal._file import BaseJournalFileLock

    class KernelLock(BaseJournalFileLock):
        """Free at once when its holder dies; Optuna's own are files, which others then wait for.
        What a full disk or a power cut left of a line is taken off before the next is written."""

        def __init__(self) -> None:
            self._lock = FileLock(path.with_suffix(".lock"))

        def acquire(self) -> bool:
            self._lock.acquire()
            _cut_half_line(path)
            return True

        def release(self) -> None:
            self._lock.release()

    return KernelLock()


def _cut_half_line(path: Path) -> None:
    """Take off what stands after the last end of a line."""
    with path.open("r+b") as stream:
        size = stream.seek(0, 2)
        if not size:
            return
        stream.seek(size - 1)
        if stream.read(1) == b"\n":
            return
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)


def _pruner(plan: SweepPlan) -> "optuna.pruners.BasePruner":
    from optuna import pruners

    section = plan.section.pruning
    if section is None:
        return pruners.NopPruner()
    assert plan.fraction is not None, "the plan saw to it"
    if section.kind == "hyperband":
        return pruners.HyperbandPruner(
            min_resource=max(1, round(PROGRESS_STEPS * plan.fraction)),
            max_resource=PROGRESS_STEPS,
            reduction_factor=section.reduction_factor,
        )
    return pruners.MedianPruner(
        n_startup_trials=section.startup_trials,
        n_warmup_steps=round(PROGRESS_STEPS * section.warmup_fraction),
    )


# Optuna's steps of a trial: per cent of its run, since runs differ in their number of steps.
PROGRESS_STEPS = 100


def refuse_absent(study: Study) -> None:
    """Raises StoreError when nothing was run yet."""
    if not study.exists:
        path = study.plan.config.path
        others = siblings(study)
        more = (
            f" There are studies of it with other settings: {', '.join(others)}." if others else ""
        )
        raise StoreError(
            f"{path}: no trial of this sweep was run yet.{more} Run: luthier sweep {path}"
        )
