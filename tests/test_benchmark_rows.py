"""The benchmark's rows: the same for a seed, mostly valid, as long and as faulty as they say."""

import importlib.util
import json
import statistics
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """benchmarks/generate_rows.py, which is no package."""
    spec = importlib.util.spec_from_file_location("generate_rows", BENCHMARKS / "generate_rows.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def long_rows(generator: ModuleType) -> list[bytes]:
    return list(generator.rows(20_000))


def whole(lines: list[bytes]) -> list[list[dict[str, str]]]:
    """The conversations of the lines that are not broken."""
    found = []
    for line in lines:
        try:
            messages = json.loads(line)["messages"]
        except ValueError:
            continue
        if messages and all(m["role"] in {"system", "user", "assistant"} for m in messages):
            found.append(messages)
    return found


@pytest.mark.parametrize("kind", ["long", "short"])
def test_a_seed_gives_the_same_rows_however_many_follow(generator: ModuleType, kind: str) -> None:
    few = list(generator.rows(300, kind, 7))
    assert few == list(generator.rows(10_100, kind, 7))[:300]
    assert few != list(generator.rows(300, kind, 8))
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in few)


def test_long_rows_have_the_mean_and_the_spread_of_chats(long_rows: list[bytes]) -> None:
    sizes = sorted(map(len, long_rows))
    assert 570 <= statistics.mean(sizes) <= 630
    assert sizes[len(sizes) // 100] < 200
    assert sizes[-len(sizes) // 100] > 1800


def test_roles_alternate_and_turns_and_systems_vary(long_rows: list[bytes]) -> None:
    turns, systems = Counter[int](), 0
    conversations = whole(long_rows)
    for messages in conversations:
        roles = [message["role"] for message in messages]
        if roles[0] == "system":
            systems += 1
            roles = roles[1:]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"].strip() for message in messages)
        turns[len(roles) // 2] += 1
    assert set(turns) == {1, 2, 3}
    assert 0.25 < systems / len(conversations) < 0.35
    texts = ["".join(message["content"] for message in messages) for messages in conversations]
    assert 0.04 < sum(not text.isascii() for text in texts) / len(texts) < 0.12
    assert 0.04 < sum("```" in text for text in texts) / len(texts) < 0.08


def test_faults_are_as_frequent_as_said(generator: ModuleType, long_rows: list[bytes]) -> None:
    count = len(long_rows)
    broken = count - len(whole(long_rows))
    assert 0.0005 < broken / count < 0.002
    repeated = count - len(set(long_rows))
    assert 0.7 * generator.EXACT < repeated / count < 1.3 * generator.EXACT


def test_short_rows_are_a_system_message_a_line_and_a_label(generator: ModuleType) -> None:
    for messages in whole(list(generator.rows(500, "short"))):
        assert [message["role"] for message in messages] == ["system", "user", "assistant"]
        assert messages[2]["content"] in generator.LABELS
        assert "\n" not in messages[1]["content"]
