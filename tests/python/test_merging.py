"""Merging: nothing is lost, no ids collide, spans still nest, in any nesting of merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pertoken
from invariants import check_spans, check_tokens
from pertoken import schema
from pertoken.errors import MergeError
from pertoken.merging import own_ids
from pertoken.result import Profile
from pertoken.schema import ID_BITS
from saved_file import Members, assert_same, pack, saved_members
from synthetic import columns_of, synthetic_meta, synthetic_profile, with_columns
from trace_profiles import crossings, export

S = 1_000_000_000


def recorded(rank: int, **options: Any) -> Profile:
    """A recording of one rank; `host` and `drift` place its clock, `began_ns` its beginning."""
    host, drift = options.pop("host", "a"), options.pop("drift", 0.0)
    began_ns = options.pop("began_ns", rank * 1000)
    clock = dict(synthetic_meta()["clock"], boot_id=f"boot of {host}")
    if host != "a":
        offset_ns = 50 * S
        clock["synchronized"] = [
            {"boot_ns": at_ns, "offset_ns": offset, "error_ns": 100, "reference": "boot of a"}
            for at_ns, offset in ((0, offset_ns), (100 * S, offset_ns + round(drift * 100 * S)))
        ]
        began_ns -= offset_ns
    meta = {
        "rank": rank,
        "pid": 100 + rank,
        "host": host,
        "clock": clock,
        "boot_origin_ns": 123 * S + began_ns,
    }
    options = {"requests": 1, "tokens": 3, "layers": 2, "seed": rank, **options}
    return synthetic_profile(**options, meta=meta)


def rows_of_process(profile: Profile, table: str, process: int) -> Profile | Any:
    """Rows of one process, found by what the documentation says of ids."""
    found = profile.tables[table]
    if "process" in found:
        return found.where(found["process"] == process)
    keys = {"spans": "span", "activations": "observation", "activation_buckets": "observation"}
    key = keys.get(table, "step")
    return found.where(found[key] >> ID_BITS == process)


def test_rows_ids_and_texts_of_each_process_are_there_and_lead_back() -> None:
    parts = [recorded(0), recorded(1, requests=2, exotic_names=True), recorded(2, tokens=5)]
    merged = pertoken.merge(parts)
    for process, part in enumerate(parts):
        shift_ns = int(merged.processes["start_ns"][process])
        for name, declared in schema.TABLES.items():
            if name == "processes":
                continue
            own, original = rows_of_process(merged, name, process), part.tables[name]
            assert len(own) == len(original)
            for column in declared:
                values, expected = own[column.name], original[column.name]
                if column.ids_of in ("request", "step", "span", "observation"):
                    known = values[values >= 0]
                    assert (known >> ID_BITS == process).all()
                    values = own_ids(values)
                elif column.moment:
                    expected = expected + shift_ns
                elif column.ids_of in ("process", "track"):
                    continue
                np.testing.assert_array_equal(values, expected, err_msg=f"{name}.{column.name}")
    for name in schema.TABLES:
        total = sum(len(part.tables[name]) for part in parts)
        assert len(merged.tables[name]) == total
    check_spans(merged)
    check_tokens(merged)


def test_ids_of_the_first_process_stay_and_none_collides() -> None:
    parts = [recorded(rank) for rank in range(3)]
    merged = pertoken.merge(parts)
    for name, column in (("steps", "step"), ("spans", "span"), ("requests", "request")):
        ids = merged.tables[name][column]
        assert (np.diff(ids) > 0).all()
        first = parts[0].tables[name][column]
        assert ids[: len(first)].tolist() == first.tolist()
    tracks = merged.tracks["track"].tolist()
    assert len(set(tracks)) == len(tracks) == 3
    assert set(merged.spans["track"].tolist()) == set(tracks)


PART = st.fixed_dictionaries(
    {
        "host": st.sampled_from(["a", "a", "b", "c"]),
        "drift": st.sampled_from([0.0, 3e-5, -3e-5]),
        "began_ns": st.integers(0, 20 * S),
        "requests": st.integers(0, 2),
    }
)


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(PART, min_size=3, max_size=4), cut=st.integers(1, 2))
def test_merging_merged_profiles_is_merging_all_at_once(
    parts: list[dict[str, Any]], cut: int
) -> None:
    drifts = {part["host"]: part["drift"] for part in parts}  # a host has one clock
    profiles = [
        recorded(rank, **{**part, "drift": drifts[part["host"]]}) for rank, part in enumerate(parts)
    ]
    once = pertoken.merge(profiles)
    left, right = pertoken.merge(profiles[:cut]), pertoken.merge(profiles[cut:])
    twice = pertoken.merge([left, right])
    check_spans(once)
    check_spans(twice)
    assert once.meta == twice.meta
    assert once.losses == twice.losses
    assert set(once.requests.strings) == set(twice.requests.strings)
    for name, table in once.tables.items():
        assert table.columns == twice.tables[name].columns
        for column in table.columns:
            expected, found = table[column], twice.tables[name][column]
            declared = next(c for c in schema.TABLES[name] if c.name == column)
            if declared.moment or declared.begins_at or declared.ends_at:
                # A clock with a drift was brought onto another axis first, and back.
                assert np.abs(expected - found).max(initial=0) <= 2
            else:
                np.testing.assert_array_equal(expected, found, err_msg=f"{name}.{column}")


def test_one_host_merges_to_the_same_bytes_in_any_nesting(tmp_path: Path) -> None:
    a, b, c = (recorded(rank) for rank in range(3))
    pertoken.merge([pertoken.merge([a, b]), c]).save(tmp_path / "left")
    pertoken.merge([a, pertoken.merge([b, c])]).save(tmp_path / "right")
    pertoken.merge([a, b, c]).save(tmp_path / "at once")
    written = [(tmp_path / name).read_bytes() for name in ("left", "right", "at once")]
    assert written[0] == written[1] == written[2]


def test_a_planted_offset_and_drift_are_undone() -> None:
    """The same recording on two hosts, one of whose clocks counts 30 us a second too few."""
    drift = 3e-5
    here = recorded(0, began_ns=0)
    there = recorded(0, host="b", drift=drift, began_ns=0)
    merged = pertoken.merge([here, there])
    assert merged.processes["clock_basis"].tolist() == ["boot", "synchronized"]
    began_ns = round(drift * (123 - 50) * S)
    assert merged.processes["start_ns"].tolist() == [0, began_ns]
    own_ns = here.spans["start_ns"]
    moved = rows_of_process(merged, "spans", 1)["start_ns"]
    assert np.abs(moved - own_ns * (1 + drift) - began_ns).max() <= 0.5
    check_spans(merged)
    check_tokens(merged)


def test_a_merged_profile_saves_loads_summarises_and_exports(tmp_path: Path) -> None:
    merged = pertoken.merge([recorded(0), recorded(1, host="b"), recorded(2, host="b")])
    merged.save(tmp_path / "all.pertoken")
    assert_same(pertoken.load(tmp_path / "all.pertoken"), merged)
    text = str(merged.summary())
    assert "rank 1 (b, pid 101)" in text and "measured" in text
    trace = export(merged, tmp_path / "trace.json")
    assert len(trace.slices("span")) == len(merged.spans)
    assert not crossings(trace.slices())
    named = {
        event["pid"]: event["args"]["name"]
        for event in trace.document["traceEvents"]
        if event["name"] == "process_name"
    }
    assert named == {
        rank + 100: f"rank {rank} ({h}, pid {100 + rank})" for rank, h in enumerate("abb")
    }
    committed = [
        e for e in trace.document["traceEvents"] if e["ph"] == "C" and e["name"] == "tokens"
    ]
    assert max(e["args"]["committed"] for e in committed) == 3, "counted on each process"


def test_processes_of_two_hosts_with_one_id_are_shown_under_two(tmp_path: Path) -> None:
    parts = [recorded(0), recorded(1, host="b")]
    twins = [Profile(p.tables, {**p.meta, "pid": 100}, p.losses) for p in parts]
    trace = export(pertoken.merge(twins), tmp_path / "trace.json")
    pids = {event["pid"] for event in trace.slices("span")}
    assert len(pids) == 2 and 100 in pids
    assert {event["pid"] for event in trace.slices("step")} == pids


def test_losses_add_up_and_say_whose_they_are() -> None:
    parts = [recorded(0), recorded(1)]
    changed = []
    for count, part in enumerate(parts, start=1):
        losses = part.losses
        losses.update(records_dropped=count, faults={"x": count}, reasons=[f"reason {count}"])
        losses.update(inlined_modules=["a", f"m{count}"], clock_error_ns=count)
        changed.append(Profile(part.tables, part.meta, losses))
    merged = pertoken.merge(changed).losses
    assert merged["records_dropped"] == 3
    assert merged["faults"] == {"x": 3}
    assert merged["inlined_modules"] == ["a", "m1", "m2"]
    assert merged["reasons"] == [
        "rank 0 (a, pid 100): reason 1",
        "rank 1 (a, pid 101): reason 2",
    ]
    assert merged["processes"] == [profile.losses for profile in changed]


def test_meta_keeps_what_all_share_and_each_processes_own() -> None:
    parts = [recorded(0), recorded(1, host="b", began_ns=-5000)]
    meta = pertoken.merge(parts).meta
    assert meta["processes"] == [part.meta for part in parts]
    assert meta["model"] == parts[0].meta["model"]
    assert (meta["host"], meta["rank"]) == (None, None)
    assert meta["boot_origin_ns"] == parts[1].meta["boot_origin_ns"], "the earliest began there"


def test_labels_of_any_process_become_columns_of_all() -> None:
    labelled = with_columns(recorded(1), "requests", label__tier=["gold"])
    assert pertoken.merge([recorded(0), labelled]).requests["label.tier"].tolist() == ["", "gold"]


def test_a_running_request_and_step_stay_unfinished() -> None:
    part = with_columns(recorded(1, began_ns=10**6), "requests", end_ns=[-1], ttft_ns=[-1])
    walls = part.steps["wall_ns"].tolist()
    part = with_columns(part, "steps", wall_ns=[*walls[:-1], -1])
    merged = pertoken.merge([recorded(0), part])
    assert merged.requests["end_ns"][1] == merged.requests["ttft_ns"][1] == -1
    assert merged.steps["wall_ns"][-1] == -1


def test_the_same_recording_twice_is_refused() -> None:
    with pytest.raises(MergeError, match=r"rank 1 \(a, pid 101\) is there twice"):
        pertoken.merge([recorded(0), recorded(1), recorded(1, tokens=5)])
    merged = pertoken.merge([recorded(0), recorded(1)])
    with pytest.raises(MergeError, match="give each once"):
        pertoken.merge([merged, recorded(0)])
    with pytest.raises(MergeError, match="takes profiles, as load"):
        pertoken.merge(["rank0.pertoken"])
    with pytest.raises(MergeError, match="at least one"):
        pertoken.merge([])
    given: Any = recorded(0)
    with pytest.raises(MergeError, match=r"takes a list of profiles: merge\(\[first, second\]\)"):
        pertoken.merge(given)
    with pytest.raises(MergeError, match="takes a list of profiles, not None"):
        pertoken.merge(None)  # type: ignore[arg-type]


def again(profile: Profile, **meta: Any) -> Profile:
    """As of a second recording in the same process, which lost something."""
    meta = {**profile.meta, "boot_origin_ns": profile.meta["boot_origin_ns"] + S, **meta}
    return Profile(profile.tables, meta, {**profile.losses, "reasons": ["It broke."]})


def test_recordings_of_one_process_have_names_that_tell_them_apart() -> None:
    cost = {"share": 0.01}
    first, second = (again(recorded(0), boot_origin_ns=at * S, cost=cost) for at in (1, 2))
    merged = pertoken.merge([first, second, recorded(1)])
    names = [f"rank 0 (a, pid 100, number {number})" for number in (0, 1)]
    names.append("rank 1 (a, pid 101)")
    data = merged.summary().as_dict()
    assert [own["name"] for own in data["processes"]] == names
    assert [own["process"] for own in data["cost"]] == names[:2]
    assert merged.losses["reasons"] == [f"{name}: It broke." for name in names[:2]]
    text = " ".join(str(merged.summary()).split())
    assert all(name in text for name in names)
    assert f"{names[1]}: Recording cost about" in text


def test_recordings_of_two_models_in_one_process_are_named_by_model() -> None:
    model = {"class": "Draft", "parameters": 1, "modules": 1}
    merged = pertoken.merge([recorded(0), again(recorded(0), model=model)])
    assert [own["name"] for own in merged.summary().as_dict()["processes"]] == [
        "rank 0 (a, pid 100, number 0, TinyForCausalLM)",
        "rank 0 (a, pid 100, number 1, Draft)",
    ]


def test_what_cannot_be_merged_is_refused_with_a_reason() -> None:
    big = with_columns(recorded(0), "requests", request=[1 << ID_BITS])
    with pytest.raises(MergeError, match="column 'request'"):
        pertoken.merge([big])
    meta = {**recorded(1).meta, "boot_origin_ns": 10**19}
    far = Profile(recorded(1).tables, meta, recorded(1).losses)
    with pytest.raises(MergeError, match="larger than any clock"):
        pertoken.merge([recorded(0), far])
    merged = pertoken.merge([recorded(0), recorded(1)])
    meta = merged.meta
    meta["processes"].pop()
    with pytest.raises(MergeError, match="record it again"):
        pertoken.merge([Profile(merged.tables, meta, merged.losses)])
    for drift in (-1.0, np.nan, np.inf):
        odd = with_columns(merged, "processes", clock_drift=[0.0, drift])
        with pytest.raises(MergeError, match="impossible clock"):
            pertoken.merge([odd])


@pytest.mark.parametrize("name", list(schema.TABLES))
def test_columns_say_what_they_hold(name: str) -> None:
    """By their names: a new column that holds ids or moments cannot slip through a merge."""
    ids = {"request", "step", "span", "observation", "track", "process", "parent", "thread"}
    moments = {"start_ns", "end_ns", "commit_ns"}
    declared = {column.name: column for column in schema.TABLES[name]}
    for column in declared.values():
        assert bool(column.ids_of) == (column.name in ids)
        assert column.moment == (column.name in moments)
        for anchor in filter(None, (column.begins_at, column.ends_at)):
            assert declared[anchor].moment
    lasting = {c for c in declared if c.endswith("_ns")} - moments
    unanchored = {c for c in lasting if not (declared[c].begins_at or declared[c].ends_at)}
    measured = {"gpu_ns", "gpu_idle_ns", "observe_ns", "clock_offset_ns", "clock_error_ns"}
    assert unanchored <= measured


def members_of_format(version: int) -> Members:
    """A file as that format version had it: without what came later."""
    import json

    members = dict(saved_members())
    manifest = json.loads(members["manifest.json"])
    manifest["format_version"] = version
    for name, declared in schema.TABLES.items():
        for column in declared:
            if column.since > version:
                manifest["tables"].get(name, {"columns": {}})["columns"].pop(column.name, None)
                del members[f"tables/{name}/{column.name}.npy"]
    manifest["tables"] = {
        name: table for name, table in manifest["tables"].items() if table["columns"]
    }
    if version == 1:
        del manifest["totals"], manifest["meta"]["clock"]["boot_id"]
        del manifest["meta"]["clock"]["synchronized"]
    members["manifest.json"] = json.dumps(manifest).encode()
    return list(members.items())


def test_files_of_the_second_format_version_load_and_merge(tmp_path: Path) -> None:
    path = tmp_path / "old.pertoken"
    path.write_bytes(pack(members_of_format(2)))
    old = pertoken.load(path)
    assert len(old.activations) == len(old.activation_buckets) == 0
    assert set(old.steps["observe_ns"].tolist()) == {0}
    assert old.first_nonfinite() is None
    merged = pertoken.merge([old, recorded(1)])
    assert len(merged.activations) == len(recorded(1).activations)


def test_files_of_the_first_format_version_load_and_merge(tmp_path: Path) -> None:
    path = tmp_path / "old.pertoken"
    path.write_bytes(pack(members_of_format(1)))
    old = pertoken.load(path)
    assert set(old.steps["process"].tolist()) == {0}
    assert old.processes["pid"].tolist() == [4242]
    assert old.totals is None
    assert old.processes["host"].tolist() == ["host.example"]
    merged = pertoken.merge([old, recorded(1)])
    assert sorted(merged.processes["clock_basis"].tolist()) == ["boot", "unix"]
    assert columns_of(merged)["steps"]["step"][: len(old.steps)].tolist() == list(old.steps["step"])
