"""The HTML page of a run: one file without a single request to a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config import RunConfig
from luthier.gates import GATES
from luthier.report import spelling
from luthier.report.closing import run_facts
from luthier.report.dataset_rows import DATASET_KINDS
from luthier.report.dataset_view import dataset_view
from luthier.report.errors_view import error_analysis, wrong_answers
from luthier.report.lineage import SHOWN_DIGITS, unfold
from luthier.report.listing import environment_facts, total_size_bytes
from luthier.report.plots import Plot, confusion_plot, loss_plot, scores_plot
from luthier.report.preference_plots import log_probability_plot, reward_plot
from luthier.report.scores import Scores, read_scores
from luthier.report.summary import summarise
from luthier.report.training_log import read_training_log
from luthier.store import Artifact, Store
from luthier.store.files import write_atomically
from luthier.store.problems import storage_errors

if TYPE_CHECKING:
    import jinja2

REPORTS_FOLDER = "reports"
_TEMPLATE = "page.html.jinja"
_SOURCES_SHOWN = 100


def write_report(config: RunConfig, artifacts: Mapping[str, Artifact], store: Store) -> Path:
    """Write `<store>/reports/<config name>.html`.

    `artifacts` are by stage in pipeline order, at least one.

    Raises:
        StoreError: the store cannot be written.
        DataError: an artifact's content cannot be read.
    """
    summary, scores = summarise(config, artifacts, store), read_scores(artifacts)
    plots = _plots(scores, artifacts)
    datasets = [
        dataset_view(artifact, stage, store)
        for stage, artifact in artifacts.items()
        if artifact.kind in DATASET_KINDS
    ]
    for view in datasets:
        plots |= view.plots
    content = page_template(_TEMPLATE).render(
        summary=summary,
        plots=plots,
        datasets=datasets,
        sources_shown=_SOURCES_SHOWN,
        numbers=list(run_facts(summary)),
        training_facts=spelling.flat(summary.training).items(),
        classes=scores.classes,
        wrong=wrong_answers(artifacts, scores),
        errors=error_analysis(artifacts),
        meanings=GATES,
        stages=[_stage(stage, artifact) for stage, artifact in artifacts.items()],
        lineage=unfold(store.lineage(list(artifacts.values())[-1])),
        environments=_environments(artifacts),
        config=yaml_text(config.resolved()),
        commands=_commands(config),
        plotly=plotly_source() if plots else "",
    )
    path = store.root / REPORTS_FOLDER / f"{config.name}.html"
    with storage_errors(store.root):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return path


def page_template(name: str) -> "jinja2.Template":
    """A template of this package; texts are escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("luthier", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for filter_ in (
        spelling.percent, spelling.decimal, spelling.count, spelling.size, spelling.duration,
        spelling.value, spelling.status_word, spelling.comparison_sign, spelling.signed,
        spelling.printable, spelling.points_interval, spelling.latency,
    ):  # fmt: skip
        environment.filters[filter_.__name__] = filter_
    environment.filters["interval"] = lambda s: spelling.percent_interval(s.low, s.high)
    environment.filters["short"] = lambda digest: digest[:SHOWN_DIGITS]
    return environment.get_template(name)


def _plots(scores: Scores, artifacts: Mapping[str, Artifact]) -> dict[str, Plot]:
    found = {
        "scores": scores_plot(scores.systems, scores.metric),
        "confusion": confusion_plot(scores.confusion) if scores.confusion else None,
    }
    for stage, artifact in artifacts.items():
        if artifact.kind == "adapter":
            log = read_training_log(artifact)
            found[f"loss-{stage}"] = loss_plot(log, stage)
            found[f"rewards-{stage}"] = reward_plot(log, stage)
            found[f"logps-{stage}"] = log_probability_plot(log, stage)
    return {name: plot for name, plot in found.items() if plot is not None}


def plotly_source() -> str:
    """Plotly's script, for a page to carry."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _stage(stage: str, artifact: Artifact) -> dict[str, Any]:
    """What the page's table of stages says of one."""
    manifest = artifact.manifest
    return {
        "name": stage,
        "manifest": manifest,
        "made": manifest.created_at.partition("+")[0].replace("T", " "),
        "size_bytes": total_size_bytes(artifact),
        "seconds": manifest.timings_seconds.get("stage"),
    }


def _environments(artifacts: Mapping[str, Artifact]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each environment that stages were made in, with the names of those stages."""
    found: list[tuple[list[str], list[tuple[str, str]]]] = []
    for stage, artifact in artifacts.items():
        facts = environment_facts(artifact.manifest)
        for stages, known in found:
            if known == facts:
                stages.append(stage)
                break
        else:
            found.append(([stage], facts))
    return [(", ".join(stages), facts) for stages, facts in found]


def yaml_text(values: Mapping[str, Any]) -> str:
    """A config as YAML, for a page to show."""
    import yaml

    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=88)


def _commands(config: RunConfig) -> list[str]:
    """What makes all this again, and what checks it."""
    return [
        f"luthier run {spelling.config_arguments(config.path, config.overrides)}",
        "luthier verify --all",
    ]
