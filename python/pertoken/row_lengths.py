"""How long each row of a step is: what was fed for it, and what was there before."""

from __future__ import annotations

import numpy as np

from pertoken.row_layout import Ints, RowLayout
from pertoken.schema import STEP_KINDS

_DRAFT = STEP_KINDS.index("draft")
_UNKNOWN = -1


class RowLengths:
    """Lengths by the shapes and padding masks of the steps.

    Args:
        steps: native columns, one entry a step, ascending by step.
        layout: of the same steps.
        row_valid: native columns ``step``, ``row``, ``context_tokens`` and ``query_tokens``: what
            padding masks left valid.

    Attributes:
        query: int64 (rows,), valid tokens fed, -1 unknown.
        context: int64 (rows,), valid tokens before the step, -1 unknown.
    """

    def __init__(
        self, steps: dict[str, Ints], layout: RowLayout, row_valid: dict[str, Ints]
    ) -> None:
        self._steps, self._layout = steps, layout
        at, inside = layout.find(row_valid["step"], row_valid["row"])
        self._masked_context, self._masked_query = layout.filled(_UNKNOWN), layout.filled(_UNKNOWN)
        self._masked_context[at] = row_valid["context_tokens"][inside]
        self._masked_query[at] = row_valid["query_tokens"][inside]
        query = steps["query_len"][layout.step_of_row]
        past = steps["past"][layout.step_of_row]
        unread = steps["mask_unread"][layout.step_of_row] != 0
        has_mask = self._masked_query >= 0
        query = np.where(has_mask, self._masked_query, query)
        context = np.where(has_mask, self._masked_context, past)
        self.query = np.where(unread & (query != 1), _UNKNOWN, query)
        self.context = np.where(unread & (past != 0), _UNKNOWN, context)

    def valid(self, index: int) -> Ints | None:
        """Valid tokens of the rows of a step and of their past, None where no mask says it."""
        rows = self._layout.of(index)
        context, query = self._masked_context[rows], self._masked_query[rows]
        known = len(query) > 0 and bool(np.all(query >= 0)) and bool(np.all(context >= 0))
        return context + query if known else None

    def carry_padding(self, members: Ints) -> None:
        """Padding seen by the masks of the prefill holds for all later steps of the call."""
        members = members[self._steps["kind"][members] != _DRAFT]
        unread = self._steps["mask_unread"][members] != 0
        valid = {at: self.valid(int(members[at])) for at in range(len(members)) if unread[at]}
        with_rows = np.flatnonzero(self._steps["rows"][members] > 0)
        first_rows = self._layout.first[members[with_rows]]
        for at in with_rows[self._masked_query[first_rows] >= 0].tolist():
            valid[at] = self.valid(int(members[at]))
        if not valid:
            return
        places = sorted(valid)
        padding: Ints | None = None
        for at, until in zip(places, [*places[1:], len(members)], strict=True):
            tokens, index = valid[at], int(members[at])
            if tokens is not None:
                padding = self._steps["past"][index] + self._steps["query_len"][index] - tokens
            later = members[at + 1 : until]
            later = later[self._steps["past"][later] > 0]
            if unread[: at + 1].any():
                self.context[self._layout.of_all(later)] = _UNKNOWN
            elif padding is not None:
                later = later[self._steps["rows"][later] == len(padding)]
                past = np.repeat(self._steps["past"][later], len(padding))
                context = past - np.tile(padding, len(later))
                self.context[self._layout.of_all(later)] = np.maximum(context, 0)

    def longest_context(self) -> Ints:
        """For each step, the context of its longest row; -1 where one is unknown."""
        longest: Ints = self._steps["past"].copy()
        filled = np.flatnonzero(self._steps["rows"] > 0)
        if len(filled):
            starts = self._layout.first[:-1][filled]
            longest[filled] = np.maximum.reduceat(self.context, starts)
            known = np.minimum.reduceat(self.context, starts) >= 0
            longest[filled[~known]] = _UNKNOWN
        return longest
