"""Makes the rows here: home intents, the right JSON chosen, one with a planted fault rejected."""

import json
import random
from pathlib import Path
from typing import Any

from luthier.data.formats.json_target import read_schema, target_of

HERE = Path(__file__).parent
INTENTS = HERE.parent / "home_intents"
ROWS = {"train": 320, "validation": 60}


def _wrong_intent(output: dict[str, Any], other: dict[str, Any]) -> str:
    return json.dumps(output | {"intent": other["intent"]})


def _missing_slot(output: dict[str, Any], _other: dict[str, Any]) -> str:
    slots = dict(list(output["slots"].items())[:-1])
    return json.dumps(output | {"slots": slots})


def _wrong_slot(output: dict[str, Any], other: dict[str, Any]) -> str:
    return json.dumps(output | {"slots": output["slots"] | other["slots"]})


def _prose_around(output: dict[str, Any], _other: dict[str, Any]) -> str:
    return f"Sure! Here is the JSON you asked for:\n```json\n{json.dumps(output)}\n```"


def _not_json(output: dict[str, Any], _other: dict[str, Any]) -> str:
    return str(output)


FAULTS = (_wrong_intent, _missing_slot, _wrong_slot, _prose_around, _not_json)


def _main() -> None:
    target = target_of(read_schema(INTENTS / "schema.json"))
    for split, count in ROWS.items():
        lines = (INTENTS / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        picked = [json.loads(line) for line in random.Random(7).sample(lines, count)]
        made = []
        for number, row in enumerate(picked):
            chosen, neighbour = (target.spell(one["output"]) for one in (row, picked[number - 1]))
            output, other = json.loads(chosen), json.loads(neighbour)
            fault = FAULTS[number % len(FAULTS)]
            rejected = fault(output, other)
            if rejected == chosen:  # the fault changed nothing: no slot to lose, the same slots
                fault, rejected = _prose_around, _prose_around(output, other)
            pair = {"prompt": row["text"], "chosen": chosen, "rejected": rejected}
            pair |= {"fault": fault.__name__[1:], "template": row["template"]}
            made.append(json.dumps(pair))
        (HERE / f"{split}.jsonl").write_text("\n".join(made) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _main()
