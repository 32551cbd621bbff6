"""What an experiment claims: false alarms at most alpha however often one looks, and power.

Simulated: the values are drawn, and go through the code of the product.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiment_noise import NOISES, autoregressive, binomial_limit, block_pairs
from pertoken import experiment
from pertoken.experiment.autocorrelation import autocorrelation_time, block_length
from pertoken.experiment.confidence_sequence import MIN_PAIRS, PairSums, radius, ratio_interval
from pertoken.experiment.e_value import QuantileEvidence, log_wealth, most_counted, ratio_grid

ALPHA = 0.05
EXPECTED = 1000.0
RUNS, CHUNK = 1000, 100


def _misses(a, b, ratio: float) -> int:
    """Runs whose interval leaves out the true ratio at any look: what an adversary would find."""
    low, high = ratio_interval(PairSums.running(a, b), ALPHA, EXPECTED)
    return int(((low > ratio) | (high < ratio))[:, MIN_PAIRS - 1 :].any(axis=1).sum())


@pytest.mark.parametrize("name", NOISES)
def test_no_more_than_alpha_of_1000_equal_pairs_ever_seem_different(name):
    """Looked at after every pair, with the shortest blocks that are ever chosen.

    The same values scaled are a known difference: its interval is wrong no more often.
    """
    random = np.random.default_rng(1)
    misses = scaled = 0
    for _ in range(RUNS // CHUNK):
        a, b = (of.mean(-1) for of in block_pairs(random, NOISES[name], CHUNK, 600, 1))
        misses += _misses(a, b, 1.0)
        scaled += _misses(a, 1.02 * b, 1.02)
    assert misses <= binomial_limit(RUNS, ALPHA)
    assert scaled <= binomial_limit(RUNS, ALPHA)


@pytest.mark.parametrize("name", NOISES)
def test_no_more_than_alpha_of_1000_equal_tails_ever_seem_different(name):
    random = np.random.default_rng(2)
    length = 8
    most = most_counted(2 * length, 0.99)
    enough = math.log(2.0 / ALPHA)
    misses = 0
    for _ in range(RUNS // CHUNK):
        a, b = block_pairs(random, NOISES[name], CHUNK, 300, length)
        threshold = np.quantile(a[:, :60], 0.99, axis=(1, 2), keepdims=True)
        over_a, over_b = (np.minimum((of[:, 60:] > threshold).sum(-1), most) for of in (a, b))
        more = (over_b - over_a).astype(np.float64)
        told = (log_wealth(more, most) >= enough) | (log_wealth(-more, most) >= enough)
        misses += int(told.any(axis=1).sum())
    assert misses <= binomial_limit(RUNS, ALPHA)


def test_looking_after_every_pair_deceives_a_z_test_and_not_the_sequence():
    random = np.random.default_rng(3)
    a, b = (of.mean(-1) for of in block_pairs(random, NOISES["independent"], 200, 2000, 2))
    difference = b - a
    count = np.arange(1, 2001)
    mean = np.cumsum(difference, axis=1) / count
    square = np.cumsum(difference**2, axis=1) / count
    z = np.abs(mean) / np.sqrt((square - mean**2) / count + 1e-300)
    peeking = int((z > 1.96)[:, MIN_PAIRS - 1 :].any(axis=1).sum())
    assert peeking > 0.25 * 200
    assert _misses(a, b, 1.0) <= binomial_limit(200, ALPHA)


def test_streams_with_noise_of_their_own_need_the_block_length_that_is_chosen():
    """Without randomisation between them: autocorrelation is met by the length of blocks."""
    random = np.random.default_rng(4)
    length = block_length((1 + 0.6) / (1 - 0.6), 1)
    a, b = (
        1.0 + 0.1 * autoregressive(random, (300, 300 * 2 * length), 0.6).reshape(300, 300, -1)
        for _ in range(2)
    )
    assert _misses(a.mean(-1), b.mean(-1), 1.0) <= binomial_limit(300, ALPHA)
    # Blocks six times too short: the covariance of neighbours widens the interval.
    a, b = (
        1.0 + 0.1 * autoregressive(random, (300, 600 * 6), 0.6).reshape(300, 600, 6).mean(-1)
        for _ in range(2)
    )
    assert _misses(a, b, 1.0) <= binomial_limit(300, ALPHA)


@pytest.mark.parametrize(("delay", "pairs"), [(0.02, 570), (0.01, 1730), (0.005, 7300)])
def test_a_planted_delay_is_found_in_half_of_the_runs_and_never_as_a_gain(delay, pairs):
    """Pairs whose difference has a standard deviation of 14 %."""
    random = np.random.default_rng(5)
    a, b = 1.0 + 0.14 / math.sqrt(2.0) * random.standard_normal((2, 200, pairs))
    low, high = ratio_interval(PairSums.running(a, b * (1.0 + delay)), ALPHA, EXPECTED)
    low, high = low[:, MIN_PAIRS - 1 :], high[:, MIN_PAIRS - 1 :]
    assert (low > 1.0).any(axis=1).mean() >= 0.5
    assert (high < 1.0).any(axis=1).mean() <= ALPHA / 2


def test_the_radius_is_that_of_the_published_formula():
    """By hand: t = 400, alpha = 0.05, narrowest at 1000."""
    log = -2.0 * math.log(0.05)
    rate = (log + math.log(log) + 1.0) / 1000.0
    by_hand = math.sqrt(
        2.0 * (400 * rate + 1) / (400**2 * rate) * math.log(math.sqrt(400 * rate + 1) / 0.05)
    )
    assert float(radius(400, 0.05, 1000.0)) == pytest.approx(by_hand)
    # Wider than the one look of a z test, and narrowing about as the root of the count.
    assert 1.96 / 20 < by_hand < 2 * 1.96 / 20
    widths = radius(np.array([250, 1000, 4000]), 0.05, 1000.0) * np.sqrt([250, 1000, 4000])
    assert widths.argmin() == 1


def test_sums_that_grow_pair_by_pair_give_the_interval_of_all_at_once():
    random = np.random.default_rng(6)
    a, b = 1.0 + 0.1 * random.standard_normal((2, 150))
    at_once = ratio_interval(PairSums.running(a, b), ALPHA, EXPECTED)
    sums = PairSums()
    for at, (one_a, one_b) in enumerate(zip(a, b, strict=True)):
        sums.add(float(one_a), float(one_b))
        if at in (1, 10, 149):
            grown = ratio_interval(sums, ALPHA, EXPECTED)
            assert grown == (pytest.approx(at_once[0][at]), pytest.approx(at_once[1][at]))


def test_a_ratio_is_unknown_while_the_mean_of_a_may_be_zero():
    sums = PairSums()
    for value in (0.0, 3.0, 0.0, 0.0):
        sums.add(value, 1.0)
    assert ratio_interval(sums, ALPHA, EXPECTED) == (0.0, math.inf)


def test_the_wealth_of_one_bet_is_its_product():
    most = 2
    differences = np.array([1.0, -2.0, 0.0, 2.0])
    stakes = 0.9 / 2 * 0.5 ** np.arange(8)
    by_hand = np.mean([np.prod(1.0 + differences * stake) for stake in stakes])
    assert math.exp(log_wealth(differences, most)[-1]) == pytest.approx(by_hand)


@pytest.mark.parametrize("scale", [1.0, 1.25, 0.8])
def test_the_interval_of_a_quantile_holds_its_true_ratio_and_narrows_to_it(scale):
    random = np.random.default_rng(7)
    misses, widths = 0, []
    for _ in range(60):
        a, b = 1.0 + random.pareto(4.0, (2, 200, 64))
        evidence = QuantileEvidence(1.01**-0.25 * 100**0.25, 0.99, 64, 1.0)
        low, high = 0.0, math.inf
        for one_a, one_b in zip(a, b, strict=True):
            evidence.add(one_a, one_b * scale)
            now = evidence.interval(ALPHA)
            low, high = max(low, now[0]), min(high, now[1])
        misses += not low <= scale <= high
        widths.append(high / low if low else math.inf)
        assert 0.5 * scale < evidence.estimate() < 2.0 * scale
    assert misses <= binomial_limit(60, ALPHA)
    assert np.median(widths) < 1.5


def test_the_grid_of_ratios_has_one_and_the_margin_exactly():
    grid = ratio_grid(1.07)
    assert {1.0, 1.07} <= set(grid)
    assert (np.diff(grid) > 0).all() and grid[0] < 0.3 and grid[-1] > 3.5
    assert (np.diff(np.log(grid)) < 0.13).all()


def test_the_autocorrelation_time_is_that_of_known_series():
    random = np.random.default_rng(8)
    for phi in (0.0, 0.6, 0.9):
        series = autoregressive(random, (40, 1000), phi)
        times = [autocorrelation_time(np.exp(one)) for one in series]
        assert np.median(times) == pytest.approx((1 + phi) / (1 - phi), rel=0.25)


@pytest.mark.parametrize(
    "series", [np.ones(50), np.arange(50.0), np.array([1.0, 2.0]), np.array([1.0, 2.0] * 30)]
)
def test_constant_rising_short_and_alternating_series_need_no_long_blocks(series):
    assert autocorrelation_time(series) == pytest.approx(1.0)


def test_a_trend_and_an_outlier_do_not_hide_or_feign_autocorrelation():
    random = np.random.default_rng(9)
    series = random.standard_normal(500)
    series[100] = 1e6
    assert autocorrelation_time(series + np.arange(500) / 50.0) < 2.0
    series = autoregressive(random, (1, 500), 0.9)[0]
    series[100] = 1e6
    assert autocorrelation_time(series) > 8


def test_an_adversary_who_stops_at_his_best_moment_gains_nothing():
    """Whole experiments of equal variants with the mean and p99: no verdict at a margin of 0.

    The adversary looks after every pair and would stop at any verdict at all.
    """
    plan = experiment.Plan(["mean", "p99"], margin=0.0, block_length=2, max_pairs=200)
    alarms = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        streams = [(float(x) for x in random.lognormal(0.0, 0.3, 4000)) for _ in range(2)]
        alarms += any(look.verdict != "undecided" for look in experiment.looks(*streams, plan))
    assert alarms <= binomial_limit(60, ALPHA)
