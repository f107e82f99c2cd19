"""What stands beside the exported models: README.md, the card, licences and SHA256SUMS.

All but `measured/` is the same for the same key: no times, no machine, no version numbers.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.models.licence import licence_files
from luthier.serving import markdown
from luthier.serving.card import model_card
from luthier.serving.parity_tables import QuantizationParity, parity_tables
from luthier.serving.run_record import run_record
from luthier.store.artifact import SCRATCH_NAME
from luthier.store.files import entries_below, sha256_files, write_atomically
from luthier.store.keys import MEASURED_FOLDER

if TYPE_CHECKING:
    from luthier.store.artifact import Artifact

README_NAME = "README.md"
CARD_NAME = "MODEL_CARD.md"
RUN_NAME = "RUN.md"
CHECKSUMS_NAME = "SHA256SUMS"
HUB_FOLDER = "hub"
_KEY_DIGITS = 16
_SHOWN_DIGITS = 12
_VLLM_URL = "http://127.0.0.1:8000/v1"
_OLLAMA_URL = "http://127.0.0.1:11434/v1"
_LLAMA_CPP_URL = "http://127.0.0.1:8080/v1"


@dataclass(frozen=True)
class BundleFacts:
    """What README and card are made from.

    `artifacts` are the stage's inputs by slot: `model`, `dataset` and `base`, and where the run
    has them `adapter`, `before` (the adapter before dpo), `evaluation` and `baseline`; what the
    card finds of none of them it says is unknown. `adapter_command` are the shell lines, typed in
    the bundle, by which vLLM serves `vllm-adapter/`; empty without that target.
    """

    name: str
    artifacts: Mapping[str, "Artifact"]
    parity: Sequence[QuantizationParity]
    stop_tokens: Sequence[str]
    context_tokens: int
    system_prompt: str | None
    adapter_command: Sequence[str] = field(default_factory=tuple)


def write_documents(bundle: Path, facts: BundleFacts) -> None:
    """Write what goes with the models that stand in `bundle`, whatever targets these are.

    MODEL_CARD.md, also as the README.md of `hub/`; the base's licence files, here and in `hub/`;
    `measured/RUN.md`, what differs from run to run; README.md, and SHA256SUMS over all but
    `measured/`. What is not of an export, such as the scratch folder, is left alone.

    Raises:
        DataError: the evaluation or the dataset cannot be read.
    """
    card = model_card(facts)
    write_atomically(bundle / CARD_NAME, card)
    if (bundle / HUB_FOLDER).is_dir():
        write_atomically(bundle / HUB_FOLDER / README_NAME, card)
    for folder in (bundle, bundle / HUB_FOLDER):
        if folder.is_dir():
            for licence in licence_files(facts.artifacts["base"].path):
                shutil.copyfile(licence, folder / licence.name)
    (bundle / MEASURED_FOLDER).mkdir(exist_ok=True)
    write_atomically(bundle / MEASURED_FOLDER / RUN_NAME, run_record(facts.artifacts))
    digests = _digests(bundle)
    readme = _readme(bundle, facts, digests)
    write_atomically(bundle / README_NAME, readme)
    digests |= dict(zip([README_NAME], sha256_files([bundle / README_NAME]), strict=True))
    lines = [f"{digest}  {name}\n" for name, digest in sorted(digests.items())]
    write_atomically(bundle / CHECKSUMS_NAME, "".join(lines))


def _digests(bundle: Path) -> dict[str, str]:
    """SHA-256 by name of all that is the same for the same key; a linked file is read once."""
    ours = (SCRATCH_NAME, MEASURED_FOLDER, CHECKSUMS_NAME, README_NAME)
    paths = [
        path for path in entries_below(bundle) if path.relative_to(bundle).parts[0] not in ours
    ]
    first: dict[tuple[int, int], Path] = {}
    for path in paths:
        first.setdefault(_inode(path), path)
    found = dict(zip(first, sha256_files(first.values()), strict=True))
    return {path.relative_to(bundle).as_posix(): found[_inode(path)] for path in paths}


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _readme(bundle: Path, facts: BundleFacts, digests: Mapping[str, str]) -> str:
    files = [(markdown.code(name), digest[:_SHOWN_DIGITS]) for name, digest in digests.items()]
    inputs = [
        (slot, made.kind, made.key[:_KEY_DIGITS]) for slot, made in sorted(facts.artifacts.items())
    ]
    sections = [
        f"# {facts.name}\n\nA fine-tuned model, exported by Luthier. {CARD_NAME} says what it was "
        f"trained on,\nhow it was measured and what its limits are. `sha256sum -c "
        f"{CHECKSUMS_NAME}` checks its files.\n",
        "## Serve it\n\nAll commands are typed in this folder. `luthier serve-check` asks a "
        "running server whether\nit is this model, with its template, stop tokens and context.\n",
        *_commands(bundle, facts),
        *(["## Measured\n\n" + parity_tables(facts.parity)] if facts.parity else []),
        _limits(facts),
        "## Files\n\n" + markdown.table(("file", f"SHA-256, first {_SHOWN_DIGITS} digits"), files),
        "## Made from\n\n" + markdown.table(("input", "kind", "key"), inputs),
    ]
    return "\n".join(sections)


def _commands(bundle: Path, facts: BundleFacts) -> Iterator[str]:
    if (bundle / "vllm").is_dir():
        yield _vllm(facts)
    if facts.adapter_command:
        yield _section("vLLM, the adapter on its base", facts.adapter_command)
        yield _check(_VLLM_URL)
    modelfiles = [one for one in facts.parity if one.modelfile is not None]
    if modelfiles:
        yield _ollama(facts, modelfiles)
    if facts.parity:
        yield _llama_cpp(facts)
    if (bundle / HUB_FOLDER).is_dir():
        yield _hub()


def _vllm(facts: BundleFacts) -> str:
    lines = [
        "vllm serve ./vllm --config vllm/serve.yaml",
        *_curl(_VLLM_URL, _request(facts, model=facts.name)),
    ]
    return f"{_section('vLLM', lines)}\n{_check(_VLLM_URL)}"


def _ollama(facts: BundleFacts, parity: Sequence[QuantizationParity]) -> str:
    lines = [f"ollama create {facts.name}:{one.quantization} -f {one.modelfile}" for one in parity]
    lines.append(f"ollama run {facts.name}:{parity[0].quantization}")
    return f"{_section('Ollama', lines)}\n{_check(_OLLAMA_URL)}"


def _llama_cpp(facts: BundleFacts) -> str:
    lines = [
        f"llama-server -m {facts.parity[0].file} -c {facts.context_tokens} --temp 0",
        *_curl(_LLAMA_CPP_URL, _request(facts)),
    ]
    tried = "`luthier serve .` serves it too, for trying it at once. Other types: other files.\n"
    return f"{_section('llama.cpp', lines)}\n{_check(_LLAMA_CPP_URL)}\n{tried}"


def _hub() -> str:
    return (
        "### Hugging Face hub\n\n`hub/` is ready for upload. Nothing is uploaded unless `--yes` "
        "is given; without it the\ncommand shows what would be.\n\n"
        + markdown.fenced("luthier upload . --repo OWNER/NAME --private", "sh")
        + "\n"
    )


def _section(title: str, lines: Sequence[str]) -> str:
    return f"### {title}\n\n{markdown.fenced(chr(10).join(lines), 'sh')}\n"


def _check(url: str) -> str:
    return markdown.fenced(f"luthier serve-check . --endpoint {url}", "sh") + "\n"


def _curl(url: str, request: str) -> Sequence[str]:
    return (
        f"curl {url}/chat/completions -H 'Content-Type: application/json' \\",
        f"  -d '{request}'",
    )


def _request(facts: BundleFacts, **fields: str) -> str:
    """A chat request as the model was trained: with its system prompt, which no server adds."""
    messages = [{"role": "user", "content": "..."}]
    if facts.system_prompt:
        messages.insert(0, {"role": "system", "content": facts.system_prompt})
    request = json.dumps({**fields, "messages": messages}, ensure_ascii=False)
    return request.replace("'", "'\\''")  # inside single quotes of a shell


def _limits(facts: BundleFacts) -> str:
    stops = ", ".join(markdown.code(token) for token in facts.stop_tokens)
    return f"""## Limits

- Replies end at {stops}; decoding is greedy, as evaluated.
- Context: {facts.context_tokens:,} tokens, prompt and reply together.
- Asked for anything but the trained task, or in another chat template, its quality is unknown.

{_system_note(facts.system_prompt)}"""


def _system_note(system_prompt: str | None) -> str:
    if system_prompt is None:
        return "It was trained without a system prompt of its own; send none.\n"
    return (
        "It was trained with one system prompt. Ollama's Modelfile has it; with vLLM and\n"
        "llama.cpp send it as the first message:\n\n"
        + markdown.fenced(system_prompt, "text")
        + "\n"
    )
