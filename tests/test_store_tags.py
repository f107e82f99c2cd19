"""Tags: set, moved, kept in history; and promotion, which asks the evaluation first."""

import json
from pathlib import Path

import pytest

from luthier.cli import call
from luthier.errors import GateError, StoreError
from luthier.gates import check
from luthier.promoting import newest_evaluation, promote
from luthier.store import Artifact, Store
from test_store_making import identity, make


def model(store: Store, number: int) -> tuple[Artifact, Artifact]:
    """An adapter and the model merged from it; different bytes for each number."""
    adapter = make(store, identity("sft", seed=number), {"a": b"%d" % number}, kind="adapter")
    merged = make(
        store,
        identity("merge", seed=None, inputs={"adapter": adapter.digest}),
        {"m": b"%d" % number},
        kind="model",
        inputs=(("adapter", adapter),),
    )
    return adapter, merged


def evaluation(
    store: Store, adapter: Artifact, word: str = "ship", production: Artifact | None = None
) -> Artifact:
    slots = {"adapter": adapter} | ({"production": production} if production else {})
    return make(
        store,
        identity("evaluate", inputs={name: one.digest for name, one in slots.items()}),
        {"e": word.encode() + adapter.digest.encode()},
        kind="evaluation",
        inputs=tuple(slots.items()),
        metrics={"ship": word},
    )


def test_a_tag_names_a_version_until_it_is_moved(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (_, first), (_, second) = model(store, 1), model(store, 2)
    store.tag("demo/model@v1", "production", "the first")
    assert store.resolve("demo/model@production").key == first.key
    assert store.tagged("demo", "model", "production") == first
    store.tag("demo/model@v2", "production", "better")
    assert store.resolve("demo/model@production").key == second.key
    history = store.tags("demo", "model")["production"]
    assert [(one.ref, one.why) for one in history] == [
        ("demo/model@v1", "the first"),
        ("demo/model@v2", "better"),
    ]
    assert store.tagged("demo", "model", "staging") is None
    assert store.contents().tags == {second.key: ["demo/model@production"]}


@pytest.mark.parametrize("tag", ["latest", "v3", "Production", "../x", ""])
def test_what_cannot_be_a_tag(tmp_path: Path, tag: str) -> None:
    store = Store(tmp_path)
    model(store, 1)
    with pytest.raises(StoreError, match="cannot be a tag"):
        store.tag("demo/model@v1", tag, "")


def test_an_unknown_tag_is_said_with_what_there_is(tmp_path: Path) -> None:
    store = Store(tmp_path)
    model(store, 1)
    with pytest.raises(StoreError, match=r"demo/model@production is no artifact.*demo/model@v1"):
        store.resolve("demo/model@production")


def test_a_damaged_tag_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path)
    model(store, 1)
    store.tag("demo/model@v1", "production", "")
    path = tmp_path / "refs" / "demo" / "model" / "tags" / "production.jsonl"
    path.write_text("nothing\n")
    with pytest.raises(StoreError, match="does not hold a tag"):
        store.resolve("demo/model@production")


def test_promotion_wants_an_evaluation_that_says_ship(tmp_path: Path) -> None:
    store = Store(tmp_path)
    adapter, merged = model(store, 1)
    with pytest.raises(StoreError, match="was never evaluated"):
        promote(store, "demo/model@v1", "production")
    evaluation(store, adapter, "cannot tell")
    with pytest.raises(GateError, match="not promoted: demo/evaluation@v1 says cannot tell"):
        promote(store, "demo/model@v1", "production")
    assert store.tagged("demo", "model", "production") is None
    other, _ = model(store, 2)
    evaluation(store, other)
    done = promote(store, "demo/model@v2", "production")
    assert (done.setting.ref, done.before) == ("demo/model@v2", None)
    assert done.setting.why == "demo/evaluation@v2: ship"
    assert merged.kind == "model"


def test_what_replaces_another_was_compared_with_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (first_adapter, first), (adapter, _) = model(store, 1), model(store, 2)
    evaluation(store, first_adapter)
    promote(store, "demo/model@v1", "production")
    alone = evaluation(store, adapter)
    with pytest.raises(StoreError, match=r"was not compared with demo/model@v1, which is prod"):
        promote(store, "demo/model@v2", "production")
    compared = evaluation(store, adapter, production=first)
    assert compared.key != alone.key
    done = promote(store, "demo/model@v2", "production")
    assert done.before == "demo/model@v1"
    assert len(store.tags("demo", "model")["production"]) == 2


def test_the_last_word_has_what_is_served(tmp_path: Path) -> None:
    """`accept` on the merged model counts, not what `evaluate` said of the adapter."""
    store = Store(tmp_path)
    adapter, merged = model(store, 1)
    before = evaluation(store, adapter)
    make(
        store,
        identity("accept", inputs={"model": merged.digest, "evaluation": before.digest}),
        {"e": b"served"},
        kind="evaluation",
        inputs=(("model", merged), ("evaluation", before)),
        metrics={"ship": "do not ship"},
        gates=(check("as-tuned", "broken", "!=", "broken", "-9 points"),),
    )
    with pytest.raises(GateError, match=r"says do not ship\.\n  as-tuned: measured broken"):
        promote(store, "demo/model@v1", "production")


def test_only_models_are_promoted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    model(store, 1)
    with pytest.raises(StoreError, match="is of kind adapter"):
        promote(store, "demo/adapter@v1", "production")


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LUTHIER_STORE", str(tmp_path))
    store = Store(tmp_path)
    (first_adapter, _), (adapter, _) = model(store, 1), model(store, 2)
    evaluation(store, first_adapter)
    evaluation(store, adapter, "do not ship")
    assert call(["promote", "demo/model@v1"]) == 0
    assert (
        "demo/model@v1 is production now: demo/evaluation@v1 says ship." in capsys.readouterr().out
    )
    assert call(["promote", "demo/model@v2"]) == 2
    assert "Or set the tag on purpose: luthier tag demo/model@v2 production" in (
        capsys.readouterr().err
    )
    assert call(["tag", "demo/model@v2", "--why", "the boss wants it", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["ref"] for one in found["history"]] == ["demo/model@v1", "demo/model@v2"]
    assert call(["tag", "demo/model@v1", "production"]) == 0
    assert "before: demo/model@v2" in capsys.readouterr().out
    assert call(["ls"]) == 0
    assert "demo/model@production" in capsys.readouterr().out


def test_the_evaluation_of_a_model_is_none_that_it_was_only_compared_in(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (first, old), (second, new) = model(store, 1), model(store, 2)
    own = evaluation(store, first)
    later = evaluation(store, second, production=old)
    for made, wanted in ((first, own), (old, own), (second, later), (new, later)):
        found = newest_evaluation(store, made)
        assert found is not None
        assert found.key == wanted.key
