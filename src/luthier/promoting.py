"""Moving a tag to a new version only when its evaluation says that it is to be shipped."""

from dataclasses import dataclass

from luthier.errors import GateError, StoreError
from luthier.gates import failures, spell
from luthier.store import Artifact, Store, Tagged

_JUDGES = ("accept", "evaluate")  # the last word first


@dataclass(frozen=True)
class Promotion:
    """What was tagged, by which evaluation, and what the tag named before."""

    setting: Tagged
    evaluation: str
    before: str | None


def promote(store: Store, text: str, tag: str) -> Promotion:
    """Let `tag` name this model from now on, if the newest verdict on it is to ship.

    A model that replaces another must have been compared with that very one.

    Raises:
        StoreError: it is no merged model, was never evaluated, or not against what the tag names.
        GateError: the verdict is another.
    """
    model = store.resolve(text)
    if model.kind != "model":
        raise StoreError(f"{text} is of kind {model.kind}; what is promoted is a merged model.")
    name = text.partition("/")[0] if "/" in text else model.manifest.name
    evaluation = newest_evaluation(store, model)
    if evaluation is None:
        raise StoreError(
            f"{model.ref} was never evaluated: no evaluation in the store is of its adapter. Run "
            "evaluate with the config that made it."
        )
    current = store.tagged(name, model.kind, tag)
    if current is not None and current.key != model.key:
        _refuse_uncompared(store, evaluation, model, current, tag)
    _refuse_unshippable(evaluation, model)
    why = f"{evaluation.ref}: ship"
    setting = store.tag(text, tag, why)
    return Promotion(setting, evaluation.ref, current.ref if current else None)


def newest_evaluation(store: Store, made: Artifact) -> Artifact | None:
    """The newest verdict on what is served, a model or a bundle, else that on the adapter it was
    merged from, or that it is; none in which it was only compared with, and none on validation
    rows, by which candidates are chosen."""
    adapter = next((ref.digest for ref in made.manifest.inputs if ref.slot == "adapter"), None)
    if made.kind == "adapter":
        adapter = made.digest
    wanted = {"accept": (made.kind, made.digest), "evaluate": ("adapter", adapter)}
    found = store.artifacts()
    for stage in _JUDGES:
        slot, digest = wanted[stage]
        for artifact in found:
            if artifact.manifest.key_fields.get("split", "test") != "test":
                continue
            inputs = {ref.slot: ref.digest for ref in artifact.manifest.inputs}
            if artifact.manifest.stage == stage and digest and inputs.get(slot) == digest:
                return artifact
    return None


def _refuse_uncompared(
    store: Store, evaluation: Artifact, model: Artifact, current: Artifact, tag: str
) -> None:
    on_adapter = evaluation
    for ref in evaluation.manifest.inputs:
        if ref.slot == "evaluation":
            on_adapter = store.find(ref.key) or evaluation
    compared = {ref.slot: ref.digest for ref in on_adapter.manifest.inputs}
    if compared.get("production") != current.digest:
        raise StoreError(
            f"{model.ref} was not compared with {current.ref}, which is {tag} now. Run its config "
            f"again: evaluate asks both the same rows. Or set the tag on purpose: luthier tag "
            f"{model.ref} {tag} --why REASON"
        )


def _refuse_unshippable(evaluation: Artifact, model: Artifact) -> None:
    word = evaluation.manifest.metrics.get("ship")
    failed = failures(evaluation.manifest.gates)
    if word == "ship" and not failed:
        return
    lines = "".join(f"\n  {spell(gate)}" for gate in failed)
    raise GateError(
        f"{model.ref} is not promoted: {evaluation.ref} says {word}.{lines}\n"
        f"Look at it with: luthier show {evaluation.ref}"
    )
