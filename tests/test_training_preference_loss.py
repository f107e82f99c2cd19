"""Every loss against its paper's formula in plain floats, and against TRL's own on a model."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest

from luthier.training.dpo_section import DPOSection, LossType
from luthier.training.preference_loss import LOSSES, Pairs, loss_at_start, pair_losses
from pair_cases import sft_adapter, token_pairs

BETA, FLIPPED, GAMMA, TAU = 0.3, 0.1, 0.7, 0.05


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_sigma(x: float) -> float:
    return math.log(sigma(x))


def odds(logp: float, tokens: int) -> float:
    p = math.exp(logp / tokens)
    return p / (1 - p)


class Case(NamedTuple):
    """log p of the winning and the losing reply, under the reference, and their tokens."""

    w: float
    l: float  # noqa: E741, as papers call it
    rw: float
    rl: float
    n: int
    m: int


CASES = [
    Case(-12.0, -20.0, -14.0, -19.0, 5, 9),
    Case(-31.0, -3.0, -30.0, -8.0, 12, 2),
    Case(-0.02, -0.9, -0.5, -0.4, 1, 1),
    Case(-80.0, -95.0, -80.0, -95.0, 40, 44),
]
Formula = Callable[[Case], float]
PAPERS: dict[LossType, Formula] = {
    # Rafailov et al. 2023, eq. 7
    "sigmoid": lambda c: -log_sigma(BETA * (c.w - c.rw) - BETA * (c.l - c.rl)),
    # Zhao et al. 2023 (SLiC-HF), with the normalised margin of Liu et al. 2023 (RSO)
    "hinge": lambda c: max(0.0, 1 - (BETA * (c.w - c.rw) - BETA * (c.l - c.rl))),
    # Azar et al. 2023, eq. 17, h averaged over tokens
    "ipo": lambda c: (((c.w - c.rw) / c.n - (c.l - c.rl) / c.m) - 1 / (2 * BETA)) ** 2,
    # Chowdhury et al. 2024, eq. 12: ((1 - e) L(w, l) - e L(l, w)) / (1 - 2 e)
    "robust": lambda c: (
        (
            (1 - FLIPPED) * -log_sigma(BETA * (c.w - c.rw - c.l + c.rl))
            - FLIPPED * -log_sigma(BETA * (c.l - c.rl - c.w + c.rw))
        )
        / (1 - 2 * FLIPPED)
    ),
    # Ji et al. 2024, eq. 16: KL(p_f || p_r) of two replies, p_r = (1 - e, e)
    "exo_pair": lambda c: sum(
        p * math.log(p / r)
        for p, r in (
            (sigma(BETA * (c.w - c.rw - c.l + c.rl)), 1 - FLIPPED),
            (sigma(-BETA * (c.w - c.rw - c.l + c.rl)), FLIPPED),
        )
    ),
    # Chen et al. 2024 (NCA): - log s(r_w) - 1/K sum over replies of log s(-r)
    "nca_pair": lambda c: (
        -log_sigma(BETA * (c.w - c.rw))
        - sum(log_sigma(-BETA * r) for r in (c.w - c.rw, c.l - c.rl)) / 2
    ),
    # Jung et al. 2024 (BCO), without the shift delta
    "bco_pair": lambda c: -log_sigma(BETA * (c.w - c.rw)) - log_sigma(-BETA * (c.l - c.rl)),
    # Wu et al. 2024 (SPPO), eq. 4.7 with eta = 1 / beta and P = 1
    "sppo_hard": lambda c: (
        ((c.w - c.rw) - (1 / BETA) * (1 - 0.5)) ** 2 + ((c.l - c.rl) - (1 / BETA) * (0 - 0.5)) ** 2
    ),
    # D'Oosterlinck et al. 2024 (APO), eq. 7 and 8
    "apo_zero": lambda c: (1 - sigma(BETA * (c.w - c.rw))) + sigma(BETA * (c.l - c.rl)),
    "apo_down": lambda c: (
        sigma(BETA * (c.w - c.rw)) + (1 - sigma(BETA * (c.w - c.rw) - BETA * (c.l - c.rl)))
    ),
    # Lu et al. 2024 (DiscoPOP), eq. 5
    "discopop": lambda c: (
        (1 - sigma(BETA * (c.w - c.rw - c.l + c.rl) / TAU))
        * -log_sigma(BETA * (c.w - c.rw - c.l + c.rl))
        + sigma(BETA * (c.w - c.rw - c.l + c.rl) / TAU)
        * math.exp(-BETA * (c.w - c.rw - c.l + c.rl))
    ),
    # Lambert et al. 2024 (Tulu 3), eq. 6
    "sigmoid_norm": lambda c: -log_sigma(BETA / c.n * (c.w - c.rw) - BETA / c.m * (c.l - c.rl)),
    # Meng et al. 2024 (SimPO), eq. 6
    "simpo": lambda c: -log_sigma(BETA / c.n * c.w - BETA / c.m * c.l - GAMMA),
    # Hong et al. 2024 (ORPO), eq. 4 and 7
    "orpo": lambda c: -log_sigma(math.log(odds(c.w, c.n) / odds(c.l, c.m))),
}


def section(*losses: LossType, **fields: Any) -> DPOSection:
    read: dict[str, Any] = {}
    if set(losses) & {"robust", "exo_pair"}:
        read["label_smoothing"] = FLIPPED
    if "simpo" in losses:
        read["simpo_gamma"] = GAMMA
    values = {"loss_type": list(losses), "beta": BETA, "per_device_batch_size": 2} | read
    return DPOSection.model_validate(values | fields)


def pairs() -> Pairs:
    import torch

    chosen, rejected, ref_chosen, ref_rejected, n, m = torch.tensor(
        CASES, dtype=torch.float64
    ).unbind(1)
    return Pairs(chosen, rejected, ref_chosen, ref_rejected, chosen, rejected, n, m)


def test_every_loss_has_a_formula() -> None:
    assert set(PAPERS) == set(LOSSES) == set(get_args(LossType)) - {"sft"}


@pytest.mark.parametrize("name", PAPERS)
def test_a_loss_is_that_of_its_paper(name: LossType) -> None:
    found = pair_losses(pairs(), section(name)).tolist()
    assert found == pytest.approx([PAPERS[name](case) for case in CASES], rel=1e-9, abs=1e-12)


def test_losses_are_added_by_their_weights() -> None:
    both = section("sigmoid", "ipo", "sft", loss_weights=[0.5, 2.0, 1.0])
    found = pair_losses(pairs(), both).tolist()
    expected = [0.5 * PAPERS["sigmoid"](case) + 2 * PAPERS["ipo"](case) for case in CASES]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (("sigmoid",), math.log(2)),
        (("hinge",), 1.0),
        (("ipo",), 1 / (2 * BETA) ** 2),
        (("robust",), math.log(2)),
        (("sigmoid", "apo_zero"), math.log(2) + 1),
        (("sigmoid", "sft"), None),
        (("simpo",), None),
    ],
)
def test_the_loss_of_no_margin(losses: tuple[LossType, ...], expected: float | None) -> None:
    assert loss_at_start(section(*losses)) == (expected and pytest.approx(expected))


@pytest.fixture(scope="module")
def against_trl(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two functions of a section: the loss of one batch by TRL's trainer, and by ours. The model
    has gone a way from its reference."""
    import torch

    from luthier.models.loading import load_model, load_tokenizer
    from luthier.training.model import _go_on
    from luthier.training.pair_batches import PairCollator
    from luthier.training.pair_loss import PairLoss, reply_log_probs
    from luthier.training.preference import count_pairs

    folder = tmp_path_factory.mktemp("trl")
    model = _go_on(load_model(tiny_base), sft_adapter(tiny_base, folder / "sft"))
    rows = token_pairs(5, seed=8)
    ours = [
        {
            "input_ids": row["prompt_ids"] + row["chosen_ids"] + row["rejected_ids"],
            "prompt_tokens": len(row["prompt_ids"]),
            "chosen_tokens": len(row["chosen_ids"]),
        }
        for row in rows
    ]
    collate = PairCollator(0, share_prompt=True)
    with torch.no_grad():
        reference = reply_log_probs(model, collate(ours), share_prefix=True).tolist()
    ours = [row | {"reference": r} for row, r in zip(ours, reference, strict=True)]
    trainer = _trl_trainer(model, load_tokenizer(tiny_base), rows, folder / "out")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B.default" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    batch = trainer.data_collator(rows)

    def theirs(section: DPOSection) -> float:
        trainer.loss_types, trainer.loss_weights = section.loss_type, section.weights
        trainer.beta, trainer.label_smoothing = section.beta, section.label_smoothing
        trainer.ld_alpha = section.ld_alpha
        return float(trainer._compute_loss(trainer.model, batch, False).detach())

    def mine(section: DPOSection) -> float:
        loss = PairLoss(section, share_prefix=True, head="positions")
        return float(loss(model, collate(ours), count_pairs(ours)).detach())

    return theirs, mine


def _trl_trainer(model: Any, tokenizer: Any, rows: list[Any], folder: Path) -> Any:
    import datasets
    from trl import DPOConfig, DPOTrainer

    class Untokenised(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    return Untokenised(
        model=model,
        args=DPOConfig(
            output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False,
            report_to=[], max_length=None,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip


@pytest.mark.parametrize(
    "losses",
    [*((name,) for name in PAPERS if name not in ("simpo", "orpo")), ("sigmoid", "sft", "ipo")],
    ids="+".join,
)
def test_a_loss_is_trls(losses: tuple[LossType, ...], against_trl: Any) -> None:
    """Same model, same batch, same reference: TRL keeps it as a second adapter."""
    theirs, mine = against_trl
    assert mine(section(*losses)) == pytest.approx(theirs(section(*losses)), rel=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_the_weight_of_a_longer_replys_rest_is_trls(alpha: float, against_trl: Any) -> None:
    theirs, mine = against_trl
    weighted = section("sigmoid", ld_alpha=alpha)
    assert mine(weighted) == pytest.approx(theirs(weighted), rel=1e-4)
    if alpha != 1:
        assert mine(weighted) != pytest.approx(mine(section("sigmoid")), rel=1e-4)
