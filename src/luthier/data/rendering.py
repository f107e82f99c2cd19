"""Conversations as text, by the base's own chat template, with the places of their replies.

Where the template is a form (forms.py) it is filled in, else Jinja renders it for every row.
Either way the gate template-parity compares a sample of rows with transformers' own rendering.

Marks are the tokens that only the template writes. The tokenizer treats the text between two
marks alone, so where a prompt ends is known by its marks and by what follows the last of them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from luthier.data.forms import Form, probe
from luthier.data.rows import Message, RowError
from luthier.data.tongue import Tongue
from luthier.errors import ModelError

_LAYOUTS_KEPT = 4096  # orders of roles; beyond that every row is rendered by Jinja

Tools = Sequence[Mapping[str, Any]] | None


class Turn(NamedTuple):
    """A reply that is learned, by what its prompt and its own end have in the row's text.

    `message`: its place in the conversation. `marks_before`: marks in the prompt; `tail`: the
    prompt from its last mark on (all of it without one); `marks_through`: marks to the reply's
    end; `is_prefix`: the row's text begins with the prompt's.
    """

    message: int
    marks_before: int
    tail: str
    marks_through: int
    is_prefix: bool


class Sheet(NamedTuple):
    """One text to tokenise, with the turns that are learned in it, at least one.

    `bos`: how often BOS stands in it. `is_lost`: some message does not stand in it.
    """

    text: str
    turns: tuple[Turn, ...]
    bos: int
    is_lost: bool
    messages: Sequence[Message]
    tools: Tools


class _Layout(NamedTuple):
    """What all conversations with one order of roles have in common."""

    form: Form
    turns: tuple[Turn, ...]
    bos: int


class Renderer:
    """Renders conversations by one tongue's chat template, or as plain text."""

    def __init__(self, tongue: Tongue, *, is_plain: bool = False) -> None:
        self._tongue, self._is_plain = tongue, is_plain
        self.structure = re.compile(tongue.any_mark)
        starts = {mark[0] for mark in tongue.marks}
        self._start = starts.pop() if len(starts) == 1 else ""
        self._bos = tongue.bos_token or ""
        self._layouts: dict[tuple[Any, ...], _Layout | None] = {}

    def sheet(self, messages: Sequence[Message], tools: Tools, *, last_only: bool) -> Sheet:
        """A conversation as text, with all its replies as turns or the last one alone.

        Raises:
            ModelError: the base has no chat template, or no stop token for plain text.
            RowError: a text spells a mark, or the template refuses these messages.
        """
        self._refuse_marks(messages, tools)
        if self._is_plain:
            return self._plain(messages)
        key: list[Any] = [last_only]
        for message in messages:
            if len(message) != 2:
                return self._by_row(messages, tools, last_only)
            key.append(message["role"])
        layout = self._layout(tuple(key)) if tools is None else None
        if layout is None:
            return self._by_row(messages, tools, last_only)
        text = layout.form.fill([message["content"] for message in messages])
        return Sheet(text, layout.turns, layout.bos, layout.form.lost, messages, None)

    def text(self, messages: Sequence[Message], tools: Tools, *, generate: bool) -> str:
        """The template's text, with a generation prompt behind it or without; or plain text.

        Raises:
            ModelError, RowError: as `sheet`.
        """
        if self._is_plain:
            return self._opening() + "".join(message["content"] for message in messages)
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self._template(tools)
        plain = [{k: v for k, v in m.items() if v is not None} for m in messages]
        try:
            rendered, _ = render_jinja_template(
                conversations=[plain],
                tools=list(tools) if tools is not None else None,
                chat_template=template,
                add_generation_prompt=generate,
                **self._tongue.special_tokens,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise RowError(
                "template-refused", f"The chat template refuses the roles {roles}: {error}"
            ) from error
        return str(rendered[0])

    def _refuse_marks(self, messages: Sequence[Message], tools: Tools) -> None:
        for message in messages:
            content = message.get("content") or ""
            if len(message) != 2:  # a name, tool calls: the template may write any of it
                content = json.dumps(message, ensure_ascii=False)
            self._refuse_mark(content, f"the {message['role']}'s text")
        if tools is not None:
            self._refuse_mark(json.dumps(list(tools), ensure_ascii=False), "the tools' text")

    def _refuse_mark(self, text: str, whose: str) -> None:
        if self._start not in text:
            return
        found = self.structure.search(text)
        if found:
            raise RowError(
                "special-token-in-text",
                f"{whose} spells {found[0]}, which would become that token",
            )

    def _plain(self, messages: Sequence[Message]) -> Sheet:
        stop = self._tongue.stop_text
        if stop is None:
            raise ModelError(
                "The base model has no stop token. Set eos_token_id in its generation_config."
            )
        before = self.text(messages[:-1], None, generate=True)
        marks = 1 if self._opening() else 0
        turn = Turn(len(messages) - 1, marks, before, marks + 1, is_prefix=True)
        text = f"{before}{messages[-1]['content']}{stop}"
        return Sheet(text, (turn,), self._count_bos(text), False, messages, None)

    def _opening(self) -> str:
        return self._bos if self._tongue.adds_bos else ""

    def _count_bos(self, text: str) -> int:
        return text.count(self._bos) if self._bos else 0

    def _by_row(self, messages: Sequence[Message], tools: Tools, last_only: bool) -> Sheet:
        whole = self.text(messages, tools, generate=False)
        turns = []
        for place in _replies([message["role"] for message in messages], last_only):
            before = self.text(messages[:place], tools, generate=True)
            is_last = place + 1 == len(messages)
            through = whole if is_last else self.text(messages[: place + 1], tools, generate=False)
            turns.append(
                Turn(
                    place,
                    self._count_marks(before),
                    self._tail(before),
                    self._count_marks(through),
                    whole.startswith(before),
                )
            )
        lost = any((message.get("content") or "").strip() not in whole for message in messages)
        return Sheet(whole, tuple(turns), self._count_bos(whole), lost, messages, tools)

    def _count_marks(self, text: str) -> int:
        return sum(1 for _ in self.structure.finditer(text))

    def _tail(self, text: str) -> str:
        last = 0
        for found in self.structure.finditer(text):
            last = found.start()
        return text[last:]

    def _layout(self, key: tuple[Any, ...]) -> _Layout | None:
        if key not in self._layouts:
            if len(self._layouts) >= _LAYOUTS_KEPT:
                return None
            self._layouts[key] = self._laid_out(key[1:], last_only=key[0])
        return self._layouts[key]

    def _laid_out(self, roles: Sequence[str], *, last_only: bool) -> _Layout | None:
        """The layout, when every prompt is a form whose filling the whole row begins with."""
        whole = self._form(roles, generate=False)
        if whole is None:
            return None
        turns = []
        for place in _replies(roles, last_only):
            before = self._form(roles[:place], generate=True)
            through = self._form(roles[: place + 1], generate=False)
            if before is None or through is None or not before.begins(whole):
                return None
            tail = self._tail(before.constants[-1])
            marks = sum(map(self._count_marks, before.constants))
            if not self.structure.match(tail):
                return None  # a text follows the last mark, so that the tail is another every time
            marks_through = sum(map(self._count_marks, through.constants))
            turns.append(Turn(place, marks, tail, marks_through, is_prefix=True))
        return _Layout(whole, tuple(turns), sum(map(self._count_bos, whole.constants)))

    def _form(self, roles: Sequence[str], *, generate: bool) -> Form | None:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        source = self._template(None)
        given: dict[str, Any] = {
            "tools": None,
            "documents": None,
            "add_generation_prompt": generate,
        }
        return probe(
            _compile_jinja_template(source),
            source,
            roles,
            given | dict(self._tongue.special_tokens),
        )

    def _template(self, tools: Tools) -> str:
        template = self._tongue.chat_template if tools is None else self._tongue.tool_template
        if template is None:
            raise ModelError(
                "The base model has no chat template. Use an instruction-tuned base, "
                "or task: completion."
            )
        return template


def _replies(roles: Sequence[str], last_only: bool) -> Sequence[int]:
    places = [place for place, role in enumerate(roles) if role == "assistant"]
    return places[-1:] if last_only else places
