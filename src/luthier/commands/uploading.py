"""`luthier upload`: a bundle's `hub/` folder to the Hugging Face hub, shown before it is sent."""

import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.commands.options import Json, Reference

if TYPE_CHECKING:
    from luthier.serving.hub import Upload
    from luthier.store import Artifact


@dataclass(frozen=True)
class _Standing:
    """What speaks for and against the bundle: the newest verdict, and what must stop it."""

    evaluation: str | None
    word: str | None
    warned: tuple[str, ...]
    against: tuple[str, ...]


def upload(
    reference: Reference,
    repo: Annotated[str, typer.Option(help="where to, OWNER/NAME; it is made if it is not there")],
    private: Annotated[
        bool, typer.Option("--private", help="make it private, if it is made now")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="upload; else only show what would be")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="also what failed a gate or is not to be shipped")
    ] = False,
    as_json: Json = False,
) -> None:
    """Upload a bundle's model and card to the Hugging Face hub; without --yes only show it."""
    from luthier.errors import GateError
    from luthier.serving.hub import planned_upload
    from luthier.serving.hub import upload as send
    from luthier.store import Store

    store = Store.default()
    bundle = store.verified(reference)[0]
    planned = planned_upload(bundle.path, repo, is_private=private)
    standing = _standing(bundle)
    if not as_json:
        _show(bundle, planned, standing)
    if standing.against and not force:
        raise GateError(
            f"{bundle.ref} is not uploaded: {'; '.join(standing.against)}. Look at it with "
            "luthier show, or upload it all the same with --force."
        )
    address = send(bundle.path, planned, f"{bundle.ref}, by Luthier") if yes else None
    if as_json:
        found = {"bundle": bundle.ref, **asdict(planned), **asdict(standing), "uploaded": address}
        _print(json.dumps(found, indent=2))
    elif address:
        _print(f"Uploaded: {address}")
    else:
        _print("Nothing was uploaded. To upload it: --yes")


def _standing(bundle: "Artifact") -> _Standing:
    """Gates of the bundle, and the newest evaluation of it or of the adapter in it."""
    from luthier.gates import failures, spell
    from luthier.promoting import newest_evaluation
    from luthier.store import Store

    gates = bundle.manifest.gates
    against = [spell(gate) for gate in failures(gates)]
    evaluation = newest_evaluation(Store.default(), bundle)
    word = None
    if evaluation is not None:
        word = evaluation.manifest.metrics.get("ship")
        against += [spell(gate) for gate in failures(evaluation.manifest.gates)]
        if word == "do not ship":
            against.append(f"{evaluation.ref} says {word}")
    return _Standing(
        evaluation=evaluation.ref if evaluation else None,
        word=word,
        warned=tuple(gate.id for gate in gates if gate.status == "warn"),
        against=tuple(against),
    )


def _show(bundle: "Artifact", planned: "Upload", standing: _Standing) -> None:
    from luthier.report.spelling import size

    seen = "private" if planned.is_private else "public"
    _print(f"{bundle.ref} to {planned.repo}, {seen} if it is made now:")
    for name, size_bytes in planned.files:
        _print(f"  {size(size_bytes):>10}  {name}")
    _print(f"  {size(planned.size_bytes):>10}  in all")
    verdict = "never evaluated"
    if standing.evaluation:
        verdict = f"{standing.evaluation} says {standing.word or 'nothing of shipping'}"
    _print(f"  verdict: {verdict}")
    if standing.warned:
        _print(f"  gates that only warned: {', '.join(standing.warned)}")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
