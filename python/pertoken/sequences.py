"""What each step did for each sequence: the rows of steps, and the tokens committed to them.

Works on the native columns of the steps and on the generations noted in Python; pure functions of
both. A generation's steps are those that carry its number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pertoken.row_layout import Ints, RowLayout
from pertoken.row_lengths import RowLengths
from pertoken.schema import STEP_KINDS
from pertoken.told_rows import ToldRows

if TYPE_CHECKING:
    from pertoken.request_log import Generation

_DRAFT = STEP_KINDS.index("draft")
_UNKNOWN = -1


class Outcome(NamedTuple):
    """What came of a request, or of one of its generations; -1 where it is unknown."""

    first_commit_ns: int = _UNKNOWN
    rows: int = _UNKNOWN
    tokens_in: int = _UNKNOWN
    tokens_out: int = _UNKNOWN
    output_len: int = _UNKNOWN  # tokens of the longest row


class Sequences:
    """Rows and tokens of a set of steps.

    Args:
        raw: the native columns ``steps``, ``row_valid``, ``rows`` and ``row_commits``; see
            ``snapshot_columns.cpp``. One entry of ``steps`` a step, ascending.
        generations: by number.

    Attributes:
        request: int64 (steps,), the request of each step, -1 none.
        tokens_committed: int64 (steps,), over all rows, -1 unknown.
        context_len: int64 (steps,), of the longest row, -1 unknown.
    """

    def __init__(
        self,
        raw: dict[str, dict[str, Ints]],
        generations: dict[int, Generation],
    ) -> None:
        steps = raw["steps"]
        self._steps = steps
        self._generations = generations
        self._end_ns = np.where(steps["wall_ns"] >= 0, steps["start_ns"] + steps["wall_ns"], -1)
        self._layout = RowLayout(steps)
        self._lengths = RowLengths(steps, self._layout, raw["row_valid"])
        self._told = ToldRows(steps, self._layout, raw["rows"], raw["row_commits"], generations)
        self._members = self._steps_of_generations()
        self._committed = self._layout.filled(_UNKNOWN)
        self.tokens_committed = np.full(len(steps["step"]), _UNKNOWN, dtype=np.int64)
        for number, members in self._members.items():
            self._commit(generations.get(number), members)
        self.request = self._requests(steps["generation"])
        self._row_request = self.request[self._layout.step_of_row]
        self._phase = steps["kind"][self._layout.step_of_row]
        self._take_told_rows()
        self.context_len = self._lengths.longest_context()

    def _take_told_rows(self) -> None:
        told, at = self._told, self._told.places
        self._lengths.query[at], self._lengths.context[at] = told.query_len, told.context_len
        self._committed[at], self._phase[at] = told.committed, told.phase
        self._row_request[at] = self._requests(told.generation)
        self.request[told.steps] = told.of_steps(self._row_request[at], _UNKNOWN)
        self.tokens_committed[told.steps] = told.tokens_committed()

    def _requests(self, numbers: Ints) -> Ints:
        """Of generations, by number; -1 where they are not held."""
        known, inverse = np.unique(numbers, return_inverse=True)
        requests = [
            self._generations[number].request if number in self._generations else _UNKNOWN
            for number in known.tolist()
        ]
        return np.array(requests, dtype=np.int64)[inverse]

    def _steps_of_generations(self) -> dict[int, Ints]:
        """Of the steps whose rows were not told each by itself."""
        plain = np.flatnonzero(self._steps["has_rows"] == 0)
        numbers = self._steps["generation"][plain]
        order = np.argsort(numbers, kind="stable")
        known, starts = np.unique(numbers[order], return_index=True)
        if not len(known):
            return {}
        return dict(zip(known.tolist(), np.split(plain[order], starts[1:]), strict=True))

    def _commit(self, generation: Generation | None, members: Ints) -> None:
        if generation is not None and generation.by_generate:
            self._lengths.carry_padding(members)
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
            self._committed[self._layout.of(index)] = total // rows

    def _commit_generate(self, generation: Generation, members: Ints) -> None:
        steps = self._steps
        last = int(members[-1])
        drafts = steps["kind"][members] == _DRAFT
        self._committed[self._layout.of_all(members[drafts])] = 0
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
        at = self._layout.of_all(members)
        committed = each[of_step]
        lengths = np.array(generation.row_lengths or [], dtype=np.int64)
        by_length = ((rows == len(lengths)) & (tokens > 0) & is_told & (len(lengths) > 0))[of_step]
        left = lengths[self._layout.row[at[by_length]]] - before[of_step[by_length]]
        committed[by_length] = np.clip(left, 0, tokens[of_step[by_length]])
        self._committed[at] = committed

        unknown = np.bincount(of_step, committed < 0, len(members)) + ((rows == 0) & (each != 0))
        total = np.bincount(of_step, committed, len(members)).astype(np.int64)
        self.tokens_committed[members] = np.where(unknown > 0, _UNKNOWN, total)

    def _commit_beams(self, generation: Generation, members: Ints) -> None:
        self._committed[self._layout.of_all(members)] = 0
        self.tokens_committed[members] = 0
        if generation.running or generation.row_lengths is None or not len(members):
            return
        last = int(members[-1])
        if self._steps["declared"][last]:
            self._commit_declared(last)
            return
        # The rows of the step are beams, those returned are sequences: which is which is unknown.
        self._committed[self._layout.of(last)] = _UNKNOWN
        self.tokens_committed[last] = sum(generation.row_lengths)

    def step_rows(self) -> dict[str, NDArray[Any]]:
        """The columns of ``step_rows``; ``phase`` as an index into `STEP_KINDS`."""
        return {
            "step": self._steps["step"][self._layout.step_of_row],
            "row": self._layout.row.astype(np.int32),
            "request": self._row_request,
            "phase": self._phase,
            "query_len": self._lengths.query,
            "context_len": self._lengths.context,
            "committed": self._committed,
        }

    def tokens(self) -> dict[str, NDArray[Any]]:
        """The columns of ``tokens``, ascending by step and row."""
        parts = [
            self._tokens_of(self._generations.get(number), members)
            for number, members in self._members.items()
        ]
        parts.append(self._told_tokens())
        names = ("step", "row", "request", "position", "commit_ns", "itl_ns")
        columns = {
            name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)
        }
        order = np.lexsort((columns["position"], columns["row"], columns["step"]))
        columns = {name: column[order] for name, column in columns.items()}
        columns["row"] = columns["row"].astype(np.int32)
        return columns

    def _told_tokens(self) -> tuple[Ints, ...]:
        index, row, position, commit_ns, itl_ns = self._told.tokens(self._end_ns)
        request = self._row_request[self._layout.first[index] + row]
        return self._steps["step"][index], row, request, position, commit_ns, itl_ns

    def _tokens_of(self, generation: Generation | None, members: Ints) -> tuple[Ints, ...]:
        steps = self._steps
        members = members[self._end_ns[members] >= 0]
        if generation is not None and generation.is_beam_search:
            return self._tokens_of_beams(generation, members)
        rows = self._layout.of_all(members)
        rows = rows[self._committed[rows] > 0]
        index, row, count = (
            self._layout.step_of_row[rows],
            self._layout.row[rows],
            self._committed[rows],
        )
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

    def by_request(self, first_commit_ns: dict[int, int]) -> dict[int, Outcome]:
        """What came of each request.

        Args:
            first_commit_ns: by number of a generation, where it is known apart from the steps.
        """
        result: dict[int, Outcome] = {}
        for number, generation in self._generations.items():
            held = result.get(generation.request)
            if generation.by_rows:
                first = first_commit_ns.get(number, _UNKNOWN)
                own = _of_told_sequence(generation, held.first_commit_ns if held else first)
            else:
                own = self._of_generation(number, generation, first_commit_ns)
                own = own if held is None else _joined(held, own)
            result[generation.request] = own
        return result

    def _of_generation(
        self, number: int, generation: Generation, first_commit_ns: dict[int, int]
    ) -> Outcome:
        members = self._members.get(number, np.empty(0, np.int64))
        first = first_commit_ns.get(number, _UNKNOWN)
        declared = members[self._steps["declared"][members] != 0]
        commits = declared[self.tokens_committed[declared] > 0]
        if len(commits):  # the commits that the user speaks of
            first = int(self._end_ns[commits].min())
        own = Outcome(
            first,
            self._sequence_count(generation, members),
            self._prompt_tokens(generation, members),
            self._tokens_out(generation, members),
            self._output_len(generation, members),
        )
        told = self._told.places_of(number)
        if not len(told):
            return own
        by_rows = self._of_told_rows(told)
        if not len(members):
            return by_rows
        return _joined(own, by_rows)._replace(rows=max(own.rows, by_rows.rows))

    def _of_told_rows(self, places: Ints) -> Outcome:
        """Of rows that were told without a request of their own, in one generation."""
        step, committed = self._layout.step_of_row[places], self._committed[places]
        ends = self._end_ns[step[committed > 0]]
        rows = np.unique(step, return_counts=True)[1].max()
        unknown = bool(np.any(committed < 0))
        of_row = np.bincount(self._layout.row[places], np.maximum(committed, 0))
        return Outcome(
            first_commit_ns=int(ends.min()) if len(ends) else _UNKNOWN,
            rows=int(rows),
            tokens_out=_UNKNOWN if unknown else int(committed.sum()),
            output_len=_UNKNOWN if unknown else int(of_row.max()),
        )

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
            valid = self._lengths.valid(index)
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

    def _output_len(self, generation: Generation, members: Ints) -> int:
        if generation.is_beam_search or (generation.running and generation.by_generate):
            return _UNKNOWN
        if generation.row_lengths is not None:
            return max(generation.row_lengths, default=0)
        steps = self._steps
        is_told = (steps["committed"][members] >= 0) & (steps["committed_is_total"][members] != 0)
        if not is_told.size or not is_told.all():
            return _UNKNOWN
        last = members[-1]
        total = int(steps["committed_before"][last] + steps["committed"][last])
        rows = int(steps["rows"][last])
        return total // rows if rows > 0 and total % rows == 0 else _UNKNOWN


def _of_told_sequence(generation: Generation, first_commit_ns: int) -> Outcome:
    """Of one engine's request, by its last run; what it was given unseen is unknown."""
    sequence = generation.state
    is_told = generation.from_start and sequence is not None  # else its first row is not
    is_whole = is_told and not sequence.tokens_unknown
    tokens = int(sequence.tokens) if is_whole else _UNKNOWN
    return Outcome(first_commit_ns, 1, generation.prompt.tokens, tokens, tokens)


def _joined(first: Outcome, second: Outcome) -> Outcome:
    """Of two generations of one request: the earlier commit, the sums of the rest."""
    commits = [own.first_commit_ns for own in (first, second) if own.first_commit_ns >= 0]
    sums = [
        _UNKNOWN if min(a, b) < 0 else a + b for a, b in zip(first[1:], second[1:], strict=True)
    ]
    return Outcome(min(commits, default=_UNKNOWN), *sums)
