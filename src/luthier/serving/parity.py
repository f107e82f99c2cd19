"""Whether a server turns texts and conversations into the token ids of training."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import ServingError
from luthier.gates import Gate, check
from luthier.serving.answers import ProbeSet
from luthier.serving.corpus import nasty_texts
from luthier.serving.golden import accepted, template_renderer
from luthier.serving.llama_server import LlamaServer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN_MISMATCHES = 3
_SHOWN_CHARACTERS = 60
_TOKENIZE_CONTEXT_TOKENS = 512


@dataclass(frozen=True)
class IdComparison:
    """One text and its token ids by two tokenizers; `how` says in which mode."""

    text: str
    how: str
    expected: tuple[int, ...]
    found: tuple[int, ...]

    @property
    def holds(self) -> bool:
        """Whether the two agree."""
        return self.expected == self.found


def parity_texts(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str] = ()) -> list[str]:
    """The nasty corpus with every special token of `tokenizer`, and `texts`."""
    specials = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    return list(dict.fromkeys([*nasty_texts(specials), *texts]))


def reference_ids(
    gguf_path: Path, texts: Sequence[str], *, parse_special: bool = True
) -> list[list[int]]:
    """llama.cpp's token ids of `texts` under the tokenizer that a GGUF file carries.

    Raises:
        ServingError: llama.cpp is not installed or cannot load the file.
    """
    with LlamaServer(gguf_path, context_tokens=_TOKENIZE_CONTEXT_TOKENS) as server:
        return server.tokenize(texts, parse_special=parse_special)


def training_ids(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, parse_special: bool = True
) -> list[list[int]]:
    """Token ids of `texts` as training makes them, nothing added.

    Training encodes rendered conversations with `parse_special=True`: a special token's spelling
    is the token. `False` is for text that must not be able to spell one.
    """
    batch = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=not parse_special
    )
    return [list(ids) for ids in batch["input_ids"]]


def compare_texts(
    tokenizer: "PreTrainedTokenizerBase", server: LlamaServer, texts: Sequence[str]
) -> list[IdComparison]:
    """Each text by both tokenizers, special tokens parsed and not."""
    comparisons = []
    for parse_special in (True, False):
        how = "special tokens parsed" if parse_special else "special tokens as text"
        expected = training_ids(tokenizer, texts, parse_special=parse_special)
        found = server.tokenize(texts, parse_special=parse_special)
        comparisons += [
            IdComparison(text, how, tuple(left), tuple(right))
            for text, left, right in zip(texts, expected, found, strict=True)
        ]
    return comparisons


def compare_prompts(server: LlamaServer, probes: ProbeSet) -> list[IdComparison]:
    """Each probe's stored prompt ids against the server's own, made from the messages."""
    if not probes.from_messages:
        return []
    rendered = [server.apply_template(probe.messages) for probe in probes.probes]
    return [
        IdComparison(text, "rendered by the server", probe.prompt_ids, tuple(found))
        for probe, text, found in zip(
            probes.probes, rendered, server.tokenize(rendered, add_special=True), strict=True
        )
    ]


def compare_chats(tokenizer: "PreTrainedTokenizerBase", server: LlamaServer) -> list[IdComparison]:
    """Each golden conversation that the template takes, rendered here and by the server (F07)."""
    golden = accepted(template_renderer(tokenizer))
    expected = training_ids(tokenizer, [prompt for _, prompt in golden])
    rendered = [server.apply_template(one.messages) for one, _ in golden]
    return [
        IdComparison(text, f"golden conversation {one.name}", tuple(ours), tuple(found))
        for (one, _), text, ours, found in zip(
            golden, rendered, expected, server.tokenize(rendered, add_special=True), strict=True
        )
    ]


def tokenizer_parity(tokenizer: "PreTrainedTokenizerBase", gguf_path: Path) -> Gate:
    """The gate of an imported base: `tokenizer` against llama.cpp on the GGUF it came from.

    Raises:
        ServingError: llama.cpp is not installed or cannot load the file.
    """
    with LlamaServer(gguf_path, context_tokens=_TOKENIZE_CONTEXT_TOKENS) as server:
        return ids_gate(
            "tokenizer-parity", compare_texts(tokenizer, server, parity_texts(tokenizer))
        )


def ids_gate(gate_id: str, comparisons: Sequence[IdComparison], what: str = "") -> Gate:
    """No text may differ; the detail shows the first that do.

    Raises:
        ServingError: nothing was compared, which proves nothing.
    """
    if not comparisons:
        raise ServingError(f"{gate_id}: no texts to compare.")
    mismatches = [comparison for comparison in comparisons if not comparison.holds]
    shown = [_shown(mismatch) for mismatch in mismatches[:_SHOWN_MISMATCHES]]
    detail = "; ".join([f"{what}{len(comparisons)} texts compared", *shown])
    return check(gate_id, len(mismatches), "==", 0, detail)


def _shown(mismatch: IdComparison) -> str:
    at = next(
        (
            i
            for i, pair in enumerate(zip(mismatch.expected, mismatch.found, strict=False))
            if pair[0] != pair[1]
        ),
        min(len(mismatch.expected), len(mismatch.found)),
    )
    window = slice(max(0, at - 1), at + 4)
    return (
        f"{mismatch.text[:_SHOWN_CHARACTERS]!r} ({mismatch.how}) from token {window.start}: "
        f"trained {list(mismatch.expected[window])}, served {list(mismatch.found[window])}"
    )
