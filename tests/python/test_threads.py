"""Threads, tasks and generators each have spans of their own; starts and stops disturb none."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

import invariants
import models
import pertoken
from invariants import parent_sites
from odd_modules import Stack, numbers, seeded
from residue import assert_untouched, foreign_values


def run_in_threads(count: int, work: Callable[[int], Any]) -> list[int]:
    """Runs ``work(index)`` in that many threads at once; their ids as the system has them."""
    barrier = threading.Barrier(count)
    tids: list[int] = []
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            barrier.wait()
            tids.append(threading.get_native_id())
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), name=f"worker-{i}") for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return tids


def test_threads_on_one_model_have_tracks_of_their_own() -> None:
    model = seeded(Stack)
    with pertoken.profile(model, modules="all") as recording:
        tids = run_in_threads(4, lambda index: [model(numbers()) for _ in range(20)])
    profile = recording.result()
    invariants.check(profile)
    assert profile.steps["step"].tolist() == list(range(80))
    assert len(profile.spans) == 80 * 12
    assert sorted(profile.tracks["tid"].tolist()) == sorted(tids)
    assert Counter(profile.steps["thread"].tolist()) == dict.fromkeys(range(4), 20)
    track_of_step = dict(
        zip(profile.steps["step"].tolist(), profile.steps["thread"].tolist(), strict=True)
    )
    for step, track in zip(
        profile.spans["step"].tolist(), profile.spans["track"].tolist(), strict=True
    ):
        assert track_of_step[step] == track


def test_threads_on_several_models_do_not_meet() -> None:
    stacks = [seeded(Stack) for _ in range(3)]
    recordings = [pertoken.profile(stack, modules="all") for stack in stacks]
    for recording in recordings:
        recording.start()
    run_in_threads(3, lambda index: [stacks[index](numbers()) for _ in range(5 + index)])
    for index, recording in enumerate(recordings):
        recording.stop()
        profile = recording.result()
        invariants.check(profile)
        assert len(profile.steps) == 5 + index
        assert len(profile.tracks) == 1


def test_requests_of_threads_that_generate_at_once_stay_apart() -> None:
    model = models.llama()
    expected = [model.generate(models.prompt(1, 3 + i), max_new_tokens=4 + i) for i in range(3)]
    results: dict[int, Any] = {}

    def generate(index: int) -> None:
        with pertoken.request(id=index):
            ids = models.prompt(1, 3 + index)
            results[index] = model.generate(ids, max_new_tokens=4 + index)

    with pertoken.profile(model) as recording:
        run_in_threads(3, generate)
    assert all(torch.equal(results[index], ids) for index, ids in enumerate(expected))
    profile = recording.result()
    invariants.check(profile)
    invariants.check_sequences(profile)
    requests = profile.requests
    assert {
        id: (tokens_in, tokens_out)
        for id, tokens_in, tokens_out in zip(
            requests["id"].tolist(),
            requests["tokens_in"].tolist(),
            requests["tokens_out"].tolist(),
            strict=True,
        )
    } == {str(i): (3 + i, 4 + i) for i in range(3)}
    for request in requests["request"].tolist():
        kinds = profile.steps["kind"][profile.steps["request"] == request].tolist()
        assert kinds == ["prefill"] + ["decode"] * (len(kinds) - 1)


def test_a_hundred_threads_come_and_go() -> None:
    model = seeded(Stack)
    with pertoken.profile(model) as recording:
        for _ in range(4):
            run_in_threads(25, lambda index: model(numbers()))
    profile = recording.result()
    invariants.check(profile)
    assert len(profile.steps) == len(profile.tracks) == 100


def test_threads_that_end_after_the_recording_lose_nothing() -> None:
    model = seeded(Stack)
    called, stopped = threading.Event(), threading.Event()

    def work() -> None:
        model(numbers())
        called.set()
        stopped.wait()

    thread = threading.Thread(target=work)
    with pertoken.profile(model) as recording:
        thread.start()
        called.wait()
    stopped.set()
    thread.join()
    assert len(recording.result().steps) == 1
    with recording:
        run_in_threads(2, lambda index: model(numbers()))
    assert len(recording.result().steps) == 3


def test_a_region_left_on_another_thread_or_twice_disturbs_nothing() -> None:
    model = seeded(Stack)
    with pertoken.profile(model, modules="root") as recording:
        region = pertoken.span("moved")
        region.__enter__()
        run_in_threads(1, lambda index: region.__exit__(None, None, None))
        model(numbers())
        region.__exit__(None, None, None)
        region.__exit__(None, None, None)
        model(numbers())
    profile = recording.result()
    invariants.check(profile)
    assert parent_sites(profile) == [("Stack", "moved"), ("moved", ""), ("Stack", "")]


def test_one_span_object_in_many_threads_and_in_itself() -> None:
    region = pertoken.span("shared")
    model = seeded(Stack)

    def work(index: int) -> None:
        for _ in range(10):
            with region, region:
                model(numbers())

    with pertoken.profile(model, modules="root") as recording:
        run_in_threads(4, work)
    profile = recording.result()
    invariants.check(profile)
    assert Counter(parent_sites(profile)) == {
        ("Stack", "shared"): 40,
        ("shared", "shared"): 40,
        ("shared", ""): 40,
    }


def test_started_and_stopped_by_another_thread_while_generate_runs() -> None:
    model, control = models.llama.__wrapped__(), models.llama.__wrapped__()
    expected = control.generate(models.prompt(2), max_new_tokens=12)
    recording = pertoken.profile(model, modules="all")
    other = pertoken.profile(model)
    done = threading.Event()
    stops = []

    def switch() -> None:
        while not done.is_set():
            recording.start()
            other.start()
            done.wait(0.002)
            recording.stop()
            other.stop()
            stops.append(len(stops))

    thread = threading.Thread(target=switch)
    thread.start()
    try:
        for _ in range(50):
            assert torch.equal(model.generate(models.prompt(2), max_new_tokens=12), expected)
    finally:
        done.set()
        thread.join()
    recording.stop()
    other.stop()
    assert_untouched(model, control)
    for profile in (recording.result(), other.result()):
        assert len(profile.steps) > 0
        assert profile.losses["faults"] == {}
        # Of a step that runs when it stops, the end is not recorded.
        assert (profile.steps["wall_ns"] < 0).sum() <= len(stops)


def test_one_recording_entered_by_several_threads_runs_until_the_last_leaves() -> None:
    model = seeded(Stack)
    recording = pertoken.profile(model)

    def work(index: int) -> None:
        for _ in range(5):
            with recording:
                model(numbers())

    run_in_threads(4, work)
    assert not recording.is_recording
    assert foreign_values(model) == []
    assert len(recording.result().steps) == 20


def test_results_are_read_while_threads_record() -> None:
    model = seeded(Stack)
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            model(numbers())

    thread = threading.Thread(target=work)
    with pertoken.profile(model, modules="all") as recording:
        thread.start()
        counts = []
        for _ in range(20):
            profile = recording.result()
            counts.append(len(profile.steps))
            assert recording.totals().all_steps.begun >= counts[-1]
        done.set()
        thread.join()
    assert counts == sorted(counts)
    invariants.check(recording.result())


def test_more_recordings_than_can_run_at_once() -> None:
    model = seeded(Stack)
    recordings = [pertoken.profile(model) for _ in range(20)]
    for recording in recordings[:8]:
        recording.start()
    with pytest.raises(pertoken.RecordingStateError, match="at most 8 recordings can run"):
        recordings[8].start()
    assert not recordings[8].is_recording
    model(numbers())
    recordings[0].stop()
    recordings[8].start()
    model(numbers())
    assert [len(recording.result().steps) for recording in recordings[:9]] == [1, *[2] * 7, 1]
    for recording in recordings:
        recording.stop()
    assert foreign_values(model) == []


def test_switched_off_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERTOKEN", "0")
    model = seeded(Stack)
    with pertoken.profile(model) as recording, pertoken.span("region"):
        assert foreign_values(model) == []
        assert not recording.is_recording
        model(numbers())
    profile = recording.result()
    assert (len(profile.steps), len(profile.spans)) == (0, 0)
    assert any("PERTOKEN=0" in reason for reason in profile.losses["reasons"])
    assert str(recording.summary())
