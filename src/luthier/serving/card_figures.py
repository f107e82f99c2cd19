"""What the model card says of evaluation and merge: figures that were measured, and which not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.data.dataset import INFO_NAME, read_info
from luthier.evaluation.shipping import ShipVerdict, read_verdict
from luthier.evaluation.summary import read_summary
from luthier.gates import GATES, Gate
from luthier.serving import markdown

if TYPE_CHECKING:
    from luthier.data.summary import DatasetInfo
    from luthier.store.artifact import Artifact

_SHOWN_METRICS = 4
_SHOWN_CLASSES = 30
_JUDGED_SLOTS = ("adapter", "evaluation", "model")


@dataclass(frozen=True)
class Figures:
    """The contents of dataset.json and both evaluation.json; empty or None where there is none."""

    info: "DatasetInfo | None" = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    baseline: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tuned(self) -> str | None:
        """The name of the tuned system that stands for the run: what was compared, or the best."""
        if not self.evaluation:
            return None
        compared = self.evaluation.get("compared") or {}
        return str(compared.get("new", self.evaluation["best_system"]))

    @property
    def tuned_system(self) -> Mapping[str, Any] | None:
        """That system's metrics and intervals."""
        found: Mapping[str, Any] | None = self.evaluation.get("systems", {}).get(self.tuned)
        return found

    @property
    def ship(self) -> ShipVerdict | None:
        """The verdict, where there were rules to judge by."""
        found = self.evaluation.get("ship")
        return read_verdict(found) if found and found.get("rules") else None

    @property
    def not_measured(self) -> list[str]:
        """What an evaluation could have told, and was not asked."""
        absent = {
            "the task itself": not self.evaluation,
            "the base with a prompt alone, on the same rows": not self.baseline,
            "what is left of the base's general skills": not self.evaluation.get("retention"),
        }
        return [what for what, is_absent in absent.items() if is_absent]


def read_figures(artifacts: Mapping[str, "Artifact"]) -> Figures:
    """Read what the artifacts of a card measured.

    Raises:
        DataError: a file is damaged, or of another version.
    """
    dataset = artifacts["dataset"].path
    read = {
        slot: read_summary(artifacts[slot].path)
        for slot in ("evaluation", "baseline")
        if slot in artifacts
    }
    info = read_info(dataset) if (dataset / INFO_NAME).exists() else None
    return Figures(info, **read)


def evaluation_parts(artifacts: Mapping[str, "Artifact"], figures: Figures) -> list[str]:
    """Paragraphs and tables, each with a line end."""
    found = figures.evaluation
    if not found:
        return ["This model was not evaluated on its task.\n"]
    parts = [
        f"{found['rows']:,} rows of the {found['split']} split, which nothing was trained on. "
        f"The tuned system is\n{_measured_on(artifacts.get('adapter'))}. In brackets: 95 % "
        "intervals.\n",
        _systems(figures),
        "".join(f"- {line}\n" for line in _conclusions(artifacts, figures)),
    ]
    return [*parts, *_classes(figures)]


def _measured_on(adapter: "Artifact | None") -> str:
    """Which base the adapter stood on when it was measured."""
    training = adapter.manifest.facts.get("training", {}) if adapter else {}
    if not training:
        return "what the evaluation's own manifest names"
    if training.get("method") == "full":
        return f"the whole trained model in {training.get('dtype')}"
    quantization = training.get("quantization")
    if not quantization:
        return f"the adapter on the base in {training.get('dtype')}"
    kind = quantization["type"] if isinstance(quantization, Mapping) else quantization
    return (
        f"the adapter on the base quantised as in training ({kind}), not the merged weights; "
        "how these\ndiffer is under Merge"
    )


def _systems(figures: Figures) -> str:
    primary = figures.evaluation["primary_metric"]
    system = figures.tuned_system or {"intervals": {}}
    others = [metric for metric in system["intervals"] if metric != primary]
    metrics = [primary, *others][:_SHOWN_METRICS]
    rows = [
        (markdown.code(name), *(_spelled(one, metric) for metric in metrics), _cut_off(one))
        for summary in (figures.evaluation, figures.baseline)
        for name, one in summary.get("systems", {}).items()
    ]
    header = ("system", *(markdown.plain(metric) for metric in metrics), "answers cut off")
    return markdown.table(header, rows, "l" + "r" * (len(metrics) + 1))


def _spelled(system: Mapping[str, Any], metric: str) -> str:
    value, interval = system["metrics"].get(metric), system["intervals"].get(metric)
    if value is None:
        return ""
    return f"{value:.3f}" + ("" if interval is None else " [{:.3f}, {:.3f}]".format(*interval))


def _cut_off(system: Mapping[str, Any]) -> str:
    return f"{system['truncated']:,}" if "truncated" in system else ""


def _conclusions(artifacts: Mapping[str, "Artifact"], figures: Figures) -> Iterator[str]:
    found = figures.evaluation
    if (test := found.get("paired_test")) and (compared := found.get("compared")):
        low, high = test["interval"]
        yield (
            f"{markdown.code(compared['new'])} against {markdown.code(compared['old'])}, the best "
            f"prompt: {100 * test['difference']:+.1f} points, 95 % interval {100 * low:+.1f} to "
            f"{100 * high:+.1f}, exact McNemar p {test['p_value']:.2g}: {test['verdict']}."
        )
    if ship := figures.ship:
        yield f"Verdict: {ship.word}. {'' if ship.reasons else 'Every rule holds.'}".strip()
    yield from _general(found)
    yield from (
        f"{markdown.code(gate.id)} {'failed' if gate.status == 'fail' else 'was let pass'}: "
        f"{markdown.plain(gate.detail)}"
        for slot in _JUDGED_SLOTS
        if slot in artifacts
        for gate in artifacts[slot].manifest.gates
        if gate.status != "pass"
    )


def _general(found: Mapping[str, Any]) -> Iterator[str]:
    """What is left of the base's skills (F34)."""
    from luthier.evaluation.harness_verdict import describe_harness
    from luthier.evaluation.retention import describe_retention

    lines = describe_retention(found["retention"]) if found.get("retention") else []
    lines += describe_harness(found["harness"]) if found.get("harness") else []
    yield from (markdown.plain(line) for line in lines)


def _classes(figures: Figures) -> Iterator[str]:
    """Each label's own figures: the weakest first, the rest only counted."""
    system = figures.tuned_system or {}
    classes = (system.get("metrics") or {}).get("per_class") or {}
    if not classes:
        return
    weakest = sorted(classes, key=lambda label: (classes[label]["f1"], label))
    rows = [
        (
            markdown.code(label),
            *(f"{classes[label][metric]:.2f}" for metric in ("precision", "recall", "f1")),
            f"{classes[label]['rows']:,}",
        )
        for label in weakest[:_SHOWN_CLASSES]
    ]
    header = ("label", "precision", "recall", "F1", "rows")
    more = len(weakest) - _SHOWN_CLASSES
    rest = f"; the {more:,} best are left out" if more > 0 else ""
    title = f"Each label, as {markdown.code(str(figures.tuned))} answers it, weakest first{rest}:"
    yield f"{title}\n\n{markdown.table(header, rows, 'lrrrr')}"


def merge_parts(model: "Artifact") -> list[str]:
    """Which weights the adapter went into, what was measured of it, and the gates."""
    facts = model.manifest.facts
    flat = dict(_flat(model.manifest.metrics, "")) | dict(_flat(facts.get("candidates", {}), ""))
    rows = [
        ("weights of the base", facts.get("base_weights")),
        ("stored as", facts.get("dtype")),
        ("parameters", f"{facts['parameters']:,}" if "parameters" in facts else None),
        *((name.replace("_", " "), said) for name, said in flat.items()),
    ]
    known = [(markdown.plain(name), markdown.plain(str(said))) for name, said in rows if said]
    parts = [markdown.table(("", ""), known)] if known else ["Nothing is recorded of it.\n"]
    gates = [_gate(gate) for gate in model.manifest.gates]
    return [*parts, *(["".join(f"- {line}\n" for line in gates)] if gates else [])]


def _gate(gate: Gate) -> str:
    known = GATES.get(gate.id, gate.id)
    measured = f"{gate.measured:.3g}" if isinstance(gate.measured, float) else str(gate.measured)
    return markdown.plain(
        f"{known}: {gate.status}; measured {measured}, wanted {gate.comparison} {gate.threshold}"
    )


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Numbers and texts of a mapping of mappings, by what leads to them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}: ")
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:.4g}"
        elif isinstance(value, int | str):
            yield f"{prefix}{name}", str(value)
