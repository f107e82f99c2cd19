"""Walks the types of a config along a key path, to say what a place may hold."""

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from luthier.config.document import KeyPath

Types = tuple[Any, ...]  # what a place may be, without None


def alternatives(annotation: Any) -> Types:
    """The types a value of this annotation may have: unions taken apart, None left out."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(one for part in get_args(annotation) for one in alternatives(part))
    return () if annotation is types.NoneType or annotation is None else (annotation,)


def is_model(one: Any) -> bool:
    """Whether this type is a mapping with declared keys."""
    return isinstance(one, type) and issubclass(one, BaseModel)


def inside(places: Types, part: str | int) -> Types:
    """What a value in `places` holds under a key or an index."""
    found: list[Any] = []
    for one in places:
        origin: Any = get_origin(one)
        arguments = get_args(one)
        if is_model(one):
            info = one.model_fields.get(part)
            found += alternatives(info.annotation) if info else ()
        elif isinstance(part, int) and origin is tuple and Ellipsis not in arguments:
            found += alternatives(arguments[part]) if part < len(arguments) else ()
        elif isinstance(part, int) and origin in (list, set, frozenset, tuple):
            found += alternatives(arguments[0])
        elif isinstance(part, str) and isinstance(origin, type) and issubclass(origin, Mapping):
            found += alternatives(arguments[1])
    return tuple(dict.fromkeys(found))


def branch(places: Types, label: str) -> Types:
    """The alternatives that pydantic means by a label in an error's location."""
    chosen = tuple(one for one in places if _is_called(one, label))
    return chosen or places


def _is_called(one: Any, label: str) -> bool:
    if not is_model(one):
        name = getattr(get_origin(one) or one, "__name__", "")
        return bool(name) and label.partition("[")[0].lower() == name.lower()
    tags = [
        choice
        for info in one.model_fields.values()
        for choice in get_args(info.annotation)
        if isinstance(choice, str)
    ]
    return label == one.__name__ or label in tags


def known_keys(places: Types) -> list[str]:
    """The keys that a mapping in `places` may have, in the order of declaration."""
    return list(dict.fromkeys(key for one in places if is_model(one) for key in one.model_fields))


def all_paths(places: Types, above: KeyPath = (), within: Types = ()) -> Iterator[KeyPath]:
    """Every declared key from here down, lists and dicts left out, no model inside itself."""
    for one in places:
        if is_model(one) and one not in within:
            for key, info in one.model_fields.items():
                yield (*above, key)
                below = alternatives(info.annotation)
                yield from all_paths(below, (*above, key), (*within, one))
