"""Pydantic's errors for a config -> problems with position, one for each mistake of the user.

Pydantic reports every alternative of a union by itself, with the alternative's name inside the
location. Here the alternatives of one value become one problem again.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.config import messages
from luthier.config.document import KeyPath, Node, Problem, nearest
from luthier.config.section import Section
from luthier.config.shape import Types, branch, inside, is_model
from luthier.gates import GATES

_TAG_ERRORS = {"union_tag_invalid", "union_tag_not_found"}
_KEY_ERRORS = {"missing", "extra_forbidden"}


@dataclass(frozen=True)
class _Finding:
    path: KeyPath
    union: tuple[tuple[KeyPath, str], ...]  # the alternatives chosen on the way: where, which
    places: Types  # the types at `path`
    around: Types  # the types of the mapping or list that `path` is in
    error: Mapping[str, Any]


def problems_of(
    errors: Iterable[Mapping[str, Any]], model: type[Section], root: Node
) -> list[Problem]:
    """All problems, those left out that the YAML reader has reported already."""
    found = [_located(error, model) for error in errors]
    by_place: dict[KeyPath, list[_Finding]] = defaultdict(list)
    for finding in _united(found, 0):
        by_place[finding.path].append(finding)
    return [
        problem
        for path, findings in by_place.items()
        for problem in _problems_at(path, findings, model, root)
    ]


def _located(error: Mapping[str, Any], model: type[Section]) -> _Finding:
    path: KeyPath = ()
    union: list[tuple[KeyPath, str]] = []
    around: Types = ()
    places: Types = (model,)
    choosing = False
    for part in error["loc"]:
        if part == "[key]":
            break
        if choosing:
            union.append((path, str(part)))
            places, choosing = branch(places, str(part)), False
            continue
        path, around, places = (*path, part), places, inside(places, part)
        choosing = len(places) > 1
    if error["type"] in _TAG_ERRORS:  # said of the union; meant is the key that chooses
        path, around = (*path, error["ctx"]["discriminator"].strip("'")), places
    return _Finding(path, tuple(union), places, around, error)


def _united(findings: Sequence[_Finding], depth: int) -> Iterator[_Finding]:
    """For each value that may be several things: what it comes nearest to, or all of them."""
    by_union: dict[KeyPath, dict[str, list[_Finding]]] = defaultdict(lambda: defaultdict(list))
    for finding in findings:
        if len(finding.union) <= depth:
            yield finding
        else:
            path, label = finding.union[depth]
            by_union[path][label].append(finding)
    for path, labels in by_union.items():
        branches = [list(_united(branch_, depth + 1)) for branch_ in labels.values()]
        entered = [one for one in branches if any(finding.path != path for finding in one)]
        if entered:
            yield from _nearest_branch(path, entered)
        else:
            yield from (finding for one in branches for finding in one)


def _nearest_branch(path: KeyPath, branches: Sequence[list[_Finding]]) -> list[_Finding]:
    """The alternative that the user meant; where that is open, one finding that names them all."""
    best = min(_distance(one) for one in branches)
    chosen = [one for one in branches if _distance(one) == best]
    needed = [[str(f.path[-1]) for f in one if f.error["type"] == "missing"] for one in chosen]
    by_keys = all(f.error["type"] in _KEY_ERRORS for one in chosen for f in one)
    if len(chosen) == 1 or not by_keys or not all(needed):
        return chosen[0]
    said = "must have " + ", or ".join(" and ".join(keys) for keys in needed)
    error = {"type": "value_error", "loc": path, "ctx": {"error": said}}
    return [_Finding(path, (), (), (), error)]


def _distance(findings: Sequence[_Finding]) -> tuple[int, int]:
    """How far the value is from an alternative: keys that it cannot mean, then mistakes."""
    unknown = [one for one in findings if one.error["type"] == "extra_forbidden"]
    strange = [one for one in unknown if not messages.close_key(one.path, one.around)]
    return len(strange), len({one.path for one in findings})


def _problems_at(
    path: KeyPath, findings: Sequence[_Finding], model: type[Section], root: Node
) -> Iterator[Problem]:
    node = nearest(root, path)
    if node.refused:
        return
    expected = [one.error for one in findings if messages.is_expectation(one.error)]
    right_kind = [error for error in expected if not messages.is_other_kind(error)]
    if right_kind and any(error["type"] != "literal_error" for error in right_kind):
        expected = right_kind
    if expected and path[:1] == ("gates",) and expected[0]["loc"][-1] == "[key]":
        yield Problem(node.mark, messages.unknown_gate(path, GATES))
    elif expected:
        yield Problem(node.mark, messages.expectation(path, expected, node))
    for finding in findings:
        if finding.error["type"] == "extra_forbidden":
            text = messages.unknown_key(path, finding.around, (model,))
            yield Problem(node.mark, text)
        elif not messages.is_expectation(finding.error):
            text = messages.statement(path, finding.error, node, _description(finding))
            yield Problem(node.mark, text)


def _description(finding: _Finding) -> str | None:
    for one in finding.around:
        if is_model(one) and finding.path[-1] in one.model_fields:
            description = one.model_fields[finding.path[-1]].description
            return description.rstrip(".") if description else None
    return None
