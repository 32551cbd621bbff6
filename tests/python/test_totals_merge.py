"""Totals merge: by algebra, over files and over processes."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pertoken
import totals_of_tables
from models import llama, prompt
from pertoken import Histogram, Totals
from pertoken.totals import LOSSES, RequestTotals, SiteKey, SiteTotals, StepTotals

counts = st.integers(0, 1 << 40)
kinds = st.sampled_from(["prefill", "decode", "mixed", ""])
# Sums and squares of small whole numbers are exact, so that merging is, too, in any order.
histograms = st.lists(st.integers(0, 5000), max_size=6).map(Histogram.from_values)
step_totals = st.builds(
    StepTotals, counts, counts, counts, counts, counts, wall_ns=histograms, itl_ns=histograms
)
site_totals = st.builds(SiteTotals, counts, histograms)
request_totals = st.builds(
    RequestTotals,
    *[counts] * 5,
    *[histograms] * 4,
    step_ns=st.dictionaries(kinds, histograms, max_size=2),
)
site_keys = st.builds(
    SiteKey, st.sampled_from(["", "lm_head", "x\udc80"]), st.just("module"), kinds
)
label_sets = st.dictionaries(st.sampled_from("ab"), st.text(max_size=2)).map(
    lambda labels: tuple(sorted(labels.items()))
)
totals_without_process = st.builds(
    Totals,
    st.dictionaries(kinds, step_totals, max_size=2),
    st.dictionaries(site_keys, site_totals, max_size=2),
    st.dictionaries(label_sets, request_totals, max_size=2),
    st.dictionaries(st.sampled_from(LOSSES), counts),
)


def of_process(totals: Totals, number: int) -> Totals:
    process = {"host": "h", "pid": number, "unix_origin_ns": 5, "rank": None}
    return totals.merge(Totals(processes=[process]))


@settings(max_examples=60, deadline=None)
@given(totals_without_process, totals_without_process, totals_without_process)
def test_merging_is_associative_and_commutative_and_nothing_is_neutral(
    a: Totals, b: Totals, c: Totals
) -> None:
    a, b, c = (of_process(totals, number) for number, totals in enumerate((a, b, c)))
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c)) == sum([c, a, b])
    assert a.merge(Totals()) == Totals().merge(a) == a
    assert json.dumps(a.merge(b).to_dict()) == json.dumps(b.merge(a).to_dict())
    for kind in {*a.steps, *b.steps}:
        parts = [totals.steps[kind] for totals in (a, b) if kind in totals.steps]
        assert a.merge(b).steps[kind].begun == sum(part.begun for part in parts)
    assert a.requests_with().merge(b.requests_with()) == a.merge(b).requests_with()


@settings(max_examples=60, deadline=None)
@given(totals_without_process)
def test_totals_survive_json_and_pickle(totals: Totals) -> None:
    totals = of_process(totals, 1)
    assert Totals.from_dict(json.loads(json.dumps(totals.to_dict(), allow_nan=False))) == totals
    assert pickle.loads(pickle.dumps(totals)) == totals


def test_the_totals_of_two_recordings_are_those_of_both_together() -> None:
    both = pertoken.profile(llama())
    first, second = pertoken.profile(llama()), pertoken.profile(llama())
    with both:
        for recording, tenant in ((first, "a"), (second, "b"), (second, "a")):
            with recording, pertoken.request(tenant=tenant):
                llama().generate(prompt(2), max_new_tokens=5)
    merged, together = first.totals().merge(second.totals()), both.totals()
    assert_same_counts(merged, together)
    assert len(merged.meta["processes"]) == 2


def assert_same_counts(merged: Totals, together: Totals) -> None:
    """The same events, each timed by itself."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict) and "bucket_counts" in value.get("positive", {}):
            return value["count"]
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if key != "own_ns"}
        return [plain(item) for item in value] if isinstance(value, list) else value

    left, right = plain(merged.to_dict()), plain(together.to_dict())
    for key in ("steps", "sites", "requests", "losses"):
        assert left[key] == right[key]


WORKER = """
    import json, sys
    import pertoken
    from models import llama, prompt

    recording = pertoken.profile(llama())
    with recording:
        for tenant, length in json.loads(sys.argv[2]):
            with pertoken.request(tenant=tenant):
                llama().generate(prompt(2), max_new_tokens=length)
    recording.result().save(sys.argv[1])
    print(json.dumps(recording.totals().to_dict()))
"""


def test_two_processes_have_counted_what_one_counts_alone(tmp_path: Path) -> None:
    work = [[["a", 4], ["b", 3]], [["b", 5], ["c", 2], ["a", 1]]]
    paths = [tmp_path / f"{number}.pertoken" for number in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WORKER), str(path), json.dumps(own)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent,
        )
        for path, own in zip(paths, work, strict=True)
    ]
    told = [Totals.from_dict(json.loads(process.communicate()[0])) for process in running]
    alone = pertoken.profile(llama())
    with alone:
        for tenant, length in work[0] + work[1]:
            with pertoken.request(tenant=tenant):
                llama().generate(prompt(2), max_new_tokens=length)
    merged = told[0].merge(told[1])
    for part in ("steps", "requests"):
        assert getattr(merged, part).keys() == getattr(alone.totals(), part).keys()
    counted = {kind: s.tokens_committed for kind, s in merged.steps.items()}
    assert counted == {kind: s.tokens_committed for kind, s in alone.totals().steps.items()}
    itl = {labels: held.itl_ns.count for labels, held in merged.requests.items()}
    assert itl == {labels: held.itl_ns.count for labels, held in alone.totals().requests.items()}
    assert [process["pid"] for process in merged.meta["processes"]] != [None, None]

    profile = pertoken.merge([pertoken.load(path) for path in paths])
    assert profile.totals is not None
    assert_same_counts(profile.totals, alone.totals())
    totals_of_tables.check_steps(profile)
    assert profile.totals.requests == merged.requests


def test_a_recording_that_would_count_twice_is_refused() -> None:
    recording = pertoken.profile(llama())
    with recording:
        earlier = recording.totals()
        llama().generate(prompt(), max_new_tokens=2)
    with pytest.raises(pertoken.MergeError, match="latest of each"):
        earlier.merge(recording.totals())
    with pytest.raises(TypeError, match="can only merge a Totals"):
        earlier.merge({})  # type: ignore[arg-type]


def recorded() -> dict[str, Any]:
    recording = pertoken.profile(llama(), modules="root")
    with recording:
        llama().generate(prompt(), max_new_tokens=2)
    data: dict[str, Any] = json.loads(json.dumps(recording.totals().to_dict()))
    return data


def change(path: str, value: Any) -> Any:
    def apply(data: Any) -> None:
        *above, last = path.split("/")
        for key in above:
            data = data[int(key)] if isinstance(data, list) else data[key]
        data[last] = value

    return apply


DAMAGE = {
    "no version": change("version", None),
    "a later version": change("version", 2),
    "steps a list": change("steps", []),
    "a negative count": change("steps/decode/begun", -1),
    "a count that is true": change("steps/decode/begun", True),
    "a count of text": change("losses/faults", "1"),
    "a count over 63 bits": change("steps/decode/rows", 1 << 63),
    "an unknown key": change("steps/decode/extra", 1),
    "a histogram a number": change("steps/decode/wall_ns", 3),
    "a histogram without scale": change("steps/decode/wall_ns/scale", None),
    "buckets that do not add up": change("steps/decode/wall_ns/count", 10**6),
    "a sum of squares of text": change("steps/decode/wall_ns/sum_sq", "1"),
    "a site without a name": change("sites/0/site", 7),
    "labels a list": change("requests/0/labels", []),
    "a label that is a number": change("requests/0/labels", {"tenant": 1}),
    "a host that is a list": change("meta/processes", [{"host": []}]),
    "processes missing": change("meta", {}),
    "a process a number": change("meta/processes", [1]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_totals_are_refused_with_a_clear_error(damage: Any, tmp_path: Path) -> None:
    data = recorded()
    assert Totals.from_dict(data).steps["decode"].begun == 1
    damage(data)
    with pytest.raises(pertoken.FileFormatError, match="these are not totals of pertoken"):
        Totals.from_dict(data)


def test_what_is_there_twice_is_refused() -> None:
    for key in ("sites", "requests"):
        data = recorded()
        data[key].append(data[key][0])
        with pytest.raises(pertoken.FileFormatError, match="twice"):
            Totals.from_dict(data)
