"""The section of the performance page on long runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from figure_text import factor_text, ns_text, percent_text
from page_parts import estimate_text, table


def section(long: dict[str, Any]) -> str:
    """The section, from what `long_run.py` measured."""
    limit = long["memory_limit_bytes"]
    figures: dict[str, Callable[[dict[str, Any]], str]] = {
        "steps": lambda run: f"{run['steps']:,}",
        "spans": lambda run: f"{run['spans']:,}",
        "spans held at the end": lambda run: f"{run['spans_held']:,}",
        "spans evicted, as `losses` says": lambda run: f"{run['spans_evicted']:,}",
        "records dropped, as `losses` says": lambda run: f"{run['records_dropped']:,}",
        "missing, and `losses` does not say so": lambda run: f"{run['untold']:,}",
        "growth of the process": lambda run: (
            f"{_megabytes(run['grown_bytes'])}, {factor_text(run['grown_bytes'] / limit)} the limit"
        ),
        "of it after the first tenth": lambda run: _megabytes(
            max(run["grown_bytes_by_tenth"]) - run["grown_bytes_by_tenth"][0]
        ),
        "a recorded step, to an unrecorded one": lambda run: factor_text(run["step_ratio"]),
        "that of the last tenth, to that of the first": lambda run: estimate_text(
            run["last_to_first"], percent_text
        ),
        "the same of unrecorded steps: the noise": lambda run: estimate_text(
            run["noise"], percent_text
        ),
        "`totals()` after the first tenth": lambda run: estimate_text(
            run["totals_ns"]["first tenth"], ns_text
        ),
        "`totals()` at the end": lambda run: estimate_text(run["totals_ns"]["end"], ns_text),
        "`result()` at the end": lambda run: ns_text(run["result_ns"]),
    }
    runs = long["runs"]
    rows = [(what, *map(figure, runs.values())) for what, figure in figures.items()]
    return (
        "## Long runs\n\n"
        f"In one recording each, with a limit of {_megabytes(limit)}: modules that compute "
        "nothing, so\nthat records come as fast as they can. A block of recorded steps runs "
        "between\ntwo halves of one unrecorded.\n\n" + table(("what", *runs), rows)
    )


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"
