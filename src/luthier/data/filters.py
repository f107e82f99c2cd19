"""Filters: rows that are sound but not wanted. They are dropped and counted, no faults."""

import difflib
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from pydantic import AfterValidator, field_validator, model_validator

from luthier.config import Field, Section
from luthier.data.rows import Message, Parsed
from luthier.data.texts import free_messages, free_texts, has_fixed_reply
from luthier.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    import regex

# Time one text may take a pattern. Sound patterns need milliseconds even for megabytes; one that
# backtracks without end must not decide rows by the clock, so it stops the stage.
PATTERN_SECONDS: Final = 10.0

_NO_LANGUAGE: Final = "zxx"  # ISO 639 for sums, code, names; no reason to leave a row out

# the other codes that py3langid 0.4.0 tells apart; a test compares
_CODES: Final = (
    "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu "
    "ext fa fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is "
    "it ja jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my "
    "ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn so sq sr st sv sw "
    "ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu"
)
LANGUAGES: Final = tuple(_CODES.split())

# Characters of each message and of all that a language is told from: enough to be sure, and a
# bound on the time (0.3 ms for 600 characters).
_MESSAGE_CHARACTERS: Final = 200
_SAMPLE_CHARACTERS: Final = 600


def _known_language(code: str) -> str:
    if code not in LANGUAGES:
        near = difflib.get_close_matches(code.lower()[:2], LANGUAGES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"{code!r} is no language code that can be told, like en or de.{hint}")
    return code


Language = Annotated[str, AfterValidator(_known_language)]
Pattern = Annotated[str, Field(min_length=1)]


class FilterSection(Section):
    """Rows that are left out and counted: too short or long, in another language, by a pattern."""

    min_characters: Annotated[int, Field(ge=1)] | None = Field(
        None, description="fewest characters of a row: messages, replies and documents together"
    )
    max_characters: Annotated[int, Field(ge=1)] | None = Field(
        None, description="most characters of a row: messages, replies and documents together"
    )
    min_reply_characters: Annotated[int, Field(ge=1)] | None = Field(
        None, description="fewest characters of the last reply; not for labels and JSON"
    )
    max_turns: Annotated[int, Field(ge=1)] | None = Field(
        None, description="most messages of the user in a conversation"
    )
    reject_pattern: Pattern | None = Field(
        None, description="regular expression; rows with it in any text are left out"
    )
    require_pattern: Pattern | None = Field(
        None, description="regular expression; rows with it in none of their texts are left out"
    )
    languages: Annotated[list[Language], Field(min_length=1)] | None = Field(
        None,
        description="ISO 639 codes of the languages wanted, as [en, de]; rows that are surely in "
        "another one are left out, told from what user and assistant say",
    )
    language_confidence: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.99,
        description="probability of being in none of them from which that counts as sure; rows "
        "below it, such as short or mixed ones, stay",
    )

    @field_validator("reject_pattern", "require_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        import regex

        if pattern is not None:
            try:
                _compiled(pattern)
            except regex.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        least, most = self.min_characters, self.max_characters
        if least is not None and most is not None and least > most:
            raise ValueError(f"min_characters {least} is more than max_characters {most}")
        return self


class Filters:
    """The filters that a config switches on, the cheap ones first."""

    def __init__(self, section: FilterSection, pattern_seconds: float = PATTERN_SECONDS) -> None:
        self._section = section
        self._pattern_seconds = pattern_seconds
        lengths = (section.min_characters, section.max_characters, section.min_reply_characters)
        patterns = (section.reject_pattern, section.require_pattern)
        tests: list[tuple[str, Callable[[Parsed], bool], tuple[object, ...]]] = [
            ("filter-length", self._has_other_length, lengths),
            ("filter-turns", self._has_many_turns, (section.max_turns,)),
            ("filter-pattern", self._has_other_words, patterns),
            ("filter-language", self._is_foreign, (section.languages,)),
        ]
        self._tests = [
            (reason, refuses)
            for reason, refuses, asked in tests
            if any(value is not None for value in asked)
        ]

    def reason(self, parsed: Parsed) -> str | None:
        """Why the row is left out, None where it stays.

        Raises:
            DataError: a pattern takes so long on this row that it would never end.
        """
        for reason, refuses in self._tests:
            if refuses(parsed):
                return reason
        return None

    def _has_other_length(self, parsed: Parsed) -> bool:
        section = self._section
        characters = sum(map(len, free_texts(parsed)))
        if section.min_characters is not None and characters < section.min_characters:
            return True
        if section.max_characters is not None and characters > section.max_characters:
            return True
        if section.min_reply_characters is None or has_fixed_reply(parsed):
            return False
        return _reply_characters(parsed) < section.min_reply_characters

    def _has_many_turns(self, parsed: Parsed) -> bool:
        most = self._section.max_turns
        roles = [message["role"] for message in parsed.messages]
        return most is not None and roles.count("user") > most

    def _has_other_words(self, parsed: Parsed) -> bool:
        texts = free_texts(parsed)
        rejected, required = self._section.reject_pattern, self._section.require_pattern
        if rejected is not None and self._stands_in("reject_pattern", rejected, texts):
            return True
        return required is not None and not self._stands_in("require_pattern", required, texts)

    def _stands_in(self, field: str, pattern: str, texts: list[str]) -> bool:
        search = _compiled(pattern).search
        for text in texts:
            try:
                if search(text, timeout=self._pattern_seconds) is not None:
                    return True
            except TimeoutError as error:
                raise DataError(
                    f"prepare.filters.{field}: {pattern!r} took more than "
                    f"{self._pattern_seconds:g} s on a text of {len(text)} characters, which "
                    f"begins with {text[:60]!r}. It can match in too many ways: repeat no group "
                    "that repeats inside, such as (a+)+, or write ++ in place of +."
                ) from error
        return False

    def _is_foreign(self, parsed: Parsed) -> bool:
        sample = _sample(parsed)
        if not sample:
            return False
        wanted = (*(self._section.languages or ()), _NO_LANGUAGE)
        ranked = _identifier().rank(sample)
        inside = sum(share for language, share in ranked if language in wanted)
        return bool(1 - inside >= self._section.language_confidence)


def _reply_characters(parsed: Parsed) -> int:
    """Of a preference the shorter reply counts."""
    replies = [reply for reply in (parsed.chosen, parsed.rejected) if reply is not None]
    return min(len(reply[-1].get("content") or "") for reply in replies or [parsed.messages])


def _sample(parsed: Parsed) -> str:
    """The beginning of what each side says, a system message aside."""
    said: list[Message] = [*free_messages(parsed), *(parsed.chosen or ())]
    parts = [
        message["content"][:_MESSAGE_CHARACTERS]
        for message in said
        if message["role"] in ("user", "assistant") and message.get("content")
    ]
    return "\n".join(parts)[:_SAMPLE_CHARACTERS]


@lru_cache(maxsize=4)
def _compiled(pattern: str) -> "regex.Pattern[str]":
    import regex

    with warnings.catch_warnings():  # `[[` will mean a set in a set some day; here it never does
        warnings.simplefilter("ignore", FutureWarning)
        return regex.compile(pattern, regex.VERSION0)


@lru_cache(maxsize=1)
def _identifier() -> Any:
    """About 0.5 s and 100 MB, in the processes that ask for a language only."""
    from py3langid.langid import (  # type: ignore[import-untyped]
        MODEL_FILE,
        LanguageIdentifier,
    )

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
