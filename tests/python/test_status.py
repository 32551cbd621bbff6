"""The line of status: its counts, its estimate of the cost, and the thread that logs it."""

from __future__ import annotations

import gc
import logging
import math
import os
import re
import threading
from contextlib import nullcontext
from time import perf_counter_ns
from typing import Any

import pytest

import models
import pertoken
from odd_modules import Stack, numbers, seeded
from pertoken import _native, record_costs, status
from pertoken.errors import SelectionError
from pertoken.record_costs import RecordCosts, estimated_ns
from test_processes import in_child
from waiting import wait_for


def log_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pertoken-status"]


def test_it_says_what_ran_for_how_long_and_what_is_held_and_lost() -> None:
    model = models.llama.__wrapped__()
    recording = pertoken.profile(model, memory_limit_bytes=2 << 20)
    assert recording.status() == "LlamaForCausalLM is not recorded: not started yet"
    with recording:
        assert re.fullmatch(
            r"recording LlamaForCausalLM \(layers\) for [\d.]+ \w+: 0 steps, 0 tokens fed, "
            r"0 of 2 MiB held, nothing lost; no step has ended, so its cost is not known yet",
            recording.status(),
        )
        model.generate(models.prompt(rows=2, length=7), max_new_tokens=4)
        running = recording.status()
    stopped = recording.status()
    told = (
        r" LlamaForCausalLM \(layers\) (for|after) [\d.]+ \w+: 4 steps \(1 prefill, 3 decode\), "
        r"20 tokens fed, [\d.]+ of 2 MiB held, nothing lost; "
        r"costs about [\d.e+-]+ % of the steps' time \(an estimate\)"
    )
    assert re.fullmatch("recording" + told, running)
    assert re.fullmatch("stopped recording" + told, stopped)


@pytest.mark.parametrize(
    ("span_ns", "shown"), [(1e2, "0.00"), (4.5e4, "0.45"), (3e6, "30"), (1.5e8, "1,500")]
)
def test_the_cost_is_a_plain_number(
    monkeypatch: pytest.MonkeyPatch, span_ns: float, shown: str
) -> None:
    counts = {"steps": [1], "spans": 2, "drain_cpu_ns": 0, "step_ns": 10_000_000}
    counts |= {"timed_roots": 1, "root_ns": 0.0}
    monkeypatch.setattr(record_costs, "_costs", RecordCosts(span_ns, 0.0))
    recording = pertoken.profile(seeded(Stack))
    assert status._cost_text(counts, recording).startswith(f"costs about {shown}")


def test_pauses_do_not_count_and_steps_go_on() -> None:
    model = seeded(Stack)
    recording = pertoken.profile(model)
    with recording:
        model(numbers())
    before_ns = recording.recorded_ns
    assert recording.recorded_ns == before_ns > 0
    with recording:
        model(numbers())
        assert ": 2 steps (2 other), " in recording.status()
    assert recording.recorded_ns > before_ns


def test_losses_are_named() -> None:
    model = seeded(Stack)
    with pertoken.profile(model, modules="all", memory_limit_bytes=1 << 20) as recording:
        for _ in range(20_000):
            model(numbers())
        recording.faults.note("here", ValueError("planted"))
        status = recording.status()
    evicted = recording.result().losses["steps_evicted"]
    assert evicted > 0
    assert re.search(r"[\d,]+ steps evicted, 1 fault while recording;", status)


def test_the_counts_are_those_of_the_tables() -> None:
    model = models.llama.__wrapped__()
    with pertoken.profile(model, modules="all") as recording:
        model.generate(models.prompt(rows=3), max_new_tokens=5)
    counts = recording.recorder.status()
    profile = recording.result()
    kinds = profile.steps["kind"].tolist()
    assert counts["steps"] == [kinds.count("prefill"), kinds.count("decode"), 0, 0, 0, 0]
    assert counts["tokens_in"] == int(profile.steps["tokens_in"].sum())
    # Also what says how much a step commits.
    assert counts["spans"] >= len(profile.spans)
    wall_ns = int(profile.steps["wall_ns"].sum())
    assert counts["step_ns"] == pytest.approx(wall_ns, rel=0.01)
    assert counts["drain_cpu_ns"] > 0
    assert counts["store_bytes"] == recording.recorder.store_bytes


def test_the_time_of_all_drain_threads_adds_up() -> None:
    model = seeded(Stack)
    recording = pertoken.profile(model, modules="all")
    seen = [0]
    for _ in range(3):
        with recording:
            for _ in range(500):
                model(numbers())
        recording.start()  # joins the thread of before
        recording.stop()
        seen.append(recording.recorder.status()["drain_cpu_ns"])
    assert seen == sorted(set(seen))


def test_the_estimate_is_the_sum_of_its_parts() -> None:
    counts = {
        "steps": [1, 9, 0, 0, 0, 0],
        "spans": 110,
        "drain_cpu_ns": 1000,
        "timed_roots": 7,
        "root_ns": 400.0,
    }
    costs = RecordCosts(span_ns=2.0, step_ns=30.0)
    assert estimated_ns(counts, costs) == 1000 + 100 * 2 + 400 + 3 * 30


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("budget", [None, 0.01])
def test_what_the_root_takes_is_timed_round_the_forward(
    declared: bool, budget: float | None
) -> None:
    """It is neither more than what passes outside of the forwards, nor next to nothing."""
    model = seeded(Stack)
    data = numbers()
    step = pertoken.step("decode") if declared else nullcontext()
    outside_ns: list[int] = []
    inside_ns: list[int] = []
    forward = model.forward

    def timed(*args: Any) -> Any:
        start_ns = perf_counter_ns()
        result = forward(*args)
        inside_ns.append(perf_counter_ns() - start_ns)
        return result

    model.forward = timed
    with pertoken.profile(model, modules="root", budget=budget) as recording:
        for _ in range(300):
            start_ns = perf_counter_ns()
            with step:
                model(data)
            outside_ns.append(perf_counter_ns() - start_ns)
    recording.recorder.drain()
    counts = recording.recorder.status()
    assert counts["timed_roots"] == sum(counts["steps"]) == 300
    assert 300 * 50 < counts["root_ns"] < sum(outside_ns) - sum(inside_ns)


def test_the_costs_are_measured_once_and_leave_no_recording_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record_costs, "_costs", None)
    costs = record_costs.record_costs()
    assert costs is not None and record_costs.record_costs() is costs
    assert costs.span_ns >= 0 and costs.step_ns > 0
    recordings = [pertoken.profile(seeded(Stack)) for _ in range(_native.MAX_RECORDERS)]
    for recording in recordings:
        recording.start()  # as many as can run
    monkeypatch.setattr(record_costs, "_costs", None)
    assert record_costs.record_costs() is None
    recordings[0].model(numbers())
    assert "cost is not known" in recordings[0].status()
    for recording in recordings:
        recording.stop()
    assert record_costs.record_costs() is not None


@pytest.mark.parametrize("interval", [0, -1, math.nan, math.inf, 1e30, "60", True])
def test_an_interval_that_is_none_is_refused(interval: Any) -> None:
    with pytest.raises(SelectionError, match="log_interval_s"):
        pertoken.profile(seeded(Stack), log_interval_s=interval)


def test_a_recording_that_was_never_started_says_so() -> None:
    model = seeded(Stack)
    recording = pertoken.profile(model)
    model(numbers())
    assert "not started yet" in recording.status()
    assert "No step: it was never started" in str(recording.summary())
    with recording:
        pass
    assert "No step: the model was not called" in str(recording.summary())


def test_it_is_logged_until_the_recording_stops(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pertoken")
    model = seeded(Stack)
    recording = pertoken.profile(model, log_interval_s=0.001)
    for runs in (1, 2):
        with recording:
            wait_for(lambda: len(caplog.records) >= 3 * runs, "no line was logged")  # noqa: B023
            assert len(log_threads()) == 1
        wait_for(lambda: not log_threads(), "the thread goes on")
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    assert caplog.records[0].message.startswith("recording Stack (layers) for ")


def test_logging_keeps_no_recording_and_ends_with_it() -> None:
    recording: Any = pertoken.profile(seeded(Stack), log_interval_s=3600)
    recording.start()
    assert len(log_threads()) == 1
    del recording
    gc.collect()
    wait_for(lambda: not log_threads(), "the thread goes on")


def test_a_handler_that_fails_is_a_fault_and_no_more() -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("full")

    logger, handler = logging.getLogger("pertoken"), Failing()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with pertoken.profile(seeded(Stack), log_interval_s=0.001) as recording:
            wait_for(lambda: any("full" in reason for reason in recording.faults), "no fault")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_neither_logs_nor_hangs() -> None:
    model = seeded(Stack)
    with pertoken.profile(model, log_interval_s=0.001) as recording:
        pid = os.getpid()

        def child() -> None:
            assert os.getpid() != pid
            assert recording.status().startswith("stopped recording Stack")
            recording.stop()
            with pertoken.profile(model, log_interval_s=0.001) as own:
                model(numbers())
                assert ": 1 step (1 other), " in own.status()

        assert [in_child(child) for _ in range(5)] == [0] * 5
        assert recording.is_recording
