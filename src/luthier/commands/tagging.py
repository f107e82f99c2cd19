"""`luthier tag` and `luthier promote`: which version is in production, and since when."""

import json
import sys
from typing import Annotated

import typer

from luthier.commands.options import Json

PRODUCTION = "production"  # what `evaluate` compares every new version with


def tag(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="the version, such as name/model@v3")
    ],
    name: Annotated[str, typer.Argument(metavar="TAG", help="such as production")] = PRODUCTION,
    why: Annotated[str, typer.Option(help="kept in the history")] = "set by hand",
    as_json: Json = False,
) -> None:
    """Name a version, whatever its evaluation says; a model@production is compared with."""
    from luthier.store import Store

    store = Store.default()
    setting = store.tag(reference, name, why)
    run, _, kind = setting.ref.partition("@")[0].partition("/")
    history = store.tags(run, kind)[name]
    if as_json:
        _print(json.dumps({"tag": name, "history": [vars(one) for one in history]}, indent=2))
        return
    _print(f"{run}/{kind}@{name} is {setting.ref} now.")
    for one in reversed(history[:-1]):
        _print(f"  before: {one.ref}, since {one.at} ({one.why})")


def promote(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="the merged model, such as name/model@v3")
    ],
    name: Annotated[str, typer.Option("--tag", help="the tag to move")] = PRODUCTION,
    as_json: Json = False,
) -> None:
    """Move a tag to a model, if the verdict on it is to ship; exit code 3 if it is not."""
    from luthier.promoting import promote as promote_model
    from luthier.store import Store

    done = promote_model(Store.default(), reference, name)
    if as_json:
        found = {"tag": name, "before": done.before, "evaluation": done.evaluation}
        _print(json.dumps(found | {"now": vars(done.setting)}, indent=2))
        return
    before = f", which was {done.before}" if done.before else ""
    _print(f"{done.setting.ref} is {name} now{before}: {done.evaluation} says ship.")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
