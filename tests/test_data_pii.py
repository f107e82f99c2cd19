"""Personal data: what is found, what is not taken for it, what is shown, what redaction leaves.

Numbers and addresses are made up or documented examples. Keys are put together here, so that no
scanner takes this file for a leak.
"""

import random
import string
import time
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from luthier.data.pii import PII_KINDS, Finding, PiiFinder, PiiKind, PiiSection, masked
from luthier.data.rows import Document, Parsed, RowError, message

FINDER = PiiFinder(PiiSection())
REDACTOR = PiiFinder(PiiSection(action="redact"))

_DRAW = random.Random(5)


def _drawn(count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(_DRAW.choice(alphabet) for _ in range(count))


HUGGING_FACE = "hf_" + _drawn(34, string.ascii_letters)
GITLAB = "glpat-" + _drawn(20)
STRIPE = "sk_live_" + _drawn(24)
SLACK = f"xoxb-{_drawn(12, string.digits)}-{_drawn(13, string.digits)}-{_drawn(24)}"
AWS = "AKIA" + _drawn(16, string.ascii_uppercase + "234567")
AWS_SECRET = _drawn(40)
PRIVATE = "\n".join(
    ["-----BEGIN RSA PRIVATE KEY-----", _drawn(64), _drawn(64), "-----END RSA PRIVATE KEY-----"]
)


def found(text: str, finder: PiiFinder = FINDER) -> list[tuple[str, str]]:
    return [(one.kind, text[one.start : one.end]) for one in finder.find(text)]


def row(*texts: str, **fields: Any) -> Parsed:
    roles = ("user", "assistant")
    return Parsed([message(roles[i % 2], text) for i, text in enumerate(texts)], **fields)


@pytest.mark.parametrize(
    ("kind", "before", "value", "after"),
    [
        ("email", "Write to ", "jane.doe@example.com", " please"),
        ("email", "<", "bob+list@mail.example.co.uk", ">, thanks"),
        ("email", "Contact: ", "o'brien_99@sub.domain.org", "."),
        ("email", "mailto:", "maria@firma.de", ""),
        ("email", "Grüße an ", "jürgen@müller.de", ""),
        ("email", "Mail ", "jane@example.com", ": she knows"),
        ("email", "", "jane@example.com", ":hello"),
        ("phone", "Call ", "+1 415-555-2671", " tomorrow"),
        ("phone", "call me at ", "(212) 736-5000", ""),
        ("phone", "my number is ", "415-736-5000", ""),
        ("phone", "Tel. ", "+49 30 901820", ""),
        ("phone", "ring ", "+44 20 7946 0958", ""),
        ("phone", "", "+4915123456789", ""),
        ("phone", "2024-01-15 ", "(212) 736-5000", " at 12:30"),
        ("phone", "2023-2024, ", "+1 212.736.5000", ", 12.5"),
        ("card", "Card ", "4111 1111 1111 1111", " exp 10/29"),
        ("card", "", "5555555555554444", ""),
        ("card", "amex ", "3782-822463-10005", "."),
        ("card", "Diners ", "3056 930902 5904", ""),
        ("iban", "IBAN ", "DE89 3704 0044 0532 0130 00", " AND MORE"),
        ("iban", "", "GB82WEST12345698765432", "."),
        ("key", "the token ", HUGGING_FACE, " works"),
        ("key", "", GITLAB, ""),
        ("key", "é é ", STRIPE, "\n"),
        ("key", "", SLACK, ""),
        ("key", "postgres://admin:", "Ued8Fi1H9eum", "@db.corp.io:5432/x"),
        ("key", "see\n", PRIVATE, "\nabove"),
    ],
)
def test_personal_data_is_found_where_it_stands(
    kind: PiiKind, before: str, value: str, after: str
) -> None:
    assert found(before + value + after) == [(kind, value)]
    placeholder = f"[{kind.upper()}]"
    assert REDACTOR.redacted(before + value + after) == before + placeholder + after


@pytest.mark.parametrize(
    "text",
    """version 2.13.0.1 of torch, numpy==1.26.4, pandas>=2.2.3
order number 100-4523-77812
order #4111111111111112
card type 9999 9999 9999 9999 and 0000 0000 0000 0000
ISBN 978-3-16-148410-0 and 9780306406157
EAN 4006381333931, ISSN 2049-3630
IMEI 490154203237518
2026-11-23T05:39:28.123456Z
30.01.2024 12:00-13:30, 20240115103045
timestamp 1700000000, 1700000000123 ms, 1365519115.0
user@host:~$ ls
git@github.com:org/repo.git
git clone ssh://git@github.com/org/repo.git
scp me@example.com:/etc/passwd . && nc me@example.com:8080
npm i lodash@4.17.21, icon@2x.png, @property
matrix A @ B.T, f(x)@g(y).z, x@y, a@b.c
foo@bar.local and TODO(user@team)
192.168.1.254, 255.255.255.255:8080, addr(ip='93.186.135.91')
fe80::1ff:fe23:4567:890a
3.14159265358979 and 0.4111111111111111
1234567890123456789, 9223372036854775807, 2147483647
1,234,567,890 or 3 000 000 000
SHA e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
uuid 550e8400-e29b-41d4-a716-446655440000
10.1038/s41586-020-2649-2, arXiv:2410.08847, CVE-2021-44228
lines 120-135, 200-215, pages 1234-1245 (2019), 32768-65535 bytes, 0x7fffffffe000
1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
1800 W 3rd Street 60601-1234
1888692 2150 W Main St
lat 52.520008, lon 13.404954
DE12 3456 7890 1234 5678 90
data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk
https://example.com/a/b/2024/01/15/some-long-slug-of-a-blog-post-123456
api_key = os.environ['OPENAI_API_KEY'] or YOUR_API_KEY_HERE
tracking 1Z999AA10123456784, VIN 1HGCM82633A004352, +1234, call 911""".splitlines(),
)
def test_numbers_and_code_are_not_personal(text: str) -> None:
    assert found(text) == []


def test_secret_goes_with_its_key_id() -> None:
    text = f"id {AWS} and aws_secret_access_key = {AWS_SECRET} there"
    assert found(text) == [("key", AWS), ("key", AWS_SECRET)]
    assert REDACTOR.redacted(text) == "id [KEY] and aws_secret_access_key = [KEY] there"


def test_overlap_is_one_finding_of_the_stronger_kind() -> None:
    text = "postgres://admin:Ued8Fi1H9eum@db.corp.io/x"
    assert found(text) == [("key", "Ued8Fi1H9eum")]
    assert found(text, PiiFinder(PiiSection(kinds=["email"]))) == [
        ("email", "Ued8Fi1H9eum@db.corp.io")
    ]
    assert found("a@b.com@c.com") == [("email", "a@b.com")]


def test_only_the_kinds_asked_for_are_found() -> None:
    text = "jane@example.com, (212) 736-5000, 4111 1111 1111 1111"
    assert Counter(kind for kind, _ in found(text)) == {"email": 1, "phone": 1, "card": 1}
    for kind in ("email", "phone", "card"):
        finder = PiiFinder(PiiSection(kinds=[kind]))
        assert [one for one, _ in found(text, finder)] == [kind]


@pytest.mark.parametrize(
    ("region", "text", "numbers"),
    [
        ("US", "030 901820 or (212) 736-5000", ["(212) 736-5000"]),
        ("DE", "030 901820 or +1 212-736-5000", ["030 901820", "+1 212-736-5000"]),
        (None, "030 901820, (212) 736-5000, +1 212-736-5000", ["+1 212-736-5000"]),
    ],
)
def test_region_says_which_numbers_need_no_plus(
    region: str | None, text: str, numbers: list[str]
) -> None:
    finder = PiiFinder(PiiSection(phone_region=region))
    assert found(text, finder) == [("phone", number) for number in numbers]


@pytest.mark.parametrize(
    ("kind", "text", "shown"),
    [
        ("email", "jane.doe@mail.example.com", "j***@m***.com"),
        ("phone", "+1 415-555-2671", "***71"),
        ("card", "4111 1111 1111 1111", "***11"),
        ("iban", "DE89370400440532013000", "***00"),
        ("key", GITLAB, "*** (26 characters)"),
    ],
)
def test_example_is_masked(kind: PiiKind, text: str, shown: str) -> None:
    assert masked(f"x{text}y", Finding(kind, 1, 1 + len(text))) == shown


def test_report_changes_nothing_and_shows_one_masked_example_a_kind() -> None:
    parsed = row("I am jane@example.com or joe@example.com", "Call (212) 736-5000.")
    before = [dict(one) for one in parsed.messages]
    assert FINDER.apply(parsed) == {"email": "j***@e***.com", "phone": "***00"}
    assert parsed.messages == before


def test_off_finds_nothing() -> None:
    parsed = row("I am jane@example.com", "ok")
    assert PiiFinder(PiiSection(action="off")).apply(parsed) == {}


def test_redaction_reaches_every_free_text() -> None:
    parsed = row(
        "ask jane@example.com",
        chosen=[message("assistant", "call (212) 736-5000")],
        rejected=[message("assistant", "pay 4111 1111 1111 1111")],
        documents=[Document(f"key {GITLAB}", "by joe@example.com"), Document("plain")],
    )
    assert list(REDACTOR.apply(parsed)) == ["email", "phone", "card", "key"]
    assert parsed == row(
        "ask [EMAIL]",
        chosen=[message("assistant", "call [PHONE]")],
        rejected=[message("assistant", "pay [CARD]")],
        documents=[Document("key [KEY]", "by [EMAIL]"), Document("plain")],
    )
    assert REDACTOR.apply(parsed) == {}


TOOL_CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "1", "function": {"name": "f", "arguments": {"to": "jane@example.com"}}}
    ],
}


@pytest.mark.parametrize(
    "parsed",
    [
        row("who?", '{"to": "jane@example.com"}', output='{"to": "jane@example.com"}'),
        Parsed([message("user", "write"), TOOL_CALL, message("assistant", "done")]),
    ],
)
def test_json_is_reported_but_never_redacted(parsed: Parsed) -> None:
    assert FINDER.apply(parsed) == {"email": "j***@e***.com"}
    with pytest.raises(RowError, match=r"^pii-in-json: email in output or tool calls$"):
        REDACTOR.apply(parsed)


def test_label_is_no_personal_data() -> None:
    assert FINDER.apply(row("x", "jane@example.com", label="jane@example.com")) == {}


PIECES = st.sampled_from(
    [
        *["jane@example.com", "@c.com", "(212) 736-5000", "+1 415-555-2671", "212", "736-5000"],
        *["4111 1111 1111 1111", "5555555555554444", "DE89 3704 0044 0532 0130 00", GITLAB],
        *["postgres://a:Ued8Fi1H9eum@b.com", "[EMAIL]", "[", " ", "-", "a", "+", "é", "\n", ":"],
        *["//", "\x00"],
    ]
)


@given(st.lists(PIECES, max_size=8).map("".join))
@settings(deadline=None, max_examples=300)
def test_redaction_leaves_no_finding_and_findings_do_not_overlap(text: str) -> None:
    findings = FINDER.find(text)
    assert all(0 <= one.start < one.end <= len(text) for one in findings)
    assert all(a.end <= b.start for a, b in pairwise(findings))
    redacted = REDACTOR.redacted(text)
    assert FINDER.find(redacted) == []
    assert REDACTOR.redacted(redacted) == redacted
    assert (redacted == text) == (not findings)


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None)
def test_any_text_can_be_looked_at(text: str) -> None:
    for finding in FINDER.find(f"{text} jane@example.com {text}"):
        assert finding.kind in PII_KINDS


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("@" * 500_000, 0),
        ("a." * 250_000 + "@", 0),
        ("@" + "a-" * 250_000, 0),
        ("a" * 500_000 + "@b.com", 1),
        ("jane@example.com " * 20_000, 20_000),
        (f"{GITLAB} " * 2_000, 2_000),
        ("1-" * 50_000, 0),
    ],
)
def test_hostile_text_takes_time_in_proportion(text: str, count: int) -> None:
    start = time.monotonic()
    assert len(FINDER.find(text)) == count
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"phone_region": "us"}, "'us' is no country code in capitals"),
        ({"phone_region": "XX"}, "'XX' is no country code"),
        ({"kinds": []}, "at least 1 item"),
        ({"kinds": ["name"]}, "Input should be 'key'"),
        ({"action": "mask"}, "Input should be 'off'"),
    ],
)
def test_config_mistake_is_told(fields: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        PiiSection(**fields)
