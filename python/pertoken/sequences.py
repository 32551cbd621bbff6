"""What each step did for each sequence: the rows of steps, and the tokens committed to them.

Works on the native columns of the steps and on the generations noted in Python; pure functions of
both. A generation's steps are those that carry its number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pertoken.schema import STEP_KINDS

if TYPE_CHECKING:
    from pertoken.generation import Generation

Ints = NDArray[np.int64]
_DRAFT = STEP_KINDS.index("draft")
_UNKNOWN = -1


class Sequences:
    """Rows and tokens of a set of steps.

    Args:
        steps: native columns, one entry a step, ascending by step; see ``snapshot_columns.cpp``.
        row_valid: native columns ``step``, ``row``, ``context_tokens`` and ``query_tokens``: what
            padding masks left valid.
        generations: by number.

    Attributes:
        request: int64 (steps,), the request of each step, -1 none.
        tokens_committed: int64 (steps,), over all rows, -1 unknown.
        context_len: int64 (steps,), of the longest row, -1 unknown.
    """

    def __init__(
        self,
        steps: dict[str, Ints],
        row_valid: dict[str, Ints],
        generations: dict[int, Generation],
    ) -> None:
        self._steps = steps
        self._generations = generations
        self._end_ns = np.where(steps["wall_ns"] >= 0, steps["start_ns"] + steps["wall_ns"], -1)
        rows = np.maximum(steps["rows"], 0)
        self._first = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._step_of_row = np.repeat(np.arange(len(rows)), rows)
        self._row = np.arange(self._first[-1]) - self._first[self._step_of_row]
        self.request = self._requests()
        self._masked_context, self._masked_query = self._masked(row_valid)
        self._query_len, self._row_context = self._lengths()
        self._members = self._steps_of_generations()
        self._committed = np.full(self._first[-1], _UNKNOWN, dtype=np.int64)
        self.tokens_committed = np.full(len(rows), _UNKNOWN, dtype=np.int64)
        for number, members in self._members.items():
            self._commit(generations.get(number), members)
        self.context_len = self._longest_context()

    def _requests(self) -> Ints:
        numbers = self._steps["generation"]
        known, inverse = np.unique(numbers, return_inverse=True)
        requests = [
            self._generations[number].request if number in self._generations else _UNKNOWN
            for number in known.tolist()
        ]
        return np.array(requests, dtype=np.int64)[inverse] if len(known) else numbers

    def _masked(self, row_valid: dict[str, Ints]) -> tuple[Ints, Ints]:
        """Valid tokens of each row before and in its step, by the step's mask; -1 without one."""
        index = np.searchsorted(self._steps["step"], row_valid["step"])
        inside = index < len(self._steps["step"])
        inside[inside] = self._steps["step"][index[inside]] == row_valid["step"][inside]
        inside[inside] &= row_valid["row"][inside] < self._steps["rows"][index[inside]]
        at = self._first[index[inside]] + row_valid["row"][inside]
        context = np.full(self._first[-1], _UNKNOWN, dtype=np.int64)
        query = context.copy()
        context[at] = row_valid["context_tokens"][inside]
        query[at] = row_valid["query_tokens"][inside]
        return context, query

    def _lengths(self) -> tuple[Ints, Ints]:
        """Query and context length of each row by the step's own shapes and mask alone."""
        query = self._steps["query_len"][self._step_of_row]
        past = self._steps["past"][self._step_of_row]
        unread = self._steps["mask_unread"][self._step_of_row] != 0
        has_mask = self._masked_query >= 0
        query = np.where(has_mask, self._masked_query, query)
        context = np.where(has_mask, self._masked_context, past)
        query = np.where(unread & (query != 1), _UNKNOWN, query)
        context = np.where(unread & (past != 0), _UNKNOWN, context)
        return query, context

    def _valid(self, index: int) -> Ints | None:
        """Valid tokens of the rows of a step and of their past, None where no mask says it."""
        rows = self._rows_of(index)
        context, query = self._masked_context[rows], self._masked_query[rows]
        known = len(query) > 0 and bool(np.all(query >= 0)) and bool(np.all(context >= 0))
        return context + query if known else None

    def _steps_of_generations(self) -> dict[int, Ints]:
        numbers = self._steps["generation"]
        order = np.argsort(numbers, kind="stable")
        known, starts = np.unique(numbers[order], return_index=True)
        if not len(known):
            return {}
        return dict(zip(known.tolist(), np.split(order, starts[1:]), strict=True))

    def _rows_of(self, index: int) -> slice:
        return slice(int(self._first[index]), int(self._first[index + 1]))

    def _rows_of_all(self, members: Ints) -> Ints:
        """Places of the rows of several steps, step by step."""
        count = np.maximum(self._steps["rows"][members], 0)
        begin = self._first[members] - np.cumsum(count) + count
        return np.repeat(begin, count) + np.arange(count.sum())

    def _commit(self, generation: Generation | None, members: Ints) -> None:
        if generation is not None and generation.by_generate:
            self._carry_padding(members)
            self._commit_generate(generation, members)
            return
        for index in members.tolist():
            self._commit_declared(index)

    def _commit_declared(self, index: int) -> None:
        """What the user said of a step, if anything; the rows where it is the same for each."""
        total, rows = int(self._steps["committed"][index]), int(self._steps["rows"][index])
        if not self._steps["committed_is_total"][index]:
            total = _UNKNOWN  # of a generate() whose request was let go, and its rows with it
        self.tokens_committed[index] = total
        if total >= 0 and rows > 0 and total % rows == 0:
            self._committed[self._rows_of(index)] = total // rows

    def _carry_padding(self, members: Ints) -> None:
        """Padding seen by the masks of the prefill holds for all later steps of the call."""
        members = members[self._steps["kind"][members] != _DRAFT]
        unread = self._steps["mask_unread"][members] != 0
        valid = {at: self._valid(int(members[at])) for at in range(len(members)) if unread[at]}
        with_rows = np.flatnonzero(self._steps["rows"][members] > 0)
        first_rows = self._first[members[with_rows]]
        for at in with_rows[self._masked_query[first_rows] >= 0].tolist():
            valid[at] = self._valid(int(members[at]))
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
                self._row_context[self._rows_of_all(later)] = _UNKNOWN
            elif padding is not None:
                later = later[self._steps["rows"][later] == len(padding)]
                past = np.repeat(self._steps["past"][later], len(padding))
                context = past - np.tile(padding, len(later))
                self._row_context[self._rows_of_all(later)] = np.maximum(context, 0)

    def _commit_generate(self, generation: Generation, members: Ints) -> None:
        steps = self._steps
        last = int(members[-1])
        drafts = steps["kind"][members] == _DRAFT
        self._committed[self._rows_of_all(members[drafts])] = 0
        self.tokens_committed[members[drafts]] = 0
        members = members[~drafts]
        if generation.is_beam_search:
            self._commit_beams(generation, members)
            return
        for index in members[steps["declared"][members] != 0].tolist():
            self._commit_declared(index)
        members = members[steps["declared"][members] == 0]
        rows = np.maximum(steps["rows"][members], 0)
        tokens, before = steps["committed"][members], steps["committed_before"][members]

        # Tokens of every row, where it is the same for all.
        is_told = generation.commits_known and bool(np.any(tokens >= 0))
        no_row_can_have_ended = (rows == 1) | ((before == 0) & (tokens == 1))
        if not generation.can_end_rows:
            no_row_can_have_ended[:] = True
        each = np.where(tokens <= 0, 0, np.where(no_row_can_have_ended, tokens, _UNKNOWN))
        # At the end of a running or broken call, what came of its last step is open.
        is_last = members == last
        is_open = is_last & ((generation.running & (tokens < 0)) | generation.has_failed)
        each = np.where(is_open | (not is_told), _UNKNOWN, each)
        each = np.where(steps["failed"][members] != 0, 0, each)

        of_step = np.repeat(np.arange(len(members)), rows)
        at = self._rows_of_all(members)
        committed = each[of_step]
        lengths = np.array(generation.row_lengths or [], dtype=np.int64)
        by_length = ((rows == len(lengths)) & (tokens > 0) & is_told & (len(lengths) > 0))[of_step]
        left = lengths[self._row[at[by_length]]] - before[of_step[by_length]]
        committed[by_length] = np.clip(left, 0, tokens[of_step[by_length]])
        self._committed[at] = committed

        unknown = np.bincount(of_step, committed < 0, len(members)) + ((rows == 0) & (each != 0))
        total = np.bincount(of_step, committed, len(members)).astype(np.int64)
        self.tokens_committed[members] = np.where(unknown > 0, _UNKNOWN, total)

    def _commit_beams(self, generation: Generation, members: Ints) -> None:
        self._committed[self._rows_of_all(members)] = 0
        self.tokens_committed[members] = 0
        if generation.running or generation.row_lengths is None or not len(members):
            return
        last = int(members[-1])
        if self._steps["declared"][last]:
            self._commit_declared(last)
            return
        # The rows of the step are beams, those returned are sequences: which is which is unknown.
        self._committed[self._rows_of(last)] = _UNKNOWN
        self.tokens_committed[last] = sum(generation.row_lengths)

    def _longest_context(self) -> Ints:
        longest: Ints = self._steps["past"].copy()
        filled = np.flatnonzero(self._steps["rows"] > 0)
        if len(filled):
            starts = self._first[:-1][filled]
            longest[filled] = np.maximum.reduceat(self._row_context, starts)
            known = np.minimum.reduceat(self._row_context, starts) >= 0
            longest[filled[~known]] = _UNKNOWN
        return longest

    def step_rows(self) -> dict[str, NDArray[Any]]:
        """The columns of ``step_rows``; ``phase`` as an index into `STEP_KINDS`."""
        index = self._step_of_row
        return {
            "step": self._steps["step"][index],
            "row": self._row.astype(np.int32),
            "request": self.request[index],
            "phase": self._steps["kind"][index],
            "query_len": self._query_len,
            "context_len": self._row_context,
            "committed": self._committed,
        }

    def tokens(self) -> dict[str, NDArray[Any]]:
        """The columns of ``tokens``, ascending by step and row."""
        parts = [
            self._tokens_of(self._generations.get(number), members)
            for number, members in self._members.items()
        ]
        names = ("step", "row", "request", "position", "commit_ns", "itl_ns")
        columns = {
            name: np.concatenate([part[i] for part in parts] or [np.empty(0, np.int64)])
            for i, name in enumerate(names)
        }
        order = np.lexsort((columns["position"], columns["row"], columns["step"]))
        columns = {name: column[order] for name, column in columns.items()}
        columns["row"] = columns["row"].astype(np.int32)
        return columns

    def _tokens_of(self, generation: Generation | None, members: Ints) -> tuple[Ints, ...]:
        steps = self._steps
        members = members[self._end_ns[members] >= 0]
        if generation is not None and generation.is_beam_search:
            return self._tokens_of_beams(generation, members)
        rows = self._rows_of_all(members)
        rows = rows[self._committed[rows] > 0]
        index, row, count = self._step_of_row[rows], self._row[rows], self._committed[rows]
        before = steps["committed_before"][index]
        before = np.where(
            steps["committed_is_total"][index] != 0, before // steps["rows"][index], before
        )
        since = self._since_last_commit(index, row)
        repeated = np.repeat(np.arange(len(rows)), count)
        within = np.arange(len(repeated)) - np.repeat(np.cumsum(count) - count, count)
        position = before[repeated] + within
        itl_ns = np.where(within > 0, 0, since[repeated])
        if generation is None:  # no request says which rows continue which
            position[:] = _UNKNOWN
            itl_ns[:] = _UNKNOWN
        index = index[repeated]
        return (
            steps["step"][index],
            row[repeated],
            self.request[index],
            position,
            self._end_ns[index],
            itl_ns,
        )

    def _since_last_commit(self, index: Ints, row: Ints) -> Ints:
        """From the commit before to this one, for entries of one generation; -1 for the first."""
        order = np.lexsort((index, row))
        end_ns = self._end_ns[index[order]]
        since = np.full(len(index), _UNKNOWN, dtype=np.int64)
        if len(index) > 1:
            same_row = row[order][1:] == row[order][:-1]
            since[order[1:]] = np.where(same_row, end_ns[1:] - end_ns[:-1], _UNKNOWN)
        return since

    def _tokens_of_beams(self, generation: Generation, members: Ints) -> tuple[Ints, ...]:
        """All at the end of the last step; between tokens committed at once there is no time."""
        lengths = np.array(generation.row_lengths or [], dtype=np.int64)
        if generation.running or not len(members) or self._steps["declared"][members[-1]]:
            lengths = lengths[:0]
        row = np.repeat(np.arange(len(lengths)), lengths)
        position = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        last = int(members[-1]) if len(members) else 0
        return (
            np.full(len(row), self._steps["step"][last] if len(row) else 0),
            row,
            np.full(len(row), generation.request),
            position,
            np.full(len(row), self._end_ns[last] if len(row) else 0),
            np.full(len(row), _UNKNOWN),
        )

    def by_request(self, first_commit_ns: dict[int, int]) -> dict[int, tuple[int, int, int, int]]:
        """For each request: first commit, rows, tokens in and tokens out; -1 where unknown.

        Args:
            first_commit_ns: by number of a generation, where it is known apart from the steps.
        """
        result: dict[int, tuple[int, int, int, int]] = {}
        for number, generation in self._generations.items():
            members = self._members.get(number, np.empty(0, np.int64))
            first = first_commit_ns.get(number, _UNKNOWN)
            declared = members[self._steps["declared"][members] != 0]
            commits = declared[self.tokens_committed[declared] > 0]
            if len(commits):  # the commits that the user speaks of
                first = int(self._end_ns[commits].min())
            own = (
                first,
                self._sequence_count(generation, members),
                self._prompt_tokens(generation, members),
                self._tokens_out(generation, members),
            )
            held = result.get(generation.request)
            result[generation.request] = own if held is None else _joined(held, own)
        return result

    def _sequence_count(self, generation: Generation, members: Ints) -> int:
        if generation.row_lengths is not None:
            return len(generation.row_lengths)
        rows = self._steps["rows"][members]
        return int(rows.max()) if len(rows) else generation.prompt.rows

    def _prompt_tokens(self, generation: Generation, members: Ints) -> int:
        prompt = generation.prompt
        if prompt.tokens >= 0 or prompt.rows < 0:
            return prompt.tokens
        # What generate() found out about padding shows in the masks up to the first commit.
        commits = np.flatnonzero(self._steps["committed"][members] >= 0)
        valid = None
        for index in members[: commits[0] + 1 if len(commits) else None].tolist():
            if self._steps["mask_unread"][index]:
                return _UNKNOWN
            valid = self._valid(index)
        if valid is None:
            return prompt.rows * prompt.length
        if len(valid) % prompt.rows:
            return _UNKNOWN
        return int(valid.sum()) * prompt.rows // len(valid)

    def _tokens_out(self, generation: Generation, members: Ints) -> int:
        if generation.row_lengths is not None:
            return sum(generation.row_lengths)
        if generation.running:  # a step that has not committed yet has not
            members = members[self._steps["committed"][members] >= 0]
        committed = self.tokens_committed[members]
        return _UNKNOWN if np.any(committed < 0) or not len(committed) else int(committed.sum())


def _joined(
    first: tuple[int, int, int, int], second: tuple[int, int, int, int]
) -> tuple[int, int, int, int]:
    """Of two generations of one request: the earlier commit, the sums of the rest."""
    commits = [ns for ns in (first[0], second[0]) if ns >= 0]
    sums = [
        _UNKNOWN if min(a, b) < 0 else a + b for a, b in zip(first[1:], second[1:], strict=True)
    ]
    return (min(commits, default=_UNKNOWN), sums[0], sums[1], sums[2])
