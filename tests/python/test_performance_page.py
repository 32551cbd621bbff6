"""docs/performance.md says what the newest committed results say, and nothing else."""

from __future__ import annotations

import copy
import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report() -> Iterator[ModuleType]:
    """The generator of the page, which is a script and not part of the package."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("report")
    finally:
        sys.path.remove(folder)
        for name in (
            "report",
            "bar",
            "bars",
            "budget_bars",
            "figure_text",
            "logit_report",
            "long_run_bars",
            "tensor_bars",
            "peers_report",
            "tensor_report",
            "activation_report",
            "budget_report",
            "compiled_report",
            "gpu_bars",
            "gpu_report",
            "long_run_report",
            "totals_report",
            "bar_chart",
            "page_parts",
        ):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def source(report: ModuleType) -> Path:
    return Path(report.newest_results())


@pytest.fixture
def results(source: Path) -> dict[str, Any]:
    return dict(json.loads(source.read_text()))


def test_the_page_is_what_the_newest_results_give(
    report: ModuleType, source: Path, results: dict[str, Any]
) -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    expected = report.render(results, source.name, report.newest_gpu_results())
    assert page == expected, "run: python benchmarks/report.py"


def test_the_picture_is_that_of_the_same_results(
    report: ModuleType, results: dict[str, Any]
) -> None:
    peers = results["benchmarks"].get("peers")
    assert report.PICTURE.exists() is (peers is not None), "run: python benchmarks/report.py"
    if peers is not None:
        assert report.PICTURE.read_text() == report.peers_report.picture(peers)


def test_the_results_are_those_of_one_whole_run(
    report: ModuleType, results: dict[str, Any]
) -> None:
    """All that the bars rest on, and nothing that the runner does not have."""
    assert results["smoke"] is False
    run = (ROOT / "benchmarks" / "run.py").read_text()
    listed = set(re.findall(r'^    "(\w+)": "', run, re.MULTILINE))
    measured = set(results["benchmarks"])
    assert {bar.benchmark for bar in sys.modules["bars"].BARS} <= measured <= listed


def test_the_results_name_no_host_and_no_folder(source: Path) -> None:
    text = source.read_text()
    assert not re.search(r'"[^"]*/(home|root|work|tmp|usr)\b', text)
    assert not re.search(r'"(host|hostname|user|path|cwd)"', text)


def test_the_page_follows_the_figures(report: ModuleType, results: dict[str, Any]) -> None:
    """A figure past its limit turns its bar to a fail, and no other one."""
    before = report.render(results, "x.json")
    changed = copy.deepcopy(results)
    changed["benchmarks"]["store_memory"]["bytes_a_span"] = 33.0
    after = report.render(changed, "x.json")
    row = "| memory a span in the native store, all in | ≤ 32.0 bytes | 33.0 bytes | **FAIL** |"
    assert row in after and row not in before
    others = [line for line in before.splitlines() if "memory a span" not in line]
    assert set(others) - set(after.splitlines()) <= {
        line for line in others if line.startswith("| store, ")
    }


def test_a_noisy_control_voids_the_bar_that_rests_on_it(
    report: ModuleType, results: dict[str, Any]
) -> None:
    variants = results["benchmarks"]["decode_overhead"]["ways"]["generate"]["variants"]
    variants["pertoken all"]["ratio"]["median"] = 1.001
    for control, outcome in ((1.002, "pass"), (1.02, "**noise**"), (0.98, "**noise**")):
        variants["nothing again"]["ratio"]["median"] = control
        page = report.render(results, "x.json")
        row = next(line for line in page.splitlines() if "every module of every token" in line)
        assert row.endswith(f"| {outcome} |")


def test_a_limit_is_kept_when_it_is_met_exactly(
    report: ModuleType, results: dict[str, Any]
) -> None:
    export = results["benchmarks"]["export_speed"]
    for rate, passed in ((2e6, "pass"), (1.99e6, "**FAIL**")):
        export["writers"]["pertoken_json"]["events_a_second"]["median"] = rate
        page = report.render(results, "x.json")
        row = next(line for line in page.splitlines() if "export to .json, events" in line)
        assert row.endswith(f"| {passed} |")
