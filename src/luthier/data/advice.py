"""What to know about a data set before paying for a GPU: figures, rules of thumb, what to do."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from luthier.advice.rules import DATA_NEEDED, HELD_OUT_ROWS
from luthier.data.rows import Split, Task
from luthier.data.summary import Advice, DatasetInfo

# What a task needs: least rows, rows that are reliable, and for what. The decision framework has
# no figure for the tasks that are missing here.
_LABELS, _STYLE, _NEW_TASKS = (
    DATA_NEEDED[goal] for goal in ("classification", "style", "instructions")
)
_CHAT = (
    _STYLE.least,
    _NEW_TASKS.least,
    f"a style ({_NEW_TASKS.least:,} for following instructions on new tasks)",
)
_ROWS_NEEDED: Mapping[Task, tuple[int, int, str]] = {
    "classification": (_LABELS.least, _LABELS.reliable, "classification with LoRA"),
    "extraction": (
        _LABELS.least,
        _LABELS.reliable,
        "extraction, as for classification with LoRA",
    ),
    "grounded": (_STYLE.least, _STYLE.reliable, "a style or format"),
    "chat": _CHAT,
    "completion": _CHAT,
}
_USE_OF_SPLITS: Mapping[Split, str] = {
    "test": "nothing can be measured on rows that training has not seen",
    "validation": "the best checkpoint cannot be chosen",
}
_HALF_WIDTH = 0.05  # an interval of 10 points tells the framework's 10 from its 20 points
_IMBALANCE = 10  # largest class by smallest
_CLASS_ROWS = 20
_LITTLE_LEARNED = 0.02  # share of train tokens with a loss
_NEARLY_ALL_LEARNED = 0.95
_COPIES = 0.05  # share of the records read
_CONTRADICTIONS = 0.01
_WRONG_LABELS = 0.03  # surely so many; a clean set can look as bad as 0.025
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class _Case:
    info: DatasetInfo
    target: float | None

    @property
    def train(self) -> int:
        return self.info.splits.get("train", 0)

    @property
    def classes(self) -> Mapping[str, int]:
        """Train rows of each label."""
        counts = self.info.counts.splits.get("train")
        return counts.classes if counts is not None else {}


def advice(info: DatasetInfo, target: float | None = None) -> list[Advice]:
    """What is worth knowing, in the order in which it should be looked at.

    `target` is the share of correct answers wanted (baseline.target.value), if it is known. Each
    text has the measured figure, the rule and what to do next. `info.advice` is not looked at.
    """
    case = _Case(info, target)
    return [found for rule in _RULES for found in rule(case)]


def _classical(case: _Case) -> Iterator[Advice]:
    found = case.info.classical
    if found is None:
        return
    measured = (
        f"A cheap classical model (TF-IDF and a linear model) is right on {found.accuracy:.1%} of "
        f"{found.rows} {found.split} rows (macro F1 {found.macro_f1:.2f}; always saying the "
        f"largest class: {found.majority:.1%})."
    )
    if found.reaches_target:
        yield _warn(
            "classical-reaches-target",
            f"{measured} It reaches the target, in milliseconds and without a GPU. Use it, or "
            "raise baseline.target.value.",
        )
    else:
        yield _info(
            "classical-baseline", f"{measured} A fine-tuned model has to be clearly better."
        )


def _few_rows(case: _Case) -> Iterator[Advice]:
    if case.info.task not in _ROWS_NEEDED:
        return
    least, reliable, goal = _ROWS_NEEDED[case.info.task]
    rule = f"Rule of thumb (decision framework) for {goal}: {least:,} rows at least"
    if case.train < least:
        yield _warn(
            "few-rows",
            f"{case.train:,} train rows. {rule}. Collect more; meanwhile try prompting with "
            "examples (luthier baseline).",
        )
    elif case.train < reliable:
        yield _info(
            "few-rows",
            f"{case.train:,} train rows. {rule}, {reliable:,} to be reliable. More rows are the "
            "first thing to try if the result falls short.",
        )


def _splits(case: _Case) -> Iterator[Advice]:
    for split, use in _USE_OF_SPLITS.items():
        if not case.info.splits.get(split, 0):
            yield _warn(
                f"no-{split}",
                f"No {split} rows: {use}. Add a source with split: {split}, or set "
                f"prepare.{split}_fraction: 0.1.",
            )


def _test_size(case: _Case) -> Iterator[Advice]:
    rows = case.info.splits.get("test", 0)
    if not rows:
        return
    share = case.target if case.target is not None else 0.5
    low, high = _interval(share, rows)
    measured = (
        f"{rows} test rows: a model that is right on {share:.0%} of them is right on "
        f"{low:.0%} to {high:.0%} (Wilson's 95 % interval)."
    )
    if rows < HELD_OUT_ROWS:
        yield _warn(
            "test-too-small",
            f"{measured} Rule of thumb (decision framework): {HELD_OUT_ROWS} at least. Add test "
            "rows, or raise prepare.test_fraction; otherwise the verdict is 'cannot tell'.",
        )
    elif high - low > 2 * _HALF_WIDTH:
        yield _info(
            "test-small",
            f"{measured} Smaller differences stay unseen. Luthier's rule: an interval of at most "
            f"{2 * _HALF_WIDTH:.0%}. Add test rows if you compare close models.",
        )


def _majority(case: _Case) -> Iterator[Advice]:
    counts = case.info.counts.splits.get("test") or case.info.counts.splits.get("train")
    if case.info.task != "classification" or counts is None:
        return
    share = counts.majority_class_share
    if share is None:
        return
    text = f"Always saying the largest class is right on {share:.1%} of the rows."
    if case.target is not None and share >= case.target:
        yield _warn(
            "majority",
            f"{text} That reaches the target of {case.target:.1%}: judge by macro F1, or raise "
            "baseline.target.value.",
        )
    else:
        yield _info("majority", f"{text} Read every accuracy against this.")


def _classes(case: _Case) -> Iterator[Advice]:
    present = {label: rows for label, rows in case.classes.items() if rows}
    if len(present) < 2:
        return
    largest = max(present, key=lambda label: present[label])
    smallest = min(present, key=lambda label: present[label])
    ratio = present[largest] / present[smallest]
    if ratio > _IMBALANCE:
        yield _warn(
            "imbalance",
            f"{largest!r} has {ratio:.0f} times the train rows of {smallest!r} "
            f"({present[largest]:,} and {present[smallest]:,}). Luthier's rule: at most "
            f"{_IMBALANCE} times. Judge by macro F1, and collect rows of the small classes.",
        )


def _small_classes(case: _Case) -> Iterator[Advice]:
    small = {label: rows for label, rows in case.classes.items() if rows < _CLASS_ROWS}
    if not small:
        return
    named = ", ".join(f"{label!r} {rows}" for label, rows in list(small.items())[:5])
    more = f" and {len(small) - 5} more" if len(small) > 5 else ""
    yield _warn(
        "small-classes",
        f"{len(small)} of {len(case.classes)} classes have fewer than {_CLASS_ROWS} train rows: "
        f"{named}{more}. Luthier's rule: {_CLASS_ROWS}. Collect more of them, or join classes.",
    )


def _supervised(case: _Case) -> Iterator[Advice]:
    counts = case.info.counts.splits.get("train")
    if counts is None or not counts.tokens.total or case.info.task in ("text", "preference"):
        return
    share = counts.supervised_tokens.total / counts.tokens.total
    measured = f"{share:.1%} of the train tokens are learned; the others are prompt."
    if share < _LITTLE_LEARNED:
        yield _info(
            "little-learned",
            f"{measured} Luthier's rule: {_LITTLE_LEARNED:.0%}. Training pays for every token: "
            "shorten prepare.system_prompt or the texts.",
        )
    elif share > _NEARLY_ALL_LEARNED:
        yield _warn(
            "nearly-all-learned",
            f"{measured} Luthier's rule: less than {_NEARLY_ALL_LEARNED:.0%}. The prompts are "
            "nearly empty: look at rows with luthier inspect, and at prepare.loss_on.",
        )


def _copies(case: _Case) -> Iterator[Advice]:
    counts, near = case.info.counts, case.info.near
    exact = counts.dropped.get("duplicate", 0)
    alike = near.near_duplicates if near is not None else 0
    if not counts.read or (exact + alike) / counts.read <= _COPIES:
        return
    kept = alike > counts.dropped.get("near-duplicate", 0)
    remedy = "Set prepare.near.near_duplicates: drop" if kept else "They were left out"
    yield _warn(
        "copies",
        f"{exact:,} copies and {alike:,} near copies among {counts.read:,} records. Luthier's "
        f"rule: at most {_COPIES:.0%}; repeated rows are learned by heart, and the data is "
        f"smaller than it looks. {remedy}; look at where they come from.",
    )


def _label_noise(case: _Case) -> Iterator[Advice]:
    found = case.info.label_noise or {}
    if found.get("at_least", 0.0) > _WRONG_LABELS:
        yield _warn(
            "label-noise",
            f"About {found['estimate']:.1%} of the train labels look wrong, surely "
            f"{found['at_least']:.1%}. Well-known data sets have about 3 % (Northcutt et al., "
            "arXiv 2103.14749). Look at label_noise.suspects in dataset.json and correct them.",
        )


def _contradictions(case: _Case) -> Iterator[Advice]:
    counts = case.info.counts
    found = counts.quarantined.get("contradiction", 0)
    if counts.read and found / counts.read > _CONTRADICTIONS:
        yield _warn(
            "contradictions",
            f"{found:,} of {counts.read:,} records have a text that also stands there with "
            f"another answer. Luthier's rule: at most {_CONTRADICTIONS:.0%}. Those who labelled "
            "do not agree: settle the rule for them, starting with quarantine.jsonl.",
        )


def _pii(case: _Case) -> Iterator[Advice]:
    found = case.info.pii
    rows = {kind: count for kind, count in found.rows.items() if count} if found else {}
    if found is None or not rows or found.redacted:
        return
    named = ", ".join(f"{kind} in {count:,} rows" for kind, count in rows.items())
    yield _warn(
        "pii",
        f"Personal data or secrets: {named}. A model can repeat what it has learned (Carlini et "
        "al., arXiv 2012.07805). Set prepare.pii.action: redact, or remove the rows.",
    )


_RULES: tuple[Callable[[_Case], Iterator[Advice]], ...] = (
    _classical,
    _few_rows,
    _splits,
    _test_size,
    _majority,
    _classes,
    _small_classes,
    _supervised,
    _copies,
    _contradictions,
    _label_noise,
    _pii,
)


def _interval(share: float, rows: int) -> tuple[float, float]:
    """Wilson's score interval of about this share of the rows."""
    from scipy.stats import binomtest

    interval = binomtest(round(share * rows), rows).proportion_ci(_CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def _info(kind: str, text: str) -> Advice:
    return Advice(id=kind, level="info", text=text)


def _warn(kind: str, text: str) -> Advice:
    return Advice(id=kind, level="warn", text=text)
