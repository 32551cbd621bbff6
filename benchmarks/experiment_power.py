"""How many pairs an experiment takes to tell: simulated, for the table in docs/experiments.md.

    python benchmarks/experiment_power.py            # prints the table, in seconds

Nothing is timed: values are drawn, and go through the code that `pertoken.experiment` runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pertoken.experiment.confidence_sequence import MIN_PAIRS, PairSums, ratio_interval
from pertoken.experiment.e_value import log_wealth, most_counted

Floats = NDArray[np.float64]

ALPHA = 0.05
EXPECTED_PAIRS = 1000
PAIR_SD = 0.14  # of the difference in a pair, as a share of the mean
QUANTILE = 0.99
VALUES = 64  # of each variant in a pair
CHUNK = 50
SEED = 6


def pairs_of_means(distance: float, runs: int, pairs: int) -> Floats:
    """Pairs until the interval leaves out a margin that lies `distance` below the truth.

    Returns:
        Shape (runs,); infinity where `pairs` were not enough.
    """
    random = np.random.default_rng(SEED)
    needed = []
    for count in _chunks(runs):
        a, b = 1.0 + PAIR_SD / np.sqrt(2.0) * random.standard_normal((2, count, pairs))
        low, _ = ratio_interval(PairSums.running(a, b * (1.0 + distance)), ALPHA, EXPECTED_PAIRS)
        low[:, : MIN_PAIRS - 1] = 0.0
        needed.append(_first(low >= 1.0))
    return np.concatenate(needed)


def pairs_of_quantiles(margin: float, tail: float, runs: int, pairs: int) -> Floats:
    """Pairs until the p99 of b is known to be under `margin`, when it is that of a.

    The tail falls as a Pareto's with this index: the share over a threshold t is ``t ** -tail``.
    """
    random = np.random.default_rng(SEED)
    share = 1.0 - QUANTILE
    most = most_counted(VALUES, QUANTILE)
    needed = []
    for count in _chunks(runs):
        over_a = random.binomial(VALUES, share, (count, pairs))
        over_b = random.binomial(VALUES, share * (1.0 + margin) ** -tail, (count, pairs))
        fewer = np.minimum(over_a, most) - np.minimum(over_b, most)
        needed.append(_first(log_wealth(fewer.astype(np.float64), most) >= np.log(2.0 / ALPHA)))
    return np.concatenate(needed)


def power(runs: int, longest: int) -> dict[str, dict[str, Floats]]:
    """Pairs needed in each run: of means by distance, of p99 by margin and tail."""
    means = {
        f"{100 * distance:g} %": pairs_of_means(
            distance, runs, min(longest, int(1.5 / distance**2))
        )
        for distance in (0.02, 0.01, 0.005)
    }
    quantiles = {
        f"{100 * margin:g} %, tail {tail:g}": pairs_of_quantiles(margin, tail, runs, longest)
        for tail in (3.0, 10.0)
        for margin in (0.5, 0.2, 0.1)
    }
    return {"mean": means, "p99": quantiles}


def table(needed: dict[str, dict[str, Floats]]) -> str:
    """The Markdown table."""
    rows = [
        "| metric | distance to the margin | pairs, half of the runs | pairs, 90 % of them |",
        "|---|---|---|---|",
    ]
    for metric, cases in needed.items():
        for case, pairs in cases.items():
            half, most = (_text(np.quantile(pairs, q, method="higher")) for q in (0.5, 0.9))
            rows.append(f"| {metric} | {case} | {half} | {most} |")
    return "\n".join(rows)


def _text(pairs: Any) -> str:
    return f"{float(f'{pairs:.2g}'):,.0f}" if np.isfinite(pairs) else "more than simulated"


def _chunks(runs: int) -> Iterator[int]:
    for start in range(0, runs, CHUNK):
        yield min(CHUNK, runs - start)


def _first(told: NDArray[np.bool_]) -> Floats:
    """The number of pairs at which each run can tell."""
    return np.where(told.any(axis=1), told.argmax(axis=1) + 1.0, np.inf)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Simulates the power of experiments.")
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--longest", type=int, default=20_000, help="pairs of a run")
    arguments = parser.parse_args()
    print(table(power(arguments.runs, arguments.longest)))
