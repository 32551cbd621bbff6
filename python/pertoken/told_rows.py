"""The rows that an engine told, or the user: each with its own sequence, phase and tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pertoken.row_layout import Ints, RowLayout
from pertoken.schema import STEP_KINDS

if TYPE_CHECKING:
    from pertoken.request_log import Generation

_MIXED, _OTHER = STEP_KINDS.index("mixed"), STEP_KINDS.index("other")
_UNKNOWN = -1


class ToldRows:
    """What the steps whose rows were told say of each.

    Args:
        steps: native columns, one entry a step, ascending by step.
        layout: of the same steps.
        rows: native columns ``step``, ``row``, ``generation``, ``phase``, ``query_len`` and
            ``context_len``.
        commits: native columns ``step``, ``row``, ``committed`` and ``committed_before``.
        generations: by number.

    Attributes:
        steps: int64, the indices of these steps.
        places: int64, the places of their rows; the columns below have one entry for each.
        generation, phase, query_len, context_len, committed: int64, -1 unknown.
    """

    def __init__(
        self,
        steps: dict[str, Ints],
        layout: RowLayout,
        rows: dict[str, Ints],
        commits: dict[str, Ints],
        generations: dict[int, Generation],
    ) -> None:
        self._layout, self._generations = layout, generations
        self.steps = np.flatnonzero(steps["has_rows"])
        self.places = layout.of_all(self.steps)
        at, inside = layout.find(rows["step"], rows["row"])
        commit_at, commit_inside = layout.find(commits["step"], commits["row"])

        def column(at: Ints, values: Ints, otherwise: int = _UNKNOWN) -> Ints:
            everywhere = layout.filled(otherwise)
            everywhere[at] = values
            return everywhere[self.places]

        self.generation = column(at, rows["generation"][inside])
        self.query_len = column(at, rows["query_len"][inside])
        self.context_len = column(at, rows["context_len"][inside])
        self.committed = column(commit_at, commits["committed"][commit_inside])
        self._before = column(commit_at, commits["committed_before"][commit_inside])
        # A row whose record was dropped is in the phase of the step, where that is one.
        kind = steps["kind"][layout.step_of_row[self.places]]
        phase = column(at, rows["phase"][inside])
        self.phase = np.where(phase >= 0, phase, np.where(kind == _MIXED, _OTHER, kind))

    def of_steps(self, values: Ints, otherwise: int) -> Ints:
        """For each of the steps, the value that all its rows share, else `otherwise`."""
        count = np.diff(self._layout.first)[self.steps]
        filled = count > 0
        starts = (np.cumsum(count) - count)[filled]
        shared = np.full(len(self.steps), otherwise, dtype=np.int64)
        if len(starts):
            least = np.minimum.reduceat(values, starts)
            shared[filled] = np.where(
                least == np.maximum.reduceat(values, starts), least, otherwise
            )
        return shared

    def tokens_committed(self) -> Ints:
        """For each of the steps, over all rows; -1 where one is unknown."""
        count = np.diff(self._layout.first)[self.steps]
        step = np.repeat(np.arange(len(self.steps)), count)
        total = np.bincount(step, self.committed, len(self.steps)).astype(np.int64)
        unknown = np.bincount(step, self.committed < 0, len(self.steps)) > 0
        return np.where(unknown, _UNKNOWN, total)

    def places_of(self, number: int) -> Ints:
        """The places of the rows of one generation."""
        places: Ints = self.places[self.generation == number]
        return places

    def tokens(self, end_ns: Ints) -> tuple[Ints, ...]:
        """The tokens: step (as an index), row, position, commit and latency of each.

        Args:
            end_ns: of every step, -1 while it runs.
        """
        step, row = self._layout.step_of_row[self.places], self._layout.row[self.places]
        held = np.flatnonzero((self.committed > 0) & (end_ns[step] >= 0))
        step, row, count = step[held], row[held], self.committed[held]
        number, before = self.generation[held], self._before[held]
        is_known, is_whole, is_one = self._traits(number)
        since = _since_last(number, np.where(is_one, 0, row), end_ns[step])
        repeated = np.repeat(np.arange(len(held)), count)
        within = np.arange(len(repeated)) - np.repeat(np.cumsum(count) - count, count)
        is_placed = is_known & is_whole & (before >= 0)
        position = np.where(is_placed[repeated], before[repeated] + within, _UNKNOWN)
        itl_ns = np.where(within > 0, 0, since[repeated])
        itl_ns[~is_known[repeated]] = _UNKNOWN
        step = step[repeated]
        return step, row[repeated], position, end_ns[step], itl_ns

    def _traits(self, numbers: Ints) -> tuple[NDArray[np.bool_], ...]:
        """Of each row's generation: is it held, is it whole, is it one sequence."""
        known, inverse = np.unique(numbers, return_inverse=True)
        held = [self._generations.get(number) for number in known.tolist()]
        traits = (
            [generation is not None for generation in held],
            [generation is not None and generation.from_start for generation in held],
            [generation is not None and generation.by_rows for generation in held],
        )
        return tuple(np.array(trait, dtype=bool)[inverse] for trait in traits)


def _since_last(number: Ints, row: Ints, end_ns: Ints) -> Ints:
    """From the commit before to this one, in the order given; -1 for the first of a sequence."""
    order = np.lexsort((np.arange(len(number)), row, number))
    since = np.full(len(number), _UNKNOWN, dtype=np.int64)
    if len(number) > 1:
        later, earlier = order[1:], order[:-1]
        is_same = (number[later] == number[earlier]) & (row[later] == row[earlier])
        since[later] = np.where(is_same, end_ns[later] - end_ns[earlier], _UNKNOWN)
    return since
