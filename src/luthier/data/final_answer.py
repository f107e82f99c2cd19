"""The part of a reply that counts, where a config says how to find it."""

from luthier.errors import DataError

_TIMEOUT_SECONDS = 2.0  # of one text; a pattern that backtracks without end would hang the run
_SHOWN_CHARACTERS = 80


def checked_pattern(pattern: str) -> str:
    """The pattern, for a section's validator. Raises ValueError where it is none."""
    import regex

    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    return pattern


def final_answer(pattern: str, text: str) -> str | None:
    """What a regular expression finds last in a text, its first group where it has one, blanks at
    the ends aside; None where it finds nothing. As lm-evaluation-harness' filter `regex` with
    `group_select: -1`.

    Raises:
        DataError: it takes seconds on this text.
    """
    import regex

    try:
        matches = list(regex.finditer(pattern, text, timeout=_TIMEOUT_SECONDS))
    except TimeoutError as error:
        raise DataError(
            f"prepare.answer_regex: {pattern!r} takes more than {_TIMEOUT_SECONDS:g} s on "
            f"{text[:_SHOWN_CHARACTERS]!r}…. Write it so that it does not try a text in many ways."
        ) from error
    if not matches:
        return None
    part = matches[-1][1 if matches[-1].re.groups else 0]
    return None if part is None else part.strip()


def same_answer(pattern: str, text: str, expected: str) -> bool:
    """Whether the same is found in both."""
    found = final_answer(pattern, text)
    return found is not None and found == final_answer(pattern, expected)
