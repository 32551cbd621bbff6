"""What the sequences of an engine's requests had been given when the process ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STEP_END, _ROW_COMMIT = 3, 7  # types of records
_NONE = 0xFFFFFFFF
_COMMIT = np.dtype([("sequence", "u4"), ("step", "u4"), ("before", "u4"), ("count", "u4")])
_END = np.dtype([("step", "u4"), ("ticks", "u8")])


@dataclass(frozen=True)
class RecoveredSequence:
    """What is known of a sequence, as the native `RowSequence` has it."""

    tokens: int = 0
    tokens_unknown: bool = True
    first_commit_ticks: int = 0


class RowCommits:
    """The commits of rows that an engine told, gathered from the records as they are replayed."""

    def __init__(self) -> None:
        self._commits: list[NDArray[np.void]] = []
        self._ends: list[NDArray[np.void]] = []

    def take(self, records: NDArray[np.void], kind: NDArray[Any]) -> None:
        """Takes records of one thread, and the type of each."""
        found = records[kind == _ROW_COMMIT]
        if len(found):
            commits = np.empty(len(found), _COMMIT)
            commits["sequence"], commits["step"] = found["seq"], found["step"]
            commits["before"] = found["end_ticks"] >> np.uint64(32)
            commits["count"] = found["end_ticks"] & np.uint64(_NONE)
            self._commits.append(commits)
        found = records[kind == _STEP_END]
        if len(found):
            ends = np.empty(len(found), _END)
            ends["step"], ends["ticks"] = found["step"], found["start_ticks"]
            self._ends.append(ends)

    def sequences(self, numbers: list[int], is_whole: bool) -> dict[int, RecoveredSequence]:
        """What is known of these sequences, by number.

        Args:
            numbers: of generations that ran until the end.
            is_whole: whether no record from before is missing.
        """
        if not numbers:
            return {}
        commits = np.concatenate([np.empty(0, _COMMIT), *self._commits])
        ends = np.concatenate([np.empty(0, _END), *self._ends])
        end_of = dict(zip(ends["step"].tolist(), ends["ticks"].tolist(), strict=True))
        own = commits[np.isin(commits["sequence"], np.array(numbers, dtype=np.uint64) & _NONE)]
        known = {number: RecoveredSequence(tokens_unknown=not is_whole) for number in numbers}
        by_low = {number & _NONE: number for number in numbers}
        for sequence, step, before, count in own.tolist():
            number = by_low[sequence]
            first_ticks = known[number].first_commit_ticks
            if before == 0 and count and not first_ticks:
                first_ticks = end_of.get(step, 0)
            known[number] = RecoveredSequence(before + count, before == _NONE, first_ticks)
        return known
