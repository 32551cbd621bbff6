"""Where the rows of steps lie when they are all put one after another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class RowLayout:
    """The places of the rows of a set of steps, step by step.

    Args:
        steps: native columns, one entry a step, ascending by step; see ``snapshot_columns.cpp``.

    Attributes:
        first: int64 (steps + 1,), the place of each step's first row; the last is the number.
        step_of_row: int64 (rows,), for each place the index of its step.
        row: int64 (rows,), for each place the row in its step.
    """

    def __init__(self, steps: dict[str, Ints]) -> None:
        self._steps = steps["step"]
        self._count = np.maximum(steps["rows"], 0)
        self.first = np.concatenate([[0], np.cumsum(self._count)]).astype(np.int64)
        self.step_of_row = np.repeat(np.arange(len(self._count)), self._count)
        self.row = np.arange(self.first[-1]) - self.first[self.step_of_row]

    def __len__(self) -> int:
        return int(self.first[-1])

    def filled(self, value: int) -> Ints:
        """A value for each place."""
        return np.full(len(self), value, dtype=np.int64)

    def of(self, index: int) -> slice:
        """The places of one step's rows."""
        return slice(int(self.first[index]), int(self.first[index + 1]))

    def of_all(self, members: Ints) -> Ints:
        """The places of the rows of several steps, step by step."""
        count = self._count[members]
        begin = self.first[members] - np.cumsum(count) + count
        return np.repeat(begin, count) + np.arange(count.sum())

    def find(self, step: Ints, row: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Places by number of a step and row in it, and which of the given have one."""
        index = np.searchsorted(self._steps, step)
        inside = index < len(self._steps)
        inside[inside] = self._steps[index[inside]] == step[inside]
        inside[inside] &= row[inside] < self._count[index[inside]]
        return self.first[index[inside]] + row[inside], inside
