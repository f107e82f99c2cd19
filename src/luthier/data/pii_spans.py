"""Where emails, phones, cards, bank accounts and keys stand in a text, as (start, end)."""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

_LOCAL_CHARACTERS: Final = 64  # of an email before the @ (RFC 5321, 4.5.3.1.1)
_LOCAL: Final = re.compile(r"[\w+%-](?:[\w.+'%-]*[\w+%-])?\Z")
_DOMAIN: Final = re.compile(
    r"@((?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}(?:xn--[a-zA-Z0-9-]{2,59}|[^\W\d_]{2,24}))(?!\w)"
)
# git@github.com:team/repository, database.com:5432: a login, nobody's mailbox
_PATH_OR_PORT: Final = re.compile(r":(?:\d|[\w.~-]*/)")
# Visa, Mastercard, Discover, UnionPay, JCB; American Express; Diners: first digits and groups as
# ISO/IEC 7812 issuers print them (en.wikipedia.org/wiki/Payment_card_number, read 2026-11)
_CARD: Final = re.compile(
    r"(?<![\d.,+-])(?:"
    r"(?:4\d{3}|5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720|6011|64[4-9]\d|65\d\d|62\d\d"
    r"|35[2-8]\d)([ -]?)\d{4}\1\d{4}\1\d{4}"
    r"|3[47]\d\d([ -]?)\d{6}\2\d{5}|3(?:0[0-5]|[68]\d)\d([ -]?)\d{6}\3\d{4})(?!\d|[.,-]\d)"
)
_IBAN: Final = re.compile(
    r"\b[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"
)

# As many digits, with what may stand between them: no card, account or phone number has fewer.
_NUMBER: Final = re.compile(r"\d(?:[ ().\-/\u00a0]{0,3}\d){6,}")
# Of those: dates, periods, addresses of machines, decimals, lists, and digits alone (as often an
# order or 2 ** 31). Left out, because each costs Google's rules 0.3 ms, and some pass them.
_NO_PHONE: Final = re.compile(
    r"\b\d{4}([-/.])\d\d?\1\d\d?\b"
    r"|\b\d\d?([-/.])\d\d?\2\d{4}\b"
    r"|\b(?:1[5-9]|20)\d\d ?[-/] ?(?:1[5-9]|20)\d\d\b"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}\b"
    r"|\b\d{1,2}(?: \d{1,2}){6,}\b"
    r"|^\d+\.\d+$"
    r"|^\d+$"
)


def has_number(text: str) -> bool:
    """Whether a text has as many digits together as a card, an account or a phone number."""
    return _NUMBER.search(text) is not None


def emails(text: str) -> Iterator[tuple[int, int]]:
    """Addresses whose domain ends with a public suffix."""
    for domain in _DOMAIN.finditer(text):
        at = domain.start()
        local = _LOCAL.search(text, max(0, at - _LOCAL_CHARACTERS), at)
        if local and _is_mailbox(text, local.start(), domain):
            yield local.start(), domain.end()


def _is_mailbox(text: str, start: int, domain: re.Match[str]) -> bool:
    """Not icon@2x.png or a login, as in `ssh://git@github.com`."""
    if text.endswith("//", 0, start) or _PATH_OR_PORT.match(text, domain.end()):
        return False
    return _public_suffixes().privatesuffix(domain[1].lower()) is not None


def phones(text: str, region: str | None) -> Iterator[tuple[int, int]]:
    """Valid numbers, grouped as their country groups them; of `region` those without +."""
    text = _NUMBER.sub(_perhaps_phone, text)
    if not has_number(text):
        return
    import phonenumbers

    strict = phonenumbers.Leniency.STRICT_GROUPING
    for match in phonenumbers.PhoneNumberMatcher(text, region, strict):
        if not match.raw_string.isdigit():
            yield match.start, match.end


def _perhaps_phone(found: re.Match[str]) -> str:
    """Digits as they are, with strokes in place of what is no phone number."""
    if found.string.endswith("+", 0, found.start()):
        return found[0]
    return _NO_PHONE.sub(lambda part: "|" * len(part[0]), found[0])


def cards(text: str) -> Iterator[tuple[int, int]]:
    """Card numbers of a known issuer with the right check digit."""
    from stdnum import luhn

    for number in _NUMBER.finditer(text):
        # with what follows the number, which tells a card from a longer one
        for found in _CARD.finditer(text, number.start(), number.end() + 2):
            if luhn.is_valid(re.sub(r"[ -]", "", found[0])):
                yield found.span()


def ibans(text: str) -> Iterator[tuple[int, int]]:
    """Bank accounts of a country's length with the right check digits."""
    for found in _IBAN.finditer(text):
        from stdnum import iban

        value = found[0]
        while value and not iban.is_valid(value):
            value = value.rpartition(" ")[0]  # capitals that follow are no part of it
        if value:
            yield found.start(), found.start() + len(value)


def keys(text: str) -> Iterator[tuple[int, int]]:
    """API keys, private keys and passwords in URLs, in the formats of some hundred services."""
    data = text.encode()
    found = _key_scanner().scan(data)
    if not any(finding.visible for finding in found):
        return
    spans = sorted(  # the others belong to those: the secret of a visible key id
        {(f.location["start_offset"], f.location["end_offset"]) for f in found}
    )
    characters = last = 0
    for start, end in spans:
        if start >= last:
            characters += _length(data[last:start])
            length = _length(data[start:end])
            yield characters, characters + length
            characters, last = characters + length, end


def _length(data: bytes) -> int:
    return len(data.decode("utf-8", "replace"))


@lru_cache(maxsize=1)
def _public_suffixes() -> Any:
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList(accept_unknown=False)


@lru_cache(maxsize=1)
def _key_scanner() -> Any:
    """0.5 s and 45 MB; 5 s until the rules stand compiled in the user's cache folder."""
    from kingfisher_sdk import Rules, Scanner

    return Scanner(Rules(), base64=False)
