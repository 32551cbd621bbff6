"""What the tables of a profile say of the figures that totals count natively."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from pertoken import Histogram, Profile
from pertoken.analysis.latency import finished, tpot_ns, ttft_ns
from pertoken.schema import LABEL_PREFIX
from pertoken.totals import LabelSet

# Totals take a rate for the ticks of a second, tables a map of the clock.
RELATIVE = 1e-3
ABSOLUTE_NS = 3


def is_whole(profile: Profile) -> bool:
    """Whether the tables hold all that was recorded, and nothing of it still runs."""
    losses = profile.losses
    lost = ("steps_evicted", "spans_evicted", "requests_evicted", "records_dropped")
    runs = (profile.steps["wall_ns"] < 0).any() or (profile.requests["end_ns"] < 0).any()
    return not runs and not any(losses[key] for key in lost)


def check(profile: Profile) -> None:
    """Asserts that the totals of a profile are those of its tables, where these are whole."""
    if profile.totals is not None and is_whole(profile):
        check_steps(profile)
        check_sites(profile)
        check_requests(profile)


def check_steps(profile: Profile) -> None:
    """Counts and latencies by kind of step."""
    assert profile.totals is not None
    steps, tokens = profile.steps, profile.tokens
    assert set(profile.totals.steps) == set(steps["kind"].tolist())
    of_token = np.searchsorted(steps["step"], tokens["step"])
    for kind, totals in profile.totals.steps.items():
        own = steps["kind"] == kind
        assert totals.begun == own.sum()
        assert totals.failed == (own & (steps["error"] != "")).sum()
        for column in ("rows", "tokens_in", "tokens_committed"):
            assert getattr(totals, column) == known_sum(steps[column][own]), (kind, column)
        same(totals.wall_ns, steps["wall_ns"][own & finished(profile)])
        itl_ns = tokens["itl_ns"][steps["kind"][of_token] == kind]
        same(totals.itl_ns, itl_ns[itl_ns >= 0])


def check_sites(profile: Profile) -> None:
    """Span times by site, category and kind."""
    assert profile.totals is not None
    spans = profile.spans
    kinds = dict(zip(profile.steps["step"].tolist(), profile.steps["kind"].tolist(), strict=True))
    inside: dict[int, int] = defaultdict(int)
    for parent, dur_ns in zip(spans["parent"].tolist(), spans["dur_ns"].tolist(), strict=True):
        inside[parent] += dur_ns
    expected: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    by_kind: dict[tuple[str, str, str], int] = defaultdict(int)
    for span, step, site, category, dur_ns in zip(
        *(spans[name].tolist() for name in ("span", "step", "site", "category", "dur_ns")),
        strict=True,
    ):
        expected[site, category].append((dur_ns, max(dur_ns - inside[span], 0)))
        by_kind[site, category, kinds.get(step, "")] += 1
    got: dict[tuple[str, str], Histogram] = {}
    own_ns: dict[tuple[str, str], int] = defaultdict(int)
    for key, totals in profile.totals.sites.items():
        place = key.site, key.category
        got[place] = got.get(place, Histogram()).merge(totals.dur_ns)
        own_ns[place] += totals.own_ns
        if key.category != "generate":  # what lies between steps counts to the step it leads to
            assert totals.dur_ns.count == by_kind[key], key
    assert set(got) == set(expected)
    for place, times in expected.items():
        same(got[place], np.array([dur_ns for dur_ns, _ in times]))
        total_ns = sum(own for _, own in times)
        rounding_ns = ABSOLUTE_NS * (len(times) + len(spans))
        assert own_ns[place] == pytest.approx(total_ns, rel=RELATIVE, abs=rounding_ns)


def check_requests(profile: Profile) -> None:
    """Requests by label set."""
    assert profile.totals is not None
    requests, tokens = profile.requests, profile.tokens
    sets: dict[LabelSet, list[int]] = defaultdict(list)
    for index in range(len(requests)):
        sets[label_set(profile, index)].append(index)
    assert set(profile.totals.requests) == set(sets)
    ttft, tpot = ttft_ns(profile), tpot_ns(profile)
    for labels, held in profile.totals.requests.items():
        own = np.zeros(len(requests), dtype=bool)
        own[sets[labels]] = True
        failed = requests["error"] != ""
        assert (held.started, held.finished, held.failed) == (
            own.sum(),
            (own & ~failed).sum(),
            (own & failed).sum(),
        )
        same(held.duration_ns, (requests["end_ns"] - requests["start_ns"])[own & ~failed])
        same(held.ttft_ns, ttft[own & (ttft >= 0)])
        same(held.tpot_ns, tpot[own & ~np.isnan(tpot)])
        numbers = requests["request"][own]
        itl_ns = tokens["itl_ns"][np.isin(tokens["request"], numbers)]
        same(held.itl_ns, itl_ns[itl_ns >= 0])
        if (requests["tokens_in"][own] >= 0).all():
            assert held.tokens_in == requests["tokens_in"][own].sum()
        if (requests["tokens_out"][own] >= 0).all():
            assert held.tokens_out == requests["tokens_out"][own].sum()


def label_set(profile: Profile, index: int) -> LabelSet:
    """The labels of a request; one that it does not have is empty in the table."""
    table = profile.requests
    named = {
        column.removeprefix(LABEL_PREFIX): str(table[column][index])
        for column in table.columns
        if column.startswith(LABEL_PREFIX)
    }
    named["model_version"] = str(table["model_version"][index])
    return tuple(sorted((name, value) for name, value in named.items() if value))


def known_sum(values: Any) -> int:
    """The sum of what is not -1."""
    return int(values[values >= 0].sum())


def same(histogram: Histogram, values_ns: Any) -> None:
    """Asserts that a histogram is that of these durations, but for the rate of the clock."""
    assert histogram.count == len(values_ns)
    if not len(values_ns):
        return
    tolerance = {"rel": RELATIVE, "abs": ABSOLUTE_NS}
    assert histogram.min == pytest.approx(float(values_ns.min()), **tolerance)
    assert histogram.max == pytest.approx(float(values_ns.max()), **tolerance)
    total_ns = float(values_ns.sum())
    rounding_ns = ABSOLUTE_NS * len(values_ns)
    assert histogram.sum == pytest.approx(total_ns, rel=RELATIVE, abs=rounding_ns)
