"""Strict YAML: the structure from PyYAML's parser, the meaning of scalars from `scalars`.

Refused, with the line: duplicate keys, anchors, aliases, merge keys, tags, keys that are not text,
several documents, numbers that are not finite or not clear.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import yaml

from luthier.config.document import Mark, Node, Problem, word
from luthier.config.scalars import ScalarError, meaning

MAXIMUM_DEPTH = 32

Position = Callable[[int, int], Mark]  # 1-based line and column in the text -> where that is


def parse_yaml(text: str, position: Position) -> tuple[Node | None, list[Problem]]:
    """Read one document. The node is None when there is none: empty, or not YAML at all."""
    reader = _Reader(text, position)
    try:
        return reader.document(), reader.problems
    except _UnreadableError as error:
        return None, [*reader.problems, error.problem]


class _UnreadableError(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _Reader:
    def __init__(self, text: str, position: Position) -> None:
        self.problems: list[Problem] = []
        self._text = text
        self._position = position
        self._events = self._parse()

    def document(self) -> Node | None:
        root: Node | None = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._report(
                        self._mark(event),
                        "a second document starts here. A config is one document: remove '---'",
                    )
                    return root
            elif isinstance(event, yaml.NodeEvent):
                root = self._node(event, 0)
        return root

    def _parse(self) -> Iterator[Any]:
        try:
            yield from yaml.parse(self._text, Loader=yaml.SafeLoader)
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            code = ord(self._text[error.position])
            text = f"the character U+{code:04X} is not allowed in YAML. Remove it"
            raise _UnreadableError(Problem(self._position(line, 1), text)) from error
        except yaml.MarkedYAMLError as error:
            raise _UnreadableError(self._syntax_problem(error)) from error
        except (ValueError, OverflowError) as error:  # PyYAML does not check these numbers
            text = "not valid YAML: a number in a \\U escape or after %YAML is out of range"
            raise _UnreadableError(Problem(self._position(1, 1), text)) from error

    def _syntax_problem(self, error: yaml.MarkedYAMLError) -> Problem:
        at = error.problem_mark or error.context_mark
        mark = self._position(at.line + 1, at.column + 1) if at else self._position(1, 1)
        problem = str(error.problem or error.context)
        if r"'\t'" in problem:
            return Problem(mark, "a tab cannot indent or start a value. Use spaces")
        text = f"not valid YAML: {problem}"
        if error.context and error.context_mark:
            text += f" ({error.context}, line {error.context_mark.line + 1})"
        if "mapping values are not allowed" in problem:
            text += ". Put text that contains ': ' in quotes, and check the indentation"
        elif "cannot start any token" in problem:
            text += ". Put text that starts with this character in quotes"
        return Problem(mark, text)

    def _mark(self, event: Any) -> Mark:
        return self._position(event.start_mark.line + 1, event.start_mark.column + 1)

    def _report(self, mark: Mark, text: str) -> None:
        self.problems.append(Problem(mark, text))

    def _node(self, event: Any, depth: int) -> Node:
        mark = self._mark(event)
        if depth > MAXIMUM_DEPTH:
            text = f"nested more than {MAXIMUM_DEPTH} levels deep. Make it flatter"
            raise _UnreadableError(Problem(mark, text))
        if isinstance(event, yaml.AliasEvent):
            text = f"the alias *{event.anchor} is refused. Write the value out, or use extends"
            self._report(mark, text)
            return Node(None, mark, refused=True)
        refused = self._is_decorated(event, mark)
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, mark)
        elif isinstance(event, yaml.SequenceStartEvent):
            items = [self._node(inner, depth + 1) for inner in self._children()]
            node = Node(items, mark)
        else:
            node = Node(self._entries(depth), mark)
        return replace(node, refused=node.refused or refused)

    def _is_decorated(self, event: Any, mark: Mark) -> bool:
        if event.anchor is not None:
            text = f"the anchor &{event.anchor} is refused. Write the value out, or use extends"
            self._report(mark, text)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._report(mark, f"the tag {tag} is refused. Remove it; quotes make a value text")
        return event.anchor is not None or event.tag is not None

    def _scalar(self, event: Any, mark: Mark) -> Node:
        node = self._text_of(event, mark)
        if node.quoted or node.refused:
            return node
        try:
            return replace(node, value=meaning(node.raw))
        except ScalarError as error:
            self._report(mark, str(error))
            return replace(node, value=None, refused=True)

    def _text_of(self, event: Any, mark: Mark) -> Node:
        text = event.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._report(mark, "half a surrogate pair is no character. Write the character itself")
            return Node(None, mark, refused=True)
        return Node(text, mark, text, quoted=event.style is not None)

    def _children(self) -> Iterator[Any]:
        ends = yaml.SequenceEndEvent | yaml.MappingEndEvent
        for event in self._events:
            if isinstance(event, ends):
                return
            yield event

    def _entries(self, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for event in self._children():
            key = self._key(event, depth)
            inner = self._node(next(self._events), depth + 1)
            if key is not None and self._is_usable_key(key, entries):
                entries[key.raw] = replace(inner, mark=key.mark)
        return entries

    def _key(self, event: Any, depth: int) -> Node | None:
        """Keys are text as spelled: `1: x` has the key '1', `no: x` the key 'no'."""
        if isinstance(event, yaml.ScalarEvent):
            self._is_decorated(event, self._mark(event))
            return self._text_of(event, self._mark(event))
        node = self._node(event, depth + 1)
        if not isinstance(event, yaml.AliasEvent):
            self._report(node.mark, "a key must be text, not a list or a mapping")
        return None

    def _is_usable_key(self, key: Node, entries: dict[str, Node]) -> bool:
        if key.refused:
            return False
        if key.raw == "<<" and not key.quoted:
            self._report(
                key.mark, "the merge key << is refused. Write the keys out, or use extends"
            )
        elif not key.raw:
            self._report(key.mark, "a key is empty. Write its name before the colon")
        elif key.raw in entries:
            first = entries[key.raw].mark.line
            where = f", first in line {first}" if first else ""
            self._report(key.mark, f"{word(key.raw)} is given twice{where}. Keep one")
        else:
            return True
        return False
