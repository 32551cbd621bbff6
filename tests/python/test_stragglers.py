"""Who holds the others up: planted delays are found, with their site, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pertoken
from parallel_ranks import SITES, US, parallel_ranks
from pertoken.analysis.stragglers import BETWEEN, RankGroup, find_stragglers
from pertoken.errors import SelectionError
from pertoken.schema import ID_BITS
from synthetic import synthetic_profile

DELAY_NS = 80 * US


def only_group(profiles: list[pertoken.Profile]) -> RankGroup:
    found = find_stragglers(pertoken.merge(profiles))
    assert found.unmatched == ()
    (group,) = found.groups
    return group


def named(group: RankGroup) -> list[tuple[int, str]]:
    return [(rank.rank, rank.site) for rank in group.ranks if rank.is_straggler]


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("site", ["blocks.0.up", "blocks.1.up", "head"])
def test_a_slow_rank_is_named_with_its_site_among_any_number(ranks: int, site: str) -> None:
    slow = ranks - 1
    group = only_group(parallel_ranks(ranks, slow={(slow, site): DELAY_NS}))
    assert named(group) == [(slow, site)]
    late = group.ranks[slow]
    assert abs(late.excess_ns - DELAY_NS) < 30 * US
    assert late.excess_low_ns <= late.excess_ns <= late.excess_high_ns
    assert late.slowest_share == 1
    assert late.site_share > 0.7
    assert {step.site for step in group.slow_steps} == {site}
    others = [rank for rank in group.ranks if rank.rank != slow]
    assert max(rank.excess_ns for rank in others) < 15 * US


def test_a_rank_that_is_slow_between_the_steps_is_named() -> None:
    group = only_group(parallel_ranks(slow={(1, "gap"): DELAY_NS}))
    (late,) = [rank for rank in group.ranks if rank.is_straggler]
    assert (late.rank, late.site, late.category) == (1, "", BETWEEN)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_noise_names_nobody(ranks: int, seed: int) -> None:
    assert named(only_group(parallel_ranks(ranks, noise_ns=40 * US, seed=seed))) == []


def test_two_slow_ranks_of_four_are_both_named_and_those_that_wait_are_not() -> None:
    slow = {(0, "blocks.0.up"): DELAY_NS, (3, "blocks.0.up"): DELAY_NS}
    group = only_group(parallel_ranks(slow=slow))
    assert named(group) == [(0, "blocks.0.up"), (3, "blocks.0.up")]


def test_one_fast_rank_makes_no_straggler_of_the_others() -> None:
    slow = {(rank, "blocks.0.up"): DELAY_NS for rank in (0, 1, 2)}
    assert named(only_group(parallel_ranks(slow=slow))) == []


def test_a_rank_that_is_slow_now_and_then_shows_in_its_steps_alone() -> None:
    at = {3, 17, 30}
    group = only_group(parallel_ranks(slow={(2, "blocks.1.up"): DELAY_NS}, slow_steps=at))
    assert named(group) == []
    slowest = {step.step for step in group.slow_steps if step.rank == 2}
    assert at <= slowest
    assert set(np.flatnonzero(group.excess_ns[:, 2] > DELAY_NS / 2).tolist()) == at


def test_the_least_share_of_a_step_decides_who_is_called_a_straggler() -> None:
    merged = pertoken.merge(parallel_ranks(slow={(1, "head"): DELAY_NS}))  # of a step of about 450
    assert [named(merged.stragglers(share).groups[0]) for share in (0.1, 0.3)] == [
        [(1, "head")],
        [],
    ]


@pytest.mark.parametrize("share", ["5%", None, float("nan"), float("inf"), -1, -0.01, True])
def test_a_share_that_is_none_is_refused_whatever_the_profile(share: Any) -> None:
    for profile in (synthetic_profile(), pertoken.merge(parallel_ranks(2, steps=2))):
        with pytest.raises(SelectionError, match=r"least_share=.*0\.05, which is 5 %"):
            profile.stragglers(share)


def test_too_few_steps_name_nobody() -> None:
    group = only_group(parallel_ranks(steps=5, slow={(1, "head"): DELAY_NS}))
    assert named(group) == [] and group.ranks[1].slowest_share == 1


def test_steps_are_matched_by_time_where_recordings_began_at_different_steps() -> None:
    profiles = parallel_ranks(slow={(1, "head"): DELAY_NS}, first_step={0: 2, 1: 0, 2: 7, 3: 7})
    group = only_group(profiles)
    assert named(group) == [(1, "head")]
    assert len(group.steps) == 33
    own = group.steps & ((1 << ID_BITS) - 1)
    assert [set((own[:, 0] - own[:, rank]).tolist()) for rank in (1, 2, 3)] == [{-2}, {5}, {5}]
    assert (group.steps >> ID_BITS == np.arange(4)).all()


@pytest.mark.parametrize("site", ["blocks.0.up", "blocks.1.up"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_clocks_that_are_not_joined_leave_what_each_step_shows(site: str, ranks: int) -> None:
    group = only_group(parallel_ranks(ranks, slow={(1, site): DELAY_NS}, boot_ids=False))
    assert not group.clocks_joined
    assert named(group) == [(1, site)]


def test_ranks_that_wait_for_nobody_are_compared_by_pace() -> None:
    group = only_group(parallel_ranks(slow={(2, "head"): 2 * US}, noise_ns=0, coupled=False))
    assert named(group) == []
    assert group.ranks[2].excess_ns == 2 * US


def test_ranks_that_do_other_work_are_not_compared_and_it_is_said() -> None:
    found = find_stragglers(pertoken.merge(parallel_ranks(3, other_kind=1)))
    (group,) = found.groups
    assert [rank.rank for rank in group.ranks] == [0, 2]
    (reason,) = found.unmatched
    assert reason.startswith("rank 1 (") and "0.0 % of them do the same work" in reason


def test_processes_that_ran_at_other_times_are_not_compared() -> None:
    first = parallel_ranks(1)[0]
    meta = {**first.meta, "pid": 9, "boot_origin_ns": first.meta["boot_origin_ns"] + 10**12}
    later = pertoken.Profile(first.tables, meta, first.losses)
    found = find_stragglers(pertoken.merge([first, later]))
    assert found.groups == ()
    assert len(found.unmatched) == 1 and "at other times" in found.unmatched[0]


def test_steps_with_different_spans_are_compared_as_a_whole() -> None:
    profiles = parallel_ranks(3, slow={(1, "head"): DELAY_NS})
    spans = profiles[2].spans
    tables = dict(profiles[2].tables)
    tables["spans"] = spans.where(~((spans["step"] == 4) & (spans["site"] == SITES[0])))
    profiles[2] = pertoken.Profile(tables, profiles[2].meta, profiles[2].losses)
    group = only_group(profiles)
    assert group.compared_inside == len(group.steps) - 1
    assert named(group) == [(1, "head")]


def test_a_profile_of_one_process_has_nothing_to_compare() -> None:
    assert synthetic_profile().stragglers().as_dict() == {"groups": [], "unmatched": []}
    assert synthetic_profile().summary().as_dict()["stragglers"] is None


def test_the_summary_names_the_straggler_in_words_and_in_plain_data() -> None:
    merged = pertoken.merge(parallel_ranks(slow={(2, "blocks.1.up"): DELAY_NS}))
    summary = merged.summary()
    data = json.loads(json.dumps(summary.as_dict(), allow_nan=False))
    assert data["stragglers"] == merged.stragglers().as_dict()
    text = " ".join(str(summary).split())
    assert "rank 2 (host.example, pid 102) holds the others up" in text
    assert "most of it in blocks.1.up" in text


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_excess_is_what_a_slow_reference_finds(data: st.DataObject) -> None:
    """The largest rise of lateness, found by trying every pair of boundaries."""
    ranks = data.draw(st.integers(2, 4))
    delays = st.dictionaries(
        st.tuples(st.integers(0, ranks - 1), st.sampled_from([*SITES, "gap"])),
        st.integers(0, 200 * US),
        max_size=4,
    )
    profiles = parallel_ranks(ranks, 4, slow=data.draw(delays), seed=data.draw(st.integers(0, 9)))
    group = only_group(profiles)
    for step in range(4):
        passed = [_boundaries(profile, step) for profile in profiles]
        late = []
        for times in passed:
            typical = [sorted(at)[(ranks - 1) // 2] for at in zip(*passed, strict=True)]
            late.append([max(t - usual, 0) for t, usual in zip(times, typical, strict=True)])
        rises = [
            max(own[j] - own[i] for j in range(len(own)) for i in range(j + 1)) for own in late
        ]
        others = [sorted(rises[:rank] + rises[rank + 1 :]) for rank in range(ranks)]
        usual = [rises_of_others[(ranks - 1) // 2] for rises_of_others in others]
        expected = [rise - most for rise, most in zip(rises, usual, strict=True)]
        assert group.excess_ns[step].tolist() == expected


def _boundaries(profile: pertoken.Profile, step: int) -> list[int]:
    """When a rank passed the ends and beginnings round and in a step, in order."""
    steps, spans = profile.steps, profile.spans
    times = []
    if step:
        times.append(int(steps["start_ns"][step - 1] + steps["wall_ns"][step - 1]))
    own = spans.where(spans["step"] == step)
    for start_ns, dur_ns in zip(own["start_ns"].tolist(), own["dur_ns"].tolist(), strict=True):
        times += [start_ns, start_ns + dur_ns]
    return sorted(times)
