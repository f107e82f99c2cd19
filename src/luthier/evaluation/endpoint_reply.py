"""What a server that speaks the OpenAI API sent back: an answer, an error, how long to wait."""

import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

# openai-python honours Retry-After up to 60 s (_base_client.py).
_LONGEST_RETRY_AFTER_SECONDS = 60.0


@dataclass(frozen=True)
class Answered:
    """The server's answer, with its count of tokens where it gives one."""

    text: str
    finish_reason: str
    input_tokens: int | None
    output_tokens: int | None
    status: int | None = None


def parse(found: Any, status: int) -> Answered | None:
    """The first choice; None when the JSON has another shape, or says that it was broken off."""
    match found:
        case {"choices": [{"message": {"content": str() | None as text}} as choice, *_]}:
            pass
        case {"choices": [{"text": str() as text} as choice, *_]}:
            pass
        case _:
            return None
    reason = choice.get("finish_reason")
    # vLLM says abort and OpenRouter error when the server gave the request up itself.
    if not isinstance(reason, str) or reason in ("", "abort", "error"):
        return None
    usage = found.get("usage")
    tokens = usage if isinstance(usage, dict) else {}
    return Answered(
        _whole_characters(text or ""),
        reason,
        _count(tokens.get("prompt_tokens")),
        _count(tokens.get("completion_tokens")),
        status,
    )


def _whole_characters(text: str) -> str:
    """Half a surrogate pair, which JSON can spell and no file can hold, becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _count(found: object) -> int | None:
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None


def plain_text(content: bytes) -> str:
    """A body as text, whatever its bytes."""
    return content.decode("utf-8", "replace")


def error_text(content: bytes) -> str:
    """The message of an error as OpenAI writes it, else all that was said."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return re.sub(r"<[^<>]*>", " ", plain_text(content))  # a gateway's page
    match found:
        case {"error": {"message": str() as message}} | {"error": str() as message}:
            return message
        case {"message": str() as message} | {"detail": str() as message}:
            return message
    return plain_text(content)


def retry_after(text: str) -> float:
    """Seconds from now, 0 for none; seconds or a date by RFC 9110, 10.2.3."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return 0.0
        aware = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (aware - datetime.now(UTC)).total_seconds()
    if math.isnan(seconds):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_SECONDS)
