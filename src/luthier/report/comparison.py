"""`luthier compare`: evaluated versions side by side, each against the first, and over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from luthier.errors import StoreError
from luthier.promoting import newest_evaluation
from luthier.report import spelling
from luthier.report.scores import compared_system, metric_word
from luthier.report.terminal import columns, facts, indented, printing, styled

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.evaluation.several import Contestant, SeedGroup, Several
    from luthier.store import Artifact, Store
    from luthier.store.history import Find

_STAGE = "evaluate"
_MEASURED_KINDS = ("adapter", "model", "bundle")
_ALPHA = 0.05
_STATUS = {"better": "pass", "worse": "fail", "cannot tell": "warn"}


@dataclass(frozen=True)
class Compared:
    """What was compared, how it came out, and what in their making differs from the first."""

    metric: str
    split: str
    several: "Several"
    differences: Mapping[str, Sequence[str]]

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "metric": self.metric,
            "split": self.split,
            **asdict(self.several),
            "differences": self.differences,
        }


def compare_versions(store: "Store", references: Sequence[str], system: str | None) -> Compared:
    """Compare what users name: evaluations, adapters and models that were evaluated, or a run's
    name for all evaluations of it; of each the tuned system, or `system`.

    Raises:
        StoreError: nothing is called so, was never evaluated, or there is one only.
        DataError: they did not answer the same rows, or have no such system.
    """
    from luthier.evaluation.several import compare_several
    from luthier.store.seeds import ancestral_differences

    found = list(
        {one.key: one for text in references for one in _evaluations(store, text)}.values()
    )
    if len(found) < 2:
        raise StoreError(
            f"{' '.join(references)} is one evaluation only, {found[0].ref}. Name another beside "
            "it: luthier ls shows what there is."
        )
    find = cache(store.find)
    measured = [_measured(artifact, find, system) for artifact in found]
    metrics = {one.metric for one in measured}
    if len(metrics) > 1:
        raise StoreError(
            f"These are of several tasks, measured by {' and '.join(sorted(metrics))}. Compare "
            "those of one task."
        )
    first = found[0].manifest
    return Compared(
        metric=metric_word(metrics.pop()),
        split=measured[0].split,
        several=compare_several([one.contestant for one in measured], alpha=_ALPHA),
        differences={
            one.ref: ancestral_differences(first, one.manifest, find) for one in found[1:]
        },
    )


def _evaluations(store: "Store", text: str) -> "list[Artifact]":
    """The evaluations that a user means, the oldest first; of a run those on test rows, if any."""
    named = [version for version in store.versions() if version.name == text]
    if named:
        found = [store.find(version.key) for version in named if version.kind == "evaluation"]
        made = [one for one in found if one is not None and one.manifest.stage == _STAGE]
        if not made:
            raise StoreError(f"{text} was never evaluated. Run its config's stage evaluate.")
        return [one for one in made if _split(one) == "test"] or made
    artifact = store.resolve(text)
    if artifact.kind == "evaluation":
        return [artifact]
    if artifact.kind in _MEASURED_KINDS:
        measured = newest_evaluation(store, artifact)
        if measured is not None:
            return [measured]
    raise StoreError(
        f"{artifact.ref} is of kind {artifact.kind}, and no evaluation of it is in the store. "
        "Name an evaluation, an adapter or a model that was evaluated, or a run."
    )


def _split(evaluation: "Artifact") -> str:
    return str(evaluation.manifest.key_fields.get("split", "test"))


@dataclass(frozen=True)
class _Measured:
    """An evaluation: the first metric of its task, whose rows were asked, the answers."""

    metric: str
    split: str
    contestant: "Contestant"


def _measured(artifact: "Artifact", find: "Find", system: str | None) -> _Measured:
    """What one system of an evaluation answered."""
    from luthier.errors import DataError
    from luthier.evaluation.answers import read_answers
    from luthier.evaluation.several import Contestant
    from luthier.evaluation.summary import read_summary
    from luthier.store.seeds import seedless_digest, seeds_of

    summary, answers = read_summary(artifact.path), read_answers(artifact.path)
    name = system or compared_system(summary) or summary["best_system"]
    if name not in summary["systems"]:
        known = ", ".join(summary["systems"])
        raise DataError(f"{artifact.ref} has no system {name}. It has {known}.")
    metric = summary["primary_metric"]
    seeds = seeds_of(artifact.manifest, find)
    contestant = Contestant(
        name=artifact.ref,
        answers=answers[name],
        seed=seeds[0] if len(seeds) == 1 else None,
        made_by=f"{name} {seedless_digest(artifact.manifest, find)}",
        score=summary["systems"][name]["metrics"][metric],
    )
    return _Measured(metric, _split(artifact), contestant)


def seeds_beside(store: "Store", evaluation: "Artifact") -> "SeedGroup | None":
    """This evaluation and those in the store that differ from it in their seed alone; None where
    there is no other."""
    from luthier.evaluation.several import group_seeds
    from luthier.store.seeds import seedless_digest

    find = cache(store.find)
    wanted = seedless_digest(evaluation.manifest, find)
    alike = [
        one
        for one in reversed(store.artifacts())
        if one.manifest.stage == evaluation.manifest.stage
        and seedless_digest(one.manifest, find) == wanted
    ]
    groups = group_seeds([_measured(one, find, None).contestant for one in alike])
    return groups[0] if groups else None


def comparison_table(compared: Compared) -> None:
    """Print them as a table, then seeds, then what tells them apart."""
    several = compared.several
    with printing() as console:
        shared = _shared_name([one.name for one in several.placed])
        console.print(_heading(compared, shared))
        console.print()
        _print_placed(console, compared, shared)
        if several.groups:
            console.print()
            _print_groups(console, compared, shared)
        console.print()
        facts(
            console,
            [
                (
                    ref.removeprefix(shared),
                    "\n".join(spelling.printable(line) for line in lines) or "nothing",
                )
                for ref, lines in compared.differences.items()
            ],
        )


def _shared_name(refs: Sequence[str]) -> str:
    """`name/evaluation` where all are versions of it, which then need not be said again."""
    names = {ref.partition("@")[0] for ref in refs}
    return names.pop() if len(names) == 1 else ""


def _heading(compared: Compared, shared: str) -> str:
    several = compared.several
    others = len(several.placed) - 1
    rows = f"{shared}: " if shared else ""
    rows += f"{spelling.count(several.rows)} {compared.split} rows that all answered"
    if several.left_out:
        rows += f", {spelling.count(several.left_out)} left out"
    corrected = f"; p-values allow for {others} comparisons (Holm)" if others > 1 else ""
    return f"{rows}; each against the first, exact McNemar{corrected}."


def _print_placed(console: "Console", compared: Compared, shared: str) -> None:
    numbers = ["right", "95 % interval", "change", "95 % interval ", "p"]
    table = columns(console, ("version", *numbers, ""), right=numbers)
    for one in compared.several.placed:
        test = one.test
        change = ["", "", ""]
        if test is not None:
            change = [
                spelling.points(test.difference),
                " to ".join(spelling.points(end) for end in test.interval),
                spelling.p_value(test.p_value).removeprefix("p = ").removeprefix("p "),
            ]
        table.add_row(
            one.name.removeprefix(shared),
            spelling.percent(one.accuracy),
            spelling.percent_interval(*one.interval),
            *change,
            styled(test.verdict, _STATUS[test.verdict]) if test else "the first",
        )
    indented(console, table)


def _print_groups(console: "Console", compared: Compared, shared: str) -> None:
    table = columns(console, ("seeds of", compared.metric))
    for group in compared.several.groups:
        text = spell_seeds(group)
        if group.verdict is not None and group.change is not None and group.change_interval:
            low, high = (spelling.points(end) for end in group.change_interval)
            text += (
                f"; {spelling.points(group.change)} against the first seeds, 95 % interval "
                f"{low} to {high} (Welch): {group.verdict}"
            )
        table.add_row(", ".join(name.removeprefix(shared) for name in group.names), text)
    indented(console, table)


def spell_seeds(group: "SeedGroup") -> str:
    """Mean, spread and interval over the seeds of a group."""
    scores = group.scores
    assert scores.deviation is not None, "a group has two seeds or more"
    assert scores.interval is not None
    seeds = ", ".join(map(str, group.seeds))
    return (
        f"{spelling.percent(scores.mean)} on average over seeds {seeds}, standard deviation "
        f"{100 * scores.deviation:.1f}; 95 % interval of the mean "
        f"{spelling.percent_interval(*scores.interval)}"
    )
