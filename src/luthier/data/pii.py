"""Personal data and secrets: emails, phones, cards, bank accounts, keys; told, or taken out.

What decides is libraries: Google's phone rules (phonenumbers), check digits (python-stdnum), the
public suffix list (publicsuffixlist), the key formats of a secret scanner (kingfisher, offline).
Here is what spots a candidate, cheaply, and what keeps numbers and code from being taken for one.
"""

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Final, Literal, NamedTuple, get_args

from pydantic import field_validator

from luthier.config import Field, Section
from luthier.data import pii_spans
from luthier.data.rows import Parsed, RowError
from luthier.data.texts import free_texts, rewrite

# Where two overlap, the earlier kind is meant: a password in a URL looks like part of an email.
PiiKind = Literal["key", "card", "iban", "email", "phone"]
PII_KINDS: Final[tuple[PiiKind, ...]] = get_args(PiiKind)

_NOTHING: Final[Mapping[str, str]] = {}

# Tests on bytes, 2 ns a character where a regular expression takes 10: as many digits as a phone
# number has, and a run of letters and digits as long as the shortest key (an AWS key id, 20).
_DIGITS_LEAST: Final = 7
_NO_DIGITS: Final = bytes(byte for byte in range(256) if byte not in b"0123456789")
_KEY_RUN: Final = b"x" * 20
_KEY_BYTES: Final = bytes(
    ord("x" if (byte < 128 and chr(byte).isalnum()) or byte in b"_-" else " ")
    for byte in range(256)
)


class PiiSection(Section):
    """What to do about personal data and secrets in the texts."""

    action: Literal["off", "report", "redact"] = Field(
        "report",
        description="report: count the rows and show masked examples; redact: also put [EMAIL], "
        "[PHONE], [CARD], [IBAN] or [KEY] in its place",
    )
    kinds: Annotated[list[PiiKind], Field(min_length=1)] = Field(
        list(PII_KINDS),
        description="what to look for: email, phone, card (payment cards), iban (bank accounts), "
        "key (passwords in URLs, API keys, private keys)",
    )
    phone_region: str | None = Field(
        "US",
        description="ISO 3166 code of the country whose phone numbers stand without +; null: only "
        "numbers with +",
    )

    @field_validator("phone_region")
    @classmethod
    def _is_region(cls, region: str | None) -> str | None:
        import phonenumbers

        if region is not None and region not in phonenumbers.SUPPORTED_REGIONS:
            raise ValueError(f"{region!r} is no country code in capitals, such as US or DE")
        return region


class Finding(NamedTuple):
    """Characters [start, end) of a text that are personal."""

    kind: PiiKind
    start: int
    end: int


class PiiFinder:
    """What a config asks to look for. Libraries are loaded at the first candidate."""

    def __init__(self, section: PiiSection) -> None:
        self._section = section
        self._kinds = tuple(kind for kind in PII_KINDS if kind in section.kinds)

    def apply(self, parsed: Parsed) -> Mapping[str, str]:
        """Look at a row's texts, output and tool calls, and redact the texts where asked to.

        Returns:
            For every kind found one example, masked; nothing of it can be recovered.

        Raises:
            RowError: to redact what stands in JSON would spoil it (a number, a schema's pattern).
        """
        if self._section.action == "off":
            return _NOTHING
        texts, data = free_texts(parsed), _json_texts(parsed)
        suspected = self._suspected("\n".join(texts + data if data else texts))
        if not suspected:
            return _NOTHING
        found = self._examples(texts + data, suspected)
        if found and self._section.action == "redact":
            if held := self._examples(data, suspected):
                raise RowError("pii-in-json", f"{', '.join(held)} in output or tool calls")
            rewrite(parsed, self.redacted)
        return found

    def find(self, text: str) -> list[Finding]:
        """All that is personal in a text, in order; no two findings overlap."""
        return self._find(text, self._suspected(text))

    def redacted(self, text: str) -> str:
        """The text with placeholders, in which nothing is found any more."""
        while findings := self.find(text):  # again: neighbours can hide behind one another
            pieces, last = [], 0
            for kind, start, end in findings:
                pieces += [text[last:start], f"[{kind.upper()}]"]
                last = end
            text = "".join([*pieces, text[last:]])
        return text

    def _suspected(self, text: str) -> list[PiiKind]:
        """The kinds that can stand in a text at all."""
        has_at = "@" in text
        data = text.encode()
        has_digits = len(data.translate(None, _NO_DIGITS)) >= _DIGITS_LEAST
        has_number = has_digits and pii_spans.has_number(text)
        maybe: dict[PiiKind, bool] = {
            "key": _KEY_RUN in data.translate(_KEY_BYTES) or (has_at and "://" in text),
            "card": has_number,
            "iban": has_number,
            "email": has_at,
            "phone": has_number,
        }
        return [kind for kind in self._kinds if maybe[kind]]

    def _examples(self, texts: Sequence[str], kinds: Sequence[PiiKind]) -> dict[str, str]:
        examples: dict[str, str] = {}
        for text in texts:
            for finding in self._find(text, kinds):
                examples.setdefault(finding.kind, masked(text, finding))
        return examples

    def _find(self, text: str, kinds: Sequence[PiiKind]) -> list[Finding]:
        found: list[Finding] = []
        for kind in kinds:
            for start, end in self._spans(kind, text):
                place = bisect_left(found, start, key=_start)
                after_last = place == 0 or found[place - 1].end <= start
                if after_last and (place == len(found) or end <= found[place].start):
                    found.insert(place, Finding(kind, start, end))
        return found

    def _spans(self, kind: PiiKind, text: str) -> Iterator[tuple[int, int]]:
        match kind:
            case "key":
                return pii_spans.keys(text)
            case "card":
                return pii_spans.cards(text)
            case "iban":
                return pii_spans.ibans(text)
            case "email":
                return pii_spans.emails(text)
            case "phone":
                return pii_spans.phones(text, self._section.phone_region)


def masked(text: str, finding: Finding) -> str:
    """A finding that can be shown: `j***@e***.com`, `***71`; of a key nothing but its length."""
    value = text[finding.start : finding.end]
    match finding.kind:
        case "email":
            local, _, domain = value.rpartition("@")
            return f"{local[0]}***@{domain[0]}***.{domain.rpartition('.')[2]}"
        case "key":
            return f"*** ({len(value)} characters)"
        case _:
            return f"***{value[-2:]}"


def _start(finding: Finding) -> int:
    return finding.start


def _json_texts(parsed: Parsed) -> list[str]:
    """What code will read and nothing here may change."""
    calls = [found["tool_calls"] for found in parsed.messages if found.get("tool_calls")]
    texts = [json.dumps(call, ensure_ascii=False) for call in calls]
    return texts if parsed.output is None else [*texts, parsed.output]
