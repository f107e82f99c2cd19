"""The accept stage: the merged model and servers asked the rows that the tuned model answered."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from endpoint_cases import FaultyProxy, answer, one_in_five
from evaluation_cases import artifact, make_teachable, run_stage, train_adapter
from luthier.errors import ConfigError, ServingError
from luthier.evaluation.answers import read_answers
from luthier.evaluation.endpoint_section import Endpoint
from luthier.evaluation.rows import load_rows
from luthier.evaluation.speed import read_speeds
from luthier.models.merging import merge
from luthier.stages.accept import STAGE, AcceptSection
from luthier.stages.contract import StageResult
from luthier.stages.evaluate import STAGE as EVALUATE
from luthier.stages.evaluate import EvaluateSection
from luthier.store.artifact import Artifact, Workspace

ROWS = 24


@dataclass(frozen=True)
class Case:
    """What was evaluated, by slot, and the tuned model's answer to each question."""

    inputs: dict[str, Artifact]
    said: dict[str, str]


@pytest.fixture(scope="module")
def case(smol_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("accept")
    base, dataset = make_teachable(folder, smol_tokenizer_dir, test=40)
    adapter = train_adapter(base.path, dataset.path, folder / "adapter", steps=60)
    evaluated, merged = folder / "evaluated", folder / "merged"
    evaluated.mkdir()
    merged.mkdir()
    inputs = {"base": base, "dataset": dataset, "adapter": adapter}
    run_stage(EVALUATE, EvaluateSection(limit_rows=ROWS), inputs, Workspace(evaluated))
    merge(base.path, adapter.path, merged)
    texts = {row.id: row.messages[-2]["content"] for row in load_rows(dataset.path, "test")}
    answered = read_answers(evaluated)["tuned/generation"]
    by_text = {texts[one.id]: one.answer for one in answered}
    made = {"evaluation": artifact(evaluated, "evaluation"), "model": artifact(merged, "model")}
    return Case({"base": base, "dataset": dataset} | made, by_text)


def accept(case: Case, folder: Path, section: AcceptSection) -> tuple[StageResult, dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    result = run_stage(STAGE, section, case.inputs, Workspace(folder))
    return result, json.loads((folder / "evaluation.json").read_bytes())


def served(url: str, **changes: Any) -> AcceptSection:
    endpoint = Endpoint(name="ours", url=url, model="m", **changes)
    return AcceptSection(systems=[], endpoints=[endpoint], speed_rows=2)


def plan(said: dict[str, str], *, fail: Callable[[str, int], bool]) -> Callable[[str, int], str]:
    """A server that gives these answers, and fails at times."""

    def act(question: str, time: int) -> str:
        return "500" if fail(question, time) else json.dumps(answer(said[question]))

    return act


def test_the_merged_model_answers_as_the_tuned_one(case: Case, tmp_path: Path) -> None:
    result, found = accept(case, tmp_path, AcceptSection(speed_rows=3))
    test = found["against_tuned"]["merged/generation"]
    assert (test["rows"], test["difference"]) == (ROWS, 0)
    assert [(gate.id, gate.status) for gate in result.gates] == [("as-tuned", "pass")]
    rules = [rule["id"] for rule in found["ship"]["rules"]]
    assert rules[-1] == "as-tuned"
    assert "classes-kept" in rules
    [(name, speed)] = read_speeds(tmp_path).items()
    assert (name, speed.requests) == ("merged/generation", 3)
    assert 0 < speed.first_token_seconds.p50 <= speed.request_seconds.p95
    assert speed.prompt_tokens_mean > speed.answer_tokens_mean >= 1


def test_a_server_that_fails_a_fifth_of_its_requests_is_judged_all_the_same(
    case: Case, tmp_path: Path
) -> None:
    with FaultyProxy("http://unused", plan(case.said, fail=one_in_five)) as proxy:
        result, found = accept(case, tmp_path, served(proxy.url))
    assert found["against_tuned"]["ours/generation"]["difference"] == 0
    assert result.gates[0].status == "pass"
    requests = result.facts["requests"]["ours/generation"]
    assert requests["missing"] == []
    assert requests["retries"] > 0
    assert (tmp_path / "measured" / "requests-ours.jsonl").exists()


def test_a_server_of_another_model_is_found_out(case: Case, tmp_path: Path) -> None:
    wrong = dict.fromkeys(case.said, "nonsense")
    with FaultyProxy("http://unused", plan(wrong, fail=lambda _q, _t: False)) as proxy:
        result, found = accept(case, tmp_path, served(proxy.url))
    assert [(gate.id, gate.status) for gate in result.gates] == [("as-tuned", "fail")]
    assert found["ship"]["word"] == "do not ship"


def test_rows_that_cannot_be_had_are_named_and_asked_alone_the_next_time(
    case: Case, tmp_path: Path
) -> None:
    lost = sorted(case.said)[3]
    failing = plan(case.said, fail=lambda question, _time: question == lost)
    with FaultyProxy("http://unused", failing) as proxy:
        section = served(proxy.url, max_attempts=2)
        with pytest.raises(ServingError, match=f"1 of {ROWS} rows have no answer"):
            accept(case, tmp_path, section)
        proxy.asked.clear()
        proxy.plan = plan(case.said, fail=lambda _q, _t: False)
        _, found = accept(case, tmp_path, section)
    assert found["rows"] == ROWS
    assert proxy.asked.total() <= 1 + 2 * (1 + section.speed_rows)  # speed asks some again


def test_without_anything_to_ask_the_config_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is nothing to ask"):
        STAGE.check(AcceptSection(), frozenset({"base", "dataset", "evaluation"}))


@pytest.mark.parametrize(
    ("names", "message"), [(["a", "a"], "two are called a"), (["merged"], "Luthier's own")]
)
def test_every_server_has_a_name_of_its_own(names: list[str], message: str) -> None:
    endpoints = [Endpoint(name=name, url="http://127.0.0.1:1/v1", model="m") for name in names]
    with pytest.raises(ValidationError, match=message):
        AcceptSection(endpoints=endpoints)
