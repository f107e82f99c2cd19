"""The model card: what a model is, from the manifests of what it was made from, and no more.

The front matter is that of the Hugging Face hub
(https://huggingface.co/docs/hub/model-cards), written and read back by huggingface_hub.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from luthier.models.licence import licence_files
from luthier.serving import markdown
from luthier.serving.card_data import data_parts, hub_datasets
from luthier.serving.card_figures import evaluation_parts, merge_parts, read_figures
from luthier.serving.card_training import method_words, training_parts
from luthier.serving.parity_tables import parity_tables

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

    from luthier.evaluation.shipping import ShipVerdict
    from luthier.serving.bundle import BundleFacts
    from luthier.serving.card_figures import Figures
    from luthier.store.artifact import Artifact

Relation = Literal["finetune", "adapter", "quantized"]

UNKNOWN = "unknown"
_TEMPLATE = "card.md.jinja"
_KEY_DIGITS = 16
_ORDER = ("base", "dataset", "preferences", "before", "adapter", "baseline", "evaluation", "model")
_HUB_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_HUB_METRICS: Mapping[str, str] = {"macro_f1": "f1", "micro_f1": "f1"}
_VERDICTS: Mapping[str, str] = {
    "ship": "every rule by which it is to be shipped holds",
    "do not ship": "**do not ship**",
    "cannot tell": "the test rows cannot tell whether it is to be shipped",
}


@dataclass(frozen=True)
class Licence:
    """The base's licence: `id` as the hub spells it, `other` with a `name`, or `unknown`."""

    id: str
    name: str | None = None
    link: str | None = None
    origin: str | None = None


def base_licence(base: "Artifact") -> Licence:
    """What the base's manifest says of it."""
    facts = base.manifest.facts
    said, name, link = (
        str(facts.get(key) or "").strip() for key in ("licence", "licence_name", "licence_link")
    )
    origin = facts.get("licence_from")
    if not said or said == UNKNOWN:
        return Licence(UNKNOWN)
    if _HUB_LICENCE.fullmatch(said.lower()):
        return Licence(said.lower(), name or None, link or None, origin)
    slug = re.sub(r"[^a-z0-9.]+", "-", said.lower()).strip("-")
    return Licence("other", name or slug or UNKNOWN, link or None, origin)


def model_card(facts: "BundleFacts", relation: Relation = "finetune") -> str:
    """The card of what `facts` describe, the same text for the same artifacts.

    Args:
        facts: as the README has them.
        relation: what the repository that it is for holds: merged weights (`finetune`), an
            adapter, or GGUF files (`quantized`).

    Raises:
        DataError: the evaluation or the dataset cannot be read.
    """
    from huggingface_hub import ModelCard

    figures = read_figures(facts.artifacts)
    fields = card_fields(facts, figures, relation)
    text = f"---\n{fields.to_yaml()}\n---\n\n{_body(facts, figures, relation)}"
    read_back = ModelCard(text).data.to_yaml()
    assert read_back == fields.to_yaml(), "the hub would read other fields than were written"
    return text


def card_fields(
    facts: "BundleFacts", figures: "Figures", relation: Relation = "finetune"
) -> "ModelCardData":
    """The front matter. What no manifest says, such as the language, is left out."""
    from huggingface_hub import ModelCardData

    base = facts.artifacts["base"]
    licence = base_licence(base)
    source = base.manifest.facts.get("source", {})
    adapter = facts.artifacts.get("adapter")
    task = figures.info.task if figures.info else None
    datasets = hub_datasets(facts.artifacts["dataset"])
    fields = ModelCardData(
        base_model=source["name"] if source.get("kind") == "hub" else None,
        license=licence.id,
        license_name=licence.name,
        license_link=licence.link,
        library_name="peft" if relation == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=[tag for tag in ("luthier", *method_words(adapter), task) if tag],
        datasets=datasets or None,
        model_name=facts.name,
        eval_results=list(_results(facts, figures)) or None,
    )
    if fields.base_model is not None:
        fields["base_model_relation"] = relation
    return fields


def _results(facts: "BundleFacts", figures: "Figures") -> "Iterator[EvalResult]":
    """The figures of the system that was compared, those that have an interval."""
    from huggingface_hub import EvalResult

    system = figures.tuned_system
    if system is None or figures.info is None:
        return
    datasets = hub_datasets(facts.artifacts["dataset"])
    for metric in system["intervals"]:
        yield EvalResult(
            task_type="text-generation",
            task_name=figures.info.task,
            dataset_type=datasets[0] if len(datasets) == 1 else "private",
            dataset_name=f"test rows of {facts.name}",
            dataset_split="test",
            metric_type=_HUB_METRICS.get(metric, metric),
            metric_name=f"{metric}, {figures.tuned}",
            metric_value=round(system["metrics"][metric], 4),
        )


def _body(facts: "BundleFacts", figures: "Figures", relation: Relation) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("luthier", "serving"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    prompt = facts.system_prompt
    artifacts = facts.artifacts
    return environment.get_template(_TEMPLATE).render(
        name=facts.name,
        summary=_summary(facts, figures),
        verdict=_verdict(figures.ship),
        snippet=_snippet(facts) if relation == "finetune" else None,
        use=_use(facts),
        system_prompt=markdown.fenced(prompt, "text") if prompt else None,
        limits=_limits(facts, figures),
        base=_base(artifacts["base"]),
        licence=_licence(artifacts["base"]),
        data=data_parts(artifacts["dataset"], figures.info),
        training=training_parts(artifacts),
        evaluation=evaluation_parts(artifacts, figures),
        merge=merge_parts(artifacts["model"]),
        parity=parity_tables(facts.parity) if facts.parity else None,
        lineage=_lineage(artifacts),
    )


def _summary(facts: "BundleFacts", figures: "Figures") -> str:
    base = facts.artifacts["base"].manifest.facts.get("source", {}).get("name")
    what = f"{markdown.code(base)}, tuned" if base else "A model, tuned"
    task = f" for one task: {figures.info.task}" if figures.info else ""
    return (
        f"{what}{_how(facts.artifacts.get('adapter'))}{task}.\n"
        "Made by Luthier, which measured what stands here."
    )


def _how(adapter: "Artifact | None") -> str:
    """` by SFT with LoRA`."""
    if adapter is None:
        return ""
    method = adapter.manifest.facts.get("training", {}).get("method")
    known = {"lora": " with LoRA", "qlora": " with QLoRA", "full": ", all weights"}
    return f" by {adapter.manifest.stage.upper()}{known.get(method, '')}"


def _verdict(ship: "ShipVerdict | None") -> str | None:
    if ship is None:
        return None
    lines = [f"Verdict of its evaluation: {_VERDICTS[ship.word]}."]
    lines += [f"- {markdown.plain(reason)}" for reason in ship.reasons]
    return "\n\n".join([lines[0], "\n".join(lines[1:])]) if lines[1:] else lines[0]


def _snippet(facts: "BundleFacts") -> str:
    messages = [("user", "...")]
    if facts.system_prompt:
        messages.insert(0, ("system", facts.system_prompt))
    shown = "".join(
        f'    {{"role": "{role}", "content": {json.dumps(content, ensure_ascii=False)}}},\n'
        for role, content in messages
    )
    return markdown.fenced(
        f"""from transformers import pipeline

generate = pipeline("text-generation", model="OWNER/{facts.name}")
messages = [
{shown}]
print(generate(messages, do_sample=False)[0]["generated_text"][-1]["content"])""",
        "python",
    )


def _use(facts: "BundleFacts") -> Sequence[str]:
    stops = ", ".join(markdown.code(token) for token in facts.stop_tokens)
    prompted = "no system prompt of its own; send none"
    if facts.system_prompt:
        prompted = "the one system prompt below, in every conversation"
    return [
        "The chat template is the base's, and stands with the tokenizer.",
        f"It was trained with {prompted}.",
        f"Replies end at {stops or UNKNOWN}; decoding was greedy when it was measured.",
    ]


def _limits(facts: "BundleFacts", figures: "Figures") -> list[str]:
    info = figures.info
    length = f"; no row of training had more than {info.max_length_tokens:,}" if info else ""
    task = f" ({info.task})" if info else ""
    lines = [
        f"Context: {facts.context_tokens:,} tokens, prompt and reply together{length}.",
        f"Trained for one task{task}. Asked for anything else, or in another chat template, its "
        "quality is unknown.",
        *(f"Not measured: {what}." for what in figures.not_measured),
        "Not measured: bias, safety, and languages or sources other than those of the test rows.",
    ]
    if info and info.labels:
        lines.insert(
            2, f"It answers with one of {len(info.labels):,} labels, also where none fits."
        )
    return lines


def _base(base: "Artifact") -> str:
    found = base.manifest.facts
    source = found.get("source", {})
    parameters = found.get("parameters")
    rows = [
        ("name", markdown.code(source["name"]) if "name" in source else UNKNOWN),
        ("source", source.get("kind", UNKNOWN)),
        ("revision", markdown.code(source["revision"]) if source.get("revision") else None),
        ("architecture", markdown.plain(str(found.get("architecture", UNKNOWN)))),
        ("parameters", f"{parameters:,}" if parameters else UNKNOWN),
        ("stored as", found.get("dtype", UNKNOWN)),
    ]
    return markdown.table(("", ""), [(what, said) for what, said in rows if said is not None])


def _licence(base: "Artifact") -> str:
    licence = base_licence(base)
    files = [path.name for path in licence_files(base.path)]
    kept = f"Its own files are beside this card: {markdown.shortened(files, 5)}." if files else ""
    if licence.id == UNKNOWN:
        said = (
            "`license: unknown`: nothing that came with the base names its licence. Find it out "
            "before you pass this model on."
        )
    else:
        shown = f"{licence.id} ({licence.name})" if licence.name else licence.id
        link = f", {markdown.code(licence.link)}" if licence.link else ""
        origin = f"; said by: {markdown.plain(licence.origin)}" if licence.origin else ""
        said = f"The base's licence is {markdown.code(shown)}{link}{origin}."
    lines = [said, kept, "The licences of the data are not recorded."]
    return "\n".join(line for line in lines if line)


def _lineage(artifacts: Mapping[str, "Artifact"]) -> str:
    rows = [
        (slot, artifacts[slot].kind, artifacts[slot].key, artifacts[slot].digest)
        for slot in ordered(artifacts)
    ]
    shown = [(slot, kind, key[:_KEY_DIGITS], held[:_KEY_DIGITS]) for slot, kind, key, held in rows]
    digits = f"first {_KEY_DIGITS} digits"
    return markdown.table(("input", "kind", f"key, {digits}", f"digest, {digits}"), shown)


def ordered(artifacts: Mapping[str, Any]) -> list[str]:
    """The slots in the order in which their artifacts are made."""
    return [
        *(slot for slot in _ORDER if slot in artifacts),
        *(slot for slot in sorted(artifacts) if slot not in _ORDER),
    ]
