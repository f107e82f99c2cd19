"""What the labels of a dataset are worth, measured before anybody pays for a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.data import classical
from luthier.data.cross_fit import CrossFit, cross_fit, why_not
from luthier.data.draws import draws
from luthier.data.index import NO_LABEL, RowIndex
from luthier.data.label_noise import estimate, label_noise_gate
from luthier.data.label_shift import MAX_LABEL_SHIFT, label_shift_gate, shift
from luthier.data.rows import Split
from luthier.data.section import PrepareSection
from luthier.data.spooled import Places, SpooledTexts
from luthier.data.summary import Classical
from luthier.gates import Gate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SAMPLE_ROWS = 50_000  # of a split: a linear model learns little from more
_SHOWN_CHARACTERS = 200


@dataclass
class LabelFindings:
    """A cheap classical model's score, the estimated share of wrong labels, and their gates."""

    classical: Classical | None = None
    noise: dict[str, Any] | None = None
    gates: list[Gate] = field(default_factory=list)


@dataclass(frozen=True)
class _Labelled:
    """Rows of a split, or a sample of them: their numbers, texts and labels."""

    rows: "NDArray[np.int64]"
    texts: list[str]
    labels: list[str]


def look_at_labels(
    section: PrepareSection, index: RowIndex, places: Places, seed: int
) -> LabelFindings:
    """Measure the kept rows of a classification; of other tasks there is nothing to measure."""
    findings = LabelFindings()
    if section.task != "classification":
        return findings
    train = _labelled("train", index, places, seed)
    others: dict[Split, _Labelled] = {
        split: _labelled(split, index, places, seed)
        for split in ("test", "validation")
        if index.inside(split).any()
    }
    for split, held_out in others.items():
        findings.classical = classical.measure(
            (train.texts, train.labels),
            (held_out.texts, held_out.labels),
            target=section.target_accuracy,
            seed=seed,
            split=split,
        )
        break
    reason = why_not(train.texts, train.labels, seed)
    if reason is not None:
        findings.noise = {"skipped": reason}
        return findings
    fit = cross_fit(train.texts, train.labels, seed)
    noise = estimate(fit)
    findings.gates.append(label_noise_gate(noise, section.max_label_noise))
    findings.gates += _shift_gate(fit, list(others.values()), seed)
    findings.noise = noise.model_dump() | {
        "suspects": [_told(suspect.model_dump(), train, places) for suspect in noise.suspects]
    }
    return findings


def _shift_gate(fit: CrossFit, others: Sequence[_Labelled], seed: int) -> list[Gate]:
    """The gate of the split whose labels agree least with those of train."""
    found = [shift(fit, other.texts, other.labels, seed) for other in others]
    gates = [label_shift_gate(one, MAX_LABEL_SHIFT) for one in found]
    return sorted(gates, key=lambda gate: float(gate.measured))[-1:]


def _told(suspect: dict[str, Any], train: _Labelled, places: Places) -> dict[str, Any]:
    row = suspect.pop("row")
    [where] = places.where([int(train.rows[row])])
    return {"where": where, "text": train.texts[row][:_SHOWN_CHARACTERS]} | suspect


def _labelled(split: Split, index: RowIndex, places: Places, seed: int) -> _Labelled:
    import numpy as np

    rows = np.flatnonzero(index.inside(split) & (index.label != NO_LABEL))
    if len(rows) > _SAMPLE_ROWS:
        order = np.argsort(draws(index.id_key[rows], seed, "labels"), kind="stable")
        rows = np.sort(rows[order[:_SAMPLE_ROWS]])
    texts = SpooledTexts(places.spool, places.spool.parts)
    found: list[str] = []
    for part, inside in places.of(rows.tolist()).items():
        prompts = texts.prompts(part)
        found += [prompts[place] for place in inside]
    return _Labelled(rows, found, [index.labels[label] for label in index.label[rows].tolist()])
