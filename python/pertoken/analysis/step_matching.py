"""Which steps of several processes are the same step: ranks of one model run them side by side.

Two processes match when their steps do the same work (kind, rows and positions fed) in the same
order. Recordings need not have begun together: the difference of the step numbers is the one that
most steps show which ran at the same time. Where the clocks are not joined, steps of equal numbers
are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pertoken.analysis.latency import finished
from pertoken.analysis.process_names import distinct_names_of
from pertoken.merging import own_ids
from pertoken.quantity import name_text, share_text
from pertoken.result import Profile
from pertoken.table import Array

LEAST_AGREEMENT = 0.9
"""Share of the matched steps that must have done the same work."""
LEAST_TOGETHER = 0.5
"""Share of the steps that must show the same difference of their numbers."""


@dataclass(frozen=True, eq=False)
class StepGroup:
    """Processes that ran the same steps.

    `processes` are their numbers. `rows` is int64 of shape (steps, processes): where each step is
    in the table of steps. Steps that some of them lack, or did not finish, are left out.
    """

    processes: tuple[int, ...]
    rows: Array


@dataclass(frozen=True, eq=False)
class _Run:
    """The finished steps of one process, in the order of their own numbers."""

    process: int
    rows: Array
    numbers: Array
    start_ns: Array
    end_ns: Array
    work: Array

    @property
    def middle_ns(self) -> Array:
        """The middle of each step: int64, shape (steps,)."""
        return (self.start_ns + self.end_ns) // 2


def match_steps(profile: Profile) -> tuple[tuple[StepGroup, ...], tuple[str, ...]]:
    """Group the processes of a profile by the steps that they ran together.

    Each process is compared with the first of each group.

    Args:
        profile: what was recorded.

    Returns:
        The groups of two processes and more, and a sentence for each process that is in none.
    """
    joined = bool((profile.processes["clock_error_ns"] >= 0).all())
    names = distinct_names_of(profile)
    groups: list[StepGroup] = []
    reasons: dict[int, str] = {}
    waiting = _runs(profile)
    while waiting:
        first, *others = waiting
        members, common, waiting = [first], np.arange(len(first.numbers)), []
        for other in others:
            place, reason = _places(first, other, joined)
            kept = common[np.isin(common, np.flatnonzero(place >= 0))]
            if reason or len(kept) == 0:
                because = reason or "they share no step with the others"
                text = f"{name_text(names[other.process])}: its steps are not those of "
                text += f"{name_text(names[first.process])}: {because}."
                reasons.setdefault(other.process, text)
                waiting.append(other)
            else:
                members.append(other)
                common = kept
        if len(members) > 1:
            columns = [member.rows[_places(first, member, joined)[0][common]] for member in members]
            rows = np.stack(columns, axis=1)
            groups.append(StepGroup(tuple(member.process for member in members), rows))
            for member in members:
                reasons.pop(member.process, None)
    return tuple(groups), tuple(reasons.values())


def _runs(profile: Profile) -> list[_Run]:
    steps = profile.steps
    whole = finished(profile)
    work = np.stack(
        [steps.codes("kind").astype(np.int64), steps["rows"], steps["tokens_in"]], axis=1
    )
    runs = []
    for process in range(len(profile.processes)):
        rows = np.flatnonzero(whole & (steps["process"] == process))
        rows = rows[np.argsort(steps["step"][rows], kind="stable")]
        if len(rows):
            start_ns, wall_ns = steps["start_ns"][rows], steps["wall_ns"][rows]
            numbers = own_ids(steps["step"][rows])
            runs.append(_Run(process, rows, numbers, start_ns, start_ns + wall_ns, work[rows]))
    return runs


def _places(first: _Run, other: _Run, joined: bool) -> tuple[Array, str]:
    """Find where in `other` each step of `first` is, -1 nowhere, or why they do not match."""
    shift = 0
    if joined:
        found = _shift(first, other)
        if isinstance(found, str):
            return np.full(len(first.rows), -1), found
        shift = found
    place = np.searchsorted(other.numbers, first.numbers + shift)
    place[place == len(other.numbers)] = 0
    place = np.where(other.numbers[place] == first.numbers + shift, place, -1)
    known = place >= 0
    if not known.any():
        return place, "none has the number of another"
    same = (first.work[known] == other.work[place[known]]).all(axis=1).mean()
    if same < LEAST_AGREEMENT:
        return place, f"only {share_text(float(same))} of them do the same work"
    return place, ""


def _shift(first: _Run, other: _Run) -> int | str:
    """The difference of the numbers of steps that ran at the same time, or why there is none."""
    middle_ns, moments = first.middle_ns, other.middle_ns
    order = np.argsort(moments, kind="stable")
    moments = moments[order]
    behind = np.clip(np.searchsorted(moments, middle_ns), 1, max(len(moments) - 1, 1))
    before = behind - 1
    behind = np.minimum(behind, len(moments) - 1)
    nearer = middle_ns - moments[before] <= moments[behind] - middle_ns
    nearest = order[np.where(nearer, before, behind)]
    together = first.start_ns < other.end_ns[nearest]
    together &= other.start_ns[nearest] < first.end_ns
    if not together.any():
        return "they ran at other times"
    differences, counts = np.unique(
        (other.numbers[nearest] - first.numbers)[together], return_counts=True
    )
    most = int(np.argmax(counts))
    share = float(counts[most] / counts.sum())
    if share < LEAST_TOGETHER:
        return f"only {share_text(share)} of them ran in step"
    return int(differences[most])
