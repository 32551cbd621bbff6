"""The rows of a Chrome trace: what goes on which, so that slices nest and never cross."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pertoken.result import Profile
from synthetic import synthetic_profile
from trace_profiles import (
    crossing_profile,
    crossings,
    export,
    interval,
    profile_of,
)

SAME_FOLDER = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=100,
)
FIRST_MADE_UP_TID = 1 << 22


@pytest.fixture
def trace_path(tmp_path: Path) -> Path:
    return tmp_path / "trace.json"


INTERVALS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=25)


@SAME_FOLDER
@given(intervals=INTERVALS, data=st.data())
def test_no_slices_ever_cross_and_none_is_lost(
    tmp_path: Path, intervals: list[tuple[int, int]], data: st.DataObject
) -> None:
    parents = st.integers(-1, len(intervals))
    spans = [
        {
            "span": i,
            "parent": data.draw(parents),
            "start_ns": start_ns,
            "dur_ns": dur_ns,
            "track": data.draw(st.integers(0, 1)),
            "device": data.draw(st.sampled_from([-1, -1, 0])),
        }
        for i, (start_ns, dur_ns) in enumerate(intervals)
    ]
    steps = [
        {"step": i, "request": i % 4 - 1, "start_ns": start_ns, "wall_ns": dur_ns}
        for i, (start_ns, dur_ns) in enumerate(reversed(intervals))
    ]
    requests = [
        {"request": i, "start_ns": start_ns, "end_ns": start_ns + 3 * dur_ns}
        for i, (start_ns, dur_ns) in enumerate(intervals[:3])
    ]
    profile = profile_of(requests=requests, steps=steps, spans=spans)
    trace = export(profile, tmp_path / "trace.json")
    found = {e["args"]["span"]: interval(e) for e in trace.slices("span")}
    assert found == {s["span"]: (s["start_ns"], s["start_ns"] + s["dur_ns"]) for s in spans}
    assert len(trace.slices("step")) == len(steps)
    assert len(trace.slices("request")) == len(requests)
    assert not crossings(trace.slices())
    rows = {(e["pid"], e["tid"]) for e in trace.slices()}
    assert rows <= set(trace.row_names())


@pytest.mark.parametrize("order", ["by end", "by start", "shuffled"])
def test_nested_spans_share_the_threads_row_in_any_order(trace_path: Path, order: str) -> None:
    profile = synthetic_profile(root_span=True)
    spans = profile.spans
    start_ns, dur_ns = spans["start_ns"], spans["dur_ns"]
    indices = {
        "by end": np.lexsort((-start_ns, start_ns + dur_ns)),
        "by start": np.lexsort((-dur_ns, start_ns)),
        "shuffled": np.random.default_rng(1).permutation(len(spans)),
    }[order]
    reordered = Profile({**profile.tables, "spans": spans.where(indices)}, profile.meta, {})
    trace = export(reordered, trace_path)
    assert {(e["pid"], e["tid"]) for e in trace.slices("span")} == {(4242, 4243)}
    assert Counter(e["args"]["span"] for e in trace.slices("span")) == Counter(
        spans["span"].tolist()
    )


def test_a_span_around_more_spans_than_the_check_remembers_stays_on_the_row(
    trace_path: Path,
) -> None:
    count = 40_000
    spans = [{"span": i + 1, "parent": 0, "start_ns": 10 * i, "dur_ns": 5} for i in range(count)]
    spans.append({"span": 0, "category": "region", "start_ns": 0, "dur_ns": 10 * count})
    trace = export(profile_of(spans=spans), trace_path)
    assert len(trace.slices("span")) == count + 1
    assert {e["tid"] for e in trace.slices("span")} == {4243}


def test_crossing_regions_each_get_a_row_with_their_own_modules(trace_path: Path) -> None:
    trace = export(crossing_profile(tasks=3, calls=2), trace_path)
    assert len(trace.slices("span")) == 9
    assert not crossings(trace.slices())
    names = trace.row_names()
    contents: dict[str, list[str]] = {}
    for event in trace.slices("span"):
        contents.setdefault(names[event["pid"], event["tid"]], []).append(event["name"])
    assert contents == {
        "MainThread": ["task-0", "model.of.task-0", "model.of.task-0"],
        "MainThread (2)": ["task-1", "model.of.task-1", "model.of.task-1"],
        "MainThread (3)": ["task-2", "model.of.task-2", "model.of.task-2"],
    }
    tids = {event["tid"] for event in trace.slices("span")}
    assert tids == {4243, FIRST_MADE_UP_TID, FIRST_MADE_UP_TID + 1}


def test_a_crossing_by_one_nanosecond_counts_and_touching_does_not(trace_path: Path) -> None:
    def rows(second_start_ns: int) -> int:
        spans = [
            {"span": 0, "start_ns": 0, "dur_ns": 100},
            {"span": 1, "start_ns": second_start_ns, "dur_ns": 100},
        ]
        trace = export(profile_of(spans=spans), trace_path)
        return len({event["tid"] for event in trace.slices("span")})

    assert rows(99) == 2
    assert rows(100) == 1
    assert rows(0) == 1


def test_overlapping_requests_get_rows_with_their_own_steps(trace_path: Path) -> None:
    requests = [
        {"request": 0, "start_ns": 0, "end_ns": 1_000},
        {"request": 1, "start_ns": 500, "end_ns": 1_500},
        {"request": 2, "start_ns": 1_000, "end_ns": 2_000},
    ]
    steps = [
        {"step": 0, "request": 0, "start_ns": 100, "wall_ns": 200},
        {"step": 1, "request": 1, "start_ns": 600, "wall_ns": 100},
        {"step": 2, "request": 0, "start_ns": 750, "wall_ns": 100},
        {"step": 3, "request": 2, "start_ns": 1_100, "wall_ns": 100},
        {"step": 4, "request": -1, "start_ns": 1_300, "wall_ns": 100},
    ]
    trace = export(profile_of(requests=requests, steps=steps), trace_path)
    row_of_request = {e["args"]["request"]: e["tid"] for e in trace.slices("request")}
    row_of_step = {e["args"]["step"]: e["tid"] for e in trace.slices("step")}
    names = {tid: name for (_, tid), name in trace.row_names().items()}
    assert [names[row_of_request[request]] for request in range(3)] == [
        "requests and steps",
        "requests and steps (2)",
        "requests and steps",
    ]
    assert row_of_step[0] == row_of_step[2] == row_of_request[0]
    assert row_of_step[1] == row_of_request[1]
    assert row_of_step[3] == row_of_request[2]
    assert names[row_of_step[4]] == "requests and steps (3)"


def test_thread_ids_are_the_systems_where_they_can_be(trace_path: Path) -> None:
    tracks = [
        {"track": 0, "pid": 10, "tid": 77, "name": "first"},
        {"track": 1, "pid": 10, "tid": 77, "name": "the id again"},
        {"track": 2, "pid": 10, "tid": 2**40, "name": "too wide"},
        {"track": 3, "pid": 11, "tid": 77, "name": "another process"},
        {"track": 9, "pid": 10, "tid": 78, "name": "without spans"},
    ]
    spans = [{"span": i, "track": i, "site": f"s{i}"} for i in range(5)]
    trace = export(profile_of(spans=spans, tracks=tracks, meta={"pid": 10}), trace_path)
    names = trace.row_names()
    found = {e["name"]: (e["pid"], e["tid"], names[e["pid"], e["tid"]]) for e in trace.slices()}
    assert found == {
        "s0": (10, 77, "first"),
        "s1": (10, FIRST_MADE_UP_TID, "the id again"),
        "s2": (10, FIRST_MADE_UP_TID + 1, "too wide"),
        "s3": (11, 77, "another process"),
        "s4": (10, FIRST_MADE_UP_TID + 2, "track 4"),
    }
    assert len(names) == 5


def test_spans_of_a_device_have_a_row_of_their_own(trace_path: Path) -> None:
    spans = [
        {"span": 0, "start_ns": 0, "dur_ns": 100},
        {"span": 1, "start_ns": 50, "dur_ns": 100, "device": 0},
    ]
    trace = export(profile_of(spans=spans), trace_path)
    assert sorted(trace.row_names().values()) == ["MainThread", "MainThread on device 0"]
    assert not crossings(trace.slices())


def test_a_parent_is_above_children_that_begin_with_it_where_others_cross(
    trace_path: Path,
) -> None:
    spans = [
        {"span": 0, "parent": 2, "start_ns": 0, "dur_ns": 10},
        {"span": 2, "parent": 1, "start_ns": 0, "dur_ns": 50},
        {"span": 1, "parent": 3, "start_ns": 0, "dur_ns": 50},
        {"span": 3, "start_ns": 0, "dur_ns": 80},
        {"span": 4, "start_ns": 40, "dur_ns": 80},
    ]
    slices = export(profile_of(spans=spans), trace_path).slices("span")
    rows = {event["args"]["span"]: event["tid"] for event in slices}
    assert rows == {0: 4243, 1: 4243, 2: 4243, 3: 4243, 4: FIRST_MADE_UP_TID}
    assert [event["args"]["span"] for event in slices] == [3, 1, 2, 0, 4]
