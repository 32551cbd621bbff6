"""`pertoken.experiment.compare` and `looks`, as a user meets them."""

from __future__ import annotations

import itertools
import math
import random
from functools import partial

import numpy as np
import pytest

from experiment_noise import measured_values as values
from pertoken import experiment
from pertoken.errors import ExperimentError
from pertoken.experiment import Measured, Metric, Plan, Result
from pertoken.experiment.estimate import MeanGathering

QUICK = {"block_length": 2, "max_seconds": None}


class VirtualClock:
    """Nanoseconds that only pass when something is said to take them."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def work(self, dur_ns: int, seed: int = 0):
        """A callable that takes about so long."""
        noise = random.Random(seed)

        def run() -> str:
            self.now_ns += round(dur_ns * noise.uniform(0.9, 1.1))
            return "dropped"

        return run


@pytest.mark.parametrize(("scale", "verdict"), [(1.0, "under"), (1.05, "over"), (0.9, "under")])
def test_measured_values_give_the_verdict_that_is_true(scale, verdict):
    result = experiment.compare(values(1.0, 1), values(scale, 2), Plan(margin=0.02, **QUICK))
    assert result.verdict == result["mean"].verdict == verdict
    assert result.ending == "verdict"
    assert result["mean"].low <= scale - 1.0 <= result["mean"].high
    assert 100 <= result.pairs < 1000
    assert result["mean"].baseline == pytest.approx(1.0, rel=0.05)


def test_calls_are_timed_by_the_clock_and_their_order_is_balanced_and_random():
    clock = VirtualClock()
    order = []
    work = {"a": clock.work(1000), "b": clock.work(1030, 1)}

    def variant(letter):
        def run():
            order.append(letter)
            return work[letter]()

        return run

    plan = Plan(margin=0.01, warm_up_calls=3, **QUICK)
    result = experiment.compare(variant("a"), variant("b"), plan, clock=clock)
    assert result.verdict == "over"
    assert result.seconds == pytest.approx(clock.now_ns / 1e9)
    assert order[:6] == ["a"] * 3 + ["b"] * 3
    rest = "".join(order[6:])
    pairs = {rest[at : at + 8] for at in range(0, len(rest), 8)}
    assert len(rest) == result.pairs * 8
    assert pairs == {"aabbbbaa", "bbaaaabb"}


def test_the_seed_decides_the_order_and_the_global_generators_are_left_alone():
    def noted(taken, side, value):
        taken.append(side)
        return value

    def order_of(seed):
        taken = []
        sources = [map(partial(noted, taken, side), values(1, side)) for side in (0, 1)]
        for look in experiment.looks(*sources, Plan(seed=seed, **QUICK)):
            if look.pairs == 20:
                return taken

    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist()
    assert order_of(0) == order_of(0) != order_of(1)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())


def test_blocks_are_as_long_as_the_autocorrelation_of_the_pilot_asks_for():
    def correlated(seed):
        last = 0.0
        for new in values(1.0, seed, 0.3):
            last = 0.9 * last + 0.1 * new
            yield last

    look = next(experiment.looks(correlated(1), correlated(2), Plan(max_seconds=None)))
    assert look.autocorrelation_time > 5
    assert look.block_length >= 12 * (look.autocorrelation_time - 1)
    look = next(experiment.looks(values(1, 1), values(1, 2), Plan(max_seconds=None)))
    assert look.block_length <= 12


def test_blocks_of_slow_calls_are_short_enough_for_the_time_and_the_result_says_so():
    clock = VirtualClock()
    slow = itertools.chain.from_iterable(itertools.repeat([1000] * 40 + [2000] * 40))

    def run():
        clock.now_ns += next(slow) * 1_000_000

    look = next(experiment.looks(run, run, Plan(max_seconds=3600), clock=clock))
    assert look.block_length == 1
    assert any("there is time for 1" in note for note in look.notes)


def test_a_pilot_of_slow_calls_takes_a_part_of_the_time_only():
    clock = VirtualClock()
    second = clock.work(1_000_000_000)
    plan = Plan(["mean", "p99"], max_seconds=400, warm_up_calls=0)
    look = next(experiment.looks(second, second, plan, clock=clock))
    assert look.block_length == 1
    assert 3 * 400 / 8 <= look.seconds <= 3 * (400 / 8 + 16) + 10


def test_several_metrics_share_alpha_and_one_that_is_over_decides():
    metrics = [Metric("mean", 0.5), Metric("p99", 0.1)]
    plan = Plan(metrics, alpha=0.04, block_length=16, max_seconds=None)

    def with_slow_ones(seed):
        for at, value in enumerate(values(1.0, seed)):
            yield value * (3.0 if at % 40 == 0 else 1.0)

    result = experiment.compare(values(1, 1), with_slow_ones(2), plan)
    assert [estimate.alpha for estimate in result.estimates] == [0.02, 0.02]
    assert result.verdict == result["p99"].verdict == "over"
    assert result["p99"].e_over >= 100 > result["p99"].e_under
    assert result["p99"].over_share == pytest.approx(0.01, abs=0.01)
    assert result["mean"].verdict != "over"
    both = experiment.compare(values(1, 1), values(1, 2), plan)
    assert both.verdict == "under"
    assert {estimate.verdict for estimate in both.estimates} == {"under"}


def test_a_call_may_measure_several_quantities_by_itself():
    streams = [values(1, seed) for seed in range(4)]

    def variant(time, memory, scale):
        return lambda: Measured({"ns": [next(time), next(time)], "bytes": scale * next(memory)})

    plan = Plan([Metric("mean", 0.02, "ns"), Metric("mean", 0.02, "bytes")], **QUICK)
    result = experiment.compare(variant(*streams[:2], 1.0), variant(*streams[2:], 1.2), plan)
    assert result["mean of bytes"].verdict == "over"
    assert result["mean of bytes"].change == pytest.approx(0.2, abs=0.05)
    assert abs(result["mean of ns"].change) < 0.05


@pytest.mark.parametrize(
    ("limit", "ending"), [({"max_pairs": 150}, "max_pairs"), ({"max_seconds": 1e-3}, "max_seconds")]
)
def test_a_limit_ends_an_experiment_that_cannot_tell(limit, ending):
    clock = VirtualClock()
    plan = Plan(margin=0.0, **{**QUICK, **limit})
    result = experiment.compare(clock.work(1000, 1), clock.work(1000, 2), plan, clock=clock)
    assert (result.verdict, result.ending) == ("undecided", ending)
    assert result["mean"].low < 0 < result["mean"].high
    assert "undecided" in str(result) and ending in str(result)


def test_values_that_end_end_the_experiment_with_what_is_known():
    result = experiment.compare(
        itertools.islice(values(1, 1), 1000), values(1, 2), Plan(margin=0.0, **QUICK)
    )
    assert (result.verdict, result.ending) == ("undecided", "end of data")
    assert result.pairs == (1000 - 8) // 4


def test_every_look_holds_so_that_an_interrupted_experiment_is_worth_its_pairs():
    seen = []
    for look in experiment.looks(values(1, 1), values(1.1, 2), Plan(margin=0.1, **QUICK)):
        seen.append(look)
        if look.pairs == 120:
            break
    interrupted = seen[-1]
    assert interrupted.ending in (None, "verdict")
    assert [look.pairs for look in seen] == list(range(1, len(seen) + 1))
    assert all(look["mean"].low is look["mean"].high is None for look in seen[:99])
    widths = [look["mean"].high - look["mean"].low for look in seen[99:]]
    assert widths[-1] < widths[0]
    assert interrupted["mean"].low < 0.1 < interrupted["mean"].high
    assert Result.from_dict(interrupted.to_dict()) == interrupted


def test_what_a_variant_raises_is_passed_on_and_the_looks_before_stay():
    calls = iter(range(1000))

    def run():
        if next(calls) > 500:
            raise KeyboardInterrupt

    last = None
    with pytest.raises(KeyboardInterrupt):
        for look in experiment.looks(run, run, Plan(margin=0.0, **QUICK)):
            last = look
    assert last.pairs >= 50


def test_on_look_is_called_after_every_pair():
    pairs = []
    result = experiment.compare(
        values(1, 1),
        values(1, 2),
        Plan(margin=0.1, **QUICK),
        on_look=lambda r: pairs.append(r.pairs),
    )
    assert pairs == list(range(1, result.pairs + 1))


def test_a_change_of_what_is_measured_is_told_beside_the_verdict_of_the_whole_time():
    gathering = MeanGathering(Metric("mean", 0.045), Plan())
    for _ in range(300):
        gathering.add(np.array([1.0, 1.0001]), np.array([1.0401, 1.0501]))
    for _ in range(3000):
        gathering.add(np.array([1.0, 1.0001]), np.array([0.5, 0.5]))
    estimate = gathering.estimate()
    assert estimate.contradictory and estimate.verdict == "under"
    whole = (300 * 1.0451 / 1.00005 + 3000 * 0.5 / 1.00005) / 3300 - 1.0
    assert estimate.change == pytest.approx(whole)
    assert estimate.low < whole < estimate.high < 0


@pytest.mark.parametrize("metric", ["mean", "p90"])
def test_where_b_changes_midway_each_look_tells_of_what_was_measured_so_far(metric):
    """The change lies in its own interval at every look. That b has changed is told."""

    def changed(seed):
        for at, value in enumerate(values(1.0, seed)):
            yield value * (1.0 if at < 2000 else 1.15)

    plan = Plan([metric], margin=0.0, block_length=2, max_pairs=800, max_seconds=None)
    told = set()
    for look in experiment.looks(values(1, 1), changed(2), plan):
        estimate = look[metric]
        low = -1.0 if estimate.low is None else estimate.low
        high = math.inf if estimate.high is None else estimate.high
        assert estimate.change is None or low <= estimate.change <= high
        told.add(estimate.contradictory)
    assert told == {False, True}


def test_deterministic_values_are_told_apart_at_the_first_look():
    result = experiment.compare(itertools.repeat(10), itertools.repeat(11), Plan(**QUICK))
    assert (result.verdict, result.pairs) == ("over", 100)
    assert result["mean"].low == pytest.approx(0.1)
    result = experiment.compare(
        itertools.repeat(0), itertools.repeat(0), Plan(max_pairs=120, **QUICK)
    )
    assert (result.verdict, result["mean"].change) == ("undecided", None)
    assert "not known" in result.line


@pytest.mark.parametrize(
    ("a", "message"),
    [
        (3, "not int"),
        ("text", "not str"),
        ({"x": 1}, "not dict"),
        ([float("nan")] * 999, "finite"),
        ([-1.0] * 999, "finite"),
        (["x"] * 999, "number"),
        ([None] * 999, "NoneType"),
        ([[]] * 999, "one or more"),
        ([{}] * 999, "no quantity"),
        ([{"ns": 1.0}] * 999, "no such quantity, but ns"),
        ([1.0] * 5, "end before"),
        ([1.0] * 9, "within the first pair"),
        (lambda: Measured("text"), "str"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words(a, message):
    with pytest.raises(ExperimentError, match=message):
        experiment.compare(a, values(), Plan(**QUICK))


def test_calls_of_different_sizes_are_refused():
    sizes = itertools.cycle([2, 3])
    with pytest.raises(ExperimentError, match="2 values and another 3"):
        experiment.compare(lambda: Measured([1.0] * next(sizes)), values(), Plan(**QUICK))


def test_two_variants_of_one_name_are_refused():
    with pytest.raises(ExperimentError, match="names"):
        experiment.compare(values(), values(), names=("same", "same"))
