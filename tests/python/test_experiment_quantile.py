"""Quantiles where values are the same, come in bursts or lie far apart."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiment_noise import binomial_limit, bursts
from pertoken import experiment
from pertoken.experiment import Metric, Plan
from pertoken.experiment.e_value import (
    QuantileEvidence,
    Threshold,
    log_wealth,
    most_counted,
    ratio_grid,
)
from pertoken.experiment.estimate import QuantileGathering

ALPHA = 0.05


def atom(random, tail, at=10.0, count=16):
    """Mostly one and the same value; a few are two times that and more."""
    return np.where(random.random(count) < tail, 20.0 + random.integers(0, 10, count), at)


def calls(seed, draw):
    random = np.random.default_rng(seed)
    while True:
        yield draw(random).tolist()


def compared(draw_a, draw_b, of, margin=0.2, seed=0, **given):
    plan = Plan([of], margin, block_length=1, warm_up_calls=0, max_seconds=None, seed=seed, **given)
    return experiment.compare(calls(2 * seed, draw_a), calls(2 * seed + 1, draw_b), plan)


@pytest.mark.parametrize(
    ("of", "tail_a", "tail_b"), [("p50", 0.05, 0.10), ("p90", 0.01, 0.04), ("p90", 0.04, 0.01)]
)
def test_a_quantile_that_many_values_share_is_compared_as_itself(of, tail_a, tail_b):
    """That of a and of b is the same value: what lies beyond it is another quantile."""
    for seed in range(5):
        result = compared(
            lambda random: atom(random, tail_a),
            lambda random: atom(random, tail_b),
            of,
            seed=seed,
            max_pairs=400,
        )
        assert (result.verdict, result[of].change) == ("under", 0.0)
        assert result[of].low < 0 < result[of].high < 0.01
        assert result[of].over_share == pytest.approx(1 - float(of[1:]) / 100, rel=0.3)


def test_a_shared_quantile_that_is_dearer_is_found():
    result = compared(
        lambda random: atom(random, 0.05), lambda random: atom(random, 0.05, at=13.0), "p50"
    )
    assert result.verdict == "over"
    assert result["p50"].low < 0.3 < result["p50"].high
    assert result["p50"].change == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("at", [10.0, 0.0])
def test_ties_refute_nothing_that_is_true(at):
    """At a margin of 0 the quantiles are the same; multiples of 0 say nothing at all."""
    result = compared(
        lambda random: atom(random, 0.05, at),
        lambda random: atom(random, 0.10, at),
        "p50",
        margin=0.0,
        max_pairs=300,
    )
    assert result.verdict == "undecided"
    assert result["p50"].change == (0.0 if at else None)


def test_a_threshold_counts_as_many_as_the_level_says():
    values = np.array([1.0] * 90 + [2.0] * 10)
    assert Threshold.of(values, 0.5) == Threshold(1.0, pytest.approx(40 / 90, abs=1e-6))
    assert Threshold.of(values, 0.5).counts(values).sum() == pytest.approx(50, abs=1e-3)
    assert Threshold.of(values, 0.95) == Threshold(2.0, pytest.approx(0.5, abs=1e-6))
    assert Threshold.of(np.arange(100.0), 0.995).tied == 0.0
    assert Threshold(3.0).largest_count(np.array([4, 4, 0, 0, 4, 0, 4.0]), 3) == 2


def test_a_burst_of_the_pilot_gives_room_to_more():
    assert most_counted(64, 0.99) == most_counted(64, 0.99, largest=5) == 5
    assert most_counted(64, 0.99, largest=20) == 30
    assert most_counted(64, 0.99, largest=60) == 64
    assert most_counted(4, 0.5) == 4


@pytest.mark.parametrize(("of_a", "of_b"), [(0.8, 0.0), (0.0, 0.8)])
def test_bursts_within_calls_of_one_variant_are_no_difference_of_its_quantile(of_a, of_b):
    """Both draw from one distribution; what the calls of one share comes in bursts.

    Cut where independent values would be, the counts differ although the quantiles do not.
    """
    runs, pairs, sides = 150, 1000, 128
    enough = math.log(2.0 / ALPHA)
    refuted = {True: 0, False: 0}
    random = np.random.default_rng(1)
    for _ in range(runs):
        pilot, a = np.split(bursts(random, pairs + sides, of_a), [sides])
        pilot_b, b = np.split(bursts(random, pairs + sides, of_b), [sides])
        threshold = Threshold.of(pilot.ravel(), 0.99)
        largest = max(
            Threshold.of(known.ravel(), 0.99).largest_count(known.ravel(), 64)
            for known in (pilot, pilot_b)
        )
        counts = [threshold.counts(of).sum(-1) for of in (a, b)]
        for has_pilot in refuted:
            most = most_counted(64, 0.99, largest if has_pilot else 0.0)
            over_a, over_b = np.minimum(counts, most)
            wealth = np.maximum(
                log_wealth(over_b - over_a, most), log_wealth(over_a - over_b, most)
            )
            refuted[has_pilot] += bool((wealth >= enough).any())
    assert refuted[True] <= binomial_limit(runs, ALPHA)
    assert refuted[False] > 0.5 * runs


def test_the_bursts_of_the_pilot_reach_the_evidence_and_what_is_cut_is_told():
    random = np.random.default_rng(2)
    even, in_bursts = bursts(random, 400, 0.0), bursts(random, 400, 0.9)

    def gathered(pilot):
        pilots = (even[:200].ravel(), pilot.ravel())
        gathering = QuantileGathering(Metric("p99", 0.2), Plan(["p99"]), pilots, 64)
        for pair in zip(even[200:], in_bursts[200:], strict=True):
            gathering.add(*pair)
            estimate = gathering.estimate()
            if None not in (estimate.change, estimate.low, estimate.high):
                assert estimate.low <= estimate.change <= estimate.high
        return gathering.notes(("old", "new"))

    assert gathered(in_bursts[:200]) == ()
    (note,) = gathered(even[:200])
    assert note.startswith("p99: a pair counts 5 values") and "0 % of old's and" in note


def test_a_result_tells_of_bursts_that_the_pilot_had_not():
    made = iter([0.0] * 256 + [0.9] * 10_000)
    result = compared(
        lambda random: bursts(random, 1, 0.0, 32)[0],
        lambda random: bursts(random, 1, next(made), 32)[0],
        "p99",
        max_pairs=200,
        margin=0.0,
    )
    (note,) = result.notes
    assert note in " ".join(str(result).split()) and "of b's" in note


@pytest.mark.parametrize(("scale", "text"), [(10.0, "at least +"), (0.1, "at most -")])
def test_a_change_beyond_the_grid_is_a_bound_and_no_number(scale, text):
    result = compared(
        lambda random: random.lognormal(0.0, 0.3, 32),
        lambda random: scale * random.lognormal(0.0, 0.3, 32),
        "p99",
        max_pairs=200,
    )
    assert result.verdict == ("over" if scale > 1 else "under")
    assert result["p99"].change is None
    assert "p99 of b against a not known" in result.line and text in result.line


def test_evidence_on_a_difference_that_changes_is_on_its_mean_so_far():
    """The difference is in turn above and below 0; its mean so far returns to 0 again and again."""
    random = np.random.default_rng(3)
    share = 0.02 * (1.0 + 0.5 * np.where(np.arange(1500) // 100 % 2, 1.0, -1.0))
    is_null = np.cumsum(share - 0.02) <= 1e-12
    most = most_counted(64, 0.98)
    over_a, over_b = (
        np.minimum(random.binomial(64, of, (300, 1500)), most) for of in (0.02, share)
    )
    told = log_wealth((over_b - over_a).astype(np.float64), most) >= math.log(1.0 / ALPHA)
    assert (told & is_null).any(axis=1).sum() <= binomial_limit(300, ALPHA)
    assert is_null.sum() > 700


def test_the_estimate_of_a_quantile_is_not_left_out_by_its_interval():
    random = np.random.default_rng(4)
    evidence = QuantileEvidence(Threshold(2.0, 0.25), 3, 1.1)
    for _ in range(300):
        evidence.add(random.integers(0, 4, 16) * 1.0, random.integers(0, 5, 16) * 1.0)
        low, high = evidence.interval(0.5)
        assert math.isnan(evidence.estimate()) or low <= evidence.estimate() <= high
    assert evidence.estimate() in ratio_grid(1.1) or evidence.estimate() > 1.0
