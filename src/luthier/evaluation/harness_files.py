"""Task YAMLs of lm-evaluation-harness: which data they name, and whether they would run code.

lm-eval runs Python that a YAML names: functions (`!function`), classes, loading scripts of
metrics and of generation. All of it is refused here. A YAML is looked at as nodes, so nothing of
it is constructed, and with the parser that lm-eval uses. A key counts wherever it stands:
groups hold tasks, and aliases can put a mapping anywhere.
"""

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from luthier.errors import DataError

_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_PLAIN_TAG = "tag:yaml.org,2002:"
_BUILDERS = ("arrow", "csv", "json", "parquet", "text")  # of datasets; others unpack or query
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_CODE_KEYS = {
    "class": "a class is code",
    "custom_dataset": "it is code",
    "custom_generate": "it is code",
    "hf_evaluate": "metrics of the package evaluate are scripts",
    "trust_remote_code": "it runs code of a data set",
    "unsafe_code": "it runs what the model writes",
    "use_prompt": "it reads prompts from other files; write the text into doc_to_text",
}
_GENERATION_KEYS = {
    "do_sample", "early_stopping", "length_penalty", "max_gen_toks", "max_length",
    "max_new_tokens", "max_tokens", "min_p", "no_repeat_ngram_size", "num_beams",
    "repetition_penalty", "temperature", "top_k", "top_p", "typical_p", "until",
}  # fmt: skip
_TRUST = "If you trust this folder's code, set evaluate.harness.trust_task_code: true."


@dataclass(frozen=True)
class _Item:
    """A key of a mapping and its value, or a node with a tag of its own and no key."""

    path: Path
    key: str
    value: yaml.Node

    @property
    def place(self) -> str:
        return f"{self.path}:{self.value.start_mark.line + 1}"

    @property
    def texts(self) -> list[str]:
        """The value's scalars; those of a list or mapping one after another, without its keys."""
        nodes = _nodes(self.value, with_keys=False)
        return [node.value for node in nodes if isinstance(node, yaml.ScalarNode)]


def data_files(folder: Path) -> list[Path]:
    """The local data that the YAMLs of a folder name, each once.

    Raises:
        DataError: a YAML cannot be read, or names data that is not there.
    """
    found: dict[Path, None] = {}
    for items in _yamls(folder):
        bases = [text for item in items if item.key == "data_dir" for text in item.texts]
        found |= dict.fromkeys(map(Path, bases))
        for item in items:
            if item.key == "data_files":
                found |= dict.fromkeys(_local(item, bases))
    return list(found)


def refuse_code(folder: Path) -> None:
    """Look at every task YAML of a folder.

    Raises:
        DataError: a YAML cannot be read, or would run code or read what is not in the key; all
            that was found, one a line.
    """
    import lm_eval.api.metrics  # noqa: F401, which registers them
    from lm_eval.api.registry import metric_registry

    known = set(metric_registry)
    root = folder.resolve()
    problems = [
        f"{item.place}: {problem}"
        for items in _yamls(folder)
        for item in items
        if (problem := _problem(item, known, root)) is not None
    ]
    if problems:
        raise DataError("\n".join([*problems, _TRUST]))


def _problem(item: _Item, metrics: set[str], root: Path) -> str | None:
    """What is wrong with one item, and what to do."""
    if not item.key:
        return f"{item.value.tag} would run code. Write a template instead, as {{{{question}}}}."
    if item.key in _CODE_KEYS and [text.lower() for text in item.texts] != ["false"]:
        return f"{item.key} is refused: {_CODE_KEYS[item.key]}. Remove it."
    match item.key:
        case "include":
            return _include_problem(item, root)
        case "dataset_path":
            return _dataset_problem(item)
        case "data_files" | "data_dir":
            return _remote_problem(item)
        case "metric":
            return _metric_problem(item, metrics)
        case "generation_kwargs":
            return _generation_problem(item)
    return None


def _remote_problem(item: _Item) -> str | None:
    if any("::" in text or "://" in text for text in item.texts):
        return f"{item.key} is not on this machine. Download it and name the file."
    return None


def _metric_problem(item: _Item, metrics: set[str]) -> str | None:
    if unknown := [text for text in item.texts if text not in metrics]:
        return f"metric {unknown[0]} is none of lm-eval's own, so a script. Use one of those."
    return None


def _generation_problem(item: _Item) -> str | None:
    if not isinstance(item.value, yaml.MappingNode):
        return None
    names = [str(key.value) for key, _ in item.value.value]
    if unknown := [name for name in names if name not in _GENERATION_KEYS]:
        return f"generation_kwargs.{unknown[0]} is not known to be harmless. Remove it."
    return None


def _include_problem(item: _Item, root: Path) -> str | None:
    for text in item.texts:
        path = (item.path.parent / text).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            return f"include {text} is no file of {root.name}. Put it into that folder."
    return None


def _dataset_problem(item: _Item) -> str | None:
    [text] = item.texts or [""]
    if text in _BUILDERS:
        return None
    if _HUB_NAME.fullmatch(text) and not text.endswith(".py") and not Path(text).exists():
        return None
    return (
        f"dataset_path {text!r} is refused: a script or a folder could be code. Write "
        "dataset_path: json (or csv, parquet, text, arrow) and name the files in "
        "dataset_kwargs.data_files, or a data set of the hub as owner/name."
    )


def _local(item: _Item, bases: list[str]) -> Iterator[Path]:
    """The files that `data_files` names; those below a `data_dir` are found with it."""
    for text in item.texts:
        if "://" in text or "::" in text:
            continue  # not local; only trusted YAMLs may
        found = sorted(glob.glob(text, recursive=True))  # noqa: PTH207, patterns may be absolute
        if not found and any(glob.glob(str(Path(base) / text)) for base in bases):  # noqa: PTH207
            continue
        if not found:
            raise DataError(
                f"{item.place}: data file {text} does not exist. Paths of data are relative to "
                "the working directory."
            )
        yield from map(Path, found)


def _yamls(folder: Path) -> Iterator[list[_Item]]:
    """The items of every YAML that lm-eval finds in a folder, and of those these include."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Correct evaluate.harness.include_path.")
    left = sorted(folder.rglob("*.yaml"))
    if not left:
        raise DataError(f"{folder} has no YAML files. Correct evaluate.harness.include_path.")
    seen: set[Path] = set()
    while left:
        path = left.pop(0)
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        items = _items(path, folder)
        yield items
        for item in items:
            if item.key == "include":
                left += [one for text in item.texts if (one := path.parent / text).is_file()]


def _items(path: Path, folder: Path) -> list[_Item]:
    if path.is_relative_to(folder) and any(
        part.startswith(".") for part in path.relative_to(folder).parts if part != ".."
    ):
        raise DataError(f"{path}: a name that begins with a dot is not in the key. Rename it.")
    try:
        root = yaml.compose(path.read_bytes(), Loader=_LOADER)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DataError(f"{path}:{line}: {error.problem or 'not YAML'}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not YAML ({error}).") from error
    return [item for node in _nodes(root) for item in _node_items(path, node)]


def _node_items(path: Path, node: yaml.Node) -> Iterator[_Item]:
    if not node.tag.startswith(_PLAIN_TAG) or "python" in node.tag:
        yield _Item(path, "", node)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield _Item(path, str(key.value), value)


def _nodes(root: yaml.Node | None, *, with_keys: bool = True) -> Iterator[yaml.Node]:
    """Every node once: an alias stands for its anchor's node."""
    left, seen = [root] if root is not None else [], set[int]()
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            for key, value in reversed(node.value):
                left += [value, key] if with_keys else [value]
        elif isinstance(node, yaml.SequenceNode):
            left += reversed(node.value)
