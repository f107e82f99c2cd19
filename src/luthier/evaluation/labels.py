"""Labels: as tokens for the likelihood, and read out of a free answer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class LabelTrie:
    """Labels as a tree of tokens; `label` is the index of the one that ends here."""

    label: int | None = None
    children: "dict[int, LabelTrie]" = field(default_factory=dict)

    @classmethod
    def of(cls, labels: Sequence[Sequence[int]]) -> "LabelTrie":
        """The tree of these token sequences; two equal ones are a bug of the caller's."""
        root = cls()
        for index, tokens in enumerate(labels):
            place = root
            for token in tokens:
                place = place.children.setdefault(token, cls())
            assert place.label is None, f"labels {place.label} and {index} have the same tokens"
            place.label = index
        return root

    def tokens(self) -> set[int]:
        """Every token that stands in the tree."""
        below = (child.tokens() for child in self.children.values())
        return set(self.children).union(*below)


def read_exact(answer: str, labels: Sequence[str]) -> str | None:
    """The label that the answer is, ignoring case and surrounding blanks."""
    stripped = answer.strip()
    if stripped in labels:
        return stripped
    folded = stripped.casefold()
    return next((label for label in labels if label.strip().casefold() == folded), None)


def read_lenient(answer: str, labels: Sequence[str]) -> str | None:
    """The label that the answer is, else the first one that stands in it as whole words.

    The prompted baseline's best chance: "The section is: Games." is read as `games`. Of two labels
    at the same place the longer one counts.
    """
    exact = read_exact(answer, labels)
    if exact is not None:
        return exact
    found = []
    for index, label in enumerate(labels):
        match = re.search(rf"(?<!\w){re.escape(label.strip())}(?!\w)", answer, re.IGNORECASE)
        if match:
            found.append((match.start(), -len(label), index))
    return labels[min(found)[2]] if found else None
