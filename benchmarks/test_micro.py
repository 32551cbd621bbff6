"""Microbenchmarks by pytest-benchmark: what each public operation takes by itself.

Run by `micro.py` for the results, or by hand: ``pytest benchmarks/test_micro.py``. Operations that
take less than a microsecond are repeated OPERATIONS times a round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pertoken
from call_loops import ChildLoop, RootLoop
from skeleton import Skeleton, recording_of_skeleton, require_spans

OPERATIONS = 1000
ROUNDS = 100
SPANS = 100_000
IDS = torch.ones((1, 8), dtype=torch.int64)

# What the `benchmark` fixture is; pytest-benchmark has no types.
Benchmark = Any


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def recording() -> pertoken.Recording:
    return recording_of_skeleton(SPANS)


@pytest.fixture(scope="module")
def profile(recording: pertoken.Recording) -> pertoken.Profile:
    result = recording.result()
    require_spans(result, SPANS)
    return result


def repeated(benchmark: Benchmark, run: Callable[[], object], setup: Callable[[], None]) -> None:
    """Benchmarks a function that does something OPERATIONS times."""
    benchmark.extra_info["operations"] = OPERATIONS
    benchmark.pedantic(run, setup=setup, rounds=ROUNDS, warmup_rounds=3)


@pytest.fixture
def recording_all() -> Iterator[Callable[[torch.nn.Module], Callable[[], None]]]:
    """Starts a recording of all of a model; gives what drains it, which a ring needs at times."""
    running: list[pertoken.Recording] = []

    def start(model: torch.nn.Module) -> Callable[[], None]:
        recording = pertoken.profile(model, modules="all")
        recording.start()
        running.append(recording)
        return recording.recorder.drain

    yield start
    for recording in running:
        recording.stop()
        assert recording.result().losses["records_dropped"] == 0


def nothing() -> None:
    pass


@pytest.mark.benchmark(group="call of a child module")
def test_child_call_bare(benchmark: Benchmark) -> None:
    model = ChildLoop(OPERATIONS)
    repeated(benchmark, lambda: model(IDS), nothing)


@pytest.mark.benchmark(group="call of a child module")
def test_child_call_recorded(benchmark: Benchmark, recording_all: Any) -> None:
    model = ChildLoop(OPERATIONS)
    repeated(benchmark, lambda: model(IDS), recording_all(model))


@pytest.mark.benchmark(group="step inside generate()")
def test_step_bare(benchmark: Benchmark) -> None:
    model = RootLoop(OPERATIONS)
    repeated(benchmark, lambda: model.generate(IDS, commits=True), nothing)


@pytest.mark.benchmark(group="step inside generate()")
def test_step_recorded(benchmark: Benchmark, recording_all: Any) -> None:
    model = RootLoop(OPERATIONS)
    repeated(benchmark, lambda: model.generate(IDS, commits=True), recording_all(model))


@pytest.mark.benchmark(group="contexts")
def test_span(benchmark: Benchmark, recording_all: Any) -> None:
    region = pertoken.span("region")

    def run() -> None:
        for _ in range(OPERATIONS):
            with region:
                pass

    repeated(benchmark, run, recording_all(Skeleton()))


@pytest.mark.benchmark(group="contexts")
def test_span_made_anew(benchmark: Benchmark, recording_all: Any) -> None:
    def run() -> None:
        for _ in range(OPERATIONS):
            with pertoken.span("region"):
                pass

    repeated(benchmark, run, recording_all(Skeleton()))


@pytest.mark.benchmark(group="contexts")
def test_request(benchmark: Benchmark, recording_all: Any) -> None:
    def run() -> None:
        for number in range(OPERATIONS):
            with pertoken.request(id=number):
                pass

    repeated(benchmark, run, recording_all(Skeleton()))


@pytest.mark.benchmark(group="start and stop of a recording of 59 modules")
def test_start_and_stop(benchmark: Benchmark) -> None:
    model = Skeleton()
    recording = pertoken.profile(model, modules="all")

    def run() -> None:
        recording.start()
        recording.stop()

    benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=3)


@pytest.mark.benchmark(group="a profile of 100,000 spans")
def test_result(benchmark: Benchmark, recording: pertoken.Recording) -> None:
    benchmark.pedantic(recording.result, rounds=10, warmup_rounds=1)


@pytest.mark.benchmark(group="a profile of 100,000 spans")
def test_summary(benchmark: Benchmark, profile: pertoken.Profile) -> None:
    benchmark.pedantic(profile.summary, rounds=10, warmup_rounds=1)


@pytest.mark.benchmark(group="a profile of 100,000 spans")
def test_save(benchmark: Benchmark, profile: pertoken.Profile, tmp_path: Path) -> None:
    benchmark.pedantic(profile.save, args=(tmp_path / "run.pertoken",), rounds=10, warmup_rounds=1)


@pytest.mark.benchmark(group="a profile of 100,000 spans")
def test_load(benchmark: Benchmark, profile: pertoken.Profile, tmp_path: Path) -> None:
    profile.save(tmp_path / "run.pertoken")
    benchmark.pedantic(pertoken.load, args=(tmp_path / "run.pertoken",), rounds=10, warmup_rounds=1)
