"""What the artifacts of a run config say about the questions of `luthier advise`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from luthier.advice.advice import Finding
from luthier.advice.next_steps import RunState
from luthier.advice.rules import DATA_NEEDED
from luthier.config import RunConfig
from luthier.data.dataset import load_split, read_info
from luthier.data.replay import ORIGIN as REPLAY
from luthier.data.section import PrepareSection
from luthier.evaluation.summary import read_summary
from luthier.pipeline import Pipeline, load_run
from luthier.report.scores import Scores, SystemScore, read_scores
from luthier.report.spelling import count, percent, percent_interval
from luthier.report.verdict import judge
from luthier.store import Artifact, Store


@dataclass
class Evidence:
    """Findings by question, what was measured (a label and a text), and the config's state."""

    state: RunState
    found: dict[str, Finding] = field(default_factory=dict)
    measured: list[tuple[str, str]] = field(default_factory=list)


def no_evidence(answers: str | None) -> Evidence:
    """Nothing is measured; `answers` is the file of answers, if any."""
    return Evidence(RunState(answers=answers))


def read_evidence(path: str, answers: str | None) -> Evidence:
    """Read what the config at `path` has made so far; `answers` is the file of answers, if any.

    Raises:
        LuthierError: the config is wrong, or an artifact is damaged.
    """
    config = load_run(path, [])
    made = Pipeline(config, Store.default()).artifacts()
    state = RunState(path, frozenset(config.sections), frozenset(made), answers)
    evidence = Evidence(state)
    if "prepare" in made:
        _look_at_dataset(made["prepare"], config, evidence)
    scores = read_scores(made)
    if "baseline" in made:
        _look_at_baseline(made["baseline"], scores, evidence)
    if scores.comparison is not None:
        told = f"{made['evaluate'].ref}: {judge(scores, {}, {}).sentence}"
        evidence.measured.append(("tuned", told))
    return evidence


def _look_at_dataset(dataset: Artifact, config: RunConfig, evidence: Evidence) -> None:
    info = read_info(dataset.path)
    section = config.sections["prepare"]
    assert isinstance(section, PrepareSection)
    rows = _own_rows(dataset, section)
    labels = f", {count(len(info.labels))} labels" if info.labels else ""
    told = f"{dataset.ref}: task {info.task}{labels}, {count(rows)} train rows"
    if dataset.manifest.status == "failed":
        told += ", some of its gates failed"
    evidence.measured.append(("data", told))
    evidence.measured += [
        ("classical", one.text) for one in info.advice if one.id.startswith("classical")
    ]
    match info.task:
        case "classification" | "extraction":
            task = Finding(info.task, f"{dataset.ref}, task {info.task}")
            evidence.found |= {
                "narrow_task": task,
                "labelled_examples": _labels(rows, dataset, section),
            }
        case "grounded":
            task = Finding(True, f"{dataset.ref}, task grounded: answers from documents")
            evidence.found["needs_external_knowledge"] = task


def _own_rows(dataset: Artifact, section: PrepareSection) -> int:
    """Train rows, without those of replay."""
    if section.replay is None:
        return read_info(dataset.path).splits.get("train", 0)
    origins = load_split(dataset.path, "train", ["origin"])["origin"]
    return sum(origin != REPLAY for origin in origins)


def _labels(rows: int, dataset: Artifact, section: PrepareSection) -> Finding:
    """How many labels there are; a sample that `prepare.limit` drew cannot say too few."""
    source = f"{dataset.ref}, {count(rows)} train rows"
    limit = section.limit.get("train")
    if limit is not None and rows >= limit and rows < DATA_NEEDED["classification"].least:
        return Finding(None, f"{source}, as many as prepare.limit lets through")
    return Finding(rows, source)


def _look_at_baseline(baseline: Artifact, scores: Scores, evidence: Evidence) -> None:
    summary = read_summary(baseline.path)
    best = next(one for one in scores.systems if _is(one, summary["best_system"]))
    reached = (
        f"{percent(best.score)} (95 % interval {percent_interval(best.low, best.high)}, "
        f"{count(best.rows)} rows)"
    )
    told, source = f"{baseline.ref}: {best.title}, {scores.metric} {reached}", baseline.ref
    target = summary["target"]
    if target is None:
        told += "; without baseline.target nothing judges it"
        evidence.found["prompting_suffices"] = Finding(None, f"{source}, {reached}, no target")
    else:
        wanted = f"target {percent(target['target'])}"
        told += f"; {wanted} {target['metric']}: {target['reason']}"
        evidence.found |= _verdict(target["verdict"], f"{source}, {reached}, {wanted}")
    evidence.measured.append(("prompting", told))


def _is(score: SystemScore, name: str) -> bool:
    return score.role == "baseline" and score.system == name


def _verdict(verdict: str, source: str) -> Mapping[str, Finding]:
    """What the 10/20-point rule answers: near the target a prompt holds the form too."""
    match verdict:
        case "improve-prompt":
            return {
                "prompting_suffices": Finding(True, source),
                "format_beyond_prompting": Finding(False, source),
            }
        case "fine-tune":
            return {"prompting_suffices": Finding(False, source)}
    return {"prompting_suffices": Finding(None, f"{source}: {verdict.replace('-', ' ')}")}
