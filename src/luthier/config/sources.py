"""From a path and `--set` texts to one merged tree: reading files, `extends:`, overrides."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from luthier.config.document import (
    KeyPath,
    Mark,
    Node,
    Problem,
    dotted,
    merged_documents,
    raise_if_any,
    shortened,
)
from luthier.config.yaml_reader import parse_yaml
from luthier.errors import ConfigError

MAXIMUM_FILE_BYTES = 1 << 20
_SET_RANK = 1 << 20  # more than there are files in a chain of extends


def read_sources(path: Path, overrides: Sequence[str]) -> tuple[Node, list[Problem]]:
    """The config of `path` over what it extends, with the overrides, and the mistakes met so far.

    Raises:
        ConfigError: a file cannot be read, or has no readable mapping.
    """
    problems: list[Problem] = []
    root = _read_chain(path, problems, [])
    for number, text in enumerate(overrides):
        root = _override(root, text, _SET_RANK + number, problems)
    return root, problems


def _read_chain(path: Path, problems: list[Problem], opened: list[Path]) -> Node:
    """`opened`: the files from the first one down to the one that extends this one."""
    text = _read_text(path)
    rank = len(opened)
    root, found = parse_yaml(text, lambda line, column: Mark(rank, line, column, str(path)))
    problems += found
    if root is None and not found:
        problems.append(Problem(Mark(rank, 1, 1, str(path)), "the file is empty. Write a config"))
    elif root is not None and not isinstance(root.value, dict):
        said = f"a config must be a mapping (key: value), not {_kind(root)}"
        problems.append(Problem(root.mark, said))
    if root is None or not isinstance(root.value, dict):
        raise_if_any(problems)
        raise AssertionError("a document without a mapping has a problem")
    base = root.value.get("extends")
    if base is None:
        return root
    root = replace(root, value={k: v for k, v in root.value.items() if k != "extends"})
    below = _read_extended(path, base, problems, [*opened, path])
    return root if below is None else merged_documents(below, root)


def _read_extended(
    path: Path, base: Node, problems: list[Problem], opened: list[Path]
) -> Node | None:
    if base.refused:
        return None
    if not isinstance(base.value, str) or not base.value or "\0" in base.value:
        said = "extends must be the path of a config, relative to this file"
        problems.append(Problem(base.mark, said))
        return None
    target = _target(path, base.value)
    if os.path.realpath(target) in {os.path.realpath(file) for file in opened}:
        circle = " -> ".join(str(file) for file in [*opened, target])
        said = f"extends makes a circle: {circle}. Remove one of them"
        problems.append(Problem(base.mark, said))
        return None
    try:
        return _read_chain(target, problems, opened)
    except _FileError as error:
        problems.append(Problem(base.mark, f"extends: {error}"))
        return None


def _target(path: Path, extends: str) -> Path:
    """The extended file, without `..` in its name where a symbolic link does not forbid it."""
    target = path.parent / extends
    short = Path(os.path.normpath(target))
    return short if os.path.realpath(short) == os.path.realpath(target) else target


class _FileError(ConfigError):
    """A file that cannot be read at all."""


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAXIMUM_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise _FileError(f"{path} does not exist.{_nearby(path)}") from error
    except IsADirectoryError as error:
        raise _FileError(f"{path} is a folder. Name a config file.{_inside(path)}") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise _FileError(
            f"{path} cannot be read: {reason}. Check the path and its rights"
        ) from error
    if len(content) > MAXIMUM_FILE_BYTES:
        raise _FileError(
            f"{path} is larger than {MAXIMUM_FILE_BYTES} bytes, too large for a config. "
            "Is it the data?"
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise ConfigError(
            f"{path}:{line}: not UTF-8 (byte 0x{byte:02x}). Save the file as UTF-8"
        ) from error


def _yaml_files(folder: Path) -> list[Path]:
    try:
        found = [file for file in folder.iterdir() if file.suffix in {".yaml", ".yml"}]
    except OSError:
        return []
    return sorted(found)


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return f" There is no folder {path.parent}"
    by_name = {file.name: file for file in _yaml_files(path.parent)}
    close = difflib.get_close_matches(path.name, by_name, n=1)
    close = close or [name for name in by_name if Path(name).stem == path.name]
    if close:
        return f" Did you mean {by_name[close[0]]}?"
    return f" YAML files there: {', '.join(by_name)}" if by_name else " No YAML files are there"


def _inside(path: Path) -> str:
    names = [str(file) for file in _yaml_files(path)]
    return f" In it: {', '.join(names)}" if names else " It has no YAML files"


def _kind(node: Node) -> str:
    return "a list" if isinstance(node.value, list) else f"the single value {node.raw!r}"


def _override(root: Node, text: str, rank: int, problems: list[Problem]) -> Node:
    name, equals, value = text.partition("=")
    mark = Mark(rank, 0, 0, f"--set {shortened(name)}")
    parts = tuple(name.split("."))
    said = ""
    if not equals or not all(parts):
        said = "must look like section.key=value, as in --set sft.learning_rate=1e-4"
    elif parts[0] == "extends":
        said = "extends can only be written in the file"
    else:
        node, found = parse_yaml(value, lambda _line, _column: mark)
        problems += found
        if found and node is None:
            return root
        said = _unusable(name, value, node)
    if not said:
        assert node is not None
        try:
            return _with_value(root, parts, node, ())
        except _NotAMappingError as error:
            said = str(error)
    problems.append(Problem(mark, said))
    return root


def _unusable(name: str, value: str, node: Node | None) -> str:
    if node is None:
        return f"no value. Write {name}=null, or {name}=\"''\" for empty text"
    if isinstance(node.value, dict | list) and not value.lstrip().startswith(("{", "[")):
        return "the value reads as YAML lines. Put text in quotes, or write [a, b] or {a: b}"
    return ""


class _NotAMappingError(Exception):
    """An override goes into something that has no keys."""


def _with_value(node: Node, parts: tuple[str, ...], value: Node, done: KeyPath) -> Node:
    """The tree with `value` at `parts`. A null at the top level removes what is there."""
    if not parts:
        return value
    if node.value is None:
        node = Node({}, value.mark)
    if not isinstance(node.value, dict):
        what = "a list" if isinstance(node.value, list) else "a single value"
        said = f"{dotted(done)} is {what}. Set it as a whole: --set {dotted(done)}=..."
        raise _NotAMappingError(said)
    key, *rest = parts
    entries = dict(node.value)
    if not done and not rest and key in entries and value.value is None and not value.refused:
        del entries[key]
    else:
        below = entries.get(key, Node({}, value.mark))
        entries[key] = _with_value(below, tuple(rest), value, (*done, key))
    return replace(node, value=entries)
