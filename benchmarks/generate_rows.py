"""Realistic chat rows in any number: OpenAI `messages`, one JSON object a line.

    python benchmarks/generate_rows.py rows.jsonl --rows 1000000 [--kind long|short] [--seed 7]

Words follow one another as they do in the texts of data/ (a bigram chain), so that their tokens
and punctuation are natural. `long` rows: 600 bytes a line in the mean, log-normal, 1 to 3 turns,
some with a system message, lists, code or non-ASCII text; 1 % repeat an earlier row, 0.5 % differ
from one in a word, 0.1 % are broken. `short` rows: a system message, a line, a label; 34 tokens
for SmolLM2, as the rows on which other trainers were timed. The first N rows do not depend on how
many follow.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["long", "short"]
Conversation = list[dict[str, str]]

DATA = Path(__file__).parent.parent / "data"
TEXTS = {"package_sections/train.jsonl": "text", "general/prompts.jsonl": "prompt"}

BLOCK_ROWS = 10_000
POOL_ROWS = 5_000  # earlier rows that may come again
POOL_EVERY = 20
EXACT, NEAR, BROKEN = 0.01, 0.005, 0.001

# 74 words make a line of 600 bytes in the mean; the spread is such that one row in a hundred
# has five times as many.
WORDS_MEAN, WORDS_SIGMA = 74.0, 0.8
USER_SHARE = 0.35

SYSTEM = (
    "You are a helpful assistant.",
    "You answer questions about software packages, briefly and correctly.",
    "You are a careful writer. Answer in plain English and keep to what was asked.",
    "Answer as a patient teacher would. When you do not know something, say so.",
    "You help users of an online shop. Be polite, never promise what you cannot check.",
)
SHORT_SYSTEM = "Name the section of this software package."
LABELS = ("games", "fonts", "libs", "net", "sound", "science", "utils", "web", "text", "admin")
FOREIGN = (
    *(
        "naïve",
        "café",
        "déjà-vu",
        "résumé",
        "Zürich",
        "Größe",
        "Übung",
        "señor",
        "mañana",
        "œuvre",
    ),
    *("Łódź", "Čeština", "Ελλάδα", "Привет", "мир", "спасибо", "東京", "日本語", "你好", "한국어"),
    *("שלום", "مرحبا", "हिन्दी", "€", "£", "“so”", "…", "✓", "→", "🎉", "👍🏽"),
)
CODE = (
    "for index, value in enumerate({a}):\n    if value != {b}[index]:\n        return False\n",
    "def {a}({b}, *, limit=10):\n    return [item for item in {b} if item][:limit]\n",
    "sudo apt-get install --yes lib{a}-dev\nexport {b}_HOME=/usr/lib/{a}\n",
    "SELECT {a}, COUNT(*) FROM {b} GROUP BY {a} ORDER BY 2 DESC;\n",
    '{{"{a}": [1, 2.5, null], "{b}": {{"enabled": true}}}}\n',
)


class Chain:
    """Which word follows which: successors of all words in one array, with repeats."""

    def __init__(self, sentences: Sequence[Sequence[str]]) -> None:
        vocabulary = sorted({word for sentence in sentences for word in sentence})
        self.words = ["", *vocabulary]  # word 0 stands between two sentences
        number = {word: index for index, word in enumerate(self.words)}
        pairs = [
            pair
            for sentence in sentences
            for pair in itertools.pairwise([0, *(number[word] for word in sentence), 0])
        ]
        before, after = np.array(sorted(pairs)).T
        self._after = after
        self._count = np.bincount(before, minlength=len(self.words))
        self._first = np.cumsum(self._count) - self._count

    def walk(self, random: np.random.Generator, steps: int, chains: int) -> NDArray[np.int64]:
        """Words of many chains at once, each begun at a sentence's start: (chains, steps)."""
        found = np.empty((steps, chains), dtype=np.int64)
        state = np.zeros(chains, dtype=np.int64)
        for step in range(steps):
            drawn = (random.random(chains) * self._count[state]).astype(np.int64)
            state = self._after[self._first[state] + drawn]
            found[step] = state
        return found.T


def read_chain(data: Path = DATA) -> Chain:
    """The chain of the texts that come with Luthier; a text without a full stop gets one."""
    sentences = []
    for name, column in TEXTS.items():
        for line in (data / name).read_text(encoding="utf-8").splitlines():
            words = str(json.loads(line)[column]).split()
            words[0] = words[0][:1].upper() + words[0][1:]
            if words[-1][-1].isalnum():
                words[-1] += "."
            sentences.append(words)
    return Chain(sentences)


def rows(count: int, kind: Kind = "long", seed: int = 7) -> Iterator[bytes]:
    """`count` lines, the newline included."""
    chain = read_chain()
    pool: list[str] = []
    for block in range(-(-count // BLOCK_ROWS)):
        random = np.random.Generator(np.random.PCG64([seed, block, kind == "short"]))
        make = _short if kind == "short" else _long
        lines = _with_faults(make(chain, random), pool, random)
        yield from itertools.islice(lines, count - block * BLOCK_ROWS)


def write_rows(path: Path, count: int, kind: Kind = "long", seed: int = 7) -> None:
    """Write `count` rows to a JSONL file."""
    with path.open("wb") as file:
        file.writelines(rows(count, kind, seed))


def _short(chain: Chain, random: np.random.Generator) -> Iterator[Conversation]:
    walked = chain.walk(random, 24, BLOCK_ROWS)
    labels = random.integers(len(LABELS), size=BLOCK_ROWS)
    for words, label in zip(walked.tolist(), labels.tolist(), strict=True):
        end = words.index(0) if 0 in words else len(words)
        question = " ".join([chain.words[word] for word in words[:end]])
        yield [
            {"role": "system", "content": SHORT_SYSTEM},
            {"role": "user", "content": question},
            {"role": "assistant", "content": LABELS[label]},
        ]


def _long(chain: Chain, random: np.random.Generator) -> Iterator[Conversation]:
    spread = random.lognormal(-(WORDS_SIGMA**2) / 2, WORDS_SIGMA, BLOCK_ROWS)
    lengths = np.clip(WORDS_MEAN * spread, 6, 3000).astype(int)
    turns = random.choice([1, 2, 3], size=BLOCK_ROWS, p=[0.7, 0.2, 0.1])
    steps = 500
    stream = chain.walk(random, steps, int(lengths.sum() * 1.2) // steps + 1).ravel().tolist()
    draws = random.random((BLOCK_ROWS, 6)).tolist()
    place = 0
    for length, turn_count, draw in zip(lengths.tolist(), turns.tolist(), draws, strict=True):
        words = [chain.words[word] or "\n" for word in stream[place : place + length]]
        place += length
        yield _conversation(words, turn_count, draw)


def _conversation(words: list[str], turns: int, draw: list[float]) -> Conversation:
    """Words dealt out to the turns; `draw` decides about its ornaments."""
    system, foreign, code, layout, which, other = draw
    if foreign < 0.08:
        for place in range(int(other * 7), len(words), 9):
            words[place] = FOREIGN[(place + int(which * 1000)) % len(FOREIGN)]
    messages: Conversation = []
    if system < 0.3:
        messages.append({"role": "system", "content": SYSTEM[int(which * len(SYSTEM))]})
    share = max(2, len(words) // turns)
    for turn in range(turns):
        part = words[turn * share : (turn + 1) * share] or words[:2]
        cut = max(1, int(len(part) * USER_SHARE))
        messages.append({"role": "user", "content": _text(part[:cut], " ")})
        messages.append({"role": "assistant", "content": _text(part[cut:], _between(layout))})
    if code < 0.06:
        name, value = (_name(words, draw) for draw in (which, other))
        block = CODE[int(other * len(CODE))].format(a=name, b=value)
        messages[-1]["content"] += f"\n\n```\n{block}```"
    return messages


def _between(layout: float) -> str:
    """What stands between two sentences: a list, paragraphs or a space."""
    if layout < 0.1:
        return "\n- "
    return "\n\n" if layout < 0.25 else " "


def _text(words: Sequence[str], between: str) -> str:
    return " ".join(words).replace(" \n ", between).strip(" \n") or "Yes."


def _name(words: Sequence[str], draw: float) -> str:
    word = words[int(draw * len(words))]
    letters = [letter for letter in word.lower() if letter.isascii() and letter.isalpha()]
    return "".join(letters) or "value"


def _with_faults(
    made: Iterator[Conversation], pool: list[str], random: np.random.Generator
) -> Iterator[bytes]:
    """Lines, some of them replaced by an earlier one, by nearly one, or by half a line."""
    fates = random.random(BLOCK_ROWS).tolist()
    draws = random.random((BLOCK_ROWS, 2)).tolist()
    for number, (conversation, fate, draw) in enumerate(zip(made, fates, draws, strict=True)):
        line = json.dumps({"messages": conversation}, ensure_ascii=draw[0] < 0.5)
        if pool and fate < EXACT + NEAR:
            line = pool[int(draw[0] * len(pool))]
            if fate >= EXACT:
                line = _nearly(json.loads(line), draw[1])
        elif number % POOL_EVERY == 0:
            _keep(pool, line, draw[1])
        if fate > 1 - BROKEN:
            yield _broken(line, draw[1])
        else:
            yield line.encode() + b"\n"


def _keep(pool: list[str], line: str, draw: float) -> None:
    if len(pool) < POOL_ROWS:
        pool.append(line)
    else:
        pool[int(draw * POOL_ROWS)] = line


def _nearly(row: dict[str, Any], draw: float) -> str:
    """One word of the longest message is another."""
    message = max(row["messages"], key=lambda found: len(found["content"]))
    words = message["content"].split(" ")
    words[int(draw * len(words))] = "another"
    message["content"] = " ".join(words)
    return json.dumps(row, ensure_ascii=False)


def _broken(line: str, draw: float) -> bytes:
    data = line.encode()
    match int(draw * 4):
        case 0:
            return data[: len(data) // 2] + b"\n"
        case 1:
            return data.replace(b" ", b"\xff", 1) + b"\n"
        case 2:
            return data.replace(b'"assistant"', b'"robot"') + b"\n"
    return b'{"messages": []}\n'


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kind", choices=("long", "short"), default="long")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    write_rows(arguments.path, arguments.rows, arguments.kind, arguments.seed)
    size = arguments.path.stat().st_size
    print(f"{arguments.rows} rows, {size / 1e6:.1f} MB, {size / arguments.rows:.0f} bytes a row")


if __name__ == "__main__":
    main()
