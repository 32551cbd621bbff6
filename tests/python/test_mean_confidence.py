"""Means of the signals of logits: unbiased under sampling, with intervals that hold the truth."""

from __future__ import annotations

import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models
import pertoken
from pertoken.analysis.mean_confidence import KindConfidence, mean_confidence
from pertoken.analysis.token_confidence import least_confident_tokens
from pertoken.result import Profile
from pertoken.schema import SIGNALS
from pertoken.summary_layout import summary_blocks
from pertoken.summary_text import plain_text
from synthetic import columns_of, synthetic_meta, synthetic_profile, with_columns
from test_merging import recorded

BUDGET = {"cost": {"budget": 0.01}}


def population() -> Profile:
    """Kinds whose steps commit different numbers of tokens, which are alike within a step.

    The first steps of a request say something else than those that follow.
    """
    whole = synthetic_profile(requests=60, tokens=20, layers=0, rows=4, meta=BUDGET)
    random = np.random.default_rng(7)
    columns = columns_of(whole)
    steps = len(whole.steps)
    kinds = np.where(random.random(steps) < 0.4, "verify", "decode").astype("U7")
    kinds[whole.steps["kind"] == "prefill"] = "prefill"
    step = whole.tokens["step"]
    committed = random.integers(1, 5, steps)
    kept = whole.tokens["row"] < committed[step]
    columns["tokens"] = {name: values[kept] for name, values in columns["tokens"].items()}
    step = step[kept]
    shared = random.normal(0, 1, steps) + 1.5 * (np.arange(steps) % 20 < 2) - 0.3 * committed
    sure = 1 / (1 + np.exp(-(shared[step] + random.normal(0, 0.5, len(step)))))
    columns["tokens"]["top1_prob"] = sure.astype(np.float32)
    columns["tokens"]["margin"] = (sure**2).astype(np.float32)
    columns["tokens"]["entropy"] = (-2 * np.log(sure)).astype(np.float32)
    columns["tokens"]["logprob"] = np.log(sure).astype(np.float32)
    made = Profile.from_columns(columns, whole.requests.strings, whole.meta, whole.losses)
    return with_columns(made, "steps", kind=kinds.tolist())


def sampled(profile: Profile, weight_of_step: Any, read: Any) -> Profile:
    """What is left where the logits of some steps only were read."""
    step = profile.tokens["step"]
    unread = ~read[step]
    signals = {name: np.array(profile.tokens[name]) for name in SIGNALS}
    weights = np.array(weight_of_step[step])
    for values in (*signals.values(), weights):
        values[unread] = np.nan
    return with_columns(profile, "tokens", logits_weight=weights, **signals)


def by_kind(profile: Profile) -> dict[str, KindConfidence]:
    return {found.kind: found for found in mean_confidence(profile)}


def true_means(profile: Profile) -> dict[tuple[str, str], float]:
    kinds = profile.steps["kind"][profile.tokens["step"]]
    return {
        (str(kind), name): float(profile.tokens[name][kinds == kind].astype(np.float64).mean())
        for kind in np.unique(kinds)
        for name in SIGNALS
    }


def errors_and_hits(
    profile: Profile, samples: list[Profile]
) -> dict[tuple[str, str], tuple[float, float]]:
    """Of each kind and signal: the mean error in standard errors, and how many intervals hold.

    Nearly all samples have enough steps for an interval.
    """
    found: dict[tuple[str, str], list[tuple[float, bool | None]]] = {}
    truth = true_means(profile)
    for sample in samples:
        for kind, of_kind in by_kind(sample).items():
            for name in SIGNALS:
                signal, right = getattr(of_kind, name), truth[kind, name]
                held = None
                if signal.low is not None:
                    assert signal.low < signal.mean < signal.high
                    held = signal.low <= right <= signal.high
                found.setdefault((kind, name), []).append((signal.mean - right, held))
    assert found.keys() == truth.keys()
    result = {}
    for key, cases in found.items():
        assert len(cases) == len(samples)
        errors = np.array([error for error, _ in cases])
        standard = errors.std() / math.sqrt(len(errors))
        stated = [held for _, held in cases if held is not None]
        assert len(stated) >= 0.95 * len(cases), key
        result[key] = float(errors.mean() / standard), float(np.mean(stated))
    return result


def test_means_are_unbiased_and_intervals_hold_the_truth_in_95_percent() -> None:
    """With first steps of requests favoured, and another rate for each kind."""
    profile = population()
    steps = len(profile.steps)
    rates = {"prefill": 0.7, "decode": 0.15, "verify": 0.3}
    probability = np.array([rates[kind] for kind in profile.steps["kind"].tolist()])
    is_second = np.arange(steps) % 20 == 1
    probability[is_second] = np.minimum(4 * probability[is_second], 15 / 16)
    samples = []
    for seed in range(600):
        # Other numbers than those that the population is made of.
        read = np.random.default_rng((1, seed)).random(steps) < probability
        samples.append(sampled(profile, 1 / probability, read))
    for key, (error, held) in errors_and_hits(profile, samples).items():
        assert abs(error) < 4, key
        assert 0.925 <= held <= 0.98, (key, held)

    # Had they not been weighted, the favoured steps would show.
    plain = [with_columns(s, "tokens", logits_weight=is_read(s) * 1.0) for s in samples]
    decode = [by_kind(s)["decode"].top1_prob for s in plain]
    means = np.array([signal.mean for signal in decode if signal is not None])
    off = means.mean() - true_means(profile)["decode", "top1_prob"]
    assert abs(off) > 20 * means.std() / math.sqrt(len(means))


def is_read(profile: Profile) -> Any:
    return np.isfinite(profile.tokens["top1_prob"])


@pytest.mark.parametrize("every", [2, 8])
def test_a_fixed_rate_is_not_fooled_by_a_period(every: int) -> None:
    """One step of each block is read; values have the period of the blocks."""
    whole = synthetic_profile(
        requests=1, tokens=1 + 80 * every, layers=0, rows=2, meta={"cost": {"budget": None}}
    )
    step = whole.tokens["step"]
    value = 0.25 + 0.5 * (step % every < every // 2)
    value += np.random.default_rng(every).uniform(0, 0.1, len(whole.steps))[step]
    signals = {"top1_prob": value, "margin": value, "entropy": value, "logprob": -value}
    profile = with_columns(whole, "tokens", **signals)
    truth = true_means(profile)["decode", "top1_prob"]
    steps = len(profile.steps)
    decode = np.flatnonzero(profile.steps["kind"] == "decode")
    held, errors = [], []
    for seed in range(400):
        places = np.random.default_rng((1, seed)).integers(0, every, 80)
        read = np.zeros(steps, dtype=bool)
        read[decode[np.arange(80) * every + places]] = True
        read[0] = True
        weights = np.full(steps, float(every))
        weights[0] = 1
        signal = by_kind(sampled(profile, weights, read))["decode"].top1_prob
        assert signal is not None and signal.low is not None and signal.high is not None
        errors.append(signal.mean - truth)
        held.append(signal.low <= truth <= signal.high)
    assert abs(np.mean(errors)) < 4 * np.std(errors) / math.sqrt(len(errors))
    assert np.mean(held) >= 0.93


def test_where_all_was_read_it_is_the_plain_mean_without_an_interval() -> None:
    profile = population()
    truth = true_means(profile)
    found = by_kind(profile)
    assert list(found) == list(dict.fromkeys(profile.steps["kind"].tolist()))
    kinds = profile.steps["kind"][profile.tokens["step"]]
    for kind, of_kind in found.items():
        assert of_kind.tokens == (kinds == kind).sum()
        assert of_kind.steps == (profile.steps["kind"] == kind).sum()
        for name in SIGNALS:
            signal = getattr(of_kind, name)
            assert signal.mean == truth[kind, name]
            assert signal.low == signal.high == signal.mean
            assert signal.tokens == of_kind.tokens
        assert of_kind.perplexity == math.exp(-truth[kind, "logprob"])


def test_kinds_are_not_mixed() -> None:
    profile = population()
    before = by_kind(profile)
    decode = profile.steps["kind"][profile.tokens["step"]] == "decode"
    changed = np.where(decode, 0.125, profile.tokens["top1_prob"])
    after = by_kind(with_columns(profile, "tokens", top1_prob=changed))
    decoded = after.pop("decode").top1_prob
    assert decoded is not None and decoded.mean == 0.125
    assert after == {kind: before[kind] for kind in after}


@pytest.mark.parametrize("kept", [0.0, 0.1])
def test_too_few_steps_say_so(kept: float) -> None:
    """The first step is read with certainty at a fixed rate, and says nothing of the others."""
    profile = synthetic_profile(requests=1, tokens=60, layers=0)
    read = np.random.default_rng(1).random(60) < kept
    read[:2] = True
    weights = np.full(60, 10.0)
    weights[:2] = 1
    found = by_kind(sampled(profile, weights, read))
    signal = found["decode"].top1_prob
    assert found["decode"].steps < 10
    assert signal is not None and signal.mean == 0.5
    assert signal.low is None and signal.high is None
    # Of the prefill there is but this one.
    prefill = found["prefill"].top1_prob
    assert prefill is not None and prefill.low == prefill.high == 0.5


def test_one_step_that_makes_most_of_the_mean_has_no_interval() -> None:
    profile = synthetic_profile(requests=1, tokens=40, layers=0, meta=BUDGET)
    weights = np.full(40, 16 / 15)
    weights[5] = 1000.0
    signal = by_kind(sampled(profile, weights, np.ones(40, dtype=bool)))["decode"].entropy
    assert signal is not None and signal.low is None


def merged_pair() -> tuple[Profile, Profile]:
    """Recordings of two processes: of coins, and of a fixed rate."""
    parts = []
    for rank, budget in ((0, 0.01), (1, None)):
        part = recorded(rank, tokens=400, layers=0, rows=2)
        random = np.random.default_rng(rank)
        value = random.random(len(part.tokens))
        part = with_columns(
            part, "tokens", top1_prob=value, margin=value, entropy=value, logprob=-value
        )
        meta = {**part.meta, "cost": {"budget": budget}}
        part = Profile.from_columns(columns_of(part), part.requests.strings, meta, part.losses)
        weights = np.full(400, 4.0)
        parts.append(sampled(part, weights, random.random(400) < 0.25))
    return parts[0], parts[1]


def test_a_merged_profile_is_estimated_as_one() -> None:
    first, second = merged_pair()
    merged = by_kind(pertoken.merge([first, second]))["decode"]
    one, two = by_kind(first)["decode"], by_kind(second)["decode"]
    assert merged.tokens == one.tokens + two.tokens and merged.steps == one.steps + two.steps
    assert merged.top1_prob and one.top1_prob and two.top1_prob
    whole = one.tokens * one.top1_prob.mean + two.tokens * two.top1_prob.mean
    assert merged.top1_prob.mean == pytest.approx(whole / merged.tokens, rel=1e-12)

    # The interval is by each process's way to sample, against the sum written out.
    total, variance, share = 0.0, 0.0, []
    residuals = []
    for part, factor in ((first, 1 - 1 / 4), (second, 1.0)):
        steps = part.steps["step"][part.steps["kind"] == "decode"]
        for step in steps.tolist():
            own = part.tokens["top1_prob"][part.tokens["step"] == step].astype(np.float64)
            if np.isnan(own).any():
                continue
            total += 4 * len(own)
            residuals.append((factor, 4 * len(own), 4 * (own - merged.top1_prob.mean).sum()))
    for factor, weight, residual in residuals:
        variance += factor * (residual / (total - weight)) ** 2
        share.append(factor * weight**2)
    freedom = sum(share) ** 2 / sum(each**2 for each in share)
    z = 1.959963984540054
    half = (z + (z**3 + z) / (4 * freedom)) * math.sqrt(variance)
    assert merged.top1_prob.high == pytest.approx(merged.top1_prob.mean + half, rel=1e-9)
    assert merged.top1_prob.low == pytest.approx(merged.top1_prob.mean - half, rel=1e-9)


def test_tokens_of_evicted_steps_are_left_out_as_of_the_least_confident_ones() -> None:
    profile = population()
    step = profile.tokens["step"]
    value = np.where(step < 500, 0.01, 0.75)
    columns = columns_of(with_columns(profile, "tokens", top1_prob=value))
    columns["steps"] = {name: values[500:] for name, values in columns["steps"].items()}
    held = Profile.from_columns(columns, profile.requests.strings, profile.meta, profile.losses)
    assert {token.top1_prob for token in least_confident_tokens(held, 10**6)} == {0.75}
    found = by_kind(held)
    assert {of_kind.top1_prob.mean for of_kind in found.values() if of_kind.top1_prob} == {0.75}
    assert sum(of_kind.tokens for of_kind in found.values()) == (step >= 500).sum()


def test_an_unknown_logprob_is_left_out_and_an_infinite_one_has_no_mean() -> None:
    profile = synthetic_profile(requests=1, tokens=5, layers=0)
    values = np.array([-1, np.nan, -1, -2, -3], dtype=np.float32)
    decode = by_kind(with_columns(profile, "tokens", logprob=values))["decode"]
    assert decode.logprob is not None and (decode.logprob.tokens, decode.logprob.mean) == (3, -2)
    assert decode.perplexity == math.exp(2)
    values[2] = -np.inf
    decode = by_kind(with_columns(profile, "tokens", logprob=values))["decode"]
    assert decode.logprob is None and decode.perplexity is None and decode.entropy is not None


ODD = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-30, 1e-12, 0.5, 1.0, 1.5, 16.0, 1e12, 3e38)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), budget=st.sampled_from([None, 0.01, "x", -1]))
def test_damaged_numbers_never_give_a_warning_or_what_json_lacks(
    data: st.DataObject, budget: Any
) -> None:
    profile = synthetic_profile(
        requests=2, tokens=16, layers=0, rows=2, meta={"cost": {"budget": budget}}
    )
    count = len(profile.tokens)
    odd = st.lists(st.sampled_from(ODD), min_size=count, max_size=count)
    damaged = {name: np.array(data.draw(odd), np.float32) for name in SIGNALS}
    weights = np.array(data.draw(odd), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        profile = with_columns(profile, "tokens", logits_weight=weights, **damaged)
        summary = profile.summary()
        json.dumps(summary.as_dict(), allow_nan=False)
        plain_text(summary_blocks(summary.as_dict()))
        summary._repr_html_()
    for of_kind in mean_confidence(profile):
        for name in SIGNALS:
            signal = getattr(of_kind, name)
            if signal is not None and signal.low is not None:
                assert signal.low <= signal.mean <= signal.high


def test_the_summary_shows_them_within_80_columns() -> None:
    console = pytest.importorskip("rich.console")
    profile = population()
    steps = len(profile.steps)
    read = np.random.default_rng(1).random(steps) < 0.25
    read[profile.steps["kind"] == "prefill"] = False
    read[0] = True
    profile = sampled(profile, np.full(steps, 4.0), read)
    logprob = np.array(profile.tokens["logprob"])
    logprob[np.flatnonzero(read[profile.tokens["step"]])[-1]] = np.nan
    summary = with_columns(profile, "tokens", logprob=logprob).summary()
    data = summary.as_dict()
    means = data["confidence"]["means"]
    assert list(means) == ["prefill", *(k for k in means if k != "prefill")] and len(means) == 3
    (block,) = [block for block in summary_blocks(data) if block.title.startswith("Confidence")]
    assert block.lines == (
        "± ?: too few steps were read, or a few outweigh the others.",
        "The logprob of 1 token read is unknown; its mean is of the others.",
    )
    for row, (kind, of_kind) in zip(block.rows, means.items(), strict=True):
        assert row[:2] == (kind, str(of_kind["tokens"]))
        for cell, name in zip(row[2:6], SIGNALS, strict=True):
            signal = of_kind[name]
            shown = "?" if signal["low"] is None else f"{signal['high'] - signal['mean']:.2g}"
            assert cell == f"{signal['mean']:.3g}\n± {shown}"
        assert row[6] == f"{of_kind['perplexity']:.3g}"
    stream = io.StringIO()
    console.Console(file=stream, width=80).print(summary)
    lines = stream.getvalue().split("Confidence")[1].split("Least confident")[0].splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    for row in block.rows:
        assert any(all(cell.split("\n")[0] in line for cell in row) for line in lines)
    assert block.title in plain_text([block]) and "perplexity" in summary._repr_html_()


def test_a_recording_at_a_fixed_rate_and_its_copies_agree(tmp_path: Path) -> None:
    model = models.llama()
    with pertoken.profile(model, logits=True, logits_every=2) as recording:
        for _ in range(3):
            model.generate(models.prompt(2), max_new_tokens=20)
    profile = recording.result()
    decode = by_kind(profile)["decode"]
    assert decode.top1_prob is not None and decode.top1_prob.low is not None
    assert decode.top1_prob.low < decode.top1_prob.mean < decode.top1_prob.high
    profile.save(tmp_path / "run.pertoken")
    assert mean_confidence(pertoken.load(tmp_path / "run.pertoken")) == mean_confidence(profile)
    merged = pertoken.merge([profile, recorded(5, tokens=2)])
    assert by_kind(merged)["prefill"].steps == by_kind(profile)["prefill"].steps + 1


def test_a_budget_in_the_metadata_is_what_tells_coins_from_blocks() -> None:
    profile = synthetic_profile(requests=1, tokens=60, layers=0)
    value = np.random.default_rng(2).random(60)
    weights = np.full(60, 2.0)
    widths = []
    for budget in (0.01, None):
        meta = {**synthetic_meta(), "cost": {"budget": budget}}
        columns = columns_of(with_columns(profile, "tokens", top1_prob=value))
        made = Profile.from_columns(columns, profile.requests.strings, meta, profile.losses)
        signal = by_kind(sampled(made, weights, np.arange(60) % 2 == 0))["decode"].top1_prob
        assert signal is not None and signal.low is not None and signal.high is not None
        widths.append(signal.high - signal.low)
    assert widths[1] == pytest.approx(math.sqrt(2) * widths[0])
