"""Self times, hottest sites and slow tokens, against slow computations in plain Python."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest

from pertoken.analysis.site_times import hottest_sites, site_times, span_self_ns
from pertoken.analysis.slow_tokens import slowest_tokens
from pertoken.result import Profile
from pertoken.summary_layout import summary_blocks
from slow_reference import SlowReference, nearest_rank, varied_profile
from synthetic import synthetic_profile, with_columns


@pytest.mark.parametrize("seed", range(6))
def test_self_time_is_the_duration_without_children_on_the_same_track(seed: int) -> None:
    profile = varied_profile(seed)
    reference = SlowReference(profile)
    assert span_self_ns(profile).tolist() == [span["self_ns"] for span in reference.spans]


@pytest.mark.parametrize("seed", range(6))
def test_site_times_are_those_of_the_slow_computation(seed: int) -> None:
    profile = varied_profile(seed)
    reference = SlowReference(profile)
    times = site_times(profile)
    found: dict[tuple[int, str, str, bool], int] = {}
    for row, place, self_ns in zip(times.step_row, times.place, times.self_ns, strict=True):
        p = times.places[place]
        found[int(profile.steps["step"][row]), p.site, p.category, p.outside] = int(self_ns)
    expected = {}
    for step in reference.step:
        for outside, part in ((False, reference.inside), (True, reference.outside)):
            for (site, category), value in part[step].items():
                expected[step, site, category, outside] = value
    assert found == expected
    before = [reference.before_ns[s["step"]] for s in reference.steps]
    assert times.before_ns.tolist() == before


@pytest.mark.parametrize("seed", range(6))
def test_hottest_sites_are_weighted_shares_of_the_step_time(seed: int) -> None:
    profile = varied_profile(seed)
    reference = SlowReference(profile)
    found = hottest_sites(profile, count=1000)
    for kind in {s["kind"] for s in reference.steps}:
        steps = [s for s in reference.steps if s["kind"] == kind and reference.finished(s)]
        counted = {s["detail"] for s in steps if s["sample_weight"] > 0}
        fullest = next((d for d in ("all", "layers") if d in counted), "root")
        steps = [s for s in steps if s["detail"] == fullest]
        weight = sum(s["sample_weight"] for s in steps)
        wall_ns = sum(s["sample_weight"] * s["wall_ns"] for s in steps)
        if not wall_ns:
            assert kind not in found
            continue
        sums: dict[tuple[str, str], float] = defaultdict(float)
        for step in steps:
            for key, value in reference.inside[step["step"]].items():
                sums[key] += step["sample_weight"] * value
        expected = {key: value / wall_ns for key, value in sums.items() if value > 0}
        shares = {(h.site, h.category): h.share for h in found[kind]}
        assert shares == pytest.approx(expected)
        assert [h.share for h in found[kind]] == sorted(shares.values(), reverse=True)
        for hot in found[kind]:
            calls = sum(
                s["sample_weight"] * reference.calls[s["step"]][hot.site, hot.category]
                for s in steps
            )
            assert hot.calls_per_step == pytest.approx(calls / weight)
            assert hot.self_ns_per_step == pytest.approx(sums[hot.site, hot.category] / weight)


def test_shares_of_a_kind_add_up_to_one() -> None:
    for profile in (synthetic_profile(), synthetic_profile(root_span=True)):
        for sites in hottest_sites(profile, count=1000).values():
            assert sum(site.share for site in sites) == pytest.approx(1)


def sampled_decodes(count: int, weight: float) -> Profile:
    """Only so many of the decodes have spans; the prefills have all."""
    profile = synthetic_profile(requests=4, tokens=20, seed=3)
    decodes = np.flatnonzero(profile.steps["kind"] == "decode")
    weights = np.ones(len(profile.steps))
    weights[decodes] = 0
    weights[decodes[:count]] = weight
    detail = np.where(weights > 0, profile.steps["detail"], "root").tolist()
    return with_columns(profile, "steps", sample_weight=weights, detail=detail)


@pytest.mark.parametrize("count", [1, 2, 9, 10, 30])
def test_shares_of_too_few_sampled_steps_have_no_interval(count: int) -> None:
    """Of a single one the share is its own, which says nothing of how far off it is."""
    profile = sampled_decodes(count, 16.0)
    found = hottest_sites(profile)
    for hot in found["prefill"]:
        assert hot.share_low == hot.share_high == hot.share
    summary = profile.summary()
    (block,) = [b for b in summary_blocks(summary.as_dict()) if b.title.startswith("Hottest")]
    shown = [row[2] for row in block.rows if row[0] == "decode"]
    if count < 10:
        assert {(hot.share_low, hot.share_high) for hot in found["decode"]} == {(None, None)}
        assert all(share.endswith(" % ± ?") for share in shown)
        told = "± ?: too few steps were sampled, or a few outweigh the others."
        assert block.lines == (told,)
        assert "too few steps were sampled" in str(summary)
        assert "too few steps were sampled" in summary._repr_html_()
        assert '"share_low": null' in json.dumps(summary.as_dict(), allow_nan=False)
    if count == 30:
        assert all(share.count("%") == 2 for share in shown) and block.lines == ()
    assert not any("±" in row[2] for row in block.rows if row[0] == "prefill")


def test_the_interval_of_a_share_is_that_of_a_ratio_estimator() -> None:
    """Against the sum written out; the residual of a step is off from all the others' share.

    What is longer than any step with spans may be all the site's, or none of it.
    """
    profile = sampled_decodes(40, 3.0)
    reference = SlowReference(profile)
    decodes = [s for s in reference.steps if s["kind"] == "decode"]
    steps = [s for s in decodes if s["sample_weight"] > 0]
    longest_ns = max(s["wall_ns"] for s in steps)
    unseen_ns = sum(s["wall_ns"] for s in decodes if s["wall_ns"] > longest_ns)
    assert unseen_ns > 0
    wall_ns = 3.0 * sum(s["wall_ns"] for s in steps)
    share = [2 / 3 * (3.0 * s["wall_ns"]) ** 2 for s in steps]
    freedom = sum(share) ** 2 / sum(each**2 for each in share)
    z = 1.959963984540054
    t = z + (z**3 + z) / (4 * freedom)
    for hot in hottest_sites(profile)["decode"]:
        variance = 0.0
        for step in steps:
            own_ns = reference.inside[step["step"]].get((hot.site, hot.category), 0)
            residual = 3.0 * (own_ns - hot.share * step["wall_ns"])
            variance += 2 / 3 * (residual / (wall_ns - 3.0 * step["wall_ns"])) ** 2
        half = t * math.sqrt(variance) + unseen_ns / sum(s["wall_ns"] for s in decodes)
        assert hot.share_low == pytest.approx(max(0.0, hot.share - half), rel=1e-9)
        assert hot.share_high == pytest.approx(min(1.0, hot.share + half), rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_slow_tokens_and_all_their_contributors_are_those_of_the_slow_computation(
    seed: int,
) -> None:
    profile = varied_profile(seed)
    reference = SlowReference(profile)
    parts = reference.parts()
    group = {s["step"]: (s["kind"], s["detail"]) for s in reference.steps}
    whole = {s["step"]: reference.finished(s) for s in reference.steps}
    weight = {s["step"]: int(s["sample_weight"]) * whole[s["step"]] for s in reference.steps}
    for name in set(group.values()):
        members = [s for s in group if group[s] == name]
        if not any(weight[s] for s in members):
            weight.update({s: int(whole[s]) for s in members})
    waiting = [t for t in reference.tokens if t["itl_ns"] >= 0 and whole[t["step"]]]
    spent_ns: dict[int, int] = defaultdict(int)
    for step in reference.steps:
        own_ns = max(0, step["wall_ns"]) + reference.before_ns[step["step"]]
        spent_ns[reference.served(step["step"])] += own_ns

    found = slowest_tokens(profile, count=1000, contributors=1000)
    slowest = sorted({(-t["itl_ns"], t["step"]) for t in waiting})
    assert sorted((-t.itl_ns, t.step) for t in found) == slowest
    assert [t.itl_ns for t in found] == sorted((t.itl_ns for t in found), reverse=True)
    for token in found:
        peers = [t for t in waiting if group[t["step"]] == group[token.step]]
        weights = [weight[t["step"]] for t in peers]
        weights = weights if any(weights) else [1] * len(peers)
        half = Fraction(1, 2)
        usual_ns = nearest_rank([t["itl_ns"] for t in peers], half, weights)
        assert (token.median_itl_ns, token.extra_ns) == (usual_ns, token.itl_ns - usual_ns)
        assert token.row == 0 and token.tokens == 2
        members = [
            s
            for s in group
            if group[s] == group[token.step] and reference.served(s) == s and whole[s]
        ]
        expected = {}
        for key, own_ns in parts[token.step].items():
            median_ns = nearest_rank(
                [parts[s].get(key, 0) for s in members], half, [weight[s] for s in members]
            )
            if own_ns > median_ns:
                expected[key[:2], own_ns, median_ns] = own_ns - median_ns
        between = [max(0, t["itl_ns"] - spent_ns[t["step"]]) for t in peers]
        own_ns = max(0, token.itl_ns - spent_ns[token.step])
        median_ns = nearest_rank(between, half, weights)
        if own_ns > median_ns:
            expected[("", "between"), own_ns, median_ns] = own_ns - median_ns
        shown = {
            ((c.site, c.category), c.own_ns, c.median_ns): c.extra_ns for c in token.contributors
        }
        assert shown == expected
        extras = [c.extra_ns for c in token.contributors]
        assert extras == sorted(extras, reverse=True)


@pytest.mark.parametrize(
    ("step", "site", "category"),
    [
        (5, "model.layers.1.mlp", "module"),
        (11, "generate", "generate"),
        (6, "model.layers.2", "module"),
    ],
)
def test_a_planted_delay_is_found_where_it_was_planted(step: int, site: str, category: str) -> None:
    added_ns = 400_000
    profile = synthetic_profile(slow={(step, site): added_ns}, seed=step)
    worst = slowest_tokens(profile, count=1)[0]
    assert (worst.step, worst.position, worst.request) == (step, step % 8, step // 8)
    cause = worst.contributors[0]
    assert (cause.site, cause.category) == (site, category)
    assert abs(cause.extra_ns - added_ns) < 30_000
    assert abs(worst.extra_ns - added_ns) < 100_000


def test_the_end_of_one_request_does_not_delay_the_next() -> None:
    profile = synthetic_profile(requests=2, tokens=4)
    gaps = profile.spans.where(profile.spans["category"] == "generate")
    before_ns = site_times(profile).before_ns
    first_of_second = 4
    assert before_ns[first_of_second] == gaps["dur_ns"][5]
    assert before_ns.sum() == gaps["dur_ns"].sum() - gaps["dur_ns"][[4, 9]].sum()


def test_a_token_whose_step_was_evicted_is_left_out_of_the_slowest() -> None:
    profile = synthetic_profile()
    late = profile.steps.where(profile.steps["step"] >= 8)
    evicted = with_columns(profile, "steps", **{c: late[c] for c in late.columns})
    assert {t.step >= 8 for t in slowest_tokens(evicted, count=100)} == {True}
