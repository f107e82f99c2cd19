"""What a GGUF of ours says of itself besides what llama.cpp's converter writes.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; `luthier.*` are our own, which
servers ignore.
"""

from collections.abc import Mapping, Sequence

from luthier.errors import ServingError
from luthier.serving.gguf_file import ArrayLength, GGUFHeader

Field = str | bool | int | float | list[str] | list[int]

_EOT, _EOM = "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"


def stop_fields(eos_token_id: int | None, stop_token_ids: Sequence[int]) -> Mapping[str, Field]:
    """The stop tokens of a run for a GGUF whose converter writes the tokenizer's own EOS.

    llama.cpp ends a reply at EOS, at `eot` and at `eom`: stop tokens that are not EOS go there.
    `luthier.stop_token_ids` has them all.

    Raises:
        ServingError: more stop tokens than the format has places for.
    """
    other = [token for token in dict.fromkeys(stop_token_ids) if token != eos_token_id]
    keys = (_EOT, _EOM)
    if len(other) > len(keys):
        raise ServingError(
            f"stop tokens {', '.join(map(str, other))}: besides EOS a GGUF holds "
            f"{len(keys)}. Train with fewer stop tokens."
        )
    named: dict[str, Field] = dict(zip(keys, other, strict=False))
    return named | {"luthier.stop_token_ids": list(stop_token_ids)}


def provenance_fields(
    name: str,
    lineage: Mapping[str, str],
    *,
    licence: str | None = None,
    context_tokens: int | None = None,
) -> Mapping[str, Field]:
    """Where a GGUF comes from.

    Args:
        name: of the run.
        lineage: artifact keys by slot (`model`, `base`, `dataset`, ...).
        licence: SPDX expression of the base model's licence, where one is known.
        context_tokens: the context that the run's servers are told to keep. The model's own
            stands in `<architecture>.context_length`.
    """
    fields: dict[str, Field] = {"general.quantized_by": "Luthier", "luthier.run": name}
    fields |= {f"luthier.{slot}_key": key for slot, key in sorted(lineage.items())}
    if licence is not None:
        fields["general.license"] = licence
    if context_tokens is not None:
        fields["luthier.context_length"] = context_tokens
    return fields


def differing_fields(header: GGUFHeader, fields: Mapping[str, Field]) -> list[str]:
    """Keys that the header has not, or with another value; of arrays only the length is read."""
    return [key for key, value in fields.items() if not _same(header.metadata.get(key), value)]


def _same(found: object, wanted: Field) -> bool:
    if isinstance(found, ArrayLength):
        return isinstance(wanted, list) and found.length == len(wanted)
    if isinstance(wanted, float) and isinstance(found, float):
        import struct

        (rounded,) = struct.unpack("<f", struct.pack("<f", wanted))
        return bool(found == rounded)
    return type(found) is type(wanted) and found == wanted
