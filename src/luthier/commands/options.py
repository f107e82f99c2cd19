"""Arguments and options that several commands have."""

from typing import Annotated

import typer

Config = Annotated[str, typer.Argument(help="the run config, a YAML file", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="section.field=value, as often as needed")
]
Inputs = Annotated[
    list[str] | None, typer.Option("--input", help="slot=version, such as adapter=name/adapter@v2")
]
Fork = Annotated[
    str | None,
    typer.Option(
        "--fork", help="go on from an interrupted run's checkpoint", metavar="KEY[@STEP]"
    ),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="begin anew, whatever interrupted runs there are")
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Until = Annotated[str | None, typer.Option("--until", help="stop after this stage")]
Reference = Annotated[
    str, typer.Argument(metavar="REF", help="name/kind@v1, a key's first digits, or a folder")
]
