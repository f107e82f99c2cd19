"""`luthier serve-check`: whether a running server serves the model that was measured."""

import json
import sys
from typing import Annotated

import typer

from luthier.commands.options import Json
from luthier.errors import GateError

Bundle = Annotated[
    str,
    typer.Argument(metavar="REF", help="name/bundle@latest, a key's first digits, or a folder"),
]


def serve_check(  # noqa: PLR0913, the options of a command
    reference: Bundle,
    endpoint: Annotated[
        str, typer.Option(help="the server's address, such as http://127.0.0.1:8000/v1")
    ],
    model: Annotated[str | None, typer.Option(help="its name there; else the bundle's")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="environment variable that holds the key")
    ] = None,
    probes: Annotated[
        int | None, typer.Option(min=1, help="how many questions to ask; else all")
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="least share of answers equal to the merged model's"),
    ] = None,
    max_difference_nats: Annotated[
        float | None,
        typer.Option(min=0.0, help="greatest mean difference of log-probabilities, nats"),
    ] = None,
    timeout_seconds: Annotated[
        float, typer.Option(min=1.0, max=3600.0, help="of one request")
    ] = 120.0,
    as_json: Json = False,
) -> None:
    """Ask a running server a bundle's probes; exit code 3 if it serves anything else."""
    from luthier.progress import reporter_for_stderr
    from luthier.report.serve_view import checked_json, checked_table
    from luthier.serving.serve_check import CheckOptions, bundle_folder, check_server
    from luthier.serving.serve_probes import read_serve_probes
    from luthier.serving.served_endpoint import ServedEndpoint

    wanted = read_serve_probes(bundle_folder(reference))
    options = CheckOptions(model, probes, min_agreement, max_difference_nats)
    with ServedEndpoint(
        endpoint, api_key_env=api_key_env, timeout_seconds=timeout_seconds
    ) as server:
        checked = check_server(wanted, server, options, reporter_for_stderr())
    if as_json:
        sys.stdout.write(json.dumps(checked_json(checked), indent=2, ensure_ascii=False) + "\n")
    else:
        checked_table(checked)
    if not checked.holds:
        raise typer.Exit(GateError.exit_code)
