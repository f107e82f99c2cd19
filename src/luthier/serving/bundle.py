"""What stands beside the exported models: README.md and SHA256SUMS."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.serving.parity import AnswerParity
from luthier.store.files import sha256_file, write_atomically

README_NAME = "README.md"
CHECKSUMS_NAME = "SHA256SUMS"
_REF_DIGITS = 16
_SHOWN_DIGITS = 12


@dataclass(frozen=True)
class Exported:
    """One GGUF of the bundle, and how it compared with the merged model."""

    quantization: str
    file_name: str
    modelfile_name: str
    ids_compared: int
    id_mismatches: int
    answers: AnswerParity


@dataclass(frozen=True)
class BundleFacts:
    """What the README says; `lineage` has the key of each input by its slot."""

    name: str
    has_vllm: bool
    exported: Sequence[Exported]
    stop_tokens: Sequence[str]
    context_tokens: int
    system_prompt: str | None
    lineage: Mapping[str, str]


def write_documents(bundle: Path, facts: BundleFacts, files: Sequence[Path]) -> None:
    """Write README.md and, over it and `files` (relative to the bundle), SHA256SUMS."""
    digests = {path.as_posix(): sha256_file(bundle / path) for path in sorted(files)}
    write_atomically(bundle / README_NAME, _readme(facts, digests))
    digests[README_NAME] = sha256_file(bundle / README_NAME)
    lines = [f"{digest}  {name}\n" for name, digest in sorted(digests.items())]
    write_atomically(bundle / CHECKSUMS_NAME, "".join(lines))


def _readme(facts: BundleFacts, digests: Mapping[str, str]) -> str:
    files = [(name, digest[:_SHOWN_DIGITS]) for name, digest in digests.items()]
    inputs = [(slot, key[:_REF_DIGITS]) for slot, key in facts.lineage.items()]
    sections = [
        f"# {facts.name}\n\nA fine-tuned model, exported by Luthier. "
        f"`sha256sum -c {CHECKSUMS_NAME}` checks its files.\n",
        "## Serve it\n",
        *([_vllm_commands(facts)] if facts.has_vllm else []),
        *(_gguf_commands(facts, exported) for exported in facts.exported),
        *([_parity_table(facts.exported)] if facts.exported else []),
        _limits(facts),
        _table("## Files\n", ("file", f"SHA-256, first {_SHOWN_DIGITS} digits"), files),
        _table("## Made from\n", ("input", "key"), inputs),
    ]
    return "\n".join(sections)


def _vllm_commands(facts: BundleFacts) -> str:
    return f"""vLLM:

```sh
vllm serve ./vllm --config vllm/serve.yaml
curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{_request(facts, model=facts.name)}'
```
"""


def _gguf_commands(facts: BundleFacts, exported: Exported) -> str:
    tag = f"{facts.name}:{exported.quantization}"
    return f"""Ollama ({exported.quantization}):

```sh
ollama create {tag} -f ollama/{exported.modelfile_name}
ollama run {tag}
```

llama.cpp ({exported.quantization}):

```sh
llama-server -m ollama/{exported.file_name} -c {facts.context_tokens} --temp 0
curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{_request(facts)}'
```
"""


def _request(facts: BundleFacts, **fields: str) -> str:
    """A chat request as the model was trained: with its system prompt, which no server adds."""
    messages = [{"role": "user", "content": "..."}]
    if facts.system_prompt:
        messages.insert(0, {"role": "system", "content": facts.system_prompt})
    request = json.dumps({**fields, "messages": messages}, ensure_ascii=False)
    return request.replace("'", "'\\''")  # inside single quotes of a shell


def _parity_table(exported: Sequence[Exported]) -> str:
    header = (
        *("GGUF", "token ids differing", "answers equal", "score, merged", "score, served"),
        *("ended by a stop", "served as tuned"),
    )
    title = f"""## Measured

Through llama.cpp, greedy, on {exported[0].answers.probes} held-out rows, against the merged model
in float32. Score: share of answers that are the expected reply. Served as tuned: of the rows whose
answer tells base and tuned model apart.
"""
    return _table(title, header, [_parity_row(one) for one in exported])


def _parity_row(exported: Exported) -> Sequence[str]:
    answers = exported.answers
    return (
        exported.quantization,
        f"{exported.id_mismatches} of {exported.ids_compared} texts",
        _percent(answers.agreement),
        _percent(answers.merged_score),
        _percent(answers.served_score),
        _percent(answers.stopped),
        f"{_percent(answers.served_as_tuned)} of {answers.told_apart}",
    )


def _limits(facts: BundleFacts) -> str:
    stops = ", ".join(f"`{token}`" for token in facts.stop_tokens)
    return f"""## Limits

- Replies end at {stops}; decoding is greedy, as evaluated.
- Context: {facts.context_tokens} tokens, prompt and reply together.
- Asked for anything but the trained task, or in another chat template, its quality is unknown.

{_system_note(facts.system_prompt)}"""


def _system_note(system_prompt: str | None) -> str:
    if system_prompt is None:
        return "It was trained without a system prompt of its own; send none.\n"
    fence = "```"
    while fence in system_prompt:
        fence += "`"
    return (
        "It was trained with one system prompt. Ollama's Modelfile has it; with vLLM and\n"
        f"llama.cpp send it as the first message:\n\n{fence}text\n{system_prompt}\n{fence}\n"
    )


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return title + "\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
