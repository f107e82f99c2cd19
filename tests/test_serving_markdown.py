"""Texts of users in Markdown: read back as they are, whatever they contain."""

import html
import re

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from luthier.serving import markdown

RENDERER = MarkdownIt("commonmark").enable("table")
PRINTABLE = "".join(chr(code) for code in range(32, 127)) + "\n\r\té日🎵"


@given(st.text(alphabet=PRINTABLE, max_size=60))
@example("__0__")
@example("a|b `c` <i>d</i> &amp; [e](f)")
def test_plain_text_and_code_are_read_back(text: str) -> None:
    """On one line and without tags of its own, wherever it stands."""
    line = " ".join(text.split())
    for made in (markdown.plain(text), markdown.code(text)):
        for document, around in (
            (f"Said: {made}", "Said: {}"),
            (f"- {made}", "{}"),
            (markdown.table(("a", "b"), [(made, "x")]), "a b {} x"),
        ):
            rendered = RENDERER.render(document)
            tags = set(re.findall(r"</?([a-z0-9]+)", rendered))
            assert tags <= {"p", "code", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
            read = html.unescape(re.sub(r"<[^>]*>", " ", rendered))
            assert read.split() == around.format("\0").replace("\0", line).split()


@given(st.text(alphabet="`~a\n", max_size=40))
def test_a_fence_is_longer_than_any_in_the_text(text: str) -> None:
    tokens = RENDERER.parse(f"before\n\n{markdown.fenced(text, 'text')}\n\nafter\n")
    [fence] = [token for token in tokens if token.type == "fence"]
    assert fence.content == f"{text}\n"


def test_what_turns_text_around_is_spelled() -> None:
    assert markdown.code("a\u202eb\x1b[1m") == "`a\\u202eb\\x1b[1m`"
    assert markdown.plain("1. x\n# y") == "1\\. x # y"
