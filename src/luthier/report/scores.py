"""Reading evaluation artifacts: the scores of every system, the paired test, the confusion.

The only place of the report that knows evaluation.json; what is not there is None or empty.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from luthier.store import Artifact

if TYPE_CHECKING:
    from luthier.data.rows import Split
    from luthier.evaluation.shipping import ShipVerdict
    from luthier.evaluation.speed import Speed

Role = Literal["baseline", "tuned", "served"]

_ROLES: Mapping[str, Role] = {"baseline": "baseline", "evaluate": "tuned", "accept": "served"}
_JUDGES = ("accept", "evaluate")  # the last word first
_WAYS = {"generation": "free answer", "likelihood": "likeliest label"}
_NO_CLASS = "no class"  # the last column; evaluation calls it `other`, as a class can be called
_METRIC_WORDS = {"macro_f1": "macro-F1", "exact_match": "exact match"}


@dataclass(frozen=True)
class SystemScore:
    """One system on the held-out rows.

    `score` is the task's first metric, a share, `low` and `high` its 95 % interval. `cut_off`
    counts answers that did not end by themselves, `nats_per_token` is the loss on the expected
    replies, `p50_seconds` and `p95_seconds` are of requests asked one at a time; None where it was
    not measured.
    """

    system: str
    title: str
    role: Role
    rows: int
    score: float
    low: float
    high: float
    macro_f1: float | None = None
    nats_per_token: float | None = None
    cut_off: int | None = None
    p50_seconds: float | None = None
    p95_seconds: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The paired test of the tuned model against the best baseline; differences as shares.

    `rows_needed` would show a true difference as large as the one seen; None where none was.
    """

    tuned_title: str
    baseline_title: str
    rows: int
    difference: float
    low: float
    high: float
    p_value: float
    minimum_detectable_difference: float
    verdict: str
    rows_needed: int | None = None


@dataclass(frozen=True)
class Target:
    """What the config wants to reach, how near the best prompt came, and the tuned model."""

    metric: str
    wanted: float
    best_prompt: float
    tuned: float | None
    advice: str
    reason: str


@dataclass(frozen=True)
class Confusion:
    """Counts of one system: a line for each expected class, a column for each answered one."""

    title: str
    labels: Sequence[str]
    columns: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class ClassScore:
    """One class, as the tuned model answers it; `rows` expect it."""

    label: str
    precision: float
    recall: float
    f1: float
    rows: int


@dataclass(frozen=True)
class Scores:
    """All that the evaluations of a run hold. `tuned` names the system that was compared.

    `split`: whose rows the tuned model answered; on validation rows there is no verdict.
    """

    metric: str
    systems: Sequence[SystemScore]
    comparison: Comparison | None
    target: Target | None
    confusion: Confusion | None
    classes: Sequence[ClassScore]
    tuned: str | None
    tuned_title: str
    ship: "ShipVerdict | None" = None
    split: "Split" = "test"


def metric_word(metric: str) -> str:
    """A metric's name for people."""
    return _METRIC_WORDS.get(metric, metric)


def read_scores(artifacts: Mapping[str, Artifact]) -> Scores:
    """Read what baseline, evaluate and export measured; `artifacts` are by stage.

    Raises:
        DataError: an evaluation cannot be read.
    """
    from luthier.evaluation.shipping import read_verdict
    from luthier.evaluation.speed import read_speeds
    from luthier.evaluation.summary import read_summary

    found = {stage: read_summary(artifacts[stage].path) for stage in _ROLES if stage in artifacts}
    systems = [
        score
        for stage, one in found.items()
        for score in _systems(stage, one, read_speeds(artifacts[stage].path))
    ]
    if "export" in artifacts and "accept" not in artifacts:
        systems += _served(artifacts["export"])
    baseline, evaluation = found.get("baseline", {}), found.get("evaluate", {})
    tuned = compared_system(evaluation)
    titles = {score.system: score.title for score in systems}
    measured = evaluation["systems"][tuned]["metrics"] if tuned else {}
    title = titles[tuned] if tuned else ""
    metric = next((one["primary_metric"] for one in found.values()), "")
    return Scores(
        metric=metric_word(metric),
        systems=systems,
        comparison=_comparison(evaluation, titles),
        target=_target(baseline, measured),
        confusion=_confusion(measured.get("confusion"), title),
        classes=[ClassScore(label, **of) for label, of in measured.get("per_class", {}).items()],
        tuned=tuned,
        tuned_title=title,
        ship=next(
            (read_verdict(found[stage]["ship"]) for stage in _JUDGES if _is_judged(found, stage)),
            None,
        ),
        split=evaluation.get("split", "test"),
    )


def _is_judged(found: Mapping[str, Any], stage: str) -> bool:
    one = found.get(stage, {})
    return one.get("split", "test") == "test" and bool(one.get("ship", {}).get("rules"))


def compared_system(evaluation: Mapping[str, Any]) -> str | None:
    """The tuned system that stands for the run: the one compared, else the best."""
    if not evaluation:
        return None
    compared = evaluation.get("compared") or {}
    return str(compared.get("new", evaluation["best_system"]))


def _systems(
    stage: str, evaluation: Mapping[str, Any], speeds: "Mapping[str, Speed]"
) -> Iterator[SystemScore]:
    metric = evaluation["primary_metric"]
    for name, system in evaluation["systems"].items():
        low, high = system["intervals"][metric]
        speed = speeds.get(name)
        yield SystemScore(
            system=name,
            title=_title(name, evaluation.get("few_shot", 0)),
            role=_ROLES[stage],
            rows=evaluation["rows"],
            score=system["metrics"][metric],
            low=low,
            high=high,
            macro_f1=system["metrics"].get("macro_f1"),
            nats_per_token=system["metrics"].get("reference_nats_per_token"),
            cut_off=system.get("truncated"),
            p50_seconds=speed.request_seconds.p50 if speed else None,
            p95_seconds=speed.request_seconds.p95 if speed else None,
        )


def _title(name: str, examples: int) -> str:
    """`few-shot/generation` is `base 8-shot, free answer`."""
    from luthier.evaluation.systems import GGUF_PREFIX
    from luthier.evaluation.versus import LINEAR

    if name == LINEAR:
        return "TF-IDF + linear model"
    form, _, way = name.partition("/")
    form = {"few-shot": f"{examples}-shot", "nearest": f"{examples} nearest"}.get(form, form)
    if form == "zero-shot" or form in (f"{examples}-shot", f"{examples} nearest"):
        who = f"base {form}"
    elif form.startswith(GGUF_PREFIX):
        who = f"GGUF {form.removeprefix(GGUF_PREFIX)}"
    else:
        who = {"sft": "before dpo"}.get(form, form)
    return f"{who}, {_WAYS.get(way, way)}" if way else who


def _served(bundle: Artifact) -> Iterator[SystemScore]:
    """Each GGUF through llama.cpp: the share of probes whose whole answer is the expected one."""
    from luthier.evaluation.statistics import wilson_interval

    for quantization, measured in bundle.manifest.metrics.items():
        score, rows = measured["served_score"], measured["answers_compared"]
        low, high = wilson_interval(round(score * rows), rows)
        title = f"GGUF {quantization} as served"
        yield SystemScore(f"gguf/{quantization}", title, "served", rows, score, low, high)


def _comparison(evaluation: Mapping[str, Any], titles: Mapping[str, str]) -> Comparison | None:
    test = evaluation.get("paired_test")
    if not test:
        return None
    new, old = evaluation["compared"]["new"], evaluation["compared"]["old"]
    low, high = test["interval"]
    return Comparison(
        tuned_title=titles.get(new, new),
        baseline_title=titles.get(old, old),
        rows=test["rows"],
        difference=test["difference"],
        low=low,
        high=high,
        p_value=test["p_value"],
        minimum_detectable_difference=test["minimum_detectable_difference"],
        verdict=test["verdict"],
        rows_needed=test.get("rows_needed"),
    )


def _target(baseline: Mapping[str, Any], tuned: Mapping[str, Any]) -> Target | None:
    found = baseline.get("target")
    if not found:
        return None
    return Target(
        metric=metric_word(found["metric"]),
        wanted=found["target"],
        best_prompt=found["value"],
        tuned=tuned.get(found["metric"]),
        advice=found["verdict"],
        reason=found["reason"],
    )


def _confusion(counted: Mapping[str, Any] | None, title: str) -> Confusion | None:
    if not counted:
        return None
    return Confusion(title, counted["rows"], [*counted["rows"], _NO_CLASS], counted["counts"])
