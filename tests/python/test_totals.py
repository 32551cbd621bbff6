"""`Recording.totals()`: monotone, bounded, cheap, and what summaries of long runs say."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import pertoken
import totals_of_tables
from models import NextToken, llama, prompt
from pertoken.analysis.latency import tpot_ns
from pertoken.totals import LOSSES, OTHER_LABELS, RequestTotals


def test_labels_of_requests_are_told_apart_and_the_model_version_is_one() -> None:
    recording = pertoken.profile(llama())
    with recording:
        for tenant, version in (("a", "v1"), ("b", "v1"), ("a", "")):
            with pertoken.request(model_version=version, tenant=tenant):
                llama().generate(prompt(), max_new_tokens=3)
    totals = recording.totals()
    assert {labels: held.tokens_out for labels, held in totals.requests.items()} == {
        (("tenant", "a"),): 3,
        (("model_version", "v1"), ("tenant", "a")): 3,
        (("model_version", "v1"), ("tenant", "b")): 3,
    }
    assert totals.requests_with(tenant="a").finished == 2
    assert totals.requests_with(tenant="a", model_version="v1").itl_ns.count == 2
    assert totals.requests_with().started == 3
    assert totals.requests_with(tenant="nobody") == RequestTotals()
    totals_of_tables.check(recording.result())


def test_label_sets_beyond_the_bound_are_counted_under_one() -> None:
    model = NextToken().eval()
    recording = pertoken.profile(model, modules="root")
    with torch.no_grad(), recording:
        for number in range(200):
            with (
                pertoken.request(user=str(number), long="x" * 10_000),
                pertoken.step("decode", rows=1, tokens_committed=1),
            ):
                model(prompt(1, 1))
    totals = recording.totals()
    assert len(totals.requests) == 129
    assert totals.requests[OTHER_LABELS].finished == 72
    assert totals.requests_with().finished == 200
    assert totals.requests_with().tokens_out == 200
    assert max(len(value) for labels in totals.requests for _, value in labels) == 200


def test_counts_never_go_down_and_a_running_request_shows_as_such() -> None:
    recording = pertoken.profile(llama())
    done = threading.Event()
    seen: list[pertoken.Totals] = []

    def watch() -> None:
        while not done.wait(0.01):
            seen.append(recording.totals())

    watcher = threading.Thread(target=watch)
    with recording:
        watcher.start()
        with pertoken.request(tenant="a"):
            for _ in range(20):
                llama().generate(prompt(), max_new_tokens=4)
            during = recording.totals().requests_with()
        done.set()
        watcher.join()
    assert (during.started, during.finished, during.failed) == (1, 0, 0)
    after = recording.totals().requests_with()
    assert (after.started, after.finished, after.tokens_out) == (1, 1, 80)
    for earlier, later in pairwise(seen):
        for kind, steps in earlier.steps.items():
            now = later.steps[kind]
            assert steps.begun <= now.begun
            assert steps.tokens_committed <= now.tokens_committed
            assert steps.itl_ns.count <= now.itl_ns.count
        assert earlier.requests_with().tokens_out <= later.requests_with().tokens_out
        assert all(earlier.losses[key] <= later.losses[key] for key in LOSSES)


def test_eviction_touches_no_total(tmp_path: Path) -> None:
    recording = pertoken.profile(llama(), modules="all", memory_limit_bytes=1 << 20)
    calls = 220
    with recording:
        for _ in range(calls):
            llama().generate(prompt(), max_new_tokens=12)
    profile = recording.result()
    totals = profile.totals
    assert totals is not None
    assert profile.losses["steps_evicted"] > 0
    assert totals.losses["steps_evicted"] == profile.losses["steps_evicted"]
    assert len(profile.steps) < 12 * calls
    assert (totals.steps["prefill"].begun, totals.steps["decode"].begun) == (calls, 11 * calls)
    assert totals.requests_with().tokens_out == 12 * calls
    assert totals.requests_with().itl_ns.count == 11 * calls
    assert totals.requests_with().ttft_ns.count == calls
    assert totals.site("lm_head").dur_ns.count == 12 * calls

    data = profile.summary().as_dict()
    assert data["from_totals"]
    assert data["requests"] == {"count": calls, "failed": 0, "running": 0}
    assert data["steps"] == {"count": 12 * calls, "held": len(profile.steps)}
    assert data["tokens"]["count"] == 12 * calls
    assert data["step_times"]["decode"]["count"] == 11 * calls
    assert data["inter_token"]["count"] == 11 * calls
    assert data["ttft"]["max_ns"] == round(totals.requests_with().ttft_ns.max)
    text = str(profile.summary())
    assert "are those of all steps since the start" in " ".join(text.split())
    profile.save(tmp_path / "long.pertoken")
    assert str(pertoken.load(tmp_path / "long.pertoken").summary()) == text


def test_a_summary_of_what_is_held_whole_does_not_use_the_totals() -> None:
    recording = pertoken.profile(llama())
    with recording:
        llama().generate(prompt(), max_new_tokens=3)
    summary = recording.summary()
    assert not summary.as_dict()["from_totals"]
    assert "evicted" not in str(summary)


def test_the_time_per_output_token_of_several_calls_is_over_the_tokens_of_all() -> None:
    recording = pertoken.profile(llama())
    with recording, pertoken.request(id="chat"):
        for length in (4, 6, 3):
            llama().generate(prompt(2), max_new_tokens=length)
    profile = recording.result()
    requests = profile.requests
    rest_ns = requests["end_ns"][0] - requests["start_ns"][0] - requests["ttft_ns"][0]
    assert tpot_ns(profile).tolist() == [pytest.approx(rest_ns / 12)]
    totals_of_tables.check(profile)


def test_a_stopped_recording_that_goes_on_counts_on() -> None:
    recording = pertoken.profile(llama())
    for calls in (1, 2, 3):
        with recording:
            llama().generate(prompt(), max_new_tokens=3)
        assert recording.totals().requests_with().finished == calls
    totals_of_tables.check(recording.result())


def test_a_recording_that_never_ran_has_counted_nothing() -> None:
    totals = pertoken.profile(llama()).totals()
    assert not totals.steps and not totals.sites and not totals.requests
    assert set(totals.losses.values()) == {0}
    assert totals.requests_with() == RequestTotals()


def test_totals_cannot_be_changed() -> None:
    totals = pertoken.profile(llama()).totals()
    with pytest.raises(AttributeError, match="do not change"):
        totals.steps = {}  # type: ignore[misc]
    with pytest.raises(TypeError):
        totals.losses["faults"] = 3  # type: ignore[index]
    with pytest.raises(AttributeError, match="do not change"):
        del totals._steps
