"""Real readers load our traces: nothing is dropped, nothing is complained about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parallel_ranks import parallel_ranks
from pertoken.merging import merge
from pertoken.result import Profile
from readers.catapult_reader import import_in_catapult
from readers.perfetto_reader import open_in_perfetto
from synthetic import synthetic_profile
from trace_profiles import crossing_profile, profile_of


def busy_profile() -> Profile:
    """Build overlapping requests of two threads, one of them unfinished, and their spans."""
    requests: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    spans: list[dict[str, Any]] = []
    for request in range(4):
        thread = request % 2
        start_ns = 1_000_000 * request + 500_001 * thread
        requests.append({"request": request, "start_ns": start_ns, "end_ns": start_ns + 1_900_000})
        for step in range(5):
            step_ns = start_ns + 100_000 + 300_003 * step
            steps.append(
                {
                    "step": len(steps),
                    "request": request,
                    "kind": "decode" if step else "prefill",
                    "start_ns": step_ns,
                    "wall_ns": 250_007,
                    "tokens_committed": 1,
                    "context_len": 5 + step,
                }
            )
            spans.append(
                {
                    "span": len(spans),
                    "step": len(steps) - 1,
                    "site": "model.layers.0",
                    "track": thread,
                    "start_ns": step_ns + 11,
                    "dur_ns": 249_013,
                }
            )
    requests[-1]["end_ns"] = -1
    tracks = [
        {"track": 0, "pid": 4242, "tid": 4242, "name": "MainThread"},
        {"track": 1, "pid": 4242, "tid": 4243, "name": "worker"},
    ]
    return profile_of(requests=requests, steps=steps, spans=spans, tracks=tracks)


PROFILES = {
    "several requests": lambda: synthetic_profile(requests=3, tokens=6, root_span=True),
    "several rows": lambda: synthetic_profile(requests=2, tokens=4, rows=3),
    "exotic names": lambda: synthetic_profile(exotic_names=True, layers=6),
    "two threads": busy_profile,
    "crossing regions": lambda: crossing_profile(tasks=4, calls=3),
    "several processes": lambda: merge(parallel_ranks(4, 6)),
}


def expected_slices(profile: Profile) -> int:
    return len(profile.requests) + len(profile.steps) + len(profile.spans) + decode_steps(profile)


def expected_counters(profile: Profile) -> dict[str, int]:
    """How many values each series of a counter has: one a step, or one an observation of a site."""
    steps = len(profile.steps)
    counts = {"context_len tokens": steps, "tokens committed": steps} if steps else {}
    for site in profile.activations["site"].tolist():
        for percentile in ("p1", "p50", "p99"):
            series = f"values of {site} {percentile}"
            counts[series] = counts.get(series, 0) + 1
    read = len(np.unique(profile.tokens["step"]))
    for signal in ("top1_prob", "margin", "entropy", "logprob") if read else ():
        counts[f"confidence {signal}"] = read
    return counts


def as_in_perfetto(counter: str) -> str:
    """Its reader leaves escapes in the names of counters, other than that of a quotation mark."""
    escaped = json.dumps(counter, ensure_ascii=False)[1:-1]
    return escaped.replace('\\"', '"').replace("\x7f", "\\u007f")


def decode_steps(profile: Profile) -> int:
    steps = profile.steps
    return int(((steps["kind"] == "decode") & (steps["wall_ns"] >= 0)).sum())


@pytest.mark.parametrize("name", PROFILES)
def test_perfetto_loads_every_slice_and_counter(tmp_path: Path, name: str) -> None:
    profile = PROFILES[name]()
    profile.export_chrome_trace(tmp_path / "trace.json")
    with open_in_perfetto(tmp_path / "trace.json") as trace:
        assert trace.complaints() == {}
        assert trace.value("select count(*) as n from slice") == expected_slices(profile)
        counters = trace.rows(
            "select t.name as name, count(*) as n from counter c "
            "join counter_track t on t.id = c.track_id group by 1 order by 1"
        )
        expected = expected_counters(profile)
        assert dict(counters) == {as_in_perfetto(name): expected[name] for name in expected}
        assert trace.value("select count(*) as n from flow") == 0
        marks = "select count(*) as n from slice where name glob 'ProfilerStep#[0-9]*'"
        assert trace.value(marks) == decode_steps(profile)


def test_perfetto_keeps_processes_of_several_hosts_apart(tmp_path: Path) -> None:
    """Their ids are equal, and those of their threads, too; their spans overlap in time."""
    ranks = parallel_ranks(3, 6)
    hosts = [{"pid": 77, "host": f"host{rank}"} for rank in range(3)]
    twins = zip(ranks, hosts, strict=True)
    merged = merge(Profile(p.tables, {**p.meta, **host}, p.losses) for p, host in twins)
    merged.export_chrome_trace(tmp_path / "trace.json")
    with open_in_perfetto(tmp_path / "trace.json") as trace:
        assert trace.complaints() == {}
        found = trace.rows(
            "select p.name as name, count(*) as n from slice s "
            "join thread_track k on k.id = s.track_id join thread t using (utid) "
            "join process p using (upid) where s.category = 'python_function' group by 1 order by 1"
        )
        assert trace.value("select count(*) as n from slice") == expected_slices(merged)
    names = [f"rank {rank} (host{rank}, pid 77)" for rank in range(3)]
    assert found == [(name, len(ranks[0].spans)) for name in names]


def test_perfetto_sees_the_times_and_nesting_of_the_profile(tmp_path: Path) -> None:
    profile = synthetic_profile(requests=2, tokens=4, root_span=True)
    profile.export_chrome_trace(tmp_path / "trace.json")
    spans = profile.spans
    with open_in_perfetto(tmp_path / "trace.json") as trace:
        found = trace.rows(
            "select extract_arg(s.arg_set_id, 'args.span') as span, s.ts as ts, s.dur as dur, "
            "coalesce(extract_arg(p.arg_set_id, 'args.span'), -1) as parent, t.tid as tid, "
            "t.name as thread, s.category as category from slice s "
            "left join slice p on p.id = s.parent_id "
            "join thread_track k on k.id = s.track_id join thread t using (utid) "
            "where extract_arg(s.arg_set_id, 'args.span') is not null order by 1"
        )
        processes = trace.rows("select pid, name from process where pid > 0")
        tokens = trace.rows(
            "select c.ts as ts, c.value as value from counter c "
            "join counter_track t on t.id = c.track_id where t.name = 'tokens committed'"
        )
    assert found == [
        (
            int(spans["span"][i]),
            int(spans["start_ns"][i]),
            int(spans["dur_ns"][i]),
            int(spans["parent"][i]),
            4243,
            "MainThread",
            "python_function" if spans["category"][i] == "module" else "user_annotation",
        )
        for i in spans["span"].argsort()
    ]
    assert processes == [(4242, "python")]
    ends_ns = (profile.steps["start_ns"] + profile.steps["wall_ns"]).tolist()
    assert tokens == [(end_ns, float(i + 1)) for i, end_ns in enumerate(ends_ns)]


def test_perfetto_keeps_crossing_regions_apart_with_their_modules(tmp_path: Path) -> None:
    crossing_profile(tasks=4, calls=3).export_chrome_trace(tmp_path / "trace.json")
    with open_in_perfetto(tmp_path / "trace.json") as trace:
        assert trace.complaints() == {}
        rows = trace.rows(
            "select t.name as thread, p.name as parent, s.name as name, count(*) as n "
            "from slice s join slice p on p.id = s.parent_id "
            "join thread_track k on k.id = s.track_id join thread t using (utid) "
            "group by 1, 2, 3 order by 2"
        )
    assert rows == [
        (f"MainThread ({i + 1})" if i else "MainThread", f"task-{i}", f"model.of.task-{i}", 3)
        for i in range(4)
    ]


def test_perfetto_reports_slices_that_cross(tmp_path: Path) -> None:
    """The same trace with all its rows merged into one: proves that the check can fail."""
    path = tmp_path / "trace.json"
    crossing_profile(tasks=4, calls=3).export_chrome_trace(path)
    document = json.loads(path.read_text())
    for event in document["traceEvents"]:
        event["tid"] = 4243
    path.write_text(json.dumps(document))
    with open_in_perfetto(path) as trace:
        assert "slice_drop_overlapping_complete_event" in trace.complaints()
        assert trace.value("select count(*) as n from slice") < 16


def test_perfetto_loads_a_profile_without_rows(tmp_path: Path) -> None:
    profile_of().export_chrome_trace(tmp_path / "trace.json")
    with open_in_perfetto(tmp_path / "trace.json") as trace:
        assert trace.complaints() == {}
        assert trace.value("select count(*) as n from slice") == 0


@pytest.mark.parametrize("name", PROFILES)
def test_catapult_loads_every_slice_and_counter(tmp_path: Path, name: str) -> None:
    profile = PROFILES[name]()
    profile.export_chrome_trace(tmp_path / "trace.json")
    model = import_in_catapult(tmp_path / "trace.json", tmp_path / "browser")
    assert model.warnings == ()
    assert sum(model.slices.values()) == expected_slices(profile)
    assert model.events == expected_slices(profile) + sum(expected_counters(profile).values())
    assert model.flows == 0
    counted = {name: len(values) for name, values in model.counters.items()}
    assert counted == expected_counters(profile)
    assert set(profile.spans["site"].tolist()) - {""} <= set(model.titles)
    assert sum(t.startswith("ProfilerStep#") for t in model.titles) == decode_steps(profile)


def test_catapult_warns_of_an_end_without_a_beginning(tmp_path: Path) -> None:
    """Proves that the check for warnings can fail."""
    path = tmp_path / "trace.json"
    synthetic_profile(requests=1, tokens=2).export_chrome_trace(path)
    document = json.loads(path.read_text())
    document["traceEvents"].append({"ph": "E", "name": "x", "pid": 1, "tid": 1, "ts": 1})
    path.write_text(json.dumps(document))
    assert import_in_catapult(path, tmp_path / "browser").warnings
