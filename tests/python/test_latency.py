"""Latencies, attribution and percentiles, against slow computations in plain Python."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pertoken.analysis import latency
from pertoken.analysis.distribution import Distribution, percentiles
from pertoken.analysis.row_index import holds_text, rows_of
from pertoken.analysis.site_times import hottest_sites, site_times, span_self_ns
from pertoken.analysis.slow_tokens import slowest_tokens
from pertoken.result import Profile
from synthetic import synthetic_profile, with_columns


def nearest_rank(values: list[int], share: Fraction, weights: list[int] | None = None) -> int:
    """Walk up the sorted values until the share of the weight is reached, in exact arithmetic."""
    pairs = sorted(zip(values, weights or [1] * len(values), strict=True))
    wanted = share * sum(weight for _, weight in pairs)
    reached = 0
    for value, weight in pairs:
        reached += weight
        if weight and reached >= wanted:
            return value
    raise AssertionError("no weight")


def rows(profile: Profile, table: str) -> list[dict[str, Any]]:
    names = profile.tables[table].columns
    columns = [profile.tables[table][name].tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


@given(
    st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 5)), min_size=1, max_size=50).filter(
        lambda pairs: any(weight for _, weight in pairs)
    )
)
def test_a_distribution_is_that_of_exact_arithmetic(pairs: list[tuple[int, int]]) -> None:
    values, weights = [list(column) for column in zip(*pairs, strict=True)]
    found = Distribution.of(np.array(values), np.array(weights, dtype=np.float64))
    assert found is not None
    used = [(v, w) for v, w in pairs if w]
    assert found.count == len(used)
    assert found.max_ns == max(v for v, _ in used)
    assert found.p50_ns == nearest_rank(values, Fraction(1, 2), weights)
    assert found.p90_ns == nearest_rank(values, Fraction(9, 10), weights)
    assert found.p99_ns == nearest_rank(values, Fraction(99, 100), weights)
    mean = Fraction(sum(v * w for v, w in used), sum(w for _, w in used))
    assert abs(found.mean_ns - mean) <= Fraction(1, 2) + mean / 10**12


@pytest.mark.parametrize("count", [1, 2, 3, 10, 99, 100, 101, 700, 1000])
def test_percentiles_of_1_to_n_are_the_rank_rounded_up(count: int) -> None:
    values = np.random.default_rng(count).permutation(np.arange(1, count + 1))
    found = percentiles(values, (0.5, 0.9, 0.99))
    assert found == [-(-count * p // 100) for p in (50, 90, 99)]


def test_a_distribution_ignores_unusable_weights_and_may_be_absent() -> None:
    assert Distribution.of(np.array([], dtype=np.int64)) is None
    assert Distribution.of(np.array([1, 2]), np.array([0.0, np.nan])) is None
    found = Distribution.of(np.array([1, 2, 3, 4]), np.array([1.0, np.inf, -1.0, 0.0]))
    assert found is not None and (found.count, found.max_ns, found.mean_ns) == (1, 1, 1)


@given(st.lists(st.integers(-3, 8), max_size=8), st.lists(st.integers(-4, 9), max_size=8))
def test_rows_of_finds_the_first_row_with_the_id(ids: list[int], wanted: list[int]) -> None:
    found = rows_of(np.array(ids, dtype=np.int64), np.array(wanted, dtype=np.int64))
    assert found.tolist() == [ids.index(w) if w in ids else -1 for w in wanted]


def test_holds_text_is_the_comparison_of_decoded_values() -> None:
    spans = synthetic_profile().spans
    for text in ("generate", "module", "nothing"):
        np.testing.assert_array_equal(
            holds_text(spans, "category", text), spans["category"] == text
        )


def mixed_requests() -> Profile:
    """Six requests: fine, failed, running, a single token, all at once, and rows of two lengths."""
    profile = synthetic_profile(requests=6, tokens=4, rows=2)
    requests, tokens = profile.requests, profile.tokens
    error = ["", "ValueError", "", "", "", ""]
    end_ns = requests["end_ns"].copy()
    end_ns[2] = -1
    keep = np.ones(len(tokens), dtype=bool)
    keep &= (tokens["request"] != 3) | (tokens["position"] == 0)
    keep &= (tokens["request"] != 5) | (tokens["row"] != 1) | (tokens["position"] < 2)
    commit_ns = tokens["commit_ns"].copy()
    at_once = tokens["request"] == 4
    commit_ns[at_once] = requests["start_ns"][4] + requests["ttft_ns"][4]
    profile = with_columns(profile, "requests", error=error, end_ns=end_ns)
    columns = {"commit_ns": commit_ns}
    profile = with_columns(profile, "tokens", **columns)
    changed = {c: profile.tokens.where(keep)[c] for c in profile.tokens.columns}
    return with_columns(profile, "tokens", **changed)


def test_ttft_is_given_for_running_requests_but_not_for_failed_ones() -> None:
    profile = mixed_requests()
    found = latency.ttft_ns(profile).tolist()
    expected = [r["ttft_ns"] if not r["error"] else -1 for r in rows(profile, "requests")]
    assert found == expected and found[1] == -1 and found[2] > 0
    assert latency.ttft(profile) == Distribution.of(np.array([v for v in expected if v >= 0]))


def test_tpot_is_the_duration_after_the_first_token_over_the_longest_row_less_one() -> None:
    profile = mixed_requests()
    found = latency.tpot_ns(profile)
    lengths: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for token in rows(profile, "tokens"):
        lengths[token["request"]][token["row"]] += 1
    requests = rows(profile, "requests")
    for number in (0, 5):
        request = requests[number]
        longest = max(lengths[number].values())
        duration_ns = request["end_ns"] - request["start_ns"]
        assert found[number] == (duration_ns - request["ttft_ns"]) / (longest - 1)
    assert lengths[5] == {0: 4, 1: 2}
    for number in (1, 2, 3, 4):
        assert math.isnan(found[number]), number
    both = latency.tpot(profile)
    assert both is not None and both.count == 2


def test_tpot_survives_the_eviction_of_early_tokens() -> None:
    profile = synthetic_profile(requests=1, tokens=6)
    late = profile.tokens.where(profile.tokens["position"] >= 4)
    evicted = with_columns(profile, "tokens", **{c: late[c] for c in late.columns})
    assert latency.tpot_ns(evicted).tolist() == latency.tpot_ns(profile).tolist()
    none = with_columns(profile, "tokens", **{c: late[c][:0] for c in late.columns})
    assert latency.tpot_ns(none).tolist() == latency.tpot_ns(profile).tolist()


def varied_profile(seed: int) -> Profile:
    """A profile with drafts, weights, failures, two details, a second thread and shuffled rows."""
    rng = np.random.default_rng(seed)
    profile = synthetic_profile(
        requests=3,
        tokens=6,
        layers=2,
        rows=2,
        seed=seed,
        root_span=bool(seed % 2),
        slow={(4, "model.layers.1.mlp"): 300_000, (9, "generate"): 500_000},
    )
    steps = profile.steps
    kind = steps["kind"].tolist()
    committed = steps["tokens_committed"].copy()
    error = [""] * len(steps)
    for step in (2, 3, 14):
        kind[step] = "draft"
        committed[step] = 0
    kind[10] = "verify"
    error[16] = "exception"
    wall_ns = steps["wall_ns"].copy()
    wall_ns[17] = -1
    weights = rng.integers(0, 4, len(steps)).astype(float)
    detail = ["layers"] * 10 + ["root"] * 2 + ["all"] * 6
    profile = with_columns(
        profile,
        "steps",
        kind=kind,
        error=error,
        wall_ns=wall_ns,
        tokens_committed=committed,
        sample_weight=weights,
        detail=detail,
    )
    tokens = profile.tokens
    kept = tokens.where(~np.isin(tokens["step"], [2, 3, 14]))
    columns = {c: kept[c].copy() for c in kept.columns}
    previous: dict[tuple[int, int], int] = {}
    for i in range(len(kept)):
        sequence = (int(columns["request"][i]), int(columns["row"][i]))
        now_ns = int(columns["commit_ns"][i])
        columns["itl_ns"][i] = now_ns - previous[sequence] if sequence in previous else -1
        previous[sequence] = now_ns
    profile = with_columns(profile, "tokens", **columns)
    # A worker's span inside a step, and a region inside an interval of generate.
    spans = profile.spans
    extra = {c: np.append(spans[c], spans[c][-2:]) for c in spans.columns}
    gap = int(np.flatnonzero(spans["category"] == "generate")[5])
    inner = int(np.flatnonzero(spans["site"] == "model.layers.0.mlp")[4])
    new = len(spans)
    for name, worker, region in (
        ("span", 1000, 1001),
        ("parent", int(spans["span"][inner]), int(spans["span"][gap])),
        ("step", int(spans["step"][inner]), -1),
        ("site", "worker", "sampler"),
        ("category", "region", "region"),
        ("track", 1, 0),
        ("start_ns", int(spans["start_ns"][inner]) + 5, int(spans["start_ns"][gap]) + 5),
        ("dur_ns", 7_000, 9_000),
        ("device", -1, -1),
    ):
        if isinstance(worker, str):
            extra[name] = extra[name].astype("U64")
        extra[name][new], extra[name][new + 1] = worker, region
    order = rng.permutation(new + 2)
    return with_columns(profile, "spans", **{c: extra[c][order].tolist() for c in extra})


class SlowReference:
    """Self times, shares and slow tokens by loops over rows."""

    def __init__(self, profile: Profile) -> None:
        self.spans = rows(profile, "spans")
        self.steps = rows(profile, "steps")
        self.tokens = rows(profile, "tokens")
        self.requests = {r["request"]: r for r in rows(profile, "requests")}
        self.by_id = {s["span"]: s for s in self.spans}
        self.step = {s["step"]: s for s in self.steps}
        for span in self.spans:
            children = [
                s["dur_ns"]
                for s in self.spans
                if s["parent"] == span["span"] and s["track"] == span["track"]
            ]
            span["self_ns"] = max(0, span["dur_ns"] - sum(children))
        self.inside: dict[int, dict[tuple[str, str], int]] = {
            s: defaultdict(int) for s in self.step
        }
        self.calls: dict[int, dict[tuple[str, str], int]] = {s: defaultdict(int) for s in self.step}
        self.outside: dict[int, dict[tuple[str, str], int]] = {
            s: defaultdict(int) for s in self.step
        }
        self.before_ns: dict[int, int] = defaultdict(int)
        for span in self.spans:
            key = (span["site"], span["category"])
            if span["step"] >= 0:
                self.inside[span["step"]][key] += span["self_ns"]
                self.calls[span["step"]][key] += 1
                continue
            outermost = span
            while outermost["category"] != "generate" and outermost["parent"] in self.by_id:
                outermost = self.by_id[outermost["parent"]]
            delayed = self.delayed_step(outermost)
            if outermost["category"] == "generate" and delayed is not None:
                self.outside[delayed][key] += span["self_ns"]
                if span is outermost:
                    self.before_ns[delayed] += span["dur_ns"]
        for step in self.steps:
            covered_ns = sum(
                s["dur_ns"]
                for s in self.spans
                if s["step"] == step["step"]
                and s["track"] == step["thread"]
                and self.by_id.get(s["parent"], {"step": -1})["step"] != step["step"]
            )
            root_ns = max(0, max(0, step["wall_ns"]) - covered_ns)
            self.inside[step["step"]]["", "module"] += root_ns

    def delayed_step(self, gap: dict[str, Any]) -> int | None:
        later = [
            s
            for s in self.steps
            if s["thread"] == gap["track"] and s["start_ns"] >= gap["start_ns"]
        ]
        if not later:
            return None
        step = min(later, key=lambda s: s["start_ns"])
        begun_ns = self.requests[step["request"]]["start_ns"]
        return step["step"] if begun_ns <= gap["start_ns"] else None

    def finished(self, step: dict[str, Any]) -> bool:
        return step["wall_ns"] >= 0 and not step["error"]

    def served(self, step: int) -> int:
        if self.step[step]["kind"] != "draft":
            return step
        later = [s for s in range(step, len(self.steps)) if self.step[s]["kind"] != "draft"]
        same = later and self.step[later[0]]["request"] == self.step[step]["request"]
        return later[0] if same else step

    def parts(self) -> dict[int, dict[tuple[str, str, bool], int]]:
        result: dict[int, dict[tuple[str, str, bool], int]] = {
            s: defaultdict(int) for s in self.step
        }
        for step in self.step:
            for key, value in self.inside[step].items():
                result[self.served(step)][(*key, False)] += value
            for key, value in self.outside[step].items():
                result[self.served(step)][(*key, True)] += value
        return result


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
        detailed = [s for s in steps if s["detail"] != "root" and s["sample_weight"] > 0]
        steps = [s for s in steps if s["detail"] != "root"] if detailed else steps
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


@pytest.mark.parametrize("seed", range(4))
def test_step_times_keep_kinds_apart_and_leave_out_failed_and_running_steps(seed: int) -> None:
    profile = varied_profile(seed)
    steps = rows(profile, "steps")
    found = {s.kind: s for s in latency.step_times(profile)}
    assert list(found) == list(dict.fromkeys(s["kind"] for s in steps))
    for kind, times in found.items():
        whole = [s for s in steps if s["kind"] == kind and s["wall_ns"] >= 0 and not s["error"]]
        assert times.count == len(whole)
        weights = [int(s["sample_weight"]) for s in whole]
        if not any(weights):
            assert times.time is None and times.tokens_in_per_s is None
            continue
        assert times.time is not None
        walls = [s["wall_ns"] for s in whole]
        assert times.time.p90_ns == nearest_rank(walls, Fraction(9, 10), weights)
        spent_ns = sum(w * s["wall_ns"] for w, s in zip(weights, whole, strict=True))
        fed = sum(w * s["tokens_in"] for w, s in zip(weights, whole, strict=True))
        made = sum(w * s["tokens_committed"] for w, s in zip(weights, whole, strict=True))
        assert times.tokens_in_per_s == pytest.approx(fed / spent_ns * 1e9)
        assert times.tokens_committed_per_s == pytest.approx(made / spent_ns * 1e9)


def test_unknown_token_counts_do_not_enter_a_rate() -> None:
    profile = synthetic_profile(requests=1, tokens=3)
    unknown = with_columns(profile, "steps", tokens_committed=[-1, -1, 1])
    times = {s.kind: s for s in latency.step_times(unknown)}
    assert times["prefill"].tokens_committed_per_s is None
    expected = 1e9 / int(profile.steps["wall_ns"][2])
    assert times["decode"].tokens_committed_per_s == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_inter_token_latency_is_over_tokens_and_by_the_committing_kind(seed: int) -> None:
    profile = varied_profile(seed)
    kind_of = {s["step"]: s["kind"] for s in rows(profile, "steps")}
    weight_of = {s["step"]: int(s["sample_weight"]) for s in rows(profile, "steps")}
    tokens = [t for t in rows(profile, "tokens") if t["itl_ns"] >= 0]
    for kind in (None, "decode", "verify", "prefill", "draft"):
        chosen = [t for t in tokens if kind is None or kind_of[t["step"]] == kind]
        weights = [weight_of[t["step"]] for t in chosen]
        found = latency.inter_token(profile, kind)
        if not any(weights):
            assert found is None
            continue
        assert found is not None
        values = [t["itl_ns"] for t in chosen]
        assert found.count == sum(1 for w in weights if w)
        assert found.p50_ns == nearest_rank(values, Fraction(1, 2), weights)
        assert found.p99_ns == nearest_rank(values, Fraction(99, 100), weights)


def test_tokens_per_second_runs_from_the_first_step_to_the_last_commit() -> None:
    profile = synthetic_profile()
    elapsed_ns = max(profile.tokens["commit_ns"].tolist()) - min(profile.steps["start_ns"].tolist())
    assert latency.tokens_per_s(profile) == pytest.approx(len(profile.tokens) / elapsed_ns * 1e9)
    assert latency.tokens_per_s(synthetic_profile(requests=0)) is None


def test_a_token_whose_step_was_evicted_is_left_out_of_the_slowest() -> None:
    profile = synthetic_profile()
    late = profile.steps.where(profile.steps["step"] >= 8)
    evicted = with_columns(profile, "steps", **{c: late[c] for c in late.columns})
    assert {t.step >= 8 for t in slowest_tokens(evicted, count=100)} == {True}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_numbers_in_the_tables_are_survived(data: st.DataObject) -> None:
    """A profile from a file may hold any values: nothing but their meaning may suffer."""
    profile = synthetic_profile(requests=1, tokens=3, layers=1)
    for name in ("requests", "steps", "tokens", "spans"):
        table = profile.tables[name]
        plain = [c for c in table.columns if c not in table.coded]
        column = data.draw(st.sampled_from(plain))
        if table[column].dtype == np.float64:
            values = data.draw(st.lists(st.floats(), min_size=len(table), max_size=len(table)))
        else:
            info = np.iinfo(table[column].dtype)
            number = st.one_of(st.integers(-2, 5), st.integers(int(info.min), int(info.max)))
            values = data.draw(st.lists(number, min_size=len(table), max_size=len(table)))
        profile = with_columns(profile, name, **{column: values})
    with np.errstate(all="ignore"):
        summary = profile.summary()
    assert str(summary)
    assert summary._repr_html_()
