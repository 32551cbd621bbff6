"""The totals of real recordings; that they agree with the tables, `invariants.check` tests."""

from __future__ import annotations

import json
import pickle
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import invariants
import pertoken
from models import llama, prompt
from odd_modules import Stack, numbers, seeded
from pertoken import Totals, _native, totals_reading
from pertoken.analysis import latency
from pertoken.schema import SIGNALS
from pertoken.totals import OTHER, SiteKey
from test_processes import in_child
from waiting import wait_for


def counts_of(totals: Totals) -> dict[str, object]:
    """All that does not depend on how long anything took."""
    return {
        "steps": {
            kind: (
                steps.begun,
                steps.failed,
                steps.rows,
                steps.tokens_in,
                steps.tokens_committed,
                steps.wall_ns.count,
                steps.itl_ns.count,
            )
            for kind, steps in totals.steps.items()
        },
        "sites": {key: site.dur_ns.count for key, site in totals.sites.items()},
        "requests": {
            labels: (
                own.started,
                own.finished,
                own.failed,
                own.tokens_in,
                own.tokens_out,
                own.duration_ns.count,
                own.ttft_ns.count,
                own.tpot_ns.count,
                own.itl_ns.count,
                {kind: times.count for kind, times in own.step_ns.items()},
            )
            for labels, own in totals.requests.items()
        },
    }


def generate(tenant: str, tokens: int) -> None:
    with pertoken.request(tenant=tenant):
        llama().generate(prompt(2), max_new_tokens=tokens)


def test_two_recordings_one_after_the_other_merge_to_the_one_round_both() -> None:
    first, second, both = (pertoken.profile(llama()) for _ in range(3))
    with both:
        with first:
            generate("blue", 3)
            generate("red", 1)
        with second:
            generate("blue", 5)
            llama().generate(prompt(), max_new_tokens=2)
    merged = first.totals().merge(second.totals())
    assert counts_of(merged) == counts_of(both.totals())
    assert merged.recordings == 2
    assert set(merged.requests) == {(("tenant", "blue"),), (("tenant", "red"),), ()}
    assert merged.all_requests.tokens_out == 2 * 3 + 2 * 1 + 2 * 5 + 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_the_files_of_two_processes_merge_to_the_totals_of_both(tmp_path: Path) -> None:
    def record(name: str, lengths: list[int]) -> None:
        with pertoken.profile(llama()) as recording:
            for tokens in lengths:
                with pertoken.request(model_version=f"v{tokens}"):
                    llama().generate(prompt(), max_new_tokens=tokens)
        recording.result().save(tmp_path / name)

    lengths = {"one": [2, 3], "two": [3, 4, 5]}
    for name, tokens in lengths.items():
        assert in_child(partial(record, name, tokens)) == 0
    profiles = [pertoken.load(tmp_path / name) for name in lengths]
    merged = pertoken.merge(profiles)
    assert merged.totals is not None
    assert merged.totals == sum(profile.totals for profile in profiles)
    finished = {labels[0][1]: own.finished for labels, own in merged.totals.requests.items()}
    assert finished == {"v2": 1, "v3": 2, "v4": 1, "v5": 1}
    assert merged.totals.all_requests.tokens_out == len(merged.tokens) == 2 + 3 + 3 + 4 + 5
    merged.save(tmp_path / "merged")
    assert pertoken.load(tmp_path / "merged").totals == merged.totals


def test_what_was_evicted_stays_in_the_totals_and_in_the_summary() -> None:
    model = llama()
    recording = pertoken.profile(model, modules="all", memory_limit_bytes=1 << 20)
    with recording:
        for _ in range(16):
            model.generate(prompt(), max_new_tokens=64)
    profile = recording.result()
    assert profile.losses["steps_evicted"] > 0
    assert len(profile.tokens) < 16 * 64
    totals = profile.totals
    assert totals is not None
    assert totals.steps["prefill"].begun == totals.all_requests.finished == 16
    assert totals.all_steps.tokens_committed == totals.all_requests.tokens_out == 16 * 64
    assert totals.all_steps.itl_ns.count == 16 * 63
    assert totals.sites["lm_head", "decode", "module"].dur_ns.count == 16 * 63
    data = profile.summary().as_dict()["since_start"]
    assert data["requests"] == {"count": 16, "failed": 0, "running": 0}
    assert data["tokens"] == {"count": 16 * 64}
    by_kind = {"prefill": 16, "decode": 16 * 63}
    assert data["steps"] == {"count": 16 * 64, "failed": 0, "by_kind": by_kind}
    assert data["inter_token"]["count"] == 16 * 63
    assert data["step_times"]["decode"]["count"] == 16 * 63
    text = " ".join(str(profile.summary()).split())
    assert "16 requests, 1,024 steps (16 prefill, 1,008 decode), 1,024 tokens" in text
    assert f"the last {len(profile.steps)} steps and {len(profile.tokens)} tokens are held" in text


def test_logits_of_evicted_steps_stay_in_the_totals(tmp_path: Path) -> None:
    model = llama()
    recording = pertoken.profile(model, modules="all", memory_limit_bytes=1 << 20, logits=True)
    expected = Totals()
    with recording:
        for _ in range(16):
            with pertoken.profile(model, logits=True) as whole:
                model.generate(prompt(2), max_new_tokens=64)
            invariants.check(whole.result())
            expected = expected.merge(whole.totals())
    profile = recording.result()
    assert profile.losses["steps_evicted"] > 0 and len(profile.tokens) < 16 * 2 * 64
    totals = profile.totals
    assert totals is not None
    assert set(totals.logits) == {(s, k) for s in SIGNALS for k in ("prefill", "decode")}
    for key, of_kind in expected.logits.items():
        own = totals.logits[key]
        tokens = 16 * 2 * (63 if key.kind == "decode" else 1)
        assert own.observations == own.weight == own.weighted_count == tokens
        assert own.values.positive.counts.tolist() == of_kind.values.positive.counts.tolist()
        assert own.values.negative.counts.tolist() == of_kind.values.negative.counts.tolist()
        assert own.mean == pytest.approx(of_kind.mean, rel=1e-12)
        assert own.rms == pytest.approx(of_kind.rms, rel=1e-12)
    profile.save(tmp_path / "run.pertoken")
    assert pertoken.load(tmp_path / "run.pertoken").totals == totals
    assert pickle.loads(pickle.dumps(totals)) == totals
    # Totals of versions that did not count them are read.
    data = totals.to_dict()
    del data["logits"]
    assert Totals.from_dict(data).logits == {}


def test_without_logits_totals_have_none() -> None:
    with pertoken.profile(llama()) as recording:
        llama().generate(prompt(), max_new_tokens=3)
    assert recording.totals().logits == {} and recording.totals().to_dict()["logits"] == []


def test_a_summary_of_a_whole_run_is_that_of_its_tables() -> None:
    with pertoken.profile(llama()) as recording:
        llama().generate(prompt(), max_new_tokens=3)
    assert recording.result().summary().as_dict()["since_start"] is None


def test_so_many_label_sets_are_told_apart_and_the_rest_is_one() -> None:
    model = llama()
    count = _native.MAX_LABEL_SETS + 20
    with pertoken.profile(model, modules="root") as recording, torch.no_grad():
        for number in range(count):
            with pertoken.request(user=str(number)):
                model(prompt())
    requests = recording.totals().requests
    assert len(requests) == _native.MAX_LABEL_SETS + 1
    assert requests[(("user", OTHER),)].finished == 20
    assert sum(own.finished for own in requests.values()) == count


def test_of_many_and_of_long_labels_the_first_part_counts() -> None:
    many = {f"label{number:03}": "x" for number in range(100)}
    with pertoken.profile(llama()) as recording:
        with pertoken.request(**many):
            llama().generate(prompt(), max_new_tokens=1)
        with pertoken.request(**{"n" * 5000: "x"}):
            llama().generate(prompt(), max_new_tokens=1)
    assert set(recording.totals().requests) == {
        tuple((f"label{number:03}", "x") for number in range(32)),
        (("n" * 200, "x"),),
    }


def test_a_long_value_of_a_label_is_cut() -> None:
    with pertoken.profile(llama()) as recording, pertoken.request(prompt="x" * 5000):
        llama().generate(prompt(), max_new_tokens=1)
    ((labels, own),) = recording.totals().requests.items()
    assert labels == (("prompt", "x" * 200),)
    assert own.finished == 1


def test_time_per_output_token_of_several_calls_in_one_request() -> None:
    model = llama()
    with pertoken.profile(model) as recording, pertoken.request():
        for tokens in (4, 3, 5):
            model.generate(prompt(), max_new_tokens=tokens)
    profile = recording.result()
    assert profile.requests["output_len"].tolist() == [12]
    (tpot_ns,) = latency.tpot_ns(profile)
    requests = profile.requests
    rest_ns = requests["end_ns"][0] - requests["start_ns"][0] - requests["ttft_ns"][0]
    assert tpot_ns == pytest.approx(rest_ns / 11)
    invariants.check_totals(profile)


def test_sites_are_by_kind_and_category_and_own_times_leave_out_what_is_inside() -> None:
    model = seeded(Stack)
    with pertoken.profile(model, modules="all") as recording:
        for _ in range(3):
            with pertoken.step(kind="decode"):
                model(numbers())
        with pertoken.span("idle"):
            pass
    totals = recording.totals()
    assert totals.sites[SiteKey("idle", "outside", "region")].dur_ns.count == 1
    decode = {key.site: site for key, site in totals.sites.items() if key.kind == "decode"}
    assert len(decode) > 2
    root = decode["Stack"]
    assert root.dur_ns.count == 3
    assert 0 < root.own_ns < root.dur_ns.sum
    own_ns = sum(site.own_ns for site in decode.values())
    assert own_ns == pytest.approx(root.dur_ns.sum, rel=1e-6, abs=100)


def never_lower(earlier: Totals, later: Totals) -> bool:
    return (
        earlier.all_steps.begun <= later.all_steps.begun
        and earlier.all_steps.wall_ns.count <= later.all_steps.wall_ns.count
        and earlier.all_requests.started <= later.all_requests.started
        and earlier.all_requests.finished <= later.all_requests.finished
        and earlier.recorded_ns <= later.recorded_ns
    )


def test_totals_never_go_down_while_threads_record_and_others_look() -> None:
    model = seeded(Stack)
    recording = pertoken.profile(model, modules="all", memory_limit_bytes=1 << 20)
    went_down: list[tuple[Totals, Totals]] = []
    looks = 0
    done = threading.Event()

    # Two at a time, with a pause: a thread that never rests takes the GIL from the workers, and
    # what it kept would grow as long as they then need.
    def look() -> None:
        nonlocal looks
        earlier = recording.totals()
        while not done.wait(0.001):
            later = recording.totals()
            if not never_lower(earlier, later):
                went_down.append((earlier, later))
            earlier = later
            looks += 1

    def work() -> None:
        for _ in range(500):
            with pertoken.request():
                model(numbers())

    with recording:
        looker = threading.Thread(target=look)
        workers = [threading.Thread(target=work) for _ in range(3)]
        for thread in (looker, *workers):
            thread.start()
        for thread in workers:
            thread.join()
        done.set()
        looker.join()
    assert looks > 0
    assert went_down == []
    last = recording.totals()
    dropped = last.losses["records_dropped"]
    assert (last.all_steps.begun, dropped) == (1500, 0)
    assert last.all_requests.finished == 1500


def test_other_threads_run_while_many_sites_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """By turns, and not only where the interpreter forces a switch, which here it never does."""
    model = seeded(Stack)
    pauses: list[float] = []
    monkeypatch.setattr(totals_reading, "time", SimpleNamespace(sleep=pauses.append))
    turns = 0
    done = threading.Event()

    def take_turns() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            time.sleep(0)  # as an operator of torch: lets go of the GIL, and wants it back

    with pertoken.profile(model) as recording:
        for number in range(2000):
            with pertoken.span(f"region {number}"):
                pass
        recording.recorder.drain()
        interval = sys.getswitchinterval()
        other = threading.Thread(target=take_turns)
        other.start()
        counts = []

        def others_ran() -> bool:
            pauses.clear()
            before = turns
            counts.append(len(recording.totals().sites))
            # Of the 31 pauses of the native part; without them it is one or two, and how many of
            # them the other thread is quick enough for is for the system to say.
            return turns - before > 8

        try:
            sys.setswitchinterval(60)
            wait_for(others_ran)
        finally:
            sys.setswitchinterval(interval)
            done.set()
            other.join()
    assert set(counts) == {2000}
    assert len(pauses) == 2000 // 64


def test_a_request_that_raises_counts_as_failed_and_has_no_latency() -> None:
    def raises() -> None:
        with pertoken.request():
            llama().generate(prompt(), max_new_tokens=2)
            raise ValueError("mine")

    with pertoken.profile(llama()) as recording:
        with pytest.raises(ValueError, match="mine"):
            raises()
        with pytest.raises(ValueError, match="nonsense"):
            llama().generate(prompt(), max_new_tokens=2, nonsense=1)
    requests = recording.totals().all_requests
    assert (requests.started, requests.finished, requests.failed) == (2, 0, 2)
    assert requests.duration_ns.count == requests.ttft_ns.count == requests.tpot_ns.count == 0
    assert requests.tokens_out == 2


def test_totals_of_nothing_and_of_a_recording_that_has_not_started() -> None:
    recording = pertoken.profile(llama())
    before = recording.totals()
    assert (before.recordings, before.recorded_ns, dict(before.steps)) == (1, 0, {})
    assert before.merge(Totals()) == before
    assert repr(Totals()) == "<Totals of 0 recordings: 0 requests, 0 steps, 0 tokens>"


def test_totals_are_values() -> None:
    with pertoken.profile(llama()) as recording:
        llama().generate(prompt(), max_new_tokens=3)
    totals = recording.totals()
    assert pickle.loads(pickle.dumps(totals)) == totals
    assert Totals.from_dict(json.loads(json.dumps(totals.to_dict()))) == totals
    with pytest.raises(AttributeError):
        totals.recordings = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        totals.steps["decode"] = totals.steps["prefill"]  # type: ignore[index]
    with pytest.raises(TypeError, match="only merge Totals"):
        totals.merge(3)  # type: ignore[arg-type]
