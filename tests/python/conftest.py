"""One thread, no network, one width of text and fixed seeds for every test."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from benchmark_runs import benchmark_modules

if TYPE_CHECKING:
    from fake_gpu import FakeGpu

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Summaries are as wide as the terminal; the tests' are the same whatever they run in.
os.environ["COLUMNS"] = "100"
# The same examples in each run, however long one takes.
settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")


@pytest.hookimpl(tryfirst=True)  # before any fixture
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Has recordings choose as they did in every run of this test; forked children do likewise."""
    if "pertoken" in sys.modules:
        from pertoken import seeds

        drawn = random.Random(item.nodeid)
        seeds.new_seed = lambda: drawn.getrandbits(64)


@pytest.fixture(autouse=True)
def fixed_seeds() -> Iterator[None]:
    """Seeds torch, where a test has brought it in, and keeps it to one thread."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
    yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The wheels first: they take minutes, often on one core, and the rest runs beside them."""
    items.sort(key=lambda item: item.get_closest_marker("wheel") is None)


@pytest.fixture
def checked_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holds what totals say of logits against the tables, in each result of what has stopped."""
    import invariants
    from pertoken import Profile, Recording

    result = Recording.result

    def checked(recording: Recording) -> Profile:
        profile = result(recording)
        if not recording.is_recording:
            invariants.check_logits(profile)
        return profile

    monkeypatch.setattr(Recording, "result", checked)


@pytest.fixture
def module() -> Iterator[Callable[[str], Any]]:
    """Imports a module of the benchmarks by its name."""
    with benchmark_modules() as import_module:
        yield import_module


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """Two GPUs that are none, in a test which is to use the driver as it wants to be used."""
    from fake_gpu import orderly_gpu

    with orderly_gpu(monkeypatch, devices=2) as made:
        yield made
