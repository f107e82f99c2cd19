"""A parsed config as a tree whose every value knows the file and line that it came from."""

import re
from dataclasses import dataclass, field, replace

from luthier.errors import ConfigError

Scalar = str | int | float | bool | None
KeyPath = tuple[str | int, ...]

MAXIMUM_SHOWN_CHARACTERS = 40


@dataclass(frozen=True, order=True)
class Mark:
    """Where a value stands. Files sort in the order they were opened, `--set` comes last."""

    rank: int
    line: int  # 1-based; 0: no line, `source` says it all
    column: int
    source: str = field(compare=False)

    @property
    def from_set(self) -> bool:
        """Whether the value was given by `--set`."""
        return not self.line

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class Node:
    """One value. `mark` is that of its key where it has one, else of the value itself."""

    value: "Scalar | list[Node] | dict[str, Node]"
    mark: Mark
    raw: str = ""  # a scalar as it is spelled, without quotes
    quoted: bool = False
    refused: bool = False  # already reported; nothing more is said about it


@dataclass(frozen=True)
class Problem:
    """One mistake in a config: one line of the error message."""

    mark: Mark
    text: str

    def __str__(self) -> str:
        return f"{self.mark}: {self.text}"


def raise_if_any(problems: list[Problem]) -> None:
    """Report all mistakes at once, by position, each once.

    Raises:
        ConfigError: there is at least one problem.
    """
    if problems:
        ordered = sorted(problems, key=lambda problem: (problem.mark, problem.text))
        raise ConfigError("\n".join(dict.fromkeys(str(problem) for problem in ordered)))


def plain(node: Node) -> object:
    """The tree as plain Python values."""
    match node.value:
        case dict():
            return {key: plain(inner) for key, inner in node.value.items()}
        case list():
            return [plain(inner) for inner in node.value]
    return node.value


def nearest(root: Node, path: KeyPath) -> Node:
    """The node at `path`, or the last one on the way there."""
    node = root
    for part in path:
        if isinstance(node.value, dict) and part in node.value:
            node = node.value[str(part)]
        elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
        else:
            return node
    return node


def merged(base: Node, child: Node) -> Node:
    """`child` over `base`: mappings key by key, all else replaced."""
    if not (isinstance(base.value, dict) and isinstance(child.value, dict)):
        return child
    entries = dict(base.value)
    for key, inner in child.value.items():
        entries[key] = merged(entries[key], inner) if key in entries else inner
    return replace(child, value=entries)


def merged_documents(base: Node, child: Node) -> Node:
    """As `merged`, where a null at the top level of `child` removes what `base` has there."""
    assert isinstance(base.value, dict)
    whole = merged(base, child)
    assert isinstance(whole.value, dict)
    kept = {
        key: inner
        for key, inner in whole.value.items()
        if not (inner.value is None and not inner.refused and key in base.value)
    }
    return replace(whole, value=kept)


def word(key: str) -> str:
    """A key as messages show it: on one line, in quotes where it is no plain word."""
    return key if re.fullmatch(r"[\w.-]+", key, re.ASCII) else repr(shortened(key))


def dotted(path: KeyPath) -> str:
    """`("prepare", "sources", 0, "path")` as `prepare.sources[0].path`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{word(part)}" if text else word(part)
    return text


def shortened(text: str) -> str:
    """At most `MAXIMUM_SHOWN_CHARACTERS` of a text."""
    if len(text) <= MAXIMUM_SHOWN_CHARACTERS:
        return text
    return text[:MAXIMUM_SHOWN_CHARACTERS] + "..."
