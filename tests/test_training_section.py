"""What a training section refuses, and which of its fields are in the key."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from luthier.config import json_schema, load_config
from luthier.errors import ConfigError
from luthier.training.section import EarlyStoppingSection, PerformanceSection
from luthier.training.sft_section import SFTSection

SECTIONS = {"sft": SFTSection}
ROWS = {"per_device_batch_size": 8}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(fields: dict[str, Any]) -> SFTSection:
    # JSON is YAML too.
    Path("x.yaml").write_text(json.dumps({"name": "x", "sft": fields}), encoding="utf-8")
    section = load_config("x.yaml", SECTIONS).sections["sft"]
    assert isinstance(section, SFTSection)
    return section


FLOORS = "cosine_with_min_lr, polynomial, warmup_stable_decay"
EPSILONS = (
    "adamw_torch, adamw_torch_fused, adamw_8bit, paged_adamw_32bit, paged_adamw_8bit, "
    "ademamix_8bit"
)
BETAS = f"{EPSILONS}, lion_32bit, lion_8bit, paged_lion_8bit"
EITHER_BATCH = "give either batch_tokens or per_device_batch_size"
# (fields beside the batch size, what is said)
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"per_device_batch_size": None}, EITHER_BATCH),
    ({"batch_tokens": 512}, EITHER_BATCH),
    ({"optimizer": "adamw_8bits"}, "Did you mean adamw_8bit?"),
    ({"optimizer": "lion"}, "'lion'"),
    (
        {"optimizer": "sgd", "adam_beta1": 0.8},
        f"adam_beta1 has no meaning for the optimizer sgd; it has for {BETAS}",
    ),
    ({"optimizer": "adafactor", "adam_beta2": 0.9}, "no meaning for the optimizer adafactor"),
    (
        {"optimizer": "lion_8bit", "adam_epsilon": 1e-6},
        f"adam_epsilon has no meaning for the optimizer lion_8bit; it has for {EPSILONS}",
    ),
    (
        {"schedule": "cosine", "min_learning_rate_fraction": 0.1},
        f"min_learning_rate_fraction has no meaning for the schedule cosine; it has for {FLOORS}",
    ),
    ({"decay_fraction": 0.2}, "it has for warmup_stable_decay"),
    ({"schedule_power": 2}, "it has for polynomial"),
    ({"schedule_cycles": 2}, "it has for cosine_with_restarts"),
    ({"schedule": "cosine_with_min_lr"}, "needs min_learning_rate_fraction"),
    ({"schedule": "cosine_with_restarts"}, "needs schedule_cycles"),
    ({"schedule": "constant", "warmup_steps": 3}, "no warm-up; see constant_with_warmup"),
    ({"schedule": "constant", "warmup_fraction": 0.1}, "no warm-up; see constant_with_warmup"),
    ({"schedule": "inverse_sqrt", "warmup_fraction": 0}, "at the pace of its warm-up; give one"),
    (
        {"schedule": "warmup_stable_decay", "warmup_fraction": 0.4, "decay_fraction": 0.7},
        "warmup_fraction and decay_fraction make more than all steps",
    ),
    ({"warmup_steps": 3, "warmup_fraction": 0.1}, "give either warmup_steps or warmup_fraction"),
    ({"warmup_steps": 3, "max_steps": 3}, "warmup_steps must be less than max_steps"),
    (
        {"evaluate_every_steps": 3, "evaluate_every_fraction": 0.5},
        "give either evaluate_every_steps or evaluate_every_fraction",
    ),
    ({"max_steps": 3, "epochs": 2}, "give either max_steps or epochs"),
    ({"performance": {"packing": True}}, "packing needs batch_tokens, the length of a pack"),
    (
        {
            "per_device_batch_size": None,
            "batch_tokens": 512,
            "neftune_noise_alpha": 5,
            "performance": {"packing": True},
        },
        "would scale the noise by the length of the pack",
    ),
    ({"sharding": "fsdp2"}, "sharding: fsdp2 needs processes: 2 or more"),
    ({"method": "full", "lora": {"r": 8}}, "lora has no meaning for method: full"),
    ({"quantization": {"type": "fp4"}}, "quantization has no meaning for method: lora"),
    ({"start_from": "a/adapter", "lora": {"r": 8}}, "start_from brings the adapter's shape"),
    ({"early_stopping": {}, "keep": "lst"}, "Did you mean last?"),
    ({"learning_rate": 0}, "must be greater than 0"),
    ({"label_smoothing": 1}, "must be less than 1"),
]


@pytest.mark.parametrize(("fields", "said"), CONTRADICTIONS)
def test_contradiction_is_refused_in_one_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({name: value for name, value in (ROWS | fields).items() if value is not None})
    (line,) = str(caught.value).splitlines()
    assert line.startswith("x.yaml:1: sft")
    assert said in line


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"schedule": "constant"},
        {"schedule": "constant", "warmup_fraction": 0},
        {"schedule": "inverse_sqrt"},
        {"schedule": "warmup_stable_decay", "warmup_fraction": 0.4, "decay_fraction": 0.6},
        {"schedule": "polynomial", "min_learning_rate_fraction": 0.1, "schedule_power": 2},
        {"optimizer": "lion_8bit", "adam_beta1": 0.95, "adam_beta2": 0.98},
        {"max_steps": 9, "warmup_steps": 8},
        {"method": "full"},
        {"method": "qlora"},
        {"start_from": "a/adapter"},
        {"early_stopping": {}, "performance": {"share_prefix": False}},
    ],
)
def test_what_goes_together_goes_to_other_processes_and_editors(fields: dict[str, Any]) -> None:
    """A job is given to its processes as JSON; editors check configs with the schema."""
    section = load(ROWS | fields)
    assert SFTSection.model_validate_json(section.model_dump_json()) == section
    schema = json_schema(SECTIONS)
    jsonschema.validate({"name": "x", "sft": ROWS | fields}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "x", "sft": ROWS | {"optimizer": "adam"}}, schema)


WSD, POLYNOMIAL = {"schedule": "warmup_stable_decay"}, {"schedule": "polynomial"}
# field: (what must be beside it, another value than its default)
OTHER_VALUES: dict[str, tuple[dict[str, Any], Any]] = {
    "dtype": ({}, "bfloat16"),
    "seed": ({}, 8),
    "learning_rate": ({}, 1e-3),
    "optimizer": ({}, "sgd"),
    "adam_beta1": ({}, 0.8),
    "adam_beta2": ({}, 0.99),
    "adam_epsilon": ({}, 1e-6),
    "weight_decay": ({}, 0.1),
    "max_grad_norm": ({}, 0.5),
    "schedule": ({}, "cosine"),
    "warmup_fraction": ({}, 0.1),
    "warmup_steps": ({}, 10),
    "min_learning_rate_fraction": (POLYNOMIAL, 0.1),
    "decay_fraction": (WSD, 0.2),
    "schedule_power": (POLYNOMIAL, 2.0),
    "schedule_cycles": ({"schedule": "cosine_with_restarts", "schedule_cycles": 2}, 3),
    "epochs": ({}, 2.0),
    "max_steps": ({}, 10),
    "batch_tokens": ({"per_device_batch_size": None, "batch_tokens": 512}, 1024),
    "per_device_batch_size": ({}, 4),
    "gradient_accumulation_steps": ({}, 2),
    "label_smoothing": ({}, 0.1),
    "neftune_noise_alpha": ({}, 5.0),
    "gradient_checkpointing": ({}, True),
    "evaluate_every_steps": ({}, 10),
    "evaluate_every_fraction": ({}, 0.25),
    "early_stopping": ({}, EarlyStoppingSection()),
    "keep": ({}, "last"),
    "performance": ({}, PerformanceSection()),
    "processes": ({}, 2),
    "sharding": ({"processes": 2}, "fsdp2"),
    "checkpoint_every_steps": ({}, 10),
    "keep_checkpoints": ({}, 3),
    "on_oom": ({}, "shrink"),
    "hardware": ({}, "cpu"),
    "tracking": ({}, {"to": ["tensorboard"]}),
    "method": ({}, "qlora"),
    "lora": ({}, {"r": 8}),
    "quantization": ({"method": "qlora"}, {"type": "fp4"}),
    "start_from": ({}, "other/adapter"),
}
# What changes when checkpoints are made, where numbers are shown, or is in the key otherwise.
RESULT_FREE = {
    "seed",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "on_oom",
    "hardware",
    "tracking",
    "start_from",
}
NESTED = [
    ("early_stopping", {"patience": 3}, {"patience": 4}),
    ("early_stopping", {"patience": 3}, {"patience": 3, "min_improvement": 0.1}),
    *(("performance", {}, {name: False}) for name in PerformanceSection.model_fields),
]


@pytest.mark.parametrize("name", SFTSection.model_fields)
def test_what_changes_the_result_is_in_the_key(name: str) -> None:
    beside, other = OTHER_VALUES[name]
    fields = ROWS | beside
    plain, changed = (SFTSection.model_validate(one) for one in (fields, fields | {name: other}))
    assert getattr(plain, name) != getattr(changed, name)
    assert (plain.key_fields() == changed.key_fields()) is (name in RESULT_FREE)


@pytest.mark.parametrize(("name", "one", "other"), NESTED)
def test_parts_that_change_the_result_are_in_the_key(
    name: str, one: dict[str, Any], other: dict[str, Any]
) -> None:
    keys = [SFTSection.model_validate(ROWS | {name: part}).key_fields() for part in (one, other)]
    assert keys[0] != keys[1]
