"""`luthier cost`: what a month costs by approach and volume, and when an own model pays."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.commands.options import Config, Json, Overrides


def cost(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
    plot: Annotated[
        Path | None, typer.Option(help="write an HTML page with a plot here", metavar="PAGE")
    ] = None,
) -> None:
    """Compare monthly costs of prompting an API and of the tuned model, by CONFIG's prices."""
    import json
    import sys
    from datetime import UTC, datetime

    from luthier.costing import reckon
    from luthier.pipeline import open_pipeline
    from luthier.report.cost import cost_json, print_cost
    from luthier.report.cost_page import write_cost_page

    pipeline = open_pipeline(config, overrides)
    costing = reckon(pipeline.config, pipeline.plan(), datetime.now(UTC).date())
    if plot is not None:
        write_cost_page(costing, plot)
    if as_json:
        page = {"page": str(plot)} if plot is not None else {}
        sys.stdout.write(json.dumps(cost_json(costing) | page, indent=2) + "\n")
        return
    print_cost(costing, plot)
