"""What the tables of a profile say of the figures that totals count by site and by label set."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from pertoken import Histogram, Profile
from pertoken.analysis.latency import tpot_ns, ttft_ns
from pertoken.schema import LABEL_PREFIX, SIGNALS
from pertoken.table import Array
from pertoken.totals import OUTSIDE, LabelSet

# Totals take a rate for the ticks of a second, tables a map of the clock.
RELATIVE = 1e-3
ABSOLUTE_NS = 3


def check_sites(profile: Profile) -> None:
    """Asserts that numbers and times of spans are those of the tables, where all are held."""
    assert profile.totals is not None
    spans = profile.spans.where(profile.spans["device"] == -1)  # totals are of the host's time
    kinds = dict(zip(profile.steps["step"].tolist(), profile.steps["kind"].tolist(), strict=True))
    inside: dict[int, int] = defaultdict(int)
    for parent, dur_ns in zip(spans["parent"].tolist(), spans["dur_ns"].tolist(), strict=True):
        inside[parent] += dur_ns
    # Own times are estimates from the steps that were recorded as fully as was asked.
    steps = profile.steps
    whole = steps["sample_weight"] * (steps["detail"] == profile.meta["modules"])
    weights = dict(zip(steps["step"].tolist(), whole.tolist(), strict=True))
    expected: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    by_kind: dict[tuple[str, str, str], int] = defaultdict(int)
    columns = (spans[name].tolist() for name in ("span", "step", "site", "category", "dur_ns"))
    for span, step, site, category, dur_ns in zip(*columns, strict=True):
        own = weights.get(step, 1.0) * max(dur_ns - inside[span], 0)
        expected[site, category].append((dur_ns, own))
        by_kind[site, kinds.get(step, OUTSIDE), category] += 1
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
        rounding_ns = ABSOLUTE_NS * (len(times) + len(spans)) * max([1.0, *weights.values()])
        total_ns = sum(own for _, own in times)
        assert own_ns[place] == pytest.approx(total_ns, rel=RELATIVE, abs=rounding_ns), place


def check_requests(profile: Profile) -> None:
    """Asserts that requests by label set are those of the tables, where all are held."""
    assert profile.totals is not None
    requests, tokens = profile.requests, profile.tokens
    sets: dict[LabelSet, list[int]] = defaultdict(list)
    for index in range(len(requests)):
        sets[label_set(profile, index)].append(index)
    assert set(profile.totals.requests) == set(sets)
    failed, ttft, tpot = requests["error"] != "", ttft_ns(profile), tpot_ns(profile)
    for labels, held in profile.totals.requests.items():
        own = np.zeros(len(requests), dtype=bool)
        own[sets[labels]] = True
        whole = own & ~failed
        assert (held.started, held.finished) == (own.sum(), whole.sum())
        assert held.failed == (own & failed).sum()
        same(held.duration_ns, (requests["end_ns"] - requests["start_ns"])[whole])
        same(held.ttft_ns, ttft[own & (ttft >= 0)])
        same(held.tpot_ns, tpot[own & ~np.isnan(tpot)])
        itl_ns = tokens["itl_ns"][np.isin(tokens["request"], requests["request"][own])]
        if (requests["tokens_out"][own] >= 0).all():
            assert held.tokens_out == requests["tokens_out"][own].sum()
            same(held.itl_ns, itl_ns[itl_ns >= 0])
        if (requests["tokens_in"][own] >= 0).all():
            assert held.tokens_in == requests["tokens_in"][own].sum()


def check_logits(profile: Profile) -> None:
    """Asserts that what logits said by kind is what the columns of tokens say."""
    assert profile.totals is not None
    tokens, steps = profile.tokens, profile.steps
    kinds = dict(zip(steps["step"].tolist(), steps["kind"].tolist(), strict=True))
    kind_of = np.array([kinds[step] for step in tokens["step"].tolist()], dtype=object)
    seen = set()
    for signal in SIGNALS:
        values = tokens[signal].astype(np.float64)
        for kind in dict.fromkeys(kind_of[~np.isnan(values)].tolist()):
            own = (kind_of == kind) & ~np.isnan(values)
            weight = tokens["logits_weight"][own].astype(np.float64)
            finite = np.isfinite(values[own])
            known, weight_known = values[own][finite], weight[finite]
            held = profile.totals.logits[signal, kind]
            seen.add((signal, kind))
            assert held.observations == own.sum(), (signal, kind)
            assert held.weight == pytest.approx(weight.sum(), rel=1e-9)
            assert held.weighted_count == pytest.approx(weight_known.sum(), rel=1e-9)
            assert held.weighted_sum == pytest.approx((weight_known * known).sum(), rel=1e-9)
            assert held.weighted_sum_sq == pytest.approx((weight_known * known**2).sum(), rel=1e-9)
            expected = Histogram.from_values(values[own])
            for part in ("positive", "negative"):
                assert _buckets(held.values, part) == _buckets(expected, part), (signal, kind)
            assert (held.values.count, held.values.zeros) == (expected.count, expected.zeros)
            assert held.values.neg_infs == (~finite).sum()
            if finite.any():
                assert (held.values.min, held.values.max) == (known.min(), known.max())
    assert set(profile.totals.logits) == seen


def _buckets(histogram: Histogram, part: str) -> dict[int, int]:
    offset, counts = getattr(histogram, part)
    return {offset + i: n for i, n in enumerate(counts.tolist()) if n}


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


def same(histogram: Histogram, values_ns: Array) -> None:
    """Asserts that a histogram is that of these durations, but for the rate of the clock."""
    assert histogram.count == len(values_ns)
    if not len(values_ns):
        return

    def near(value: float, count: int = 1) -> object:
        return pytest.approx(value, rel=RELATIVE, abs=ABSOLUTE_NS * count)

    assert histogram.min == near(float(values_ns.min()))
    assert histogram.max == near(float(values_ns.max()))
    assert histogram.sum == near(float(values_ns.sum()), len(values_ns))
