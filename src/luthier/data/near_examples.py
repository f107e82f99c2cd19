"""Some of the pairs that the search found, with their texts, for people to judge."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from luthier.data.contamination import BenchmarkTexts
from luthier.data.hashed import Hashed, Texts
from luthier.data.near_pairs import Measured
from luthier.data.shingles import similarity, word_pairs
from luthier.data.summary import NearExample

Kind = Literal["near-duplicate", "leak-near", "leak-ngram", "contaminated"]

EXAMPLES_A_KIND = 5
_TEXT_LIMIT_CHARACTERS = 300


def examples(
    found: Mapping[Kind, Measured], hashed: Hashed, texts: Texts, benchmarks: BenchmarkTexts
) -> list[NearExample]:
    """The first pairs of each kind. `similarity` is that of the prompts where words are shared."""
    shown = []
    for kind, pairs in found.items():
        few = _measured(pairs, hashed)
        for row, other, value in zip(
            few.first.tolist(), few.second.tolist(), few.similarity.tolist(), strict=True
        ):
            left, because = (
                _spelled(number, kind, hashed, texts, benchmarks) for number in (row, other)
            )
            shown.append(
                NearExample(
                    kind=kind,
                    left_out=left[0],
                    because_of=because[0],
                    similarity=round(value, 4),
                    text=left[1],
                    other=because[1],
                )
            )
    return shown


def _measured(pairs: Measured, hashed: Hashed) -> Measured:
    """The first few pairs, the prompts of those without a similarity compared."""
    import numpy as np

    few = pairs.only(np.arange(len(pairs.first)) < EXAMPLES_A_KIND)
    if not len(few.first) or not np.isnan(few.similarity).any():
        return few
    sides = (word_pairs(hashed.fetch(rows)[0]).sets() for rows in (few.first, few.second))
    found = similarity(*sides)
    return replace(few, similarity=np.where(np.isnan(few.similarity), found, few.similarity))


def _spelled(
    row: int, kind: Kind, hashed: Hashed, texts: Texts, benchmarks: BenchmarkTexts
) -> tuple[str, str]:
    """`file:line` of a row and its text, capped: the prompt, and the reply where it counted."""
    import numpy as np

    part = int(np.searchsorted(np.array(hashed.ends), row, side="right"))
    number = row - hashed.span(part).start
    source: Texts = texts
    if part >= texts.parts:
        source, part = benchmarks, part - texts.parts
    text = source.prompts(part)[number]
    if kind in ("near-duplicate", "contaminated"):
        text = f"{text}\n{source.replies(part)[number]}".rstrip("\n")
    return source.place(part, number), text[:_TEXT_LIMIT_CHARACTERS]
