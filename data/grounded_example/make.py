"""Makes the rows here: what does a package do, by its description among those of similar ones."""

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
SECTIONS = HERE.parent / "package_sections"
ROWS = {"train": 300, "validation": 60}
SIMILAR = 2  # other packages shown with each
QUESTIONS = (
    "What does the package {} do?",
    "What is {} for?",
    "Describe the Debian package {} in one line.",
)


def _words(text: str) -> set[str]:
    return {word for word in text.lower().split() if len(word) > 3}


def _main() -> None:
    for split, count in ROWS.items():
        path = SECTIONS / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        said = {row["source"]: _words(row["text"]) for row in rows}
        made = []
        for number, row in enumerate(random.Random(7).sample(rows, count)):
            own = said[row["source"]]
            others = sorted(
                (one for one in rows if one["source"] != row["source"]),
                key=lambda one: (-len(own & said[one["source"]]), one["source"]),
            )
            shown = others[: SIMILAR + 1]
            answer = None  # every sixth row: its own description is not among the documents
            if number % 6:
                shown = [*others[:SIMILAR], row]
                answer = f'It is described as: "{row["text"]}"'
            shown = sorted(shown, key=lambda one: one["source"])
            line = {
                "question": QUESTIONS[number % len(QUESTIONS)].format(row["source"]),
                "documents": [{"title": one["source"], "text": one["text"]} for one in shown],
                "gold": [shown.index(row)] if answer else [],
                "answer": answer,
                "source": row["source"],
            }
            made.append(json.dumps(line, ensure_ascii=False))
        (HERE / f"{split}.jsonl").write_text("\n".join(made) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _main()
