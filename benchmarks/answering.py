"""Label likelihoods and free answers: this engine against transformers, the same rows.

    luthier run configs/quickstart.yaml --until sft
    python benchmarks/answering.py configs/quickstart.yaml --machine "2-core EPYC" [--rows 160]

Label likelihoods: `LocalSystem`, which computes what all prompts begin with once and leaves out
labels that can no longer win, and the same with every label scored in full, against each label as
its own full sequence through transformers, the labels of a row as one padded batch. Free answers:
`LocalSystem` with many rows at once, the same with one row at a time, and `model.generate` with
one row at a time. The systems take turns in blocks of rows, so that a machine that slows down
slows them all.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.dataset import read_info
from luthier.evaluation.asking import longest_reply
from luthier.evaluation.engine import Asked
from luthier.evaluation.prompts import label_tokens, trained_prompts
from luthier.evaluation.rows import load_rows
from luthier.evaluation.systems import LocalSystem, Prompt, Reply
from luthier.models.loading import load_tokenizer
from luthier.pipeline import open_pipeline
from luthier.stages.training import load_trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BLOCKS = 4


def score_each_label(model: "PreTrainedModel", prompt: Prompt, asked: Asked) -> list[float]:
    """log p(label and a stop token | prompt), nats, from full sequences."""
    import torch

    sequences = [[*prompt.token_ids, *label] for label in asked.labels]
    longest = max(map(len, sequences))
    ids_LT = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences])
    mask_LT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences])
    with torch.inference_mode():
        log_p_LTV = model(input_ids=ids_LT, attention_mask=mask_LT).logits.float().log_softmax(-1)
    start = len(prompt.token_ids)
    scores = []
    for row, label in enumerate(asked.labels):
        total = sum(
            float(log_p_LTV[row, start + place - 1, token]) for place, token in enumerate(label)
        )
        stops = log_p_LTV[row, start + len(label) - 1, list(asked.stop_token_ids)]
        scores.append(total + float(stops.logsumexp(0)))
    return scores


def generate_one(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    asked: Asked,
) -> str:
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()
    ids = torch.tensor([prompt.token_ids])
    with torch.inference_mode():
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=asked.max_new_tokens,
                eos_token_id=list(asked.stop_token_ids),
                pad_token_id=asked.stop_token_ids[0],
            ),
        )
    answer = found[0, ids.shape[1] :].tolist()
    end = next((i for i, t in enumerate(answer) if t in asked.stop_token_ids), len(answer))
    return str(tokenizer.decode(answer[:end], skip_special_tokens=True))


def blocks(prompts: Sequence[Prompt]) -> list[Sequence[Prompt]]:
    size = -(-len(prompts) // BLOCKS)
    return [prompts[first : first + size] for first in range(0, len(prompts), size)]


def by_turns(
    prompts: Sequence[Prompt], ways: dict[str, Callable[[Sequence[Prompt]], list[Any]]]
) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """Seconds and results of each way, which all get every block."""
    seconds = dict.fromkeys(ways, 0.0)
    results: dict[str, list[Any]] = {name: [] for name in ways}
    for block in blocks(prompts):
        for name, way in ways.items():
            started = time.perf_counter()
            results[name] += way(block)
            seconds[name] += time.perf_counter() - started
    return seconds, results


def flat(system: LocalSystem, prompts: Sequence[Prompt]) -> list[Reply]:
    return [reply for chunk in system.replies(prompts, 0) for reply in chunk]


def compare_labels(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    asked: Asked,
) -> dict[str, Any]:
    whole = replace(asked, all_labels=True)
    best = LocalSystem("labels", model, tokenizer, asked)
    every = LocalSystem("all labels", model, tokenizer, whole)
    seconds, found = by_turns(
        prompts,
        {
            "luthier": lambda block: [reply.label_log_p for reply in flat(best, block)],
            "luthier, every label": lambda block: [r.label_log_p for r in flat(every, block)],
            "full sequences": lambda block: [
                score_each_label(model, prompt, asked) for prompt in block
            ],
        },
    )
    plain = found.pop("full sequences")
    return {
        "rows": len(prompts),
        "labels": len(asked.labels),
        "seconds": seconds,
        "times_faster": {name: seconds["full sequences"] / seconds[name] for name in found},
        "agreement": {name: agreement(ours, plain) for name, ours in found.items()},
    }


def agreement(found: Sequence[Any], plain: Sequence[list[float]]) -> dict[str, Any]:
    largest, known, ruled_out_wrongly, other_best = 0.0, 0, 0, 0
    for ours, theirs in zip(found, plain, strict=True):
        best = theirs.index(max(theirs))
        other_best += ours[best] is None or ours[best] != max(s for s in ours if s is not None)
        for mine, yours in zip(ours, theirs, strict=True):
            if mine is None:
                ruled_out_wrongly += yours > theirs[best]
            else:
                known += 1
                largest = max(largest, abs(mine - yours))
    return {
        "scores_compared": known,
        "largest_difference_nats": largest,
        "rows_with_another_best_label": other_best,
        "labels_ruled_out_wrongly": ruled_out_wrongly,
    }


def compare_answers(
    system: LocalSystem,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    asked: Asked,
) -> dict[str, Any]:
    seconds, found = by_turns(
        prompts,
        {
            "luthier": lambda block: [reply.text for reply in flat(system, block)],
            "luthier, one at a time": lambda block: [
                reply.text for prompt in block for reply in flat(system, [prompt])
            ],
            "generate, one at a time": lambda block: [
                generate_one(model, tokenizer, prompt, asked) for prompt in block
            ],
        },
    )
    ours = found.pop("luthier")
    return {
        "rows": len(prompts),
        "max_new_tokens": asked.max_new_tokens,
        "seconds": seconds,
        "times_faster": {name: seconds[name] / seconds["luthier"] for name in found},
        "other_answers": {
            name: sum(a != b for a, b in zip(ours, theirs, strict=True))
            for name, theirs in found.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config")
    parser.add_argument("--machine", required=True, help="what it runs on, for the results")
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    import torch

    made = open_pipeline(arguments.config).artifacts()
    base, dataset, adapter = made["base"], made["prepare"], made["sft"]
    info = read_info(dataset.path)
    rows = load_rows(dataset.path, "test")[: arguments.rows]
    tokenizer, model = load_tokenizer(base.path), load_trained(base, adapter)
    prompts = [Prompt(p.id, p.token_ids) for p in trained_prompts(info.task, rows)]
    stops = tuple(info.stop_token_ids)
    result: dict[str, Any] = {
        "machine": arguments.machine,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "config": arguments.config,
    }
    if info.labels:
        labels = Asked(stops, labels=label_tokens(tokenizer, info, rows[0]))
        result["label_likelihood"] = compare_labels(model, tokenizer, prompts, labels)
    free = Asked(stops, max_new_tokens=longest_reply(rows) + 4)
    answerer = LocalSystem("answers", model, tokenizer, free)
    result["free_answers"] = compare_answers(answerer, model, tokenizer, prompts, free)
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
