"""Token ids and what is learned of them, made once, here: what is inspected is what is trained on.

The loss is on a reply and on the stop token that ends it. What the template writes after that
token (a newline) is cut off the end of the row, since no server ever asks for it.

Where a prompt ends in a row follows from its marks (see rendering.py): its last stretch, tokenised
alone and mostly the same in every row, must be found at its place.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal, NamedTuple

from luthier.data.index import Flag
from luthier.data.rendering import Renderer, Sheet, Turn
from luthier.data.rows import Parsed, Task
from luthier.data.segments import Marked, Segments
from luthier.data.tongue import Tongue

IGNORE_INDEX = -100  # what PyTorch's cross-entropy skips

LossOn = Literal["all_assistant_turns", "last_turn", "full_text"]
OnOverlong = Literal["fail", "drop", "truncate"]
Span = tuple[int, int]  # first position with a loss, and the one behind the last


class Encoded(NamedTuple):
    """One text as the model will see it, cut at the end of the last reply.

    `spans` are the positions with a loss, `prompt_length` the tokens before the last reply,
    `flags` the bits of `Flag` that its gates found.
    """

    input_ids: list[int]
    spans: tuple[Span, ...]
    prompt_length: int
    flags: int

    @property
    def supervised(self) -> int:
        """Tokens with a loss."""
        return sum(end - start for start, end in self.spans)


class EncodedRow(NamedTuple):
    """A row's tokens: one text, or of a preference the chosen and the rejected one."""

    texts: tuple[Encoded, ...]

    @property
    def tokens(self) -> int:
        """Length of the longest text."""
        return max(len(text.input_ids) for text in self.texts)

    @property
    def supervised(self) -> int:
        """Tokens with a loss, over all texts."""
        return sum(text.supervised for text in self.texts)

    @property
    def flags(self) -> int:
        """What is wrong with any of its texts."""
        flags = 0
        for text in self.texts:
            flags |= text.flags
        return flags


class Encoder:
    """Rows to tokens by one base's tokenizer and template."""

    def __init__(self, tongue: Tongue, task: Task, loss_on: LossOn, limit: int | None) -> None:
        """`limit`: cut texts at so many tokens (`on_overlong: truncate`), None: never cut."""
        self._tongue, self._loss_on, self._limit = tongue, loss_on, limit
        self._renderer = Renderer(tongue, is_plain=task in ("completion", "text"))
        self._segments = Segments(tongue)
        self._stops = frozenset(tongue.stop_token_ids)
        self._bos = tongue.marks.get(tongue.bos_token or "", -1)

    def render(self, row: Parsed) -> list[Sheet]:
        """A row as text: one sheet, or of a preference the chosen and the rejected one.

        Raises:
            RowError: a text spells a mark, or the template refuses the row.
            ModelError: the base has no chat template, or no stop token for completions.
        """
        sheet = self._renderer.sheet
        if row.chosen is not None and row.rejected is not None:
            return [
                sheet([*row.messages, *reply], row.tools, last_only=True)
                for reply in (row.chosen, row.rejected)
            ]
        return [sheet(row.messages, row.tools, last_only=self._loss_on == "last_turn")]

    def encode(self, rows: Sequence[Sequence[Sheet]]) -> list[EncodedRow]:
        """Tokenise rendered rows together."""
        sheets = [sheet for row in rows for sheet in row]
        found = self._segments.encode([sheet.text for sheet in sheets])
        encoded = iter([self._encoded(*pair) for pair in zip(sheets, found, strict=True)])
        return [EncodedRow(tuple([next(encoded) for _ in row])) for row in rows]

    def _encoded(self, sheet: Sheet, found: Marked) -> Encoded:
        ids, marks = found
        flags = int(Flag.TEXT_LOST) if sheet.is_lost else 0
        if sheet.bos != sum([ids[place] == self._bos for place in marks]):
            flags |= Flag.BOS_COUNT
        spans: list[Span] = []
        for turn in sheet.turns:
            start = self._start(turn, ids, marks)
            if start is None:
                flags |= Flag.PROMPT_NOT_PREFIX
                start = self._count(sheet, turn.message, generate=True)
            end = self._turn_end(start, turn.marks_through, ids, marks)
            if end is None:
                flags |= Flag.STOP_MISSING
                end = self._count(sheet, turn.message + 1, generate=False)
            spans.append((start, max(start, end)))
        return self._cut(ids, spans, flags)

    def _start(self, turn: Turn, ids: list[int], marks: list[int]) -> int | None:
        """Tokens before a reply, None when the row does not begin with those of its prompt."""
        if not turn.is_prefix or turn.marks_before > len(marks):
            return None
        place = marks[turn.marks_before - 1] if turn.marks_before else 0
        tail = self._segments.tail(turn.tail)
        end = place + len(tail)
        return end if ids[place:end] == tail else None

    def _turn_end(
        self, start: int, marks_through: int, ids: list[int], marks: list[int]
    ) -> int | None:
        """Behind the first stop token of a turn whose text holds so many marks; None without one.

        The reply itself spells no mark, so the first stop token is the turn's end.
        """
        for place in marks[bisect_left(marks, start) : marks_through]:
            if ids[place] in self._stops:
                return place + 1
        return None

    def _count(self, sheet: Sheet, messages: int, *, generate: bool) -> int:
        """Tokens of the first so many messages, for rows where something is wrong."""
        text = self._renderer.text(sheet.messages[:messages], sheet.tools, generate=generate)
        return len(self._segments.whole([text])[0].ids)

    def _cut(self, ids: list[int], spans: Sequence[Span], flags: int) -> Encoded:
        """Without what follows the last reply, and within the limit where rows are cut."""
        last = min(spans[-1][1], len(ids))
        length = min(last, self._limit or last)
        if length < last:
            flags |= Flag.TRUNCATED | Flag.STOP_MISSING
        prompt_length = min(spans[-1][0], length)
        if self._loss_on == "full_text":
            spans = [(1, length)]  # nothing foretells the first token
        kept = tuple(
            [(start, min(end, length)) for start, end in spans if start < min(end, length)]
        )
        if not kept:
            flags |= Flag.NOTHING_SUPERVISED
        return Encoded(ids[:length], kept, prompt_length, flags)
