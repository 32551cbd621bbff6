"""Benchmarks that need a GPU: without one they run on the processor, and the page takes that."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import pertoken
from benchmark_runs import newest_results, smoke_run
from fake_gpu import FakeGpu, on_gpu, orderly_gpu, put_on
from pertoken import _native

PARTS = ("gpu_overhead", "gpu_stats", "gpu_logits", "gpu_activations")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return smoke_run(tmp_path_factory.mktemp("benchmarks"), PARTS)


class Page:
    """The performance page with what one benchmark gave, as if a GPU had."""

    def __init__(self, module: Any, name: str, part: dict[str, Any]) -> None:
        self.part = part
        self._report, self._bars = module("report"), module("bars")
        self._gpu = {"finished": "2026-01-01", "benchmarks": {name: part}}
        self.bars = [bar for bar in module("gpu_bars").GPU_BARS if bar.benchmark == name]
        self._all_bars = module("gpu_bars").GPU_BARS

    def text(self) -> str:
        return str(self._report.render(newest_results(self._report), "x.json", self._gpu))

    def verdicts(self) -> list[Any]:
        return list(self._bars.verdicts(self._gpu, self._all_bars))

    def outcomes(self) -> list[str]:
        return [verdict.outcome for verdict in self.verdicts()]


@pytest.fixture
def page_of(measured: dict[str, Any], module: Any) -> Callable[[str], Page]:
    """The page of a benchmark by its name, whose smoke run has been found to be none."""

    def made(name: str) -> Page:
        page = Page(module, name, copy.deepcopy(measured[name]))
        assert "Not measured: a smoke run." in page.text()
        assert page.verdicts() == []
        page.part["measured"] = True
        page.part["gpu"] = {"name": "a GPU", "memory_bytes": 2**36, "cuda": "13.0"}
        return page

    return made


def test_the_page_shows_what_a_gpu_gave(page_of: Callable[[str], Page]) -> None:
    """By the times of a processor, under the names of the shapes that a GPU runs."""
    page = page_of("gpu_overhead")
    overhead = page.part
    large = [{**case, "shape": "8B", "boundaries_a_step": 97} for case in overhead["cases"]]
    overhead["cases"] = [*({**case, "shape": "1B"} for case in overhead["cases"]), *large]
    text = page.text()
    for case in overhead["cases"]:
        assert f"\n#### {case['shape']}, batch {case['batch']}, " in text
        assert {"pertoken root", "pertoken layers", "torch.profiler"} < set(case["variants"])
    assert text.count("97 boundaries a step") == 2
    assert [verdict.bar for verdict in page.verdicts()] == page.bars
    for bar in page.bars:
        assert f"\n| {bar.what} | " in text


def test_the_page_shows_what_reading_logits_on_a_gpu_takes(page_of: Callable[[str], Page]) -> None:
    page = page_of("gpu_logits")
    logits = page.part
    text = page.text()
    assert {case["rows"] for case in logits["kernels"]} == {1, 32, 256}
    for case in logits["kernels"]:
        for name, figures in case["works"].items():
            assert f"\n| 1,000 | {case['dtype']} | {case['rows']} | {name} | " in text
            assert ("share_of_copy_bandwidth" in figures) == name.startswith("pertoken")
    for case in logits["decode"]:
        for name in case["variants"]:
            assert f" | 1 | {name} | " in text
    assert "\nNot read: nothing." in text
    for case in logits["decode"]:
        case["variants"]["nothing again"]["ratio"]["median"] = 1.0
        ratio = 1.03 if case["way"] == "generate" else 1.01
        case["variants"]["logits, every step"]["ratio"]["median"] = ratio
    assert page.outcomes() == ["FAIL", "pass"]
    logits["decode"][-1]["lost"] = {"no room": 3}
    assert page.outcomes() == ["FAIL", "FAIL"]
    assert "\nNot read: 3 x no room." in page.text()


def test_the_page_shows_what_observing_on_a_gpu_adds(page_of: Callable[[str], Page]) -> None:
    page = page_of("gpu_activations")
    cases = {case["mode"]: case for case in page.part["cases"]}
    hooks = {"hooks with torch, every step", "hooks with torch, 1 step in 16"}
    ours = {"activations, every step", "activations, 1 step in 16", "pertoken layers"}
    off = {"spans, switched off", "activations, switched off"}
    assert set(cases["eager"]["variants"]) == {"nothing", "nothing again", *hooks, *ours}
    assert set(cases["graph"]["variants"]) == {*cases["eager"]["variants"], *off}
    values = cases["eager"]["values_a_step"]
    for case in cases.values():
        assert case["sites"] == 8  # 2 layers of 3 sites, the embeddings and the head
        assert case["values_a_step"] == 7 * 64 + 128
        added = case["variants"]["activations, every step"]["added_ns"]
        added.update(_exactly(2000.0))
        case["variants"]["hooks with torch, every step"]["added_ns"] = _exactly(9000.0)
    for name, added_ns in (("activations, switched off", 9000.0), ("spans, switched off", 1000.0)):
        cases["graph"]["variants"][name]["added_ns"] = _exactly(added_ns)
    text = page.text()
    assert "\n#### Activations, toy, batch 1, eager\n" in text
    assert "\n#### Activations, toy, batch 1, in a CUDA graph\n" in text
    assert text.count(f"\n8 sites, {values} values a step. ") == 2
    assert text.count("; a launch that is switched off, 1 us of a replay. ") == 1
    assert text.count(" Not observed: nothing.") == 2
    assert page.outcomes() == ["pass", "pass"]
    cases["eager"]["variants"]["activations, every step"]["added_ns"] = _exactly(9100.0)
    assert page.outcomes() == ["FAIL", "pass"]
    cases["graph"]["lost"]["activations, 1 step in 16"] = {"no room": 3}
    assert page.outcomes() == ["FAIL", "FAIL"]
    assert " Not observed: 3 x no room." in page.text()


def test_every_way_counts_every_tensor_of_a_gpu(measured: dict[str, Any]) -> None:
    """Numpy stands for CuPy."""
    stats = measured["gpu_stats"]
    assert not stats["measured"] and stats["arrays"].startswith("numpy ")
    assert len(stats["cases"]) == 3 * 5 * 3
    for case in stats["cases"]:
        found = {"pertoken", "copy"}
        if not case["dtype"].startswith("float8"):
            found.add("torch")
        if case["dtype"] in ("float16", "float32"):
            found.add("numpy.histogram")
        assert set(case["timed"]) == found
        assert case["share_of_copy_bandwidth"]["median"] > 0


def test_the_page_shows_every_tensor_of_a_gpu_and_its_bars(page_of: Callable[[str], Page]) -> None:
    page = page_of("gpu_stats")
    stats = page.part
    for case in stats["cases"]:
        case["share_of_copy_bandwidth"] = _exactly(0.9)
        case["timed"]["pertoken"]["gpu_ns"] = _exactly(2900.0)
        if "torch" in case["timed"]:
            case["timed"]["torch"]["times_slower"] = _exactly(6.0)
    assert page.outcomes() == ["pass"] * 4  # none of CuPy, which did not run
    text = page.text()
    for case in stats["cases"]:
        of = f"\n| {case['values']:,} | {case['dtype']} | {case['data']} | 2.9 us | "
        assert of in text
    one = {(case["size"], case["dtype"], case["data"]): case for case in stats["cases"]}
    one["large", "bfloat16", "constant"]["share_of_copy_bandwidth"] = _exactly(0.79)
    one["decode", "float32", "normal"]["timed"]["pertoken"]["gpu_ns"] = _exactly(3100.0)
    one["decode", "float16", "normal"]["timed"]["torch"]["times_slower"] = _exactly(0.9)
    one["large", "float32", "heavy-tailed"]["timed"]["torch"]["times_slower"] = _exactly(4.9)
    assert page.outcomes() == ["FAIL"] * 4
    for case in stats["cases"]:
        if "numpy.histogram" in case["timed"]:
            case["timed"]["cupy.histogram"] = {"times_slower": _exactly(7.0)}
    assert page.outcomes() == ["FAIL"] * 4 + ["pass"] * 2


def _exactly(value: float) -> dict[str, float]:
    return {"median": value, "low": value, "high": value}


def test_cupy_counts_where_it_can_be_imported(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the memory of the processor, by numpy under its name."""
    counted = []

    def histogram(array: Any, bins: int) -> None:
        counted.append(np.histogram(array, bins)[0].sum())

    gpu_stats = module("gpu_stats")
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert gpu_stats.array_library("cuda") is None
    cupy = SimpleNamespace(__name__="cupy", from_dlpack=np.from_dlpack, histogram=histogram)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    arrays = gpu_stats.array_library("cuda")
    for dtype in (torch.float32, torch.float16):
        gpu_stats.works(torch.ones(70, dtype=dtype), arrays)["cupy.histogram"]()
    assert counted == [70, 70]
    assert "cupy.histogram" not in gpu_stats.works(torch.ones(70, dtype=torch.bfloat16), arrays)


def test_logits_on_a_gpu_are_read_with_copies_and_without(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the fake driver: what each reader records says whether it has a copy to look into."""
    if _native.build_info()["cuda_kernels"] == "none":
        pytest.skip("built without kernels")
    gpu_logits, rows = module("gpu_logits"), 70  # more than a launch takes
    monkeypatch.setattr(module("kernel_times"), "has_gpu", lambda: False)
    with orderly_gpu(monkeypatch):
        with gpu_logits.readers("cpu") as readers:
            for reader in readers.values():
                put_on(reader.model, 0)
            logits = on_gpu(torch.randn(rows, 1, 50))
            times = gpu_logits.kernel_times(logits, readers, 3)
        assert set(times) == {"copy", gpu_logits.TORCH, *readers}
        known = {}
        for name, reader in readers.items():
            profile = reader.recording.result()
            assert gpu_logits.lost_tokens(profile, "entropy") == {}
            steps = profile.tokens["step"]
            assert len(steps) == 4 * rows  # that of the warm-up, too
            known[name] = np.isfinite(profile.tokens["logprob"][steps != steps.max()])
        assert known[gpu_logits.READ_AND_COPIED].all() and not known[gpu_logits.READ].any()
        del readers, reader, profile


class Layer(torch.nn.Module):
    """Puts out the same memory each time, as in a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        put_on(self, 0)
        self.out = on_gpu(torch.ones(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out


class CapturedDecode:
    """Stands for the decode of `gpu_decode.py`: two layers, in graphs of the fake driver."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu
        self.model = torch.nn.Sequential(Layer(), Layer())
        self.run: Callable[[], object] = self.forward

    def forward(self) -> None:
        self.model(torch.zeros(2, 3))

    def captured(self) -> Callable[[], object]:
        graph = self._gpu.new_graph()
        graph.capture_begin()
        self.forward()
        graph.capture_end()
        return lambda: graph.replay()


def test_captures_are_observed_in_their_own_variant_alone(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block enters the recording again, and replays what was captured when it first ran."""
    if _native.build_info()["cuda_kernels"] == "none":
        pytest.skip("built without kernels")
    gpu_activations = module("gpu_activations")
    with orderly_gpu(monkeypatch) as gpu:
        decode = CapturedDecode(gpu)
        recordings = {
            gpu_activations.SPANS: pertoken.profile(decode.model),
            gpu_activations.EVERY_STEP: pertoken.profile(
                decode.model, activations=["*"], activation_every=1
            ),
        }
        variants = gpu_activations.captured_variants(decode, recordings, ["0", "1"])
        before = {name: len(of.result().activations) for name, of in recordings.items()}
        for _ in range(2):
            for variant in variants:
                with variant.context():
                    for _ in range(3):
                        decode.run()
        profile = recordings[gpu_activations.EVERY_STEP].result()
        in_replays = len(profile.activations) - before[gpu_activations.EVERY_STEP]
        assert in_replays == 2 * 3 * 2  # rounds, replays, sites
        assert gpu_activations.lost(profile) == {}
        assert profile.steps["kind"].tolist().count("decode") == 2 * 3
        assert len(recordings[gpu_activations.SPANS].result().activations) == 0
        del decode, recordings, variants, variant, profile


def test_one_call_in_so_many_runs_the_other(module: Any) -> None:
    ran: list[str] = []
    one_in = module("gpu_activations").one_in
    for _ in range(2):
        run = one_in(16, lambda: ran.append("hooked"), lambda: ran.append("plain"))
        for _ in range(16 * 200):
            run()
    assert ran[: 16 * 200] == ran[16 * 200 :]
    assert 2 * 150 < ran.count("hooked") < 2 * 250
    ran.clear()
    one_in(1, lambda: ran.append("hooked"), lambda: ran.append("plain"))()
    assert ran == ["hooked"]
