"""The least confident tokens, in the summary and in the trace, against plain Python."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pertoken.analysis.token_confidence import confidence_by_step, least_confident_tokens
from pertoken.result import Profile
from pertoken.summary import Summary
from pertoken.summary_layout import summary_blocks
from synthetic import synthetic_profile, with_columns

SIGNALS = ("top1_prob", "margin", "entropy", "logprob")


def with_signals(profile: Profile, seed: int, unread: float) -> Profile:
    """Random signals with ties, some of them unknown, and whole tokens that were not read."""
    random = np.random.default_rng(seed)
    count = len(profile.tokens)
    signals = {name: random.integers(1, 6, count).astype(np.float32) / 8 for name in SIGNALS}
    signals["logprob"][random.random(count) < 0.3] = np.nan
    missing = random.random(count) < unread
    for values in signals.values():
        values[missing] = np.nan
    return with_columns(profile, "tokens", **signals)


PROFILE = synthetic_profile(requests=2, tokens=5, rows=3)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), unread=st.sampled_from([0.0, 0.4, 1.0]), top=st.integers(0, 9))
def test_of_any_signals(seed: int, unread: float, top: int) -> None:
    profile = with_signals(PROFILE, seed, unread)
    table = {name: profile.tokens[name].tolist() for name in profile.tokens.columns}
    read = [i for i, prob in enumerate(table["top1_prob"]) if not math.isnan(prob)]
    least = sorted(read, key=lambda i: (table["top1_prob"][i], i))[:top]
    found = least_confident_tokens(profile, top)
    assert [(t.step, t.row, t.position, t.top1_prob) for t in found] == [
        tuple(table[name][i] for name in ("step", "row", "position", "top1_prob")) for i in least
    ]
    for token, i in zip(found, least, strict=True):
        for name in SIGNALS[1:]:
            right = table[name][i]
            assert getattr(token, name) == (None if math.isnan(right) else right)

    by_step: dict[int, int] = {}
    for i in sorted(read, key=lambda i: (table["top1_prob"][i], i)):
        by_step.setdefault(table["step"][i], i)
    chosen = [by_step[step] for step in sorted(by_step)]
    steps = confidence_by_step(profile)
    assert steps["time_ns"].tolist() == [table["commit_ns"][i] for i in chosen]
    for name in SIGNALS:
        np.testing.assert_array_equal(steps[name], [table[name][i] for i in chosen])


def test_the_summary_shows_them_and_says_how_many_were_read() -> None:
    profile = with_signals(PROFILE, 3, 0.4)
    data = Summary.of(profile, tokens=4).as_dict()
    confidence = data["confidence"]
    assert json.loads(json.dumps(confidence, allow_nan=False)) == confidence
    assert confidence["tokens"] == np.isfinite(profile.tokens["top1_prob"]).sum()
    (block,) = [block for block in summary_blocks(data) if block.title.startswith("Least")]
    assert block.lines == (f"The logits of {confidence['tokens']} tokens were read.",)
    for row, token in zip(block.rows, confidence["least_confident_tokens"], strict=True):
        assert row[1] == token["request_id"] != ""
        shown = ["-" if token[name] is None else f"{token[name]:.3g}" for name in SIGNALS]
        assert list(row[-4:]) == shown
    assert len(block.rows) == 4


def test_where_none_was_read_nothing_is_said() -> None:
    profile = with_signals(PROFILE, 3, 1.0)
    data = profile.summary().as_dict()
    assert data["confidence"] is None
    assert "Least confident" not in str(profile.summary())


def test_the_trace_counts_the_least_confident_token_of_each_step(tmp_path: Path) -> None:
    profile = with_signals(PROFILE, 5, 0.4)
    profile.export_chrome_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    counters = [event for event in events if event["name"] == "confidence"]
    steps = confidence_by_step(profile)
    assert len(counters) == len(steps["time_ns"]) > 0
    for at, event in enumerate(counters):
        values: dict[str, Any] = {name: steps[name][at] for name in SIGNALS}
        assert event["args"] == {k: v for k, v in values.items() if not math.isnan(v)}
        assert event["ts"] * 1000 == pytest.approx(steps["time_ns"][at], abs=1)
    assert any("logprob" not in event["args"] for event in counters)
