"""Sums of nanoseconds by row, which stay what they are in a column: int64, at most its largest."""

from __future__ import annotations

import numpy as np

from pertoken.table import Array

# The largest int64 that a float64 holds exactly, so that what is as large can be cast.
_LARGEST = float(2**63 - 1024)


def sum_by_row(rows: Array, values_ns: Array, count: int) -> Array:
    """Add up values by row.

    Args:
        rows: int64, shape (n,): to which row each value belongs, from 0.
        values_ns: int64, shape (n,), nanoseconds.
        count: how many rows there are.

    Returns:
        int64, shape (count,). A sum that no int64 holds, which only a damaged file can ask for, is
        the nearest that one does.
    """
    sums = np.bincount(rows, weights=values_ns, minlength=count)
    return np.clip(sums, -_LARGEST, _LARGEST).astype(np.int64)
