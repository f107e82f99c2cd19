"""A server as a system under test, before it a proxy that fails: the replies are those that the
server gives when asked directly, or the error says which are missing and why."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from conftest import smol_gguf
from endpoint_cases import (
    KEY,
    KEY_VARIABLE,
    MAX_NEW_TOKENS,
    PAGES,
    FaultyProxy,
    answer,
    ask,
    endpoint,
    one_in_five,
)
from luthier.config import Section, load_config
from luthier.errors import ConfigError, InterruptedRunError, ServingError
from luthier.evaluation.endpoint_asking import wait_seconds
from luthier.evaluation.endpoint_client import is_loopback, question_of
from luthier.evaluation.endpoint_log import RequestLog
from luthier.evaluation.endpoint_reply import parse, retry_after
from luthier.evaluation.endpoint_section import Endpoint
from luthier.evaluation.endpoints import EndpointSystem
from luthier.evaluation.journal import collect
from luthier.evaluation.systems import Prompt
from luthier.serving.llama_server import LlamaServer
from luthier.store.artifact import Workspace

SUBJECTS = """cat dog horse sheep hammer drill wrench saw river cloud stone forest piano guitar
drum violin ship train plane bicycle king queen castle bridge"""
QUESTIONS = tuple(f"What is a {subject}?" for subject in SUBJECTS.split())
SYSTEM = {"role": "system", "content": "x"}
PROMPTS = [
    Prompt(f"row{n}", (), messages=(SYSTEM, {"role": "user", "content": question}))
    for n, question in enumerate(QUESTIONS)
]
LOG = "measured/requests-served.jsonl"
ANSWER = json.dumps(answer("fine", usage={"prompt_tokens": 7, "completion_tokens": 2}))


@pytest.fixture(scope="module")
def server() -> Iterator[LlamaServer]:
    """The real SmolLM2."""
    with LlamaServer(smol_gguf(), context_tokens=256, threads=1) as server:
        yield server


@pytest.fixture(scope="module")
def direct(server: LlamaServer) -> list[str]:
    """What the server answers when it is asked one question after another, without a proxy."""
    texts = [server.chat(prompt.messages, MAX_NEW_TOKENS).text for prompt in PROMPTS]
    assert len(set(texts)) == len(texts), "each answer tells its question"
    return texts


def log_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def always(fault: str) -> Any:
    return lambda _question, _time: fault


# Healthy


def test_conversations_and_bare_texts_are_answered_in_order(
    server: LlamaServer, direct: list[str], tmp_path: Path
) -> None:
    texts = ["One, two,", "The sky is"]
    bare = [Prompt(f"text{n}", (), text=text) for n, text in enumerate(texts)]
    collected, system = ask(endpoint(server.url), [*PROMPTS[:8], *bare], tmp_path / "run")
    assert [reply.id for reply in collected.replies] == [one.id for one in (*PROMPTS[:8], *bare)]
    completed = [
        server.complete(server.tokenize([text])[0], MAX_NEW_TOKENS).text for text in texts
    ]
    assert [reply.text for reply in collected.replies] == direct[:8] + completed
    assert {reply.stop_reason for reply in collected.replies} == {"length"}
    summary = system.summary()
    assert (summary.rows, summary.requests, summary.retries, summary.missing) == (10, 10, 0, [])


def test_as_many_requests_at_once_as_allowed(tmp_path: Path) -> None:
    with FaultyProxy("", always("pair")) as proxy:
        ask(endpoint(proxy.url, concurrency=2), PROMPTS[:12], tmp_path / "run")
    assert proxy.most_at_once == 2


def test_tokens_and_their_price_are_counted(server: LlamaServer, tmp_path: Path) -> None:
    prices = {
        "price_usd_per_million_input_tokens": 3.0,
        "price_usd_per_million_output_tokens": 15.0,
    }
    _, system = ask(endpoint(server.url, **prices), PROMPTS[:3], tmp_path / "run")
    own = [server.chat(prompt.messages, MAX_NEW_TOKENS) for prompt in PROMPTS[:3]]
    read, written = sum(o.prompt_tokens for o in own), sum(len(o.token_ids) for o in own)
    summary = system.summary()
    assert (summary.input_tokens, summary.output_tokens) == (read, written)
    assert summary.cost_usd == pytest.approx((3 * read + 15 * written) / 1e6)
    assert summary.p50_request_seconds is not None
    assert summary.p95_request_seconds is not None
    assert 0 < summary.p50_request_seconds <= summary.p95_request_seconds <= summary.seconds


def test_a_server_that_counts_no_tokens_has_no_known_cost(tmp_path: Path) -> None:
    plan = always(json.dumps(answer("fine")))
    with FaultyProxy("", plan) as proxy:
        one = endpoint(proxy.url, price_usd_per_million_input_tokens=3.0)
        _, system = ask(one, PROMPTS[:3], tmp_path / "run")
    summary = system.summary()
    assert (summary.input_tokens, summary.output_tokens, summary.cost_usd) == (None, None, None)


# Faults that pass


def test_a_fifth_of_all_requests_failing_changes_no_answer(
    server: LlamaServer, direct: list[str], tmp_path: Path
) -> None:
    def plan(question: str, time: int) -> str | None:
        return ("500", "drop")[time % 2] if one_in_five(question, time) else None

    with FaultyProxy(server.url, plan) as proxy:
        collected, system = ask(endpoint(proxy.url), PROMPTS, tmp_path / "run")
    failed = sum(
        one_in_five(question, n + 1)
        for question in QUESTIONS
        for n in range(proxy.asked[question])
    )
    assert failed >= 3
    assert [reply.text for reply in collected.replies] == direct
    assert (system.summary().requests, system.summary().retries) == (24 + failed, failed)


def test_whatever_garbage_comes_first_the_answer_is_asked_for_again(
    server: LlamaServer, direct: list[str], tmp_path: Path
) -> None:
    passing = [name for name in PAGES if name not in ("400", "401", "404", "redirect", "429-late")]
    faults = dict(zip(QUESTIONS, passing, strict=False))
    with FaultyProxy(server.url, lambda q, time: faults.get(q) if time == 1 else None) as proxy:
        collected, _ = ask(endpoint(proxy.url, concurrency=8), PROMPTS[:20], tmp_path / "run")
    assert [reply.text for reply in collected.replies] == direct[:20]
    assert all(proxy.asked[question] == 2 for question in faults)
    reasons = {line["id"]: line["attempts"][0]["reason"] for line in log_lines(tmp_path / "run")}
    of = {fault: reasons[f"row{n}"] for n, fault in enumerate(passing)}
    assert {of[name] for name in ("html", "truncated", "nothing", "nested")} == {"not JSON"}
    assert {of[name] for name in ("shape", "list", "empty", "error200", "aborted")} == {
        "JSON without an answer"
    }
    assert (of["500"], of["503"], of["429"]) == ("HTTP 500", "HTTP 503", "HTTP 429")


@pytest.mark.parametrize("fault", ["stall", "trickle"])
def test_a_request_that_does_not_end_is_cut_off_and_repeated(
    fault: str, server: LlamaServer, direct: list[str], tmp_path: Path
) -> None:
    def plan(question: str, time: int) -> str | None:
        return fault if question in QUESTIONS[1:3] and time == 1 else None

    with FaultyProxy(server.url, plan) as proxy:
        collected, _ = ask(endpoint(proxy.url, timeout_seconds=1), PROMPTS[:6], tmp_path / "run")
    assert [reply.text for reply in collected.replies] == direct[:6]
    reasons = {line["id"]: line["attempts"][0]["reason"] for line in log_lines(tmp_path / "run")}
    assert reasons["row1"] == reasons["row2"] == "no answer within 1 s"


def test_a_server_that_names_a_time_is_not_asked_before(
    server: LlamaServer, direct: list[str], tmp_path: Path
) -> None:
    plan = lambda q, time: "429-late" if (q, time) == (QUESTIONS[0], 1) else None  # noqa: E731
    with FaultyProxy(server.url, plan) as proxy:
        collected, _ = ask(endpoint(proxy.url), PROMPTS[:3], tmp_path / "run")
    assert [reply.text for reply in collected.replies] == direct[:3]
    late = next(line for line in log_lines(tmp_path / "run") if line["id"] == "row0")
    assert late["seconds"] >= 1.0  # Retry-After: 1


# Faults that stay


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("401", f"HTTP 401 .Incorrect API key provided.*variable {KEY_VARIABLE}"),
        ("404", r"HTTP 404 .no such model.*url .*or model \('tiny'\)"),
        ("redirect", r"HTTP 308 \(a redirect to https://elsewhere\.invalid/v1\)\. Correct url"),
    ],
)
def test_what_no_row_can_pass_ends_the_asking_at_once(
    fault: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with FaultyProxy("", always(fault)) as proxy:
        one = endpoint(proxy.url, api_key_env=KEY_VARIABLE, max_missing_fraction=0.99)
        with pytest.raises(ServingError, match=said) as caught:
            ask(one, PROMPTS, tmp_path / "run")
    assert caught.value.exit_code == 2
    assert str(caught.value).endswith("No row has an answer so far.")
    assert sum(proxy.asked.values()) <= one.concurrency


def test_a_server_that_wants_a_key_is_explained(tmp_path: Path) -> None:
    with FaultyProxy("", always("401")) as proxy, pytest.raises(ServingError, match="api_key_env"):
        ask(endpoint(proxy.url), PROMPTS, tmp_path / "run")


def test_nobody_there_is_found_out_soon(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, and never listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(
            ServingError, match=rf"(?s)24 of 24 rows .*Is the server running at {url}"
        ):
            ask(endpoint(url), PROMPTS, tmp_path / "run")
    assert sum(len(line["attempts"]) for line in log_lines(tmp_path / "run")) < 20


def test_a_request_that_every_row_is_refused_is_not_sent_for_each(tmp_path: Path) -> None:
    with (
        FaultyProxy("", always("400")) as proxy,
        pytest.raises(
            ServingError, match=r"(?s)x HTTP 400 \(the prompt is too long\).*extra_body"
        ),
    ):
        ask(endpoint(proxy.url), PROMPTS, tmp_path / "run")
    assert sum(proxy.asked.values()) < 20


def test_a_server_that_goes_away_is_not_asked_row_by_row(
    server: LlamaServer, direct: list[str], tmp_path: Path
) -> None:
    plan = lambda question, _time: None if question in QUESTIONS[:3] else "drop"  # noqa: E731
    many = [*PROMPTS, *(Prompt(f"more{n}", (), text=f"more {n}") for n in range(60))]
    with FaultyProxy(server.url, plan) as proxy:
        one = endpoint(proxy.url, max_attempts=2)
        with pytest.raises(ServingError, match="81 of 84 rows have no answer") as caught:
            ask(one, many, tmp_path / "run")
        assert sum(proxy.asked.values()) < 40
        assert "x not asked" in str(caught.value)
        proxy.plan = lambda _question, _time: None
        collected, _ = ask(one, PROMPTS, tmp_path / "run")
    assert [reply.text for reply in collected.replies] == direct


def test_missing_rows_are_named_and_asked_alone_the_next_time(
    server: LlamaServer, direct: list[str], tmp_path: Path
) -> None:
    broken = {QUESTIONS[3]: "500", QUESTIONS[17]: "400", QUESTIONS[18]: "html"}
    with FaultyProxy(server.url, lambda question, _time: broken.get(question)) as proxy:
        one = endpoint(proxy.url, max_attempts=2)
        with pytest.raises(ServingError) as caught:
            ask(one, PROMPTS, tmp_path / "run")
        for said in (
            "3 of 24 rows have no answer, more than max_missing_fraction (0): row3, row17, row18.",
            "1 x HTTP 500 (something broke)",
            "1 x HTTP 400 (the prompt is too long)",
            "1 x not JSON (<html><body>Gateway says hello",
            "21 answered rows are kept; the same command asks only the missing ones.",
        ):
            assert said in str(caught.value)
        assert [proxy.asked[question] for question in broken] == [2, 1, 2]
        broken.clear()
        proxy.asked.clear()
        collected, system = ask(one, PROMPTS, tmp_path / "run")
    assert [reply.text for reply in collected.replies] == direct
    assert proxy.asked == {QUESTIONS[3]: 1, QUESTIONS[17]: 1, QUESTIONS[18]: 1}
    summary = system.summary()
    assert (summary.missing, summary.requests, summary.retries) == ([], 29, 5)


def test_a_share_of_missing_rows_may_be_allowed(
    server: LlamaServer, direct: list[str], tmp_path: Path
) -> None:
    broken = {QUESTIONS[0]: "500", QUESTIONS[5]: "400"}
    with FaultyProxy(server.url, lambda question, _time: broken.get(question)) as proxy:
        one = endpoint(proxy.url, max_attempts=2, max_missing_fraction=0.1)
        collected, system = ask(one, PROMPTS, tmp_path / "run")
        again, same = ask(one, PROMPTS, tmp_path / "run")
    missing = {
        reply.id: reply.text for reply in collected.replies if reply.stop_reason == "missing"
    }
    assert missing == {"row0": "", "row5": ""}
    assert [reply.text for reply in collected.replies] == [
        "" if reply.id in missing else text
        for reply, text in zip(collected.replies, direct, strict=True)
    ]
    assert system.summary().missing == ["row0", "row5"]
    assert system.summary().missing_reasons == {"HTTP 500": 1, "HTTP 400": 1}
    assert (again.replies, same.summary()) == (collected.replies, system.summary())


# Going on


def test_a_requested_stop_keeps_every_answer(
    server: LlamaServer, direct: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    workspace = Workspace(folder)

    def plan(question: str, _time: int) -> str | None:
        workspace.stop.requested = workspace.stop.requested or question == QUESTIONS[12]
        return None

    with FaultyProxy(server.url, plan) as proxy:
        one = endpoint(proxy.url)
        with pytest.raises(InterruptedRunError):
            collect(EndpointSystem(one, MAX_NEW_TOKENS, workspace), PROMPTS, workspace)
        before = proxy.asked.copy()
        assert len(log_lines(folder)) == sum(before.values()) < 24
        proxy.plan = lambda _question, _time: None
        collected, _ = ask(one, PROMPTS, folder)
    assert [reply.text for reply in collected.replies] == direct
    assert proxy.asked == dict.fromkeys(QUESTIONS, 1)


def test_a_stop_does_not_wait_for_a_row_to_be_retried(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    workspace = Workspace(folder)

    def plan(_question: str, _time: int) -> str:
        workspace.stop.requested = True
        return "500"

    with FaultyProxy("", plan) as proxy:
        one = endpoint(proxy.url, concurrency=1, max_missing_fraction=0.99)
        with pytest.raises(InterruptedRunError):
            collect(EndpointSystem(one, MAX_NEW_TOKENS, workspace), PROMPTS, workspace)
    assert sum(proxy.asked.values()) == 1


def test_whoever_stops_reading_ends_the_asking(server: LlamaServer, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    plan = lambda question, _time: None if question in QUESTIONS[:16] else "stall"  # noqa: E731
    with FaultyProxy(server.url, plan) as proxy:
        one = endpoint(proxy.url, timeout_seconds=1)
        replies = EndpointSystem(one, MAX_NEW_TOKENS, workspace).replies(PROMPTS, 0)
        assert [reply.id for reply in next(replies)] == [prompt.id for prompt in PROMPTS[:16]]
        replies.close()
        asked = proxy.asked.copy()
        time.sleep(0.3)
        assert proxy.asked == asked
    assert len(asked) < 24


def test_a_killed_run_asks_only_what_it_has_no_answer_to(
    server: LlamaServer, direct: list[str], tmp_path: Path
) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from endpoint_cases import ask, endpoint\n"
        "from test_evaluation_endpoints import PROMPTS\n"
        "ask(endpoint(sys.argv[1]), PROMPTS, Path(sys.argv[2]))\n"
    )
    folder = tmp_path / "run"
    plan = lambda question, _time: None if question in QUESTIONS[:18] else "stall"  # noqa: E731
    with FaultyProxy(server.url, plan) as proxy:
        command = [sys.executable, "-c", program, proxy.url, str(folder)]
        with subprocess.Popen(command, cwd=Path(__file__).parent) as child:
            deadline = time.monotonic() + 60
            while len(proxy.asked) < 22 and time.monotonic() < deadline:
                time.sleep(0.02)
            child.send_signal(signal.SIGKILL)
        answered = {line["id"] for line in log_lines(folder)}
        assert answered == {prompt.id for prompt in PROMPTS[:18]}
        with (folder / LOG).open("a") as log:
            log.write('{"id": "row18", "question": "torn')
        proxy.plan = lambda _question, _time: None
        proxy.asked.clear()
        collected, _ = ask(endpoint(proxy.url), PROMPTS, folder)
    assert [reply.text for reply in collected.replies] == direct
    assert proxy.asked == dict.fromkeys(QUESTIONS[18:], 1)
    assert len(log_lines(folder)) == 24


def test_another_question_under_the_same_id_is_asked(tmp_path: Path) -> None:
    with FaultyProxy("", always(ANSWER)) as proxy:
        system = EndpointSystem(endpoint(proxy.url), MAX_NEW_TOKENS, Workspace(tmp_path))
        list(system.replies(PROMPTS[:3], 0))
        changed = [Prompt("row0", (), text="another"), *PROMPTS[1:3]]
        list(system.replies(changed, 0))
    assert proxy.asked == {**dict.fromkeys(QUESTIONS[:3], 1), "another": 1}
    assert system.summary().requests == 3


# The key


def test_the_key_is_sent_and_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}\n")
    faults = {QUESTIONS[0]: "echo", QUESTIONS[1]: "echo-answer"}
    folder = tmp_path / "run"
    with FaultyProxy("", lambda question, _time: faults.get(question, ANSWER)) as proxy:
        one = endpoint(proxy.url, api_key_env=KEY_VARIABLE, max_attempts=1)
        with pytest.raises(ServingError, match=r"what is Bearer \[key\]\?") as caught:
            ask(one, PROMPTS, folder)
        faults.pop(QUESTIONS[0])
        collected, _ = ask(one, PROMPTS, folder)
    assert proxy.keys == {f"Bearer {KEY}"}
    assert collected.replies[1].text == "I was sent Bearer [key]"
    kept = [path.read_text() for path in folder.rglob("*") if path.is_file()]
    assert len(kept) == 2
    for text in (*kept, str(caught.value), repr(caught.value.__cause__), one.model_dump_json()):
        assert KEY not in text
        assert KEY.replace("/", "\\/") not in text


def test_no_key_no_header(tmp_path: Path) -> None:
    with FaultyProxy("", always(ANSWER)) as proxy:
        ask(endpoint(proxy.url), PROMPTS[:2], tmp_path / "run")
    assert proxy.keys == {None}


@pytest.mark.parametrize(
    ("value", "said"), [(None, "is not set"), (" \n", "is not set"), ("a secret\x01", "holds")]
)
def test_a_key_that_cannot_be_used_is_said_before_anything_is_asked(
    value: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(KEY_VARIABLE, value)
    with pytest.raises(ConfigError, match=f"variable {KEY_VARIABLE} {said}") as caught:
        ask(endpoint("http://127.0.0.1:1/v1", api_key_env=KEY_VARIABLE), PROMPTS, tmp_path / "run")
    assert "secret" not in str(caught.value)


# The way there


def test_the_environments_proxy_is_for_other_machines_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyProxy("", always(ANSWER)) as proxy:
        for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        ask(endpoint(proxy.url), PROMPTS[:1], tmp_path / "near")
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        ask(endpoint("http://model.invalid/v1"), PROMPTS[:2], tmp_path / "far")
        assert proxy.asked == {QUESTIONS[0]: 2, QUESTIONS[1]: 1}
        monkeypatch.setenv("HTTP_PROXY", "socks9://me:password@there")
        with pytest.raises(ServingError, match="proxy settings of the environment") as caught:
            ask(endpoint("http://model.invalid/v1"), PROMPTS[:2], tmp_path / "nowhere")
    assert "password" not in str(caught.value)


def test_which_addresses_are_on_this_machine() -> None:
    near = ["http://127.0.0.1:8000/v1", "http://127.9.9.9", "http://[::1]:1/v1", "http://0.0.0.0"]
    assert all(
        map(is_loopback, [*near, "http://localhost:1", "http://LocalHost", "http://a.localhost"])
    )
    far = [
        "http://128.0.0.1",
        "http://localhost.example",
        "https://api.example/v1",
        "http://[::2]",
    ]
    assert not any(map(is_loopback, far))


def test_retry_after_is_seconds_or_a_date_and_never_long() -> None:
    assert [retry_after(text) for text in ("7", "0.5", "86400", "inf")] == [7.0, 0.5, 60.0, 60.0]
    assert [retry_after(text) for text in ("", "soon", "-3", "nan", "\x00")] == [0.0] * 5
    later = datetime.now(UTC) + timedelta(seconds=30)
    assert 25 < retry_after(format_datetime(later, usegmt=True)) <= 30
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after("Fri, 31 Dec 9999 23:59:59 GMT") == 60.0


def test_waits_grow_and_differ_by_row_the_same_in_every_run() -> None:
    waits = [wait_seconds("row1", attempt) for attempt in range(1, 8)]
    assert waits == [wait_seconds("row1", attempt) for attempt in range(1, 8)]
    longest = [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert all(most / 2 <= wait < most for wait, most in zip(waits, longest, strict=True))
    assert len({wait_seconds(f"row{n}", 1) for n in range(50)}) == 50


# What is sent, what is read


def test_extra_fields_are_sent_and_a_null_leaves_one_out() -> None:
    one = endpoint("http://127.0.0.1:1/v1", extra_body={"seed": None, "top_k": 1, "x": {"y": [1]}})
    assert question_of(one, 9, PROMPTS[0]).body == {
        "model": "tiny",
        "messages": [SYSTEM, {"role": "user", "content": QUESTIONS[0]}],
        "temperature": 0,
        "max_tokens": 9,
        "top_k": 1,
        "x": {"y": [1]},
    }
    bare = question_of(endpoint("http://127.0.0.1:1", extra_body={}), 9, Prompt("a", (), text="b"))
    assert (bare.route, bare.body["prompt"], bare.body["seed"]) == ("completions", "b", 0)


def test_arguments_of_tool_calls_go_out_as_text() -> None:
    function = {"name": "lookup", "arguments": {"of": "ünï"}}
    call = {"id": "1", "type": "function", "function": function}
    messages = ({"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "x"})
    body = question_of(endpoint("http://127.0.0.1:1"), 9, Prompt("a", (), messages=messages)).body
    sent = body["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(sent) == function["arguments"]
    assert messages[0]["tool_calls"][0]["function"] is function
    assert function["arguments"] == {"of": "ünï"}


def test_how_an_answer_ended_and_odd_texts(tmp_path: Path) -> None:
    said = {
        QUESTIONS[0]: answer("cut", "length"),
        QUESTIONS[1]: answer(None, "tool_calls"),
        QUESTIONS[2]: answer("half \ud83d pair \ud83d\ude00 \x00", "max_tokens"),
        QUESTIONS[3]: answer("by a filter", "content_filter"),
    }
    with FaultyProxy("", lambda question, _time: json.dumps(said[question])) as proxy:
        collected, _ = ask(endpoint(proxy.url), PROMPTS[:4], tmp_path / "run")
    assert [(reply.text, reply.stop_reason) for reply in collected.replies] == [
        ("cut", "length"),
        ("", "stop"),
        ("half \ufffd pair 😀 \x00", "length"),
        ("by a filter", "stop"),
    ]


@pytest.mark.parametrize(
    "found",
    [
        None,
        answer(3),  # type: ignore[arg-type]
        answer("no reason", None),
        answer("", ""),
        {"choices": {"0": 1}},
        {"choices": [None]},
        {"choices": [{"message": "text", "finish_reason": "stop"}]},
    ],
)
def test_json_that_is_no_answer(found: Any) -> None:
    assert parse(found, 200) is None


def test_usage_that_is_no_count_is_unknown() -> None:
    for count in (True, -1, 2.5, "7", None, float("nan")):
        found = parse(answer("x", usage={"prompt_tokens": count}), 200)
        assert found is not None
        assert (found.input_tokens, found.output_tokens) == (None, None)


# The section


class Holder(Section):
    systems: list[Endpoint]


def load(tmp_path: Path, fields: str) -> Endpoint:
    path = tmp_path / "config.yaml"
    path.write_text(
        "name: x\nevaluate:\n  systems:\n"
        f"    - {{name: a, model: m, url: 'http://h/v1', {fields}}}\n"
    )
    holder = load_config(path, {"evaluate": Holder}).sections["evaluate"]
    assert isinstance(holder, Holder)
    return holder.systems[0]


def test_the_key_of_an_artifact_holds_what_changes_the_result(tmp_path: Path) -> None:
    one = load(tmp_path, "api_key_env: MY_KEY, concurrency: 9, extra_body: {top_k: 1, seed: null}")
    assert one.extra_body == {"top_k": 1, "seed": None}
    assert one.key_fields() == {
        "name": "a",
        "url": "http://h/v1",
        "model": "m",
        "extra_body": {"top_k": 1, "seed": None},
        "max_missing_fraction": 0.0,
    }


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("url: 'ftp://h'", "systems[0].url must be an address"),
        ("url: 'http://me:secret@h/v1'", "without name, password"),
        ("url: 'http://h/v1?api-key=secret'", "without name, password"),
        ("url: 'http://h:99999/v1'", "must be an address"),
        ("url: 'http://h/v1/chat/completions'", "before /chat/completions"),
        ("api_key_env: sk-secret", "never the key itself"),
        ("name: '../a'", "systems[0].name must be text of the form"),
        ("extra_body: {model: other, stream: true}", "must not set model, stream"),
        ("timeout_seconds: 0", "greater than 0"),
        ("max_missing_fraction: 1", "less than 1"),
    ],
)
def test_mistakes_in_the_section(fields: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    given = {"name": "name: a", "model": "model: m", "url": "url: 'http://h/v1'"}
    rest = [text for name, text in given.items() if not fields.startswith(f"{name}:")]
    body = ", ".join([*rest, fields])
    path.write_text(f"name: x\nevaluate:\n  systems:\n    - {{{body}}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, {"evaluate": Holder})
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_log_with_an_answer_and_a_later_failure_has_the_answer(tmp_path: Path) -> None:
    with FaultyProxy("", always(ANSWER)) as proxy:
        system = EndpointSystem(endpoint(proxy.url), MAX_NEW_TOKENS, Workspace(tmp_path))
        list(system.replies(PROMPTS[:1], 0))
    log = RequestLog(tmp_path, "served")
    (line,) = log.lines
    log.append(type(line)(line.id, line.question, (), None, None, None, None, 0.0))
    assert [one.text for one in RequestLog(tmp_path, "served").last().values()] == ["fine"]
