"""Latencies and percentiles, against slow computations in plain Python."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pertoken.analysis import latency
from pertoken.analysis.distribution import Distribution, percentiles
from pertoken.analysis.row_index import holds_text, rows_of
from pertoken.result import Profile
from pertoken.schema import LABEL_PREFIX
from pertoken.table import Table
from slow_reference import nearest_rank, rows, varied_profile
from synthetic import synthetic_profile, with_columns


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
    # numpy takes the null characters off the end of a text.
    strings = ("a", "a\0", "\0", "\0a", "a\0\0b", "b")
    codes = np.arange(-1, len(strings), dtype=np.int32)
    table = Table("texts", {LABEL_PREFIX + "text": codes}, strings)
    for text in ("", *strings, "nothing"):
        np.testing.assert_array_equal(
            holds_text(table, LABEL_PREFIX + "text", text),
            table[LABEL_PREFIX + "text"] == text,
            err_msg=ascii(text),
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


@pytest.mark.parametrize("seed", range(4))
def test_step_times_keep_kinds_apart_and_leave_out_failed_and_running_steps(seed: int) -> None:
    profile = varied_profile(seed)
    steps = rows(profile, "steps")
    found = {s.kind: s for s in latency.step_times(profile)}
    assert list(found) == list(dict.fromkeys(s["kind"] for s in steps))
    for kind, times in found.items():
        whole = [s for s in steps if s["kind"] == kind and s["wall_ns"] >= 0 and not s["error"]]
        assert times.count == len(whole)
        if not whole:
            assert times.time is None and times.tokens_in_per_s is None
            continue
        assert times.time is not None
        # Each counts once, whatever was sampled inside: all are timed.
        walls = [s["wall_ns"] for s in whole]
        assert times.time.p90_ns == nearest_rank(walls, Fraction(9, 10))
        spent_ns = sum(walls)
        fed = sum(s["tokens_in"] for s in whole)
        made = sum(s["tokens_committed"] for s in whole)
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
    tokens = [t for t in rows(profile, "tokens") if t["itl_ns"] >= 0]
    for kind in (None, "decode", "verify", "prefill", "draft"):
        chosen = [t for t in tokens if kind is None or kind_of[t["step"]] == kind]
        found = latency.inter_token(profile, kind)
        if not chosen:
            assert found is None
            continue
        assert found is not None
        values = [t["itl_ns"] for t in chosen]
        assert found.count == len(values)
        assert found.p50_ns == nearest_rank(values, Fraction(1, 2))
        assert found.p99_ns == nearest_rank(values, Fraction(99, 100))


def test_tokens_per_second_runs_from_the_first_step_to_the_last_commit() -> None:
    profile = synthetic_profile()
    elapsed_ns = max(profile.tokens["commit_ns"].tolist()) - min(profile.steps["start_ns"].tolist())
    assert latency.tokens_per_s(profile) == pytest.approx(len(profile.tokens) / elapsed_ns * 1e9)
    assert latency.tokens_per_s(synthetic_profile(requests=0)) is None


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_numbers_in_the_tables_are_survived(data: st.DataObject) -> None:
    """A profile from a file may hold any values: nothing but their meaning may suffer."""
    profile = synthetic_profile(requests=1, tokens=3, layers=1)
    for name in ("requests", "steps", "tokens", "spans"):
        table = profile.tables[name]
        plain = [c for c in table.columns if c not in table.coded and c != "process"]
        column = data.draw(st.sampled_from(plain))
        if table[column].dtype.kind == "f":
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
