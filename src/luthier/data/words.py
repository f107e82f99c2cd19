"""Texts as hashes of their words, a batch at a time, without a Python object a word.

Words are compared case-folded and in Unicode NFKC; punctuation and white space do not count.
Symbols that change what is asked do: a sign - * / % before a number, and + < = > ^ anywhere, are
words. In scripts without spaces between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer) each
letter is a word. Of a text with none of these, every run of other characters is a word; an empty
text has none and is similar to nothing.
"""

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from luthier.data.shingles import Ragged, joined, mix

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BATCH_CHARACTERS = 1 << 18  # arrays of a few megabytes, which stay in the processor's cache
_END = "\0"  # of a text: no letter, no space

# classes of characters; a word is a run of one class
_NONE, _LETTER, _SYMBOL, _ALONE, _SIGN, _SPACE = range(6)
# vowel signs and accents that are part of a word to a reader, though not `\w`
_MARKS = "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
_WITHOUT_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_CLASSES = {  # later ones prevail
    _SPACE: r"\s",
    _LETTER: rf"[\w{_MARKS}]",
    _SYMBOL: "[+<=>^]",
    _SIGN: "[-*/%]",
    _ALONE: f"[{_WITHOUT_SPACES}]",
}


def hash_words(texts: Sequence[str]) -> Ragged:
    """A 32-bit hash a word: two words share one with probability 2e-10, a pair of words 5e-20."""
    import numpy as np

    nothing = Ragged(np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int64))
    return joined([nothing, *map(_hash_batch, _batches(texts))])


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start = size = 0
    for number, text in enumerate(texts):
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield texts[start : number + 1]
            start, size = number + 1, 0
    if start < len(texts):
        yield texts[start:]


def _hash_batch(texts: Sequence[str]) -> Ragged:
    import numpy as np

    letters, classes = _characters(texts)
    ends = np.flatnonzero(letters == 0)
    starts, lengths = _runs(classes)
    found = np.bincount(np.searchsorted(ends, starts), minlength=len(texts))
    wordless = (found == 0) & (np.diff(ends, prepend=-1) > 1)
    if wordless.any():
        inside = np.repeat(wordless, np.diff(ends, prepend=-1))
        classes[inside & (classes == _NONE) & (letters != 0)] = _LETTER
        starts, lengths = _runs(classes)
        found = np.bincount(np.searchsorted(ends, starts), minlength=len(texts))
    return Ragged(_hash_runs(letters, starts, lengths), found.astype(np.int64))


def _characters(texts: Sequence[str]) -> "tuple[NDArray[Any], NDArray[np.uint8]]":
    """Code points of all texts, each text ended by a 0, and their classes."""
    import numpy as np

    text = _END.join([*texts, ""])
    if text.count(_END) != len(texts):
        text = _END.join([*(text.replace(_END, " ") for text in texts), ""])
    text = text.casefold()
    if text.isascii():
        letters: NDArray[Any] = np.frombuffer(text.encode(), dtype=np.uint8)
    else:
        text = unicodedata.normalize("NFKC", text).casefold()
        letters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    classes = _class_table(text.isascii())[letters]
    signs = np.flatnonzero(classes == _SIGN)
    if len(signs):
        visible = np.flatnonzero(classes != _SPACE)
        following = letters[visible[np.searchsorted(visible, signs + 1)]]  # a 0 stands at the end
        number = (following >= ord("0")) & (following <= ord("9"))
        classes[signs] = np.where(number, _ALONE, _NONE)
    return letters, classes


@lru_cache
def _class_table(ascii_only: bool) -> "NDArray[np.uint8]":
    """The class of every code point."""
    import numpy as np

    size = 128 if ascii_only else sys.maxunicode + 1
    every = "".join(map(chr, range(size)))
    table = np.full(size, _NONE, dtype=np.uint8)
    for kind, pattern in _CLASSES.items():
        table[[ord(letter) for letter in re.findall(pattern, every)]] = kind
    return table


def _runs(classes: "NDArray[np.uint8]") -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """Where words begin, and how long they are."""
    import numpy as np

    begins = np.ones(len(classes), dtype=np.bool_)
    begins[1:] = (classes[1:] != classes[:-1]) | (classes[1:] == _ALONE)
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=len(classes))
    word = (classes[starts] != _NONE) & (classes[starts] != _SPACE)
    return starts[word], lengths[word]


def _hash_runs(
    letters: "NDArray[Any]", starts: "NDArray[np.int64]", lengths: "NDArray[np.int64]"
) -> "NDArray[np.uint32]":
    """A polynomial of the code points modulo 2 ** 64, mixed, its upper half."""
    import numpy as np

    if not len(starts):
        return np.empty(0, dtype=np.uint32)
    words = Ragged.cut(letters, starts, lengths)
    powers = np.full(int(lengths.max()), 0x9E3779B97F4A7C15, dtype=np.uint64).cumprod()
    place = np.arange(len(words.values)) - np.repeat(words.starts, lengths)
    terms = (words.values.astype(np.uint64) + np.uint64(1)) * powers[place]
    return (mix(np.add.reduceat(terms, words.starts)) >> np.uint64(32)).astype(np.uint32)
