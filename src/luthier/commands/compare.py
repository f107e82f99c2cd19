"""`luthier compare`: evaluated versions on the same rows, and over seeds."""

import json
import sys
from typing import Annotated

import typer

from luthier.commands.options import Json


def compare(
    references: Annotated[
        list[str],
        typer.Argument(
            metavar="REF",
            help="evaluations, or adapters and models that were evaluated, the first is compared "
            "with; or a run's name for all its evaluations",
        ),
    ],
    system: Annotated[
        str | None, typer.Option(help="such as tuned/likelihood; else the one that was judged")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare evaluated versions: paired tests, what differs in their making, and over seeds."""
    from luthier.report import compare_versions, comparison_table
    from luthier.store import Store

    compared = compare_versions(Store.default(), references, system)
    if as_json:
        sys.stdout.write(json.dumps(compared.as_json(), indent=2, ensure_ascii=False) + "\n")
        return
    comparison_table(compared)
