"""The bars of long runs, and of totals of a model that runs."""

from __future__ import annotations

from typing import Any

from bar import CONTROL, Bar, exact
from figure_text import count_text, factor_text, percent_text

Estimate = dict[str, float]


def _last_to_first(long: dict[str, Any], run: str) -> Estimate:
    """The cost of a step in the last tenth of a run, to that in the first."""
    ratio: Estimate = long["runs"][run]["last_to_first"]
    return ratio


def _noise(long: dict[str, Any], run: str) -> float:
    """The same of steps that are not recorded."""
    return float(long["runs"][run]["noise"]["median"])


def _growth(long: dict[str, Any]) -> float:
    """The most that the process has grown by in a run, with a thread's ring, to the limit."""
    most = max(run["grown_bytes"] for run in long["runs"].values())
    return float(most / long["memory_limit_bytes"])


def _untold(long: dict[str, Any]) -> int:
    """What is missing of the runs without being in their losses."""
    return sum(run["untold"] for run in long["runs"].values())


def _totals_by_store(totals: dict[str, Any]) -> Estimate:
    """What `totals()` takes when much is held, to what it takes when little is."""
    little, much = (state["totals_ns"] for state in totals["alone"])
    return {
        "median": much["median"] / little["median"],
        "low": much["low"] / little["high"],
        "high": much["high"] / little["low"],
    }


def _tail(totals: dict[str, Any], variant: str) -> Estimate:
    """The 99th percentile of a step while another thread looks, to that of nothing."""
    ratio: Estimate = totals["variants"][variant]["tail_ratio"]
    return ratio


def _long_run_bar(what: str, run: str) -> Bar:
    return Bar(
        what,
        "long_run",
        lambda long: _last_to_first(long, run),
        1.02,
        percent_text,
        read_control=lambda long: _noise(long, run),
        neutral=1.0,
    )


LONG_RUN_BARS = (
    _long_run_bar("a step at the end of 50 million spans, to one at their beginning", "many spans"),
    _long_run_bar("a step at the end of 10 million, to one at their beginning", "many steps"),
    Bar(
        "growth of the process in these runs, to the memory limit",
        "long_run",
        lambda long: exact(_growth(long)),
        1.1,
        factor_text,
    ),
    Bar(
        "records missing in them that losses do not name",
        "long_run",
        lambda long: exact(_untold(long)),
        0,
        count_text,
    ),
    Bar(
        "totals() with a million spans held, to that with ten thousand",
        "totals_snapshot",
        _totals_by_store,
        1.1,
        factor_text,
    ),
    Bar(
        "p99 of a step while a thread takes totals() every 10 ms, to that without",
        "totals_snapshot",
        lambda totals: _tail(totals, "totals()"),
        1.5,
        percent_text,
        read_control=lambda totals: _tail(totals, CONTROL)["median"],
        neutral=1.0,
    ),
)
