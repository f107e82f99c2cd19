"""`luthier sweep`: search over a config, and what came of it."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from luthier.commands.options import Config, Json, Overrides

if TYPE_CHECKING:
    from luthier.sweeping.state import SweepState
    from luthier.sweeping.study import Study


class _RunsByDefault(TyperGroup):
    """`luthier sweep CONFIG` is `luthier sweep run CONFIG`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """With the command left out."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


sweep = typer.Typer(
    cls=_RunsByDefault,
    no_args_is_help=True,
    help="Search over CONFIG's sweep: luthier sweep CONFIG runs it or goes on with it.",
)


@sweep.command()
def run(
    config: Config,
    overrides: Overrides = None,
    suggest: Annotated[
        bool, typer.Option("--suggest", help="print a section sweep for CONFIG, and run nothing")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="run failed trials again, from checkpoints")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run every trial that is not done yet, choose on validation, ask the winner the test rows."""
    if suggest:
        _print_suggestion(config, overrides or [])
        return
    from luthier.errors import GateError
    from luthier.report.sweep_page import write_sweep_page
    from luthier.sweeping.running import run_sweep

    bench = _bench(config, overrides or [])
    state = run_sweep(bench, retry_failed=retry_failed)
    _show(state, as_json, write_sweep_page(bench.study, state))
    if state.tested is not None and state.tested.error is not None:
        raise GateError(state.tested.error)


@sweep.command()
def status(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Show the trials of CONFIG's sweep as they stand; run nothing."""
    from luthier.report.sweep_page import write_sweep_page
    from luthier.sweeping.state import read_state

    study = _existing(config, overrides or [])
    state = read_state(study)
    _show(state, as_json, write_sweep_page(study, state))


@sweep.command()
def best(
    config: Config,
    overrides: Overrides = None,
    write: Annotated[
        Path | None, typer.Option(help="write the winner's config there", metavar="NEW_CONFIG")
    ] = None,
    trial: Annotated[int | None, typer.Option(help="this one instead of the winner")] = None,
    as_json: Json = False,
) -> None:
    """Print the winner's config, or write it for `luthier run`."""
    from luthier.sweeping.best import chosen_trial, render_config, write_config
    from luthier.sweeping.state import describe_params, read_state

    study = _existing(config, overrides or [])
    state = read_state(study)
    number = chosen_trial(state, trial)
    chosen = state.trial(number)
    why = f"Trial {number} of luthier sweep {config}: {describe_params(chosen.params)}"
    if write is not None:
        write_config(study, number, why, write)
    if as_json:
        found = {"trial": number, "params": dict(chosen.params), "values": list(chosen.values)}
        _print(json.dumps(found | {"written": str(write) if write else None}, indent=2))
    elif write is not None:
        _print(f"{why}\nWritten: {write}. Run it: luthier run {write}")
    else:
        _print(render_config(study, number, why))


def _bench(config: str, overrides: list[str]) -> Any:
    from luthier.interrupts import StopFlag
    from luthier.progress import reporter_for_stderr
    from luthier.store import Store
    from luthier.sweeping.plan import plan_sweep
    from luthier.sweeping.study import Study
    from luthier.sweeping.trial import Bench

    study = Study(plan_sweep(config, overrides), Store.default())
    stop = StopFlag()
    stop.install()
    return Bench(study, reporter_for_stderr(), stop)


def _existing(config: str, overrides: list[str]) -> "Study":
    from luthier.store import Store
    from luthier.sweeping.plan import plan_sweep
    from luthier.sweeping.study import Study, refuse_absent

    study = Study(plan_sweep(config, overrides), Store.default())
    refuse_absent(study)
    return study


def _show(state: "SweepState", as_json: bool, page: Path) -> None:
    from luthier.report.sweep_terminal import sweep_json, sweep_table

    if as_json:
        _print(json.dumps(sweep_json(state) | {"report": str(page)}, indent=2))
    else:
        sweep_table(state, page)


def _print_suggestion(config: str, overrides: list[str]) -> None:
    from luthier.foretelling import model_config
    from luthier.pipeline import open_pipeline
    from luthier.sweeping.suggesting import suggest

    pipeline = open_pipeline(config, overrides)
    base = pipeline.artifacts().get("base")
    found = model_config(pipeline.config, base.path if base else None)
    _print(suggest(pipeline.config, found).rstrip())


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
