"""Totals as values: merging obeys the laws of addition, and damaged data is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pertoken import Histogram, PertokenError, Totals, TotalsError
from pertoken.schema import SIGNALS, STEP_KINDS
from pertoken.totals import (
    RequestTotals,
    SignalKey,
    SignalTotals,
    SiteKey,
    SiteTotals,
    StepTotals,
)

durations_ns = st.integers(0, 10**12)
label_sets = st.sampled_from([(), (("tenant", "a"),), (("tenant", "b"), ("zone", "x"))])

# What may happen in a process, as (what, which, numbers).
events = st.one_of(
    st.tuples(st.just("step"), st.sampled_from(STEP_KINDS), durations_ns),
    st.tuples(
        st.just("span"),
        st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(STEP_KINDS), st.just("module")),
        durations_ns,
    ),
    st.tuples(st.just("request"), label_sets, durations_ns),
    st.tuples(
        st.just("token"),
        st.tuples(st.sampled_from(SIGNALS), st.sampled_from(STEP_KINDS)),
        st.integers(-1000, 0),
    ),
)


def totals_of(happened: list[tuple[str, Any, int]]) -> Totals:
    """The totals of one process, counted in the plainest way."""

    def of(what: str) -> dict[Any, list[int]]:
        values: dict[Any, list[int]] = {}
        for kind_of_event, which, ns in happened:
            if kind_of_event == what:
                values.setdefault(which, []).append(ns)
        return values

    def histogram(values_ns: list[int]) -> Histogram:
        return Histogram.from_values([float(ns) for ns in values_ns])

    return Totals(
        recordings=1,
        recorded_ns=len(happened),
        steps={
            kind: StepTotals(len(ns), 0, 3 * len(ns), sum(ns), 1, histogram(ns))
            for kind, ns in of("step").items()
        },
        sites={SiteKey(*key): SiteTotals(sum(ns), histogram(ns)) for key, ns in of("span").items()},
        requests={
            labels: RequestTotals(
                started=len(ns),
                tokens_in=sum(ns),
                ttft_ns=histogram(ns),
                step_ns={"decode": histogram(ns[::2])},
            )
            for labels, ns in of("request").items()
        },
        logits={
            SignalKey(*key): SignalTotals(
                observations=len(values),
                weight=2.0 * len(values),
                weighted_count=2.0 * len(values),
                weighted_sum=2.0 * sum(values),
                weighted_sum_sq=2.0 * sum(value**2 for value in values),
                values=histogram(values),
            )
            for key, values in of("token").items()
        },
        losses={"records_dropped": len(happened) % 3},
    )


def exact(totals: Totals) -> dict[str, Any]:
    """As plain data without the sums of durations, which are rounded."""

    def without_sums(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_sums(v) for k, v in value.items() if k not in ("sum", "sum_sq")}
        return [without_sums(item) for item in value] if isinstance(value, list) else value

    data: dict[str, Any] = without_sums(totals.to_dict())
    for name in ("sites", "logits", "requests"):
        data[name] = sorted(data[name], key=lambda entry: json.dumps(entry, sort_keys=True))
    return data


processes = st.lists(events, max_size=12).map(totals_of)


@given(processes, processes, processes)
@settings(max_examples=150, deadline=None)
def test_merging_is_associative_and_commutative_and_nothing_changes_nothing(
    a: Totals, b: Totals, c: Totals
) -> None:
    assert exact(a.merge(b).merge(c)) == exact(a.merge(b.merge(c)))
    assert exact(a.merge(b)) == exact(b.merge(a))
    assert a.merge(Totals()) == Totals().merge(a) == a
    assert a + b == a.merge(b) == sum([a, b])


@given(st.lists(st.tuples(st.booleans(), events), max_size=30))
@settings(max_examples=150, deadline=None)
def test_what_two_processes_saw_merges_to_what_one_would_have_seen(
    happened: list[tuple[bool, tuple[str, Any, int]]],
) -> None:
    first = totals_of([event for is_first, event in happened if is_first])
    second = totals_of([event for is_first, event in happened if not is_first])
    together, merged = totals_of([event for _, event in happened]), first.merge(second)
    for name in ("sites", "logits", "requests"):
        assert getattr(merged, name).keys() == getattr(together, name).keys()
    for kind, steps in together.steps.items():
        own = merged.steps[kind]
        assert (own.begun, own.failed, own.rows) == (steps.begun, steps.failed, steps.rows)
        assert own.tokens_in == steps.tokens_in
        assert_same(own.wall_ns, steps.wall_ns)
    for key, site in together.sites.items():
        assert merged.sites[key].own_ns == site.own_ns
        assert_same(merged.sites[key].dur_ns, site.dur_ns)
    for signal, tokens in together.logits.items():
        assert merged.logits[signal].mean == tokens.mean
        assert merged.logits[signal].observations == tokens.observations
        assert_same(merged.logits[signal].values, tokens.values)
    for labels, requests in together.requests.items():
        assert merged.requests[labels].started == requests.started
        assert_same(merged.requests[labels].ttft_ns, requests.ttft_ns)


def assert_same(a: Histogram, b: Histogram) -> None:
    assert a.count == b.count and a.zeros == b.zeros
    assert (a.positive.offset, a.positive.counts.tolist()) == (
        b.positive.offset,
        b.positive.counts.tolist(),
    )
    if a.count:
        assert (a.min, a.max) == (b.min, b.max)
        assert a.sum == pytest.approx(b.sum)


@given(processes)
@settings(max_examples=100, deadline=None)
def test_plain_data_gives_the_same_totals_back(totals: Totals) -> None:
    assert Totals.from_dict(json.loads(json.dumps(totals.to_dict()))) == totals


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything in plain data."""
    found = [path] if path else []
    if isinstance(value, dict):
        return found + [p for k, v in value.items() for p in places(v, (*path, k))]
    if isinstance(value, list):
        return found + [p for k, v in enumerate(value) for p in places(v, (*path, k))]
    return found


odd_values = st.sampled_from(
    [None, True, -1, 1.5, 1 << 70, float("nan"), "", "x" * 500, [], {}, [1], {"a": 1}, [[-1]]]
)


@given(st.lists(events, min_size=3, max_size=6).map(totals_of), st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_data_gives_totals_or_one_clear_error(totals: Totals, data: st.DataObject) -> None:
    damaged = copy.deepcopy(totals.to_dict())
    *above, last = data.draw(st.sampled_from(places(damaged)))
    holder: Any = damaged
    for key in above:
        holder = holder[key]
    if data.draw(st.booleans()):
        holder[last] = data.draw(odd_values)
    else:
        del holder[last]
    try:
        read = Totals.from_dict(damaged)
    except TotalsError as error:
        assert 10 < len(str(error)) < 600
    else:
        assert isinstance(repr(read), str)
        read.merge(totals).to_dict()


def test_errors_are_the_packages_own() -> None:
    with pytest.raises(PertokenError, match=r"give what Totals.to_dict\(\) returned"):
        Totals.from_dict({"steps": {}})
    with pytest.raises(ValueError, match="not a mapping"):
        Totals.from_dict([])  # type: ignore[arg-type]
