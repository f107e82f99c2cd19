"""`luthier serve`: a bundle on this machine. `luthier serve-check`: is it what a server serves?"""

import json
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.commands.options import Json
from luthier.errors import GateError

if TYPE_CHECKING:
    from luthier.serving.serve_bundle import Servable

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


def serve(
    reference: Bundle,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8080,
    quantization: Annotated[
        str | None, typer.Option(help="such as q8_0; else the bundle's first")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="tokens of prompt and reply; else the bundle's")
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve a bundle's GGUF on this machine with llama.cpp, in the OpenAI API, until Ctrl-C."""
    from luthier.progress import reporter_for_stderr
    from luthier.serving.llama_server import LlamaServer
    from luthier.serving.serve_bundle import require_free, servable
    from luthier.serving.serve_check import find_bundle

    one = servable(find_bundle(reference), quantization, context)
    require_free(port)
    server = LlamaServer(
        one.gguf_path, context_tokens=one.context_tokens, port=port, model_name=one.name
    )
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    try:
        reporter_for_stderr().say(f"Loading {one.gguf_path.name} ...")
        with server:
            _print(_serving_json(one, server.url) if as_json else _serving(one, server.url))
            server.wait()
    except KeyboardInterrupt:
        reporter_for_stderr().say("Ended.")


def _serving(one: "Servable", url: str) -> str:
    return (
        f"{one.name} ({one.quantization}, context {one.context_tokens} tokens, greedy) is served "
        f"at {url}\nCtrl-C ends it. Ask it:\n\n{one.curl(url)}\n"
    )


def _serving_json(one: "Servable", url: str) -> str:
    found = {"url": url, "model": one.name, "quantization": one.quantization}
    return json.dumps(found | {"context_tokens": one.context_tokens, "curl": one.curl(url)})


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
