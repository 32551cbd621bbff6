"""Recordings, threads, requests, scopes and starts that come and go leave nothing behind."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import gc
import itertools
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import invariants
import models
import pertoken
from odd_modules import NoTensors, Stack, numbers, seeded
from pertoken.engines import Engine
from pertoken.fault_log import FaultLog
from pertoken.scopes import current_run
from residue import assert_untouched, foreign_values

KIB = 1024


def resident_bytes() -> int:
    """Of the process now, with what was freed given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def count_of(folder: str) -> int:
    return len(os.listdir(f"/proc/self/{folder}"))


def assert_nothing_grows(work: Callable[[], Any], times: int, bytes_each: int) -> None:
    """Asserts that `work`, done so often after a warm-up, leaks neither memory nor handles.

    A leak grows every time. What grows once, as where a thread came late to what others left for
    it, is none.
    """
    for _ in range(times // 4):
        work()
    for last in (False, False, True):
        before = resident_bytes(), count_of("task"), count_of("fd")
        for _ in range(times):
            work()
        after = resident_bytes(), count_of("task"), count_of("fd")
        grown = [now - then for now, then in zip(after, before, strict=True)]
        # A drain thread that was told to stop may still be on its way out.
        if grown[0] < times * bytes_each + 256 * KIB and grown[1] <= 1 and grown[2] == 0:
            return
        assert not last, f"bytes, threads and files more: {grown}"


def test_a_thousand_short_recordings_leave_nothing() -> None:
    model, control = seeded(Stack), seeded(Stack)
    ids = numbers()

    def record() -> None:
        with pertoken.profile(model, modules="all") as recording:
            model(ids)
        assert len(recording.result().steps) == 1

    control(ids)
    assert_nothing_grows(record, 1000, 1 * KIB)
    assert_untouched(model, control)


def test_a_thousand_threads_leave_nothing() -> None:
    model = NoTensors()
    runs = 0
    with pertoken.profile(model, modules="all", memory_limit_bytes=1 << 20) as recording:

        def run() -> None:
            nonlocal runs
            runs += 1
            thread = threading.Thread(target=model, args=(models.prompt(),))
            thread.start()
            thread.join()
            if recording.recorder.first_step == 0:
                recording.recorder.drain()

        for _ in range(1100):
            run()  # until the store is full, and the tracks of its own threads are let go
        assert_nothing_grows(run, 1000, 128)
    profile = recording.result()
    assert profile.losses["records_dropped"] == 0
    assert len(profile.steps) + profile.losses["steps_evicted"] == runs
    assert set(profile.spans["track"].tolist()) <= set(profile.tracks["track"].tolist())
    assert len(profile.tracks) < 1500


def test_started_and_stopped_a_hundred_times_while_it_generates() -> None:
    model, control = models.llama.__wrapped__(), models.llama.__wrapped__()
    prompt = models.prompt(2)
    expected = control.generate(prompt, max_new_tokens=8)
    recording = pertoken.profile(model, modules="all")
    done = threading.Event()
    switched = []

    def switch() -> None:
        for _ in range(100):
            recording.start()
            done.wait(0.004)
            recording.stop()
            switched.append(count_of("task"))
        done.set()

    thread = threading.Thread(target=switch)
    thread.start()
    outputs = []
    while not done.is_set():
        outputs.append(model.generate(prompt, max_new_tokens=8))
    thread.join()
    assert len(switched) == 100
    assert max(switched) <= min(switched) + 2
    assert all(torch.equal(ids, expected) for ids in outputs)
    assert_untouched(model, control)
    profile = recording.result()
    assert len(profile.steps) > 0
    assert profile.losses["faults"] == {}


def test_spans_of_many_steps_stay_within_the_limit_and_add_up() -> None:
    model = NoTensors(children=60)
    model.forward = lambda: [part for part in model.parts if part.__call__(None) is None]
    limit = 4 << 20
    with pertoken.profile(model, modules="all", memory_limit_bytes=limit) as recording:
        for _ in range(1000):
            model()
        recording.recorder.drain()
        before = resident_bytes()
        for step in range(5000):
            model()
            if step % 500 == 0:
                assert recording.recorder.store_bytes <= limit
        recording.recorder.drain()
        assert resident_bytes() - before < limit
    profile = recording.result()
    losses = profile.losses
    assert losses["records_dropped"] == 0
    assert len(profile.spans) + losses["spans_evicted"] == 6000 * 61
    assert len(profile.steps) + losses["steps_evicted"] == 6000
    assert recording.totals().steps["other"].begun == 6000


def serve(model: Any, number: int) -> None:
    with pertoken.request(id=number):
        model(models.prompt())


def test_requests_go_with_their_steps() -> None:
    model = NoTensors(children=30)
    with pertoken.profile(model, modules="all", memory_limit_bytes=1 << 20) as recording:
        held = []
        for number in range(6000):
            serve(model, number)
            held.append(len(recording.log.requests))
    profile = recording.result()
    requests, steps = profile.requests, profile.steps
    assert profile.losses["steps_evicted"] > 0
    assert requests["request"].tolist() == steps["request"].tolist()
    assert len(requests) + profile.losses["requests_evicted"] == 6000
    assert max(held) <= max(256, 2 * len(steps)) + 103
    assert len(recording.log.generations) == len(requests)


def test_requests_without_steps_and_without_end_are_bounded() -> None:
    model = seeded(Stack)
    with pertoken.profile(model, modules="root", memory_limit_bytes=1 << 20) as recording:
        log = recording.log

        def enter_and_never_leave() -> None:
            pertoken.request(id="never left").__enter__()
            log.open_generation(log.open_request(current_run()))

        for _ in range(6000):
            contextvars.copy_context().run(enter_and_never_leave)
    limit = log.limit
    assert len(log.requests) <= 2.2 * limit
    assert len(log.generations) <= 2.2 * limit
    assert len(log._of_run) <= len(log.requests)
    assert log.evicted == 6000 - len(log.requests)


def test_requests_that_ended_are_held_however_many_are_open() -> None:
    model = seeded(Stack)
    engine = Engine(model=model)
    with pertoken.profile(model, memory_limit_bytes=1 << 20) as recording:
        limit = recording.log.limit
        for number in range(limit + limit // 2):
            engine.request_arrived(f"open {number}")
        for number in range(limit // 4):
            engine.request_arrived(f"ended {number}")
            engine.request_finished(f"ended {number}")
    profile = recording.result()
    assert profile.losses["requests_evicted"] == 0
    assert np.count_nonzero(profile.requests["end_ns"] >= 0) == limit // 4


def test_generations_of_a_request_that_never_ends_go_with_their_steps() -> None:
    model = models.llama.__wrapped__()
    with (
        pertoken.profile(model, modules="all", memory_limit_bytes=1 << 20) as recording,
        pertoken.request(id="for ever"),
    ):
        for _ in range(400):
            model.generate(models.prompt(), max_new_tokens=5)
    profile = recording.result()
    assert profile.losses["steps_evicted"] > 0
    assert len(profile.requests) == 1
    assert len(recording.log.generations) <= len(profile.steps) // 5 + 1


@pytest.mark.parametrize("kind", ["request", "span", "step"])
def test_entries_that_overlap_for_ever_hold_only_the_open_ones(kind: str) -> None:
    make: dict[str, Callable[[], Any]] = {
        "request": lambda: pertoken.request(id="overlapping"),
        "span": lambda: pertoken.span("overlapping"),
        "step": lambda: pertoken.step("decode"),
    }
    open_now = [make[kind]().__enter__()]

    def roll() -> None:
        open_now.append(make[kind]().__enter__())
        open_now.pop(0).__exit__(None, None, None)

    assert_nothing_grows(roll, 20_000, 8)
    open_now.pop().__exit__(None, None, None)


def test_tasks_that_start_each_other_hold_only_what_is_open() -> None:
    """Each begins inside the scopes of the one before, which then ends in a context of its own."""

    async def serve(turns: int, done: asyncio.Event) -> None:
        with pertoken.request(id="turn"), pertoken.span("turn"), pertoken.step("decode"):
            if turns > 1:
                next_one = asyncio.create_task(serve(turns - 1, done))
                running.add(next_one)
                next_one.add_done_callback(running.discard)
            else:
                done.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def serve_all() -> None:
        done = asyncio.Event()
        await serve(3000, done)
        await done.wait()
        held.append(resident_bytes())

    held: list[int] = []
    running: set[asyncio.Task[None]] = set()
    for _ in range(3):
        before = resident_bytes()
        asyncio.run(serve_all())
        if held[-1] - before < 3000 * KIB:  # a scope takes as much, and a turn has three
            return
    raise AssertionError(f"bytes more: {held[-1] - before}")


def test_spans_that_overlap_keep_their_parents_when_one_between_is_closed() -> None:
    model = seeded(Stack)
    with pertoken.profile(model, modules="root") as recording:
        spans = {name: pertoken.span(name) for name in "abcd"}
        for name in "abcd":
            spans[name].__enter__()
        for name in "bcad":  # b and c are gone before d, whose parent then is a; then that goes
            spans[name].__exit__(None, None, None)
        model(numbers())
    profile = recording.result()
    invariants.check_spans(profile)
    site = dict(zip(profile.spans["span"].tolist(), profile.spans["site"].tolist(), strict=True))
    parents = dict(
        zip(profile.spans["site"].tolist(), profile.spans["parent"].tolist(), strict=True)
    )
    assert {name: site.get(parents[name], "") for name in "abcd"} == {
        "a": "", "b": "a", "c": "a", "d": ""
    }  # fmt: skip


def test_faults_with_messages_that_differ_are_counted_in_few_entries(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = FaultLog()
    for number in itertools.islice(itertools.count(), 1000):
        faults.note("generate", ValueError(f"{number} " + "x" * 1000))
    assert sum(faults.values()) == 1000
    assert len(faults) == len(caplog.records) == 33
    assert faults["generate: other faults"] == 968
    assert max(map(len, faults)) <= 300


def test_a_recording_started_often_over_a_foreign_wrapper_names_it_once() -> None:
    model = seeded(Stack)
    recording = pertoken.profile(model, modules="root")
    for _ in range(20):
        recording.start()
        model._compiled_call_impl = model._call_impl
        recording.stop()
        del model.__dict__["_compiled_call_impl"]
    assert recording.instrumentation.overwritten == {"Stack"}
    assert foreign_values(model) == []
