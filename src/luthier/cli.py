"""The `luthier` command: one command a stage, the whole pipeline, and views of the store."""

import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from luthier import __version__
from luthier.commands.advise import advise
from luthier.commands.compare import compare
from luthier.commands.cost import cost
from luthier.commands.options import (
    Config,
    Fork,
    Fresh,
    Inputs,
    Json,
    Overrides,
    Reference,
    Until,
)
from luthier.commands.serving import serve, serve_check
from luthier.commands.sweep import sweep
from luthier.commands.tagging import promote, tag
from luthier.commands.uploading import upload
from luthier.errors import ConfigError, GateError, LuthierError

app = typer.Typer(
    name="luthier",
    help="LoRA and QLoRA fine-tuning from one YAML file, where every stage measures what it made.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _print_json(value: Any) -> None:
    _print(json.dumps(value, indent=2, ensure_ascii=False))


@app.command()
def run(  # noqa: PLR0913, the options of a command
    config: Config,
    overrides: Overrides = None,
    until: Until = None,
    inputs: Inputs = None,
    fork: Fork = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Run every stage of CONFIG, reusing what is there; end with a table and an HTML page."""
    from luthier.pipeline import open_pipeline
    from luthier.report import closing_table, done_json, summarise, write_report

    pipeline = open_pipeline(config, overrides, inputs, fork, fresh)
    try:
        done = pipeline.run(until)
    except GateError:
        page = write_report(pipeline.config, pipeline.artifacts(), pipeline.store)
        pipeline.reporter.say(f"report so far: {page}")
        raise
    made = {step.stage: step.artifact for step in done}
    summary = summarise(pipeline.config, made, pipeline.store)
    page = write_report(pipeline.config, made, pipeline.store)
    if as_json:
        stages = [done_json(step) for step in done]
        _print_json({"stages": stages, "summary": summary.as_json(), "report": str(page)})
        return
    closing_table(summary, page)


@app.command()
def plan(  # noqa: PLR0913, the options of a command
    config: Config,
    overrides: Overrides = None,
    until: Until = None,
    inputs: Inputs = None,
    fork: Fork = None,
    fresh: Fresh = False,
    on: Annotated[
        str | None, typer.Option(help="hardware to predict memory for, such as rtx-4090")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which stage would be reused, resumed or run, and why; and what training will take."""
    from luthier.foretelling import foretell
    from luthier.pipeline import open_pipeline
    from luthier.report import plan_json, plan_table

    pipeline = open_pipeline(config, overrides, inputs, fork, fresh)
    steps = pipeline.plan(until)
    foretold = foretell(pipeline.config, steps, on)
    if as_json:
        _print_json(plan_json(steps, foretold))
        return
    plan_table(steps, foretold)


@app.command()
def report(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Write the HTML page of what CONFIG has made so far."""
    from luthier.errors import StoreError
    from luthier.pipeline import open_pipeline
    from luthier.report import write_report

    pipeline = open_pipeline(config, overrides)
    made = pipeline.artifacts()
    if not made:
        raise StoreError(f"{config} has made nothing yet. Run: luthier run {config}")
    page = write_report(pipeline.config, made, pipeline.store)
    if as_json:
        _print_json({"report": str(page)})
    else:
        _print(str(page))


@app.command("ls")
def list_artifacts(as_json: Json = False) -> None:
    """List the versions in the store, newest first."""
    from luthier.report import artifact_rows, artifact_table
    from luthier.store import Store

    contents = Store.default().contents()
    for problem in contents.problems:
        sys.stderr.write(f"warning: {problem}\n")
    if as_json:
        _print_json(artifact_rows(contents))
        return
    artifact_table(contents)


@app.command()
def show(reference: Reference, as_json: Json = False) -> None:
    """Show one artifact: what it holds, what it was made from, what was measured."""
    from luthier.report import show_artifact
    from luthier.store import Store

    artifact = Store.default().resolve(reference)
    if as_json:
        _print_json(artifact.manifest.model_dump(mode="json") | {"path": str(artifact.path)})
        return
    show_artifact(artifact)


@app.command("inspect")
def inspect_rows(  # noqa: PLR0913, the options of a command
    reference: Reference,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "train",
    row: Annotated[int | None, typer.Option(help="this row, counted from 0")] = None,
    worst: Annotated[
        Literal["length", "supervised"] | None,
        typer.Option(help="the longest rows, or those with the fewest trained tokens"),
    ] = None,
    grep: Annotated[str | None, typer.Option(help="rows with this text in a message")] = None,
    count: Annotated[int, typer.Option(min=1, help="how many rows at most")] = 5,
    as_json: Json = False,
) -> None:
    """Print rows of a dataset as the model will see them, with what is trained marked."""
    from luthier.report import RowChoice, inspect_dataset, print_rows
    from luthier.store import Store

    store, choice = Store.default(), RowChoice(split, row, worst, grep, count)
    inspected = inspect_dataset(store.resolve(reference), store, choice)
    if as_json:
        _print_json(inspected.as_json())
    else:
        print_rows(inspected)


@app.command()
def lineage(reference: Reference, as_json: Json = False) -> None:
    """Show what an artifact was made from, back to the files it began with."""
    from luthier.report import lineage_json, lineage_tree
    from luthier.store import Store

    store = Store.default()
    traced = store.lineage(store.resolve(reference))
    if as_json:
        _print_json(lineage_json(traced))
        return
    lineage_tree(traced)


@app.command()
def verify(
    reference: Annotated[str | None, typer.Argument(metavar="[REF]", help="one artifact")] = None,
    everything: Annotated[bool, typer.Option("--all", help="every artifact in the store")] = False,
    as_json: Json = False,
) -> None:
    """Read every byte of an artifact, or of all, and compare with its manifest."""
    from luthier.store import Store

    if (reference is None) != everything:
        raise ConfigError("Say which artifact, or --all.")
    artifacts = Store.default().verified(reference)
    if as_json:
        _print_json({"verified": [artifact.ref for artifact in artifacts]})
    else:
        _print(
            f"{len(artifacts)} artifact{'' if len(artifacts) == 1 else 's'} verified, every byte."
        )


@app.command()
def schema() -> None:
    """Print the JSON Schema of run configs, for editors."""
    from luthier.config import json_schema
    from luthier.pipeline import all_sections

    _print_json(json_schema(all_sections()))


app.command("serve-check")(serve_check)
app.add_typer(sweep, name="sweep")
for _command in (compare, tag, promote, upload, advise, cost, serve):
    app.command()(_command)


def _add_stage_commands() -> None:
    from luthier.stages import headings

    for stage in headings():
        app.command(stage.name, help=f"Run one stage: {stage.summary}.")(
            _stage_command(stage.name)
        )


def _stage_command(name: str) -> Any:
    def command(
        config: Config,
        overrides: Overrides = None,
        inputs: Inputs = None,
        fork: Fork = None,
        fresh: Fresh = False,
        as_json: Json = False,
    ) -> None:
        from luthier.pipeline import open_pipeline
        from luthier.report import done_json, stage_closing

        done = open_pipeline(config, overrides, inputs, fork, fresh).run_stage(name)
        if as_json:
            _print_json(done_json(done))
        else:
            stage_closing(done, config)

    return command


def _version(value: bool) -> None:
    if value:
        _print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    _version_asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


def call(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code. Users' errors are one message, never a traceback."""
    # tqdm reads it when it is imported, which optuna, for one, does before `quiet_libraries`.
    os.environ.setdefault("TQDM_DISABLE", "1")
    _add_stage_commands()
    try:
        left = app(args=list(arguments) or ["--help"], prog_name="luthier", standalone_mode=False)
    except LuthierError as error:
        return _fail(arguments, str(error), error.exit_code)
    except typer.Abort:
        return 4
    except Exception as error:  # noqa: BLE001, the last resort says that it is a bug
        if hasattr(error, "format_message"):  # click's usage errors
            return _fail(arguments, f"{error.format_message()} See: luthier --help", 2)
        traceback.print_exc()
        return _fail(arguments, f"This is a bug of luthier: {type(error).__name__}: {error}", 1)
    return int(left or 0)  # of typer.Exit, which typer catches itself


def _fail(arguments: Sequence[str], message: str, exit_code: int) -> int:
    sys.stderr.write(f"error: {message}\n")
    if "--json" in arguments:
        _print_json({"error": message, "exit_code": exit_code})
    return exit_code


def run_script(command: str) -> None:
    """A script of `scripts/`: the command of that name, with the config given as --config."""
    arguments = sys.argv[1:]
    for position, argument in enumerate(arguments):
        if argument == "--config":
            del arguments[position]
            break
        if argument.startswith("--config="):
            arguments[position] = argument.removeprefix("--config=")
            break
    sys.exit(call([command, *arguments]))


def main() -> None:
    """The `luthier` command."""
    sys.exit(call(sys.argv[1:]))
