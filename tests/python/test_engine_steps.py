"""`pertoken.engines`: what an engine tells of its requests and steps is what the tables say."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest
import torch

import invariants
import pertoken
from models import NextToken, prompt
from pertoken import Profile
from pertoken.engines import Engine, Row, manual
from pertoken.table import Table
from test_processes import exit_code


def rows_of(table: Table, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].tolist() for name in names), strict=True))


def told(profile: Profile) -> list[tuple[Any, ...]]:
    """The rows of all steps with the ids of their requests."""
    ids = dict(rows_of(profile.requests, "request", "id"))
    names = ("step", "row", "request", "phase", "query_len", "context_len", "committed")
    return [
        (step, row, ids.get(request, ""), *rest)
        for step, row, request, *rest in rows_of(profile.step_rows, *names)
    ]


@pytest.fixture
def model() -> NextToken:
    return NextToken().eval()


def test_rows_requests_and_tokens_are_those_that_the_engine_tells(model: NextToken) -> None:
    recording = pertoken.profile(model)
    engine = Engine()
    with torch.no_grad(), recording:
        engine.request_arrived("a", tokens_in=5, model_version="v2", labels={"tenant": 7})
        with engine.step([Row("a", "prefill", 3, 0)]) as step:
            model(prompt(1, 3))
        step.committed({})  # the first chunk of two
        engine.request_arrived("b", tokens_in=2)
        with engine.step([Row("a", "prefill", 2, 3), Row("b", "prefill", 2, 0)]) as step:
            model(prompt(1, 4))
            step.committed({"a": 1, "b": 1})
        with engine.step([Row("b", "verify", 4, 2), Row("a", "decode", 1, 5)]) as step:
            model(prompt(1, 5))
        step.committed({"a": 1, "b": 3})
        engine.request_finished("b")
        with engine.step([Row("a", "decode", 1, 6)]) as step:
            model(prompt(1, 1))
        step.committed({"a": 1})
        engine.request_finished("a", error="cancelled")
    profile = recording.result()
    invariants.check(profile)
    invariants.check_sequences_of_requests(profile)
    steps = ("kind", "rows", "tokens_in", "tokens_committed", "context_len", "request")
    assert rows_of(profile.steps, *steps) == [
        ("prefill", 1, 3, 0, 0, 0),
        ("prefill", 2, 4, 2, 3, -1),
        ("mixed", 2, 5, 4, 5, -1),
        ("decode", 1, 1, 1, 6, 0),
    ]
    assert told(profile) == [
        (0, 0, "a", "prefill", 3, 0, 0),
        (1, 0, "a", "prefill", 2, 3, 1),
        (1, 1, "b", "prefill", 2, 0, 1),
        (2, 0, "b", "verify", 4, 2, 3),
        (2, 1, "a", "decode", 1, 5, 1),
        (3, 0, "a", "decode", 1, 6, 1),
    ]
    requests = ("id", "model_version", "rows", "tokens_in", "tokens_out", "error", "label.tenant")
    assert rows_of(profile.requests, *requests) == [
        ("a", "v2", 1, 5, 3, "cancelled", "7"),
        ("b", "", 1, 2, 4, "", ""),
    ]
    tokens = rows_of(profile.tokens, "step", "row", "request", "position")
    assert tokens == [
        (1, 0, 0, 0),
        (1, 1, 1, 0),
        (2, 0, 1, 1),
        (2, 0, 1, 2),
        (2, 0, 1, 3),
        (2, 1, 0, 1),
        (3, 0, 0, 2),
    ]
    assert profile.steps["detail"].tolist() == ["layers"] * 4
    assert engine.faults == {}
    assert engine.open_requests == []


def test_the_time_to_the_first_token_counts_from_the_arrival(model: NextToken) -> None:
    recording = pertoken.profile(model)
    engine = Engine(model=model)
    with recording:
        engine.request_arrived("late", ago_ns=5_000_000)
        engine.request_arrived("now")
        rows = [Row(name, "prefill", 4, 0, 1) for name in ("late", "now", "untold")]
        with engine.step(rows):
            pass
    requests = recording.result().requests
    start, ttft = requests["start_ns"], requests["ttft_ns"]
    # The last one was opened by its row.
    assert start[0] < start[1] < start[2]
    assert 4_900_000 < start[1] - start[0] < 10_000_000_000
    assert (start + ttft).tolist() == [int(start[0] + ttft[0])] * 3


def test_a_waiting_request_is_in_the_table_where_the_engine_names_its_model(
    model: NextToken,
) -> None:
    other = pertoken.profile(NextToken())
    recording = pertoken.profile(model)
    with other, recording:
        Engine(model=model).request_arrived("a", tokens_in=3)
    assert rows_of(recording.result().requests, "id", "tokens_in", "tokens_out", "ttft_ns") == [
        ("a", 3, 0, -1)
    ]
    assert len(other.result().requests) == 0


def test_a_step_without_a_forward_goes_to_the_recordings_of_its_model(model: NextToken) -> None:
    other = NextToken()
    recordings = [pertoken.profile(model), pertoken.profile(model), pertoken.profile(other)]
    with recordings[0], recordings[1], recordings[2]:
        with Engine(model=model).step([Row("a", "decode", 1, 4, 1)]):
            pass
        with Engine().step([Row("b", "decode", 1, 4, 1)]):
            pass
    steps = [told(recording.result()) for recording in recordings]
    assert (
        steps[0]
        == steps[1]
        == [
            (0, 0, "a", "decode", 1, 4, 1),
            (1, 0, "b", "decode", 1, 4, 1),
        ]
    )
    assert steps[2] == [(0, 0, "b", "decode", 1, 4, 1)]


def test_rows_of_a_declared_step_are_its_manual_form(model: NextToken) -> None:
    recording = pertoken.profile(model)
    with torch.no_grad(), recording:
        manual.request_arrived("x", tokens_in=4)
        with pertoken.step(rows=[Row("x", "prefill", 4, 0, 1), Row("y", "prefill", 1, 0, 1)]):
            model(prompt(1, 5))
        with pertoken.step(kind="decode", rows=[Row("y", "decode", 1, 1, 1)]):
            pass
        manual.request_finished("x")
        manual.request_finished("y")
    profile = recording.result()
    invariants.check(profile)
    invariants.check_sequences_of_requests(profile)
    assert profile.steps["kind"].tolist() == ["prefill", "decode"]
    assert rows_of(profile.requests, "id", "tokens_in", "tokens_out") == [("x", 4, 1), ("y", -1, 2)]
    assert manual.open_requests == []


def test_rows_without_a_request_are_those_of_the_request_round_the_step() -> None:
    recording = pertoken.profile(NextToken())
    with recording, pertoken.request(id="r"):
        for context in (4, 5):
            rows = [Row(None, "decode", 1, context, 1), Row(None, "decode", 1, context, 1)]
            with pertoken.step(rows=rows):
                pass
    profile = recording.result()
    assert rows_of(profile.requests, "id", "rows", "tokens_out") == [("r", 2, 4)]
    assert profile.step_rows["request"].tolist() == [0] * 4
    commits = profile.tokens["commit_ns"].tolist()
    assert profile.tokens["itl_ns"].tolist() == [-1, -1, *[commits[2] - commits[0]] * 2]


@pytest.mark.parametrize(
    "arguments",
    [
        {"rows": [Row("a", "decoding")]},
        {"rows": [Row("a", "mixed")]},
        {"rows": [Row("a", "decode", -2)]},
        {"rows": [Row("a", "decode", 2**40)]},
        {"rows": [Row("a", "decode"), Row("a", "decode")]},
        {"rows": ["a"]},
        {"rows": [("a", "decode", 1, 1, 1)]},
        {"rows": [Row("a", "decode")], "kind": "prefill"},
        {"rows": [Row("a", "decode"), Row("b", "prefill")], "kind": "decode"},
        {"rows": [Row("a", "decode")], "tokens_committed": 1},
    ],
)
def test_rows_that_cannot_be_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(pertoken.SelectionError):
        pertoken.step(**arguments)
    for request in ("a", "b"):
        manual.request_finished(request)


def test_commits_that_are_never_told_stay_unknown(model: NextToken) -> None:
    recording = pertoken.profile(model)
    engine = Engine(model=model)
    with recording:
        engine.request_arrived("a", tokens_in=2)
        steps = []
        for context in range(4):
            with engine.step([Row("a", "decode", 1, context)]) as step:
                steps.append(step)
        steps[0].committed({"a": 1})
        steps[2].committed({"a": 1})  # and with it nobody will tell of the one before
        steps[1].committed({"a": 1})
        steps[3].committed({"a": 1})
        engine.request_finished("a")
    profile = recording.result()
    assert profile.step_rows["committed"].tolist() == [1, -1, 1, 1]
    assert rows_of(profile.tokens, "step", "position") == [(0, 0), (2, -1), (3, -1)]
    assert profile.requests["tokens_out"].tolist() == [-1]
    (reason,) = profile.losses["faults"]
    assert "told already, or too late" in reason


def test_a_step_that_raises_has_committed_nothing(model: NextToken) -> None:
    recording = pertoken.profile(model)
    engine = Engine(model=model)
    with recording:
        engine.request_arrived("a")
        with pytest.raises(ZeroDivisionError), engine.step([Row("a", "decode", 1, 3)]):
            raise ZeroDivisionError
        with engine.step([Row("a", "decode", 1, 3, 1)]):
            pass
    profile = recording.result()
    assert profile.steps["error"].tolist() == ["exception", ""]
    assert profile.step_rows["committed"].tolist() == [0, 1]
    assert profile.tokens["position"].tolist() == [0]


def test_what_is_wrong_with_a_call_is_counted_and_does_not_reach_the_engine(
    model: NextToken, caplog: pytest.LogCaptureFixture
) -> None:
    recording = pertoken.profile(model)
    engine = Engine(model=model)
    nonsense: Any = [
        [Row("a", "decoding")],
        [Row("a"), Row("a")],
        [Row(["unhashable"])],  # type: ignore[arg-type]
        [("a",)],
        7,
    ]
    with recording:
        for rows in (*nonsense, *nonsense):
            with engine.step(rows) as step:
                pass
            step.committed({"a": 1})
        engine.request_arrived("c", tokens_in="many")  # type: ignore[arg-type]
        with engine.step([Row("b", "decode", 1, 1)]) as step:
            pass
        step.committed({"b": "one"})  # type: ignore[dict-item]
        engine.request_finished("never arrived")
    profile = recording.result()
    assert profile.step_rows["committed"].tolist() == [-1]
    assert sorted(engine.faults.values()) == [1, 1, 2, 2, 2, 2, 2]
    assert sum(profile.losses["faults"].values()) == sum(engine.faults.values())
    assert len(caplog.records) == len(engine.faults)  # the recording logs, the engine only counts


def test_requests_that_never_finish_are_bounded_and_counted(model: NextToken) -> None:
    recording = pertoken.profile(model)
    engine = Engine(model=model, max_open_requests=3)
    with recording:
        for number in range(5):
            engine.request_arrived(f"r{number}")
        engine.request_arrived("r4")
    requests = recording.result().requests
    assert engine.open_requests == ["r2", "r3", "r4"]
    assert rows_of(requests, "id", "error") == [
        ("r0", "unfinished"),
        ("r1", "unfinished"),
        ("r2", ""),
        ("r3", ""),
        ("r4", "unfinished"),
        ("r4", ""),
    ]
    assert sum(engine.faults.values()) == 3


def test_a_recording_that_begins_in_the_middle_of_a_request_knows_only_the_rest(
    model: NextToken,
) -> None:
    engine = Engine(model=model)
    recording = pertoken.profile(model)
    engine.request_arrived("a", tokens_in=3)
    for run in range(2):
        with engine.step([Row("a", "decode", 1, 3)]) as step:
            pass
        step.committed({"a": 1})
        with recording:
            for _ in range(2):
                with engine.step([Row("a", "decode", 1, 3)]) as step:
                    pass
                step.committed({"a": 1})
            if run:
                engine.request_finished("a")
    profile = recording.result()
    assert rows_of(profile.requests, "id", "ttft_ns", "tokens_in", "tokens_out") == [
        ("a", -1, 3, -1)
    ]
    assert profile.requests["end_ns"][0] > 0
    assert profile.tokens["position"].tolist() == [-1] * 4
    commits = profile.tokens["commit_ns"]
    # No latency spans the time in which nothing was recorded.
    assert profile.tokens["itl_ns"].tolist() == [
        -1,
        commits[1] - commits[0],
        -1,
        commits[3] - commits[2],
    ]


def test_with_no_recording_nothing_is_kept() -> None:
    engine = Engine()
    assert not engine.is_recording
    with engine.step(Row(str(number)) for number in range(3)) as step:
        pass
    step.committed({"0": 1})
    assert engine.open_requests == []
    assert engine.faults == {}


def test_a_request_round_the_arrival_gives_its_labels(model: NextToken) -> None:
    engine = Engine(model=model)
    with pertoken.profile(model) as recording:
        with pertoken.request(id="outer", model_version="v3", tenant="t"):
            engine.request_arrived("a", labels={"route": "r"})
            engine.request_arrived("b", model_version="v4", labels={"tenant": "own"})
        names = ("id", "model_version", "label.route", "label.tenant")
        assert rows_of(recording.result().requests, *names) == [
            ("a", "v3", "r", "t"),
            ("b", "v4", "", "own"),
        ]


def test_steps_are_told_from_many_threads_at_once(model: NextToken) -> None:
    engine = Engine(model=model)
    count, threads = 200, 4
    recording = pertoken.profile(model)

    def run(thread: int) -> None:
        name = f"t{thread}"
        engine.request_arrived(name)
        for number in range(count):
            with engine.step([Row(name, "decode", 1, number, committed=1)]):
                time.sleep(0)
        engine.request_finished(name)

    with recording:
        workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    profile = recording.result()
    invariants.check(profile)
    invariants.check_sequences_of_requests(profile)
    assert profile.requests["tokens_out"].tolist() == [count] * threads


def test_eviction_takes_rows_with_their_steps_and_keeps_the_counts(model: NextToken) -> None:
    recording = pertoken.profile(model, memory_limit_bytes=1 << 20)
    engine = Engine(model=model)
    with recording:
        names = [f"r{number}" for number in range(32)]
        for name in names:
            engine.request_arrived(name, tokens_in=1)
        for number in range(2000):
            with engine.step([Row(name, "decode", 1, number, 1) for name in names]):
                pass
            if number % 256 == 0:
                recording.recorder.drain()  # a loop of nothing else may outrun the drain thread
    profile = recording.result()
    invariants.check(profile)
    evicted = profile.losses["steps_evicted"]
    assert evicted > 0
    assert evicted + len(profile.steps) == 2000
    assert len(profile.steps) > 100
    assert len(profile.step_rows) == len(profile.tokens) == 32 * len(profile.steps)
    assert profile.requests["tokens_out"].tolist() == [2000] * 32
    assert profile.tokens["position"].tolist()[-32:] == [1999] * 32
    assert (profile.requests["ttft_ns"] > 0).all()
    assert recording.recorder.store_bytes <= 1 << 20


def test_requests_may_be_numbers_as_everywhere(model: NextToken) -> None:
    engine = Engine(model=model)
    with pertoken.profile(model) as recording:
        engine.request_arrived(7, tokens_in=2)
        engine.request_arrived(8, like=7)
        with engine.step([Row(7, "prefill", 2, 0), Row(8, "prefill", 1, 0)]) as step:
            pass
        step.committed({7: 1, 8: 2})
        engine.request_finished(7)
        assert engine.open_requests == [8]
        engine.request_finished(8)
    names = ("id", "tokens_in", "tokens_out", "error")
    assert rows_of(recording.result().requests, *names) == [("7", 2, 1, ""), ("8", -1, 2, "")]
    assert engine.faults == {}


def test_faults_that_differ_each_time_are_bounded_and_logged_once_each(
    model: NextToken, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(model=model)
    with pertoken.profile(model) as recording:
        for number in range(200):
            engine.step([Row(f"r{number}", "no such phase")])
            engine.step([Row(f"r{number}", "decode")] * 2)
    faults = recording.result().losses["faults"]
    assert sum(engine.faults.values()) == sum(faults.values()) == 400
    assert len(engine.faults) < 50
    assert len(caplog.records) == len(faults)


def test_a_forked_child_has_an_engine_whose_lock_is_free_and_no_requests(
    model: NextToken,
) -> None:
    engine = Engine(model=model)
    engine.request_arrived("of the parent")
    with engine._lock:  # as another thread may
        child = os.fork()
        if child == 0:
            done = not engine.open_requests
            engine.request_arrived("of the child")
            os._exit(0 if done and engine.open_requests == ["of the child"] else 1)
    assert exit_code(child) == 0
    assert engine.open_requests == ["of the parent"]
