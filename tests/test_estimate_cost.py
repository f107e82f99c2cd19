"""The cost model: formulas by hand, crossovers from both sides, and the framework's example."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_cases import API, OWN
from estimate_cases import real
from luthier.errors import ConfigError
from luthier.estimate.cost import (
    HOURS_PER_MONTH,
    MOST_GPUS,
    Asked,
    Own,
    crossover,
    payback_months,
)
from luthier.estimate.hardware import GPUS
from luthier.estimate.sensitivity import sensitivity
from luthier.estimate.throughput import MOST_REQUESTS, predict_throughput


def test_a_month_of_the_api_by_hand() -> None:
    assert API.monthly_usd(0) == 0
    assert API.monthly_usd(100_000) == pytest.approx(450)
    retrieval = replace(API, input_tokens=3000, price_usd_per_month=70)
    assert retrieval.monthly_usd(100_000) == pytest.approx(70 + 1050)


def test_a_month_of_the_own_model_by_hand() -> None:
    assert OWN.monthly_usd(0) == pytest.approx(180 + 100)
    assert OWN.monthly_usd(720_000) == pytest.approx(280)
    assert OWN.monthly_usd(1_440_000) == pytest.approx(460)
    assert replace(OWN, utilisation=0.5).monthly_usd(720_000) == pytest.approx(460)
    assert replace(OWN, retrainings_per_year=3).monthly_usd(0) == pytest.approx(280 + 300)
    assert replace(OWN, amortisation_months=6).monthly_usd(0) == pytest.approx(180 + 200)


def test_whole_gpus_come_in_steps() -> None:
    own = replace(OWN, whole_gpus=True)
    costs = [own.monthly_usd(volume) for volume in (0, 720_000, 720_001, 1_440_000, 1_440_001)]
    assert costs == pytest.approx([280, 280, 460, 460, 640])


def test_the_crossover_by_hand() -> None:
    """280 USD a month are 62,222 requests at 0.0045 USD."""
    found = crossover(OWN, API)
    assert found.ranges == ((pytest.approx(280 / 0.0045), math.inf),)
    assert found.first is not None
    assert OWN.monthly_usd(found.first) == pytest.approx(API.monthly_usd(found.first))


def test_where_a_request_costs_more_than_at_the_api_the_range_ends() -> None:
    """GPU at 36 USD an hour: 0.005 a request. 10 hours paid anyway are 72,000 requests, 360 USD:
    cheaper than 0.0045 each from 80,000 on, never before 72,000 and never after."""
    dear = replace(OWN, price_usd_per_gpu_hour=36.0, gpu_hours_per_month=10, training_usd=0)
    assert crossover(dear, API).is_never
    # With 40 USD less the line is met at 71,111 and left at 80,000, where both cost 360 - 40.
    subsidised = replace(API, price_usd_per_month=40)
    found = crossover(dear, subsidised)
    assert found.ranges == ((pytest.approx(320 / 0.0045), pytest.approx(40 / 0.0005)),)
    for end in found.ends:
        assert dear.monthly_usd(end) == pytest.approx(subsidised.monthly_usd(end))


def test_steps_cross_more_than_once() -> None:
    """A GPU answers 36,000 requests for 100 USD, 0.00278 each; the API takes 0.004 a request: from
    25,000 on one GPU is cheaper, the second needs 50,000, the third 75,000: all after the step."""
    own = Own("own", 1.0, 10.0, 0.0, gpu_hours_per_month=10, whole_gpus=True)
    api = Asked("API", 1000, 0, 4.0, 0.0)
    found = crossover(own, api)
    assert found.ranges == (
        (pytest.approx(25_000), 36_000),
        (pytest.approx(50_000), 72_000),
        (pytest.approx(75_000), math.inf),
    )
    assert found.examined_to == math.inf


def test_an_own_model_without_fixed_cost_is_always_cheaper() -> None:
    own = replace(OWN, training_usd=0.0, gpu_hours_per_month=0.0)
    assert crossover(own, API).is_always
    assert crossover(own, API).ends == ()


def test_equal_slopes_are_told_by_what_is_fixed() -> None:
    own = Own("own", 1.0, 3.6, 120.0, gpu_hours_per_month=0.0)
    same = Asked("API", 1000, 0, 1.0, 0.0)
    assert own.usd_per_request == pytest.approx(same.usd_per_request)
    assert crossover(own, same).is_never
    assert crossover(own, replace(same, price_usd_per_month=11)).is_always


def test_steps_are_followed_so_far_and_no_further() -> None:
    """Where a request costs the same on both sides, the steps never come to an end."""
    own = Own("own", 1.0, 3.6, 0.0, gpu_hours_per_month=1.0, whole_gpus=True)
    found = crossover(own, Asked("API", 1000, 0, 1.0, 0.0, price_usd_per_month=1.8))
    assert found.examined_to == pytest.approx(MOST_GPUS * 3600)
    assert len(found.ranges) == MOST_GPUS


def test_payback_by_hand() -> None:
    """100,000 requests: 450 at the API, 180 for the GPU: 1,200 USD are saved in 1200 / 270."""
    assert payback_months(OWN, API, 100_000) == pytest.approx(1200 / 270)
    assert payback_months(OWN, API, 40_000) is None
    assert payback_months(replace(OWN, training_usd=0), API, 100_000) == 0


def test_sensitivity_by_hand() -> None:
    found = {one.what: one for one in sensitivity(OWN, API)}
    price = found["price of a GPU hour, USD"]
    assert (price.half.value, price.twice.value) == (0.9, 3.6)
    assert price.half.crossover.first == pytest.approx((90 + 100) / 0.0045)
    assert price.twice.crossover.first == pytest.approx((360 + 100) / 0.0045)
    training = found["training, USD"]
    assert training.half.crossover.first == pytest.approx((180 + 50) / 0.0045)
    prompt = found["input tokens of a request"]
    assert prompt.half.crossover.first == pytest.approx(280 / 0.003)
    speed = found["requests a second of one GPU"]  # within the hours that are paid anyway
    assert speed.half.crossover == speed.twice.crossover == crossover(OWN, API)
    assert "fixed price a month, USD" not in found  # half of nothing is nothing


def test_a_utilisation_is_never_above_one() -> None:
    rows = {one.what: one for one in sensitivity(replace(OWN, utilisation=0.7), API)}
    assert rows["utilisation"].half.value == 0.35
    assert rows["utilisation"].twice.value == 1.0


_MONEY = st.floats(0, 1e4)
_OWNS = st.builds(
    Own,
    name=st.just("own"),
    requests_per_second=st.floats(0.01, 1e3),
    price_usd_per_gpu_hour=st.floats(0.01, 100),
    training_usd=_MONEY,
    gpu_hours_per_month=st.floats(0.5, 1000),
    whole_gpus=st.booleans(),
    utilisation=st.floats(0.05, 1),
    amortisation_months=st.floats(1, 60),
    retrainings_per_year=st.floats(0, 12),
)
_ASKED = st.builds(
    Asked,
    name=st.just("API"),
    input_tokens=st.floats(1, 1e5),
    output_tokens=st.floats(1, 1e4),
    price_usd_per_million_input_tokens=st.floats(0.01, 100),
    price_usd_per_million_output_tokens=st.floats(0, 100),
    price_usd_per_month=_MONEY,
)
_VOLUMES = st.floats(0, 1e9)


@given(own=_OWNS, asked=_ASKED, volumes=st.tuples(_VOLUMES, _VOLUMES))
def test_a_larger_volume_never_costs_less(
    own: Own, asked: Asked, volumes: tuple[float, float]
) -> None:
    low, high = sorted(volumes)
    assert own.monthly_usd(low) <= own.monthly_usd(high) * (1 + 1e-12)
    assert asked.monthly_usd(low) <= asked.monthly_usd(high)


@given(own=_OWNS.map(lambda own: replace(own, whole_gpus=False)), asked=_ASKED)
def test_at_a_crossover_both_cost_the_same(own: Own, asked: Asked) -> None:
    found = crossover(own, asked)
    assert len(found.ranges) <= 1  # a maximum of lines is convex
    for end in found.ends:
        assert own.monthly_usd(end) == pytest.approx(asked.monthly_usd(end), rel=1e-6)


@given(own=_OWNS, asked=_ASKED, volume=_VOLUMES)
def test_inside_a_range_the_own_model_costs_less_and_outside_it_does_not(
    own: Own, asked: Asked, volume: float
) -> None:
    found = crossover(own, asked)
    theirs, ours = asked.monthly_usd(volume), own.monthly_usd(volume)
    is_close = abs(theirs - ours) <= 1e-6 * theirs
    capacity = own.gpu_hours_per_month * own.requests_per_gpu_hour
    is_at_step = own.whole_gpus and abs(math.remainder(volume, capacity)) <= 1e-6 * volume
    if is_close or is_at_step or volume > found.examined_to:
        return
    assert any(low < volume < high or low == volume == 0 for low, high in found.ranges) == (
        ours < theirs
    )


def test_the_roofline_by_hand() -> None:
    """Llama 3.2 3B on an RTX 4090, whose memory holds 256 requests: a step reads weights, keys and
    values, or computes, whichever takes longer; a prompt computes."""
    model, gpu = real("Llama-3.2-3B-Instruct"), GPUS["rtx-4090"]
    found = predict_throughput(model, gpu, 100, 20)
    kept = 2 * 28 * 8 * 128 * 2  # keys and values of 28 layers, 8 heads of 128, 16 bits
    read = (model.parameters * 2 + 256 * kept * 110) / 1008e9
    compute = 256 * 2 * model.parameters / (165.2e12 * 0.55)
    prompt = 100 * 2 * model.parameters / (165.2e12 * 0.55)
    assert found.requests_together == MOST_REQUESTS == 256
    assert found.requests_per_second == pytest.approx(1 / (prompt + 20 * max(read, compute) / 256))
    assert found.output_tokens_per_second == pytest.approx(20 * found.requests_per_second)


def test_one_request_after_the_other_is_bound_by_reading() -> None:
    """A prompt so long that memory holds few: a step then reads, and hardly computes."""
    model, gpu = real("Llama-3.1-8B-Instruct"), GPUS["rtx-4090"]
    found = predict_throughput(model, gpu, 20_000, 1000)
    assert 1 <= found.requests_together <= 3
    most = found.requests_together * gpu.bandwidth_bytes_per_second / (model.parameters * 2)
    assert found.output_tokens_per_second < most


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cost\.own\.gpu: llama of .* does not fit .* rtx-4090"):
        predict_throughput(real("Llama-3.3-70B-Instruct"), GPUS["rtx-4090"], 100, 20)


# DECISION.md's example, and docs/cost.md, section "The framework's example". Volumes in tokens: a
# request of one token. List price of Claude 3.5 Sonnet, June 2024: 3 and 15 USD for a million.
FRAMEWORK_API, FRAMEWORK_OWN = 11_485.0, 789.0
LIST = {"price_usd_per_million_input_tokens": 3.0, "price_usd_per_million_output_tokens": 15.0}
CLASSIFICATION = Asked("API", 200, 10, **LIST)


def _per_million(asked: Asked, task_tokens: float) -> float:
    return asked.usd_per_request / task_tokens * 1e6


def test_the_frameworks_ratio_and_what_it_takes() -> None:
    assert pytest.approx(14.56, abs=0.01) == FRAMEWORK_API / FRAMEWORK_OWN
    list_price = _per_million(CLASSIFICATION, 210)
    assert list_price == pytest.approx(3.57, abs=0.01)
    own_price = list_price / (FRAMEWORK_API / FRAMEWORK_OWN)
    assert own_price == pytest.approx(0.245, abs=0.001)
    model = real("Qwen2.5-7B-Instruct")
    needed = {}
    for name, share in (("rtx-4090", 0.114), ("a100-80gb", 0.301)):
        gpu = GPUS[name]
        assert gpu.price_usd_per_hour is not None
        needed[name] = gpu.price_usd_per_hour / 3600 / own_price * 1e6
        most = 210 * predict_throughput(model, gpu, 200, 10).requests_per_second
        assert needed[name] / most == pytest.approx(share, abs=0.001)
    assert needed == pytest.approx({"rtx-4090": 680, "a100-80gb": 2775}, abs=5)


def test_the_frameworks_prices_contradict_its_crossover() -> None:
    """Taken at its word it is at thousands of tokens a month, not at 5 to 10 million."""
    api = Asked("API", 1, 0, FRAMEWORK_API, 0.0)
    hour = FRAMEWORK_OWN / 1e6 * 3600  # of a GPU that answers a token a second
    for training, paid_by_use, always_on in ((200, 1_558, 39_588), (2000, 15_582, 52_648)):
        own = Own("own", 1.0, hour, training, gpu_hours_per_month=0)
        assert crossover(own, api).first == pytest.approx(paid_by_use, rel=1e-3)
        card = Own("own", 1e4, 0.60, training, gpu_hours_per_month=HOURS_PER_MONTH)
        assert crossover(card, api).first == pytest.approx(always_on, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("rtx-4090", 45, 121),
        ("a100-40gb", 96, 222),
        ("a100-80gb", 181, 391),
        ("h100-80gb", 349, 728),
    ],
)
def test_the_api_price_at_which_an_always_on_gpu_crosses_at_5_to_10_million(
    name: str, lowest: float, highest: float
) -> None:
    """200 USD of training and 10 M tokens, 2,000 USD and 5 M: the ends of both ranges."""
    hour = GPUS[name].price_usd_per_hour
    assert hour is not None
    for price, training, tokens in ((lowest, 200, 10e6), (highest, 2000, 5e6)):
        own = Own("own", 1e4, hour, training)
        api = Asked("API", 1, 0, price, 0.0)
        assert crossover(own, api).first == pytest.approx(tokens, rel=0.012)


def test_the_crossover_holds_where_only_use_is_paid_or_the_prompt_is_long() -> None:
    own_price = _per_million(CLASSIFICATION, 210) / (FRAMEWORK_API / FRAMEWORK_OWN)
    hour = own_price / 1e6 * 210 * 3600  # of a GPU that answers a request a second
    for training, millions in ((200, 5.0), (400, 10.0), (2000, 50.1)):
        own = Own("own", 1.0, hour, training, gpu_hours_per_month=0)
        first = crossover(own, CLASSIFICATION).first
        assert first is not None
        assert first * 210 / 1e6 == pytest.approx(millions, abs=0.05)
    for prompt, training, millions in ((3_130, 200, 10), (8_420, 2000, 5)):
        card = Own("own", 28.4, 0.60, training)
        first = crossover(card, replace(CLASSIFICATION, input_tokens=prompt)).first
        assert first is not None
        assert first * 210 / 1e6 == pytest.approx(millions, rel=0.01)
    first = crossover(Own("own", 28.4, 0.60, 200), CLASSIFICATION).first
    assert first is not None
    assert first * 210 / 1e6 == pytest.approx(127, abs=1)


def test_the_frameworks_price_would_fit_a_million_requests() -> None:
    assert 1e6 * Asked("API", 3500, 66, **LIST).usd_per_request == pytest.approx(11_490)
