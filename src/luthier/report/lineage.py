"""What an artifact was made from, as a tree and as JSON."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.report import spelling
from luthier.report.terminal import STATUS_STYLES, printing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.text import Text
    from rich.tree import Tree

    from luthier.store import ExternalFile, Lineage

SHOWN_DIGITS = 12


def lineage_json(traced: "Lineage") -> dict[str, Any]:
    """The tree as JSON values: slot, ref, key, state, digest, the checkpoint it is forked
    from, files from outside, inputs."""
    artifact = traced.artifact
    return {
        "slot": traced.slot,
        "ref": traced.ref,
        "key": traced.key,
        "state": traced.state,
        "digest": artifact.digest if artifact else None,
        "forked_from": forked_from(traced),
        "external_files": [
            file.model_dump(mode="json")
            for file in (artifact.manifest.external_files if artifact else [])
        ],
        "inputs": [lineage_json(earlier) for earlier in traced.inputs],
    }


def forked_from(traced: "Lineage") -> str | None:
    """KEY@STEP of the checkpoint that a training went on from under other settings."""
    fork = traced.artifact.manifest.facts.get("fork") if traced.artifact else None
    return f"{fork['parent_key']}@{fork['parent_step']}" if fork else None


@dataclass(frozen=True)
class Branch:
    """An artifact in a tree that shows each artifact's own inputs once.

    `is_repeated`: its inputs stand where it came first.
    """

    node: "Lineage"
    is_repeated: bool
    files: "Sequence[ExternalFile]"
    inputs: "Sequence[Branch]"


def unfold(traced: "Lineage", shown: set[str] | None = None) -> Branch:
    """The tree to show, without repeating what an artifact was made from."""
    shown = set() if shown is None else shown
    files = traced.artifact.manifest.external_files if traced.artifact else []
    if traced.key in shown:
        return Branch(traced, bool(files or traced.inputs), [], [])
    shown.add(traced.key)
    return Branch(traced, False, files, [unfold(earlier, shown) for earlier in traced.inputs])


def lineage_tree(traced: "Lineage") -> None:
    """Print the tree; what is missing, damaged or made anew says so."""
    with printing() as console:
        if console.is_terminal:
            console.print(_tree(unfold(traced)))
        else:
            for line in _plain_lines(unfold(traced), depth=0):
                console.print(line, soft_wrap=True)


def _tree(branch: Branch) -> "Tree":
    from rich.tree import Tree

    tree = Tree(_spelled(branch), guide_style="dim")
    for file in branch.files:
        tree.add(_spelled_file(file))
    tree.children.extend(_tree(earlier) for earlier in branch.inputs)
    return tree


def _plain_lines(branch: Branch, depth: int) -> "Iterator[str]":
    yield "  " * depth + _spelled(branch).plain
    for file in branch.files:
        yield "  " * (depth + 1) + _spelled_file(file).plain
    for earlier in branch.inputs:
        yield from _plain_lines(earlier, depth + 1)


def _spelled(branch: Branch) -> "Text":
    from rich.text import Text

    node, line = branch.node, Text()
    if node.slot is not None:
        line.append(f"{node.slot}: ", style="dim")
    line.append(node.ref, style="bold")
    line.append(f"  {node.key[:SHOWN_DIGITS]}", style="dim")
    if node.state != "present":
        line.append(f"  {node.state}", style=STATUS_STYLES[node.state])
    if branch.is_repeated:
        line.append("  (as above)", style="dim")
    elif (fork := forked_from(node)) is not None:
        key, _, step = fork.partition("@")
        line.append(f"  forked from {key[:SHOWN_DIGITS]} at step {step}", style="dim")
    return line


def _spelled_file(file: "ExternalFile") -> "Text":
    from rich.text import Text

    line = Text(f"file {spelling.printable(file.path)}")
    line.append(f"  {spelling.size(file.size_bytes)}  {file.sha256[:SHOWN_DIGITS]}", style="dim")
    return line
