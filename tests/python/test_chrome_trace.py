"""The Chrome trace export: what it writes for which profile, by the rules of strict JSON."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synthetic import synthetic_profile
from trace_profiles import (
    MAIN_THREAD,
    crossings,
    export,
    interval,
    nanoseconds,
    profile_of,
    read_strictly,
    without_surrogates,
)

ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=30)
SAME_FOLDER = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=100,
)


@pytest.fixture
def trace_path(tmp_path: Path) -> Path:
    return tmp_path / "trace.json"


def test_each_request_step_and_span_is_one_slice(trace_path: Path) -> None:
    profile = synthetic_profile(requests=3, tokens=5, layers=4, root_span=True)
    trace = export(profile, trace_path)
    decode_steps = int((profile.steps["kind"] == "decode").sum())
    assert len(trace.slices("request")) == len(profile.requests) == 3
    assert len(trace.slices("step")) == len(profile.steps) == 15
    assert len(trace.slices("span")) == len(profile.spans)
    assert len(trace.slices()) == 3 + 15 + len(profile.spans) + decode_steps
    assert not crossings(trace.slices())
    assert set(trace.row_names().values()) == {"requests and steps", "MainThread"}


def test_spans_keep_their_times_names_and_numbers(trace_path: Path) -> None:
    profile = synthetic_profile(exotic_names=True)
    spans = profile.spans
    by_id = {event["args"]["span"]: event for event in export(profile, trace_path).slices("span")}
    assert set(by_id) == set(spans["span"].tolist())
    for i in range(len(spans)):
        event = by_id[spans["span"][i]]
        assert event["name"] == spans["site"][i]
        assert interval(event) == (spans["start_ns"][i], spans["start_ns"][i] + spans["dur_ns"][i])
        assert (event["pid"], event["tid"]) == (4242, 4243)
        assert event["args"].get("parent", -1) == spans["parent"][i]
        assert event["args"].get("step", -1) == spans["step"][i]
        assert event["args"]["category"] == spans["category"][i]
        is_module = spans["category"][i] == "module"
        assert event["cat"] == ("python_function" if is_module else "user_annotation")


def test_requests_and_steps_carry_their_columns(trace_path: Path) -> None:
    profile = profile_of(
        requests=[
            {
                "request": 7,
                "id": "abc",
                "model_version": "v2",
                "start_ns": 10,
                "end_ns": 5_000,
                "ttft_ns": 900,
                "rows": 2,
                "tokens_in": 11,
                "tokens_out": 4,
                "output_len": 2,
                "error": "ValueError",
                "label.user": "me",
                "label.tier": "",
            },
            {"request": 8, "start_ns": 6_000, "end_ns": 7_000},
        ],
        steps=[
            {
                "step": 3,
                "request": 7,
                "kind": "verify",
                "start_ns": 100,
                "wall_ns": 800,
                "gpu_ns": 700,
                "rows": 2,
                "tokens_in": 10,
                "tokens_committed": 4,
                "context_len": 33,
                "error": "exception",
            },
            {"step": 4, "kind": "other", "start_ns": 8_000, "wall_ns": 1},
        ],
    )
    trace = export(profile, trace_path)
    first, second = trace.slices("request")
    assert (first["name"], second["name"]) == ("request abc", "request 8")
    assert first["args"] == {
        "request": 7,
        "ttft_ns": 900,
        "rows": 2,
        "tokens_in": 11,
        "tokens_out": 4,
        "id": "abc",
        "model_version": "v2",
        "error": "ValueError",
        "label.user": "me",
    }
    assert second["args"] == {"request": 8}
    verify, other = trace.slices("step")
    assert (verify["name"], other["name"]) == ("verify", "other")
    assert verify["args"] == {
        "step": 3,
        "request": 7,
        "gpu_ns": 700,
        "rows": 2,
        "tokens_in": 10,
        "tokens_committed": 4,
        "context_len": 33,
        "kind": "verify",
        "error": "exception",
    }
    assert other["args"] == {"step": 4, "kind": "other"}
    assert interval(verify) == (100, 900)


def test_every_finished_decode_step_has_one_profiler_step_of_its_extent(trace_path: Path) -> None:
    kinds = ("prefill", "decode", "verify", "draft", "mixed", "other", "decode")
    steps = [
        {"step": 10 + i, "kind": kind, "start_ns": 1_000 * i, "wall_ns": 900}
        for i, kind in enumerate(kinds)
    ]
    steps.append({"step": 99, "kind": "decode", "start_ns": 50_000, "wall_ns": -1})
    trace = export(profile_of(steps=steps), trace_path)
    marks = {e["name"]: e for e in trace.slices() if e["name"].startswith("ProfilerStep")}
    assert set(marks) == {"ProfilerStep#11", "ProfilerStep#16"}
    for step in trace.slices("step"):
        mark = marks.get(f"ProfilerStep#{step['args']['step']}")
        if mark is not None:
            assert interval(mark) == interval(step)
            assert (mark["pid"], mark["tid"]) == (step["pid"], step["tid"])
            assert mark["cat"] == "user_annotation"


def test_counters_give_context_and_cumulative_tokens(trace_path: Path) -> None:
    steps = [
        {"start_ns": 0, "wall_ns": 10_000, "tokens_committed": 2, "context_len": 5},
        {"start_ns": 100, "wall_ns": 200, "tokens_committed": 3, "context_len": -1},
        {"start_ns": 400, "wall_ns": 100, "tokens_committed": -1, "context_len": 0},
        {"start_ns": 600, "wall_ns": 100, "tokens_committed": 0, "context_len": 8},
        {"start_ns": 900, "wall_ns": -1, "tokens_committed": 7, "context_len": 9},
    ]
    profile = profile_of(steps=[{**step, "step": i} for i, step in enumerate(steps)])
    trace = export(profile, trace_path)
    assert trace.counter("context_len") == [(0, 5), (400, 0), (600, 8), (900, 9)]
    assert trace.counter("tokens") == [(300, 3), (700, 3), (10_000, 5)]
    assert len(trace.events("C")) == 7


def test_the_outermost_object_follows_kineto(trace_path: Path) -> None:
    meta = {"rank": 3, "unix_origin_ns": 1_700_000_000_123_456_789}
    trace = export(profile_of(meta=meta), trace_path)
    document = trace.document
    assert list(document) == [
        "schemaVersion",
        "deviceProperties",
        "displayTimeUnit",
        "baseTimeNanoseconds",
        "distributedInfo",
        "traceName",
        "pertoken",
        "traceEvents",
    ]
    assert document["schemaVersion"] == 1
    assert document["deviceProperties"] == []
    assert document["baseTimeNanoseconds"] == 1_700_000_000_123_456_789
    assert document["distributedInfo"] == {"rank": 3}
    assert '"rank": 3' in trace.text
    assert document["traceName"] == str(trace_path)
    assert document["pertoken"]["meta"]["host"] == "host.example"
    assert document["pertoken"]["losses"]["records_dropped"] == 0
    assert {event["name"] for event in trace.events("M")} == {
        "process_name",
        "process_labels",
        "process_sort_index",
    }
    assert len(document["traceEvents"]) == 3


def test_metadata_of_any_kind_becomes_strict_json(trace_path: Path) -> None:
    meta = {
        "rank": None,
        "pid": "?",
        "cost": {"nan": float("nan"), "inf": float("-inf"), "tuple": (1, "\ud800x")},
        "odd \udfff\n": {1: Path("/x")},
    }
    document = export(profile_of(meta=meta), trace_path).document
    found = document["pertoken"]["meta"]
    assert found["cost"] == {"nan": None, "inf": None, "tuple": [1, "\ufffdx"]}
    assert found["odd \ufffd\n"] == {"1": "/x"}
    assert document["distributedInfo"] == {"rank": 0}


@SAME_FOLDER
@given(
    start_ns=st.integers(-(2**62), 2**62 - 1),
    dur_ns=st.integers(0, 2**62) | st.integers(0, 5_000),
)
def test_times_are_exact_to_the_nanosecond(tmp_path: Path, start_ns: int, dur_ns: int) -> None:
    profile = profile_of(spans=[{"span": 0, "start_ns": start_ns, "dur_ns": dur_ns}])
    (event,) = export(profile, tmp_path / "trace.json").slices()
    sign = "-" if start_ns < 0 else ""
    assert event["ts"] == f"{sign}{abs(start_ns) // 1000}.{abs(start_ns) % 1000:03d}"
    assert event["dur"] == f"{dur_ns // 1000}.{dur_ns % 1000:03d}"


def test_integers_of_any_size_are_exact(trace_path: Path) -> None:
    values = [0, 9, 10, 99, 100, 12_345, 2**31, 10**18, 2**63 - 1, -2, -(2**63)]
    spans = [{"span": value, "start_ns": i} for i, value in enumerate(values)]
    trace = export(profile_of(spans=spans), trace_path)
    assert [event["args"]["span"] for event in trace.slices("span")] == values


@SAME_FOLDER
@given(site=ANY_TEXT, thread=ANY_TEXT, request=ANY_TEXT, label=ANY_TEXT, model=ANY_TEXT)
def test_any_text_is_kept_whole_wherever_it_stands(
    tmp_path: Path, site: str, thread: str, request: str, label: str, model: str
) -> None:
    profile = profile_of(
        requests=[{"request": 1, "id": request, f"label.{label}": label}],
        spans=[{"span": 1, "site": site}, {"span": 2, "site": "", "start_ns": 5}],
        tracks=[{**MAIN_THREAD, "name": thread}],
        meta={"model": {"class": model}},
    )
    trace = export(profile, tmp_path / "trace.json")
    named, unnamed = trace.slices("span")
    root = without_surrogates(model) or "model"
    assert named["name"] == (without_surrogates(site) or root)
    assert unnamed["name"] == root
    assert (without_surrogates(thread) or "track 0") in trace.row_names().values()
    (slice_of_request,) = trace.slices("request")
    assert slice_of_request["name"] == "request " + (without_surrogates(request) or "1")
    args = slice_of_request["args"]
    assert args.get(f"label.{without_surrogates(label)}", "") == without_surrogates(label)


def test_every_code_point_survives_in_one_name_larger_than_the_buffer(trace_path: Path) -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    profile = profile_of(spans=[{"span": 1, "site": everything}, {"span": 2, "start_ns": 9}])
    first, second = export(profile, trace_path).slices()
    assert first["name"] == without_surrogates(everything)
    assert second["args"]["span"] == 2


def test_what_is_unfinished_is_shown_up_to_the_last_moment(trace_path: Path) -> None:
    profile = profile_of(
        requests=[{"request": 0, "start_ns": 100, "end_ns": -1}],
        steps=[
            {"step": 0, "request": 0, "start_ns": 200, "wall_ns": 300},
            {"step": 1, "request": 0, "start_ns": 600, "wall_ns": -1},
        ],
        spans=[{"span": 0, "start_ns": 650, "dur_ns": 250}],
    )
    trace = export(profile, trace_path)
    (request,) = trace.slices("request")
    finished, running = trace.slices("step")
    assert interval(request) == (100, 900)
    assert interval(finished) == (200, 500)
    assert interval(running) == (600, 900)
    assert request["args"]["unfinished"] is True
    assert running["args"]["unfinished"] is True
    assert "unfinished" not in finished["args"]
    assert request["tid"] == finished["tid"] == running["tid"]


def test_the_strict_reader_refuses_what_is_not_strict(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    for text in ('{"a": NaN}', '{"a": 1, "a": 2}', '{"a": "\x01"}', '{"a": 1,}'):
        path.write_text(text)
        with pytest.raises((ValueError, AssertionError)):
            read_strictly(path)
    with pytest.raises(AssertionError):
        nanoseconds(1)
