"""Clocks of made-up hosts, with planted offsets and drifts: exact expectations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pertoken.clock_alignment import (
    ASSUMED_DRIFT,
    Alignment,
    AxisMap,
    ClockFacts,
    HostLine,
    Measurement,
    align,
)
from pertoken.errors import MergeError

S = 1_000_000_000


def facts(
    boot: str,
    boot_ns: int | None = 0,
    unix_ns: int | None = 1_700_000_000 * S,
    duration_ns: int = 10 * S,
    measured: list[tuple[int, int, int, str]] | None = None,
    error_ns: int | None = 40,
    position: int = 0,
) -> ClockFacts:
    keys = ("boot_ns", "offset_ns", "error_ns", "reference")
    meta: dict[str, Any] = {
        "boot_origin_ns": boot_ns,
        "unix_origin_ns": unix_ns,
        "duration_ns": duration_ns,
        "clock": {
            "boot_id": boot,
            "error_bound_ns": error_ns,
            "synchronized": [dict(zip(keys, m, strict=True)) for m in measured or []],
        },
    }
    return ClockFacts.of(meta, f"process {position}", position)


def starts(alignments: tuple[Alignment, ...]) -> list[int]:
    return [alignment.axis_map.start_ns for alignment in alignments]


def test_one_host_is_joined_exactly_and_the_earliest_process_is_the_origin() -> None:
    # Unix times that contradict the boot clock do not count.
    found = align(
        [facts("a", 500, unix_ns=9), facts("a", 200, unix_ns=7, error_ns=60), facts("a", 200_000)]
    )
    assert starts(found) == [300, 0, 199_800]
    assert [(a.basis, a.offset_ns, a.error_ns) for a in found] == [
        ("boot", 0, 40),
        ("boot", 0, 60),
        ("boot", 0, 40),
    ]


def test_a_clock_whose_error_is_unknown_says_so() -> None:
    (found,) = align([facts("a", error_ns=None)])
    assert found.error_ns == -1


def test_another_host_is_placed_by_what_was_measured_of_it() -> None:
    here = facts("a", 100 * S, measured=[(99 * S, 0, 0, "a")])
    there = facts("b", 5 * S, duration_ns=0, measured=[(5 * S, 96 * S, 25_000, "a")])
    found = align([here, there])
    assert starts(found) == [0, 1 * S]
    assert found[1] == Alignment(AxisMap(1 * S, 0.0), "synchronized", 96 * S, 40 + 25_000)


def test_one_measurement_alone_lets_the_error_grow_with_the_assumed_drift() -> None:
    line = HostLine.through([Measurement(10 * S, 5, 1000)])
    assert (line.at(0), line.at(100 * S)) == (5, 5)
    assert line.error_at(10 * S) == 1000
    assert line.error_at(30 * S) == 1000 + int(20 * S * ASSUMED_DRIFT)
    assert line.error_at(0) == 1000 + int(10 * S * ASSUMED_DRIFT)


def test_two_measurements_give_the_planted_drift() -> None:
    drift = 2e-5
    first, last = Measurement(10 * S, 7 * S, 1000), Measurement(60 * S, 7 * S + 1_000_000, 3000)
    line = HostLine.through([last, first])
    assert line.drift == drift
    assert [line.at(t * S) - 7 * S for t in (10, 35, 60, 110)] == [0, 500_000, 1_000_000, 2_000_000]
    assert line.error_at(10 * S) == line.error_at(60 * S) == 3000
    # Both ends may be off, in opposite directions: over 50 s that is 4000 ns, as much again later.
    assert line.error_at(110 * S) == 3000 + 4000
    host = facts("b", 10 * S, duration_ns=50 * S, measured=[(10 * S, 7 * S, 1000, "a")])
    again = facts("b", 60 * S, measured=[(60 * S, 7 * S + 1_000_000, 3000, "a")], position=1)
    found = align([facts("a", 17 * S, position=2), host, again])
    own_ns = np.array([0, 25 * S, 50 * S])
    assert found[1].axis_map.to_axis(own_ns).tolist() == [0, 25 * S + 500_000, 50 * S + 1_000_000]
    assert found[1].axis_map.to_axis(own_ns)[2] == found[2].axis_map.to_axis(own_ns)[0]
    assert (found[1].error_ns, found[2].error_ns) == (40 + 3000, 40 + 3000 + 800)


def test_measurements_between_show_how_far_the_line_is_off() -> None:
    ends = [Measurement(0, 0, 10), Measurement(100 * S, 0, 10)]
    assert HostLine.through(ends).error_ns == 10
    assert HostLine.through([*ends, Measurement(50 * S, 700, 20)]).error_ns == 720


def test_measurements_too_close_to_tell_a_drift_give_none() -> None:
    narrow, wide = Measurement(10_000_000, 100, 20_000), Measurement(0, 5_000, 50_000)
    line = HostLine.through([wide, narrow])
    assert (line.drift, line.at(0), line.error_at(10_000_000)) == (0.0, 100, 20_000)


def test_a_clock_that_was_set_meanwhile_is_no_drift_but_an_error() -> None:
    before, after = Measurement(0, 5 * S, 900), Measurement(100 * S, 8 * S, 200)
    line = HostLine.through([before, after])
    assert (line.drift, line.at(50 * S)) == (0.0, 8 * S)
    assert line.error_at(0) == line.error_at(100 * S) == 3 * S + 900


def test_processes_of_a_measured_host_stay_exact_to_each_other() -> None:
    one = facts("b", 1 * S, measured=[(1 * S, 50, 900, "a")])
    two = facts("b", 3 * S, measured=[(1 * S, 90, 100, "a")], position=1)
    never = facts("b", 4 * S, position=2)
    found = align([facts("a", position=3), one, two, never])
    assert np.diff(starts(found)[1:]).tolist() == [2 * S, 1 * S]
    assert {a.offset_ns for a in found[1:]} == {90}
    assert {a.basis for a in found[1:]} == {"synchronized"}


def test_hosts_that_were_not_measured_are_placed_by_unix_time_and_nobody_vouches_for_it() -> None:
    here, there = facts("a", 100 * S, unix_ns=1000 * S), facts("b", 5 * S, unix_ns=1002 * S)
    beside = facts("b", 6 * S, unix_ns=9 * S)
    found = align([here, there, beside])
    assert starts(found) == [0, 2 * S, 3 * S]
    # The host with more processes is the reference.
    assert [(a.basis, a.error_ns) for a in found] == [("unix", -1), ("boot", 40), ("boot", 40)]
    assert found[0].offset_ns == -97 * S


def test_the_reference_that_joins_most_processes_is_taken() -> None:
    lone = facts("z", unix_ns=1000 * S)
    measured = [(0, 10, 1, "a")]
    others = [facts(boot, unix_ns=1000 * S, measured=measured) for boot in ("b", "c")]
    found = align([lone, *others, facts("a", unix_ns=1000 * S)])
    assert [a.basis for a in found] == ["unix", "synchronized", "synchronized", "boot"]


def test_files_that_do_not_know_their_boot_are_each_placed_by_unix_time() -> None:
    old = [facts("", 7 * S, unix_ns=1000 * S, position=0), facts("", 7 * S, 1001 * S, position=1)]
    found = align(old)
    assert starts(found) == [0, 1 * S]
    assert [a.basis for a in found] == ["boot", "unix"]
    assert starts(align([facts("", None, 1000 * S), facts("a", 5, 1001 * S)])) == [0, 1 * S]


def test_no_common_time_base_is_an_error_that_names_the_process() -> None:
    with pytest.raises(MergeError, match="process 3 has no time base"):
        facts("", 5, unix_ns=None, position=3)
    with pytest.raises(MergeError, match="process 1 has no time base in common with process 0"):
        align([facts("a"), facts("b", unix_ns=None, position=1)])


@given(
    st.integers(-(2**50), 2**50),
    st.floats(-ASSUMED_DRIFT, ASSUMED_DRIFT),
    st.lists(st.integers(-(2**40), 2**52), min_size=2, max_size=50),
)
def test_maps_to_the_axis_keep_the_order_and_lead_back(
    start_ns: int, drift: float, own: list[int]
) -> None:
    axis_map = AxisMap(start_ns, drift)
    own_ns = np.array(sorted(own))
    axis_ns = axis_map.to_axis(own_ns)
    assert (np.diff(axis_ns) >= 0).all()
    assert (np.diff(axis_map.to_own(np.array(sorted(own)))) >= 0).all()
    assert np.abs(axis_map.to_own(axis_ns) - own_ns).max() <= 1
    if drift == 0:
        assert (axis_map.to_own(axis_ns) == own_ns).all()
