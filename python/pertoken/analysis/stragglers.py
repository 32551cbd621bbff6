"""Ranks that others wait for, step by step, and the modules that make them late.

Ranks of one model meet in collectives: there the early ones wait for the last, so that a step takes
all of them equally long, and the time of the slow rank stands in the spans of the others, too. What
tells them apart is *lateness*. All ranks pass the same boundaries, the starts and ends of the same
spans in the same order; lateness is how much later a rank passes one than the typical rank, the
lower median, and at least 0. It rises where a rank is slow, stays until the next collective, and
falls to nothing in it. Waiting never raises it, and no collective needs to be seen.

A rank's *excess* in a step is the largest rise of its lateness from the end of the step before to
the end of this one, less the median of what it is for the other ranks; it is below 0 where those
lost more, so that noise, which makes everybody late in turn, has a median near 0. The sites in
which the lateness rose are the cause.

Where the clocks are not joined, boundaries are counted from the start of the step on each rank.
What a rank loses between its last collective and the end of the step is then not seen.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pertoken.analysis.process_names import distinct_names_of
from pertoken.analysis.row_index import rows_of
from pertoken.analysis.step_matching import StepGroup, match_steps
from pertoken.errors import SelectionError
from pertoken.number_argument import is_number
from pertoken.result import Profile
from pertoken.table import Array

LEAST_STEPS = 10
"""Steps that it takes to call a rank a straggler."""
LEAST_SHARE_OF_STEP = 0.05
"""Share of the median step that the median excess of a straggler surely exceeds, unless given."""
BETWEEN = "between"
"""Category of what runs between two steps."""

_CONFIDENCE_Z = 1.96
_STEPS_AT_ONCE = 1024


@dataclass(frozen=True)
class RankSkew:
    """How late one rank made the others.

    `slowest_share` is the share of the steps in which it was the slowest, by more than the clocks'
    error. Of its excess in each step: the median, a 95 % interval of the median, and the mean; it
    is below 0 where the others lost more.
    `site` and `category` name where most of it arose in the steps in which it was the slowest, and
    `site_share` how much of it; `site` is empty for the model itself, or when it never was.
    """

    process: int
    rank: int
    name: str
    slowest_share: float
    excess_ns: int
    excess_low_ns: int
    excess_high_ns: int
    mean_excess_ns: int
    site: str
    category: str
    site_share: float
    is_straggler: bool


@dataclass(frozen=True)
class SlowStep:
    """A step that one rank held up: its id on the group's first process, and the cause."""

    step: int
    process: int
    rank: int
    excess_ns: int
    site: str
    category: str


@dataclass(frozen=True, eq=False)
class RankGroup:
    """Ranks that ran the same steps.

    `steps` is int64 of shape (steps, ranks): the id of each step on each rank. `excess_ns` is int64
    of the same shape. `slowest` is int64 of shape (steps,): which of `ranks`, -1 where none was
    late by more than `resolution_ns`, the error of the clocks. `compared_inside` counts the steps
    whose spans are the same on all ranks; of the others only the whole is compared.
    `clocks_joined` says whether the ranks share a time axis whose error is known.
    """

    ranks: tuple[RankSkew, ...]
    steps: Array
    excess_ns: Array
    slowest: Array
    slow_steps: tuple[SlowStep, ...]
    step_ns: int
    resolution_ns: int
    compared_inside: int
    clocks_joined: bool

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain data, without the arrays."""
        return {
            "steps": len(self.steps),
            "step_ns": self.step_ns,
            "resolution_ns": self.resolution_ns,
            "compared_inside": self.compared_inside,
            "clocks_joined": self.clocks_joined,
            "ranks": [asdict(rank) for rank in self.ranks],
            "slow_steps": [asdict(step) for step in self.slow_steps],
        }


@dataclass(frozen=True, eq=False)
class Stragglers:
    """Ranks compared with those that ran the same steps; `unmatched` says why others were not."""

    groups: tuple[RankGroup, ...]
    unmatched: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain data: ``groups``, each as of `RankGroup.as_dict`, and ``unmatched``."""
        groups = [group.as_dict() for group in self.groups]
        return {"groups": groups, "unmatched": list(self.unmatched)}


def find_stragglers(
    profile: Profile, *, least_share: float = LEAST_SHARE_OF_STEP, slow_steps: int = 5
) -> Stragglers:
    """Compare the processes of a merged profile, step by step.

    Args:
        profile: what was recorded.
        least_share: the share of the median step that the median excess of a straggler surely
            exceeds, at least 0.
        slow_steps: how many of the steps with the largest excess to give for each group.

    Raises:
        SelectionError: `least_share` is no such number.
    """
    given: object = least_share
    if not is_number(given) or given < 0:
        raise SelectionError(
            f"least_share={least_share!r}: give a share of a step's time, 0 at least, such as "
            "0.05, which is 5 %"
        )
    if len(profile.processes) < 2:
        return Stragglers((), ())
    groups, unmatched = match_steps(profile)
    spans = _StepSpans(profile) if groups else None
    found = [
        _compared(profile, group, spans, least_share, slow_steps)
        for group in groups
        if spans is not None
    ]
    return Stragglers(tuple(found), unmatched)


class _StepSpans:
    """The host's spans of each step on the step's own thread, outer before inner."""

    def __init__(self, profile: Profile) -> None:
        spans, steps = profile.spans, profile.steps
        step_row = rows_of(steps["step"], spans["step"])
        chosen = (step_row >= 0) & (spans["device"] == -1) & (spans["dur_ns"] >= 0)
        chosen &= spans["track"] == np.append(steps["thread"], -1)[step_row]
        rows = np.flatnonzero(chosen)
        keys = (spans["span"][rows], -spans["dur_ns"][rows], spans["start_ns"][rows])
        rows = rows[np.lexsort((*keys, step_row[rows]))]
        self.first = np.searchsorted(step_row[rows], np.arange(len(steps) + 1))
        self.start_ns = spans["start_ns"][rows]
        self.end_ns = self.start_ns + spans["dur_ns"][rows]
        place = np.full(len(spans) + 1, -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        parent = place[rows_of(spans["span"], spans["parent"])[rows]]
        base = self.first[step_row[rows]]
        # What a span is, and which span of its step encloses it: equal on ranks that do the same.
        self.shape = np.stack(
            [
                spans.codes("site")[rows].astype(np.int64),
                spans.codes("category")[rows].astype(np.int64),
                np.where(parent >= base, parent - base, -1),
            ],
            axis=1,
        )

    def of(self, step_row: int) -> Array:
        """What the spans of a step are: int64, shape (spans, 3)."""
        return self.shape[self.first[step_row] : self.first[step_row + 1]]


@dataclass(eq=False)
class _Boundaries:
    """Boundaries inside a step: `index` of the span, whether it `ends` there, and whose time ends.

    `owner` has the site and the category of what ran up to the boundary; one more, the last, is for
    the end of the step.
    """

    index: list[int] = field(default_factory=list)
    ends: list[bool] = field(default_factory=list)
    owner: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def of(cls, shape: Array) -> _Boundaries:
        """Walk through the spans of a step as they open and close."""
        made = cls()
        kinds = [(site, category) for site, category, _ in shape.tolist()]
        open_spans: list[int] = []

        def running() -> tuple[int, int]:
            return kinds[open_spans[-1]] if open_spans else (-1, -1)

        def close() -> None:
            made._add(open_spans[-1], True, running())
            open_spans.pop()

        for index, parent in enumerate(shape[:, 2].tolist()):
            while open_spans and open_spans[-1] != parent:
                close()
            made._add(index, False, running())
            open_spans.append(index)
        while open_spans:
            close()
        made.owner.append((-1, -1))
        return made

    def _add(self, index: int, ends: bool, owner: tuple[int, int]) -> None:
        self.index.append(index)
        self.ends.append(ends)
        self.owner.append(owner)


def _compared(
    profile: Profile, group: StepGroup, spans: _StepSpans, least_share: float, slow_steps: int
) -> RankGroup:
    steps, processes = profile.steps, profile.processes
    errors_ns = processes["clock_error_ns"][list(group.processes)]
    joined = bool((errors_ns >= 0).all())
    resolution_ns = int(np.sort(errors_ns)[-2:].sum()) if joined else 0
    count, ranks = group.rows.shape
    excess_ns = np.zeros((count, ranks), dtype=np.int64)
    cause = np.full((count, 2), -1, dtype=np.int64)
    slowest = np.full(count, -1, dtype=np.int64)
    blamed: list[Counter[tuple[int, int]]] = [Counter() for _ in range(ranks)]
    inside = 0
    for chosen, boundaries in _alike(group, spans):
        inside += len(chosen) if len(boundaries.index) else 0
        times_ns, owners = _times_ns(steps, group.rows, chosen, boundaries, spans, joined)
        late = _Lateness(times_ns)
        excess_ns[chosen] = late.excess_ns
        worst = np.argmax(late.excess_ns, axis=1)
        slow = late.excess_ns[np.arange(len(chosen)), worst] > resolution_ns
        slowest[chosen] = np.where(slow, worst, -1)
        rises = late.rises_of(worst) * slow[:, None]
        owner = np.array(owners)
        cause[chosen] = owner[np.argmax(rises, axis=1)]
        for rank in range(ranks):
            totals = rises[worst == rank].sum(axis=0)
            for key, total in zip(owners, totals.tolist(), strict=True):
                blamed[rank][key] += total
    wall_ns = np.sort(steps["wall_ns"][group.rows].max(axis=1))
    step_ns = int(wall_ns[(count - 1) // 2])
    names = distinct_names_of(profile)
    texts = profile.spans.strings

    def described(key: tuple[int, ...]) -> tuple[str, str]:
        if tuple(key) == _GAP:
            return "", BETWEEN
        return ("" if key[0] < 0 else texts[key[0]]), ("module" if key[1] < 0 else texts[key[1]])

    skews = []
    for place, process in enumerate(group.processes):
        low, middle, high = _median_interval(excess_ns[:, place])
        total = sum(blamed[place].values())
        top = blamed[place].most_common(1)[0] if total else ((-1, -1), 0)
        site, category = described(top[0])
        sure_ns = max(resolution_ns, least_share * step_ns)
        skews.append(
            RankSkew(
                process=process,
                rank=int(processes["rank"][process]),
                name=names[process],
                slowest_share=float((slowest == place).mean()),
                excess_ns=middle,
                excess_low_ns=low,
                excess_high_ns=high,
                mean_excess_ns=round(float(excess_ns[:, place].mean())),
                site=site,
                category=category,
                site_share=top[1] / total if total else 0.0,
                is_straggler=count >= LEAST_STEPS and low > sure_ns,
            )
        )
    most_ns = excess_ns.max(axis=1)
    slow_rows = np.argsort(-most_ns, kind="stable")[:slow_steps]
    listed = [
        SlowStep(
            step=int(steps["step"][group.rows[row, 0]]),
            process=group.processes[slowest[row]],
            rank=int(processes["rank"][group.processes[slowest[row]]]),
            excess_ns=int(most_ns[row]),
            **dict(zip(("site", "category"), described(tuple(cause[row])), strict=True)),
        )
        for row in slow_rows.tolist()
        if slowest[row] >= 0
    ]
    return RankGroup(
        ranks=tuple(skews),
        steps=steps["step"][group.rows],
        excess_ns=excess_ns,
        slowest=slowest,
        slow_steps=tuple(listed),
        step_ns=step_ns,
        resolution_ns=resolution_ns,
        compared_inside=inside,
        clocks_joined=joined,
    )


_GAP = (-2, -2)


def _alike(group: StepGroup, spans: _StepSpans) -> Iterator[tuple[Array, _Boundaries]]:
    """Give the steps of a group in portions that have the same spans, and their boundaries."""
    alike: dict[bytes, list[int]] = defaultdict(list)
    shapes: dict[bytes, Array] = {b"": spans.shape[:0]}
    for number, rows in enumerate(group.rows.tolist()):
        shape = spans.of(rows[0])
        key = shape.tobytes()
        if any(spans.of(row).tobytes() != key for row in rows[1:]):
            key = b""
        shapes.setdefault(key, shape)
        alike[key].append(number)
    for key, numbers in alike.items():
        boundaries = _Boundaries.of(shapes[key])
        for begin in range(0, len(numbers), _STEPS_AT_ONCE):
            yield np.array(numbers[begin : begin + _STEPS_AT_ONCE]), boundaries


def _times_ns(
    steps: Any,
    rows: Array,
    chosen: Array,
    boundaries: _Boundaries,
    spans: _StepSpans,
    joined: bool,
) -> tuple[Array, list[tuple[int, int]]]:
    """When each rank passed each boundary: int64, shape (steps, ranks, boundaries), and the owners.

    The first boundary is the end of the step before, where there is one and clocks are joined, else
    the start of the step, which is the second.
    """
    own = rows[chosen]
    start_ns = steps["start_ns"][own]
    end_ns = start_ns + steps["wall_ns"][own]
    before_ns = start_ns
    if joined:
        previous = rows[np.maximum(chosen - 1, 0)]
        ended_ns = steps["start_ns"][previous] + steps["wall_ns"][previous]
        # Steps of several threads overlap: nothing lies between those.
        follows = (chosen > 0)[:, None] & (ended_ns <= start_ns).all(axis=1, keepdims=True)
        before_ns = np.where(follows, ended_ns, start_ns)
    index = np.array(boundaries.index, dtype=np.int64)
    at = spans.first[own][:, :, None] + index
    ends = np.array(boundaries.ends, dtype=bool)
    inner_ns = np.where(ends, spans.end_ns[at], spans.start_ns[at]) if len(index) else at
    edges = (before_ns[:, :, None], start_ns[:, :, None], inner_ns, end_ns[:, :, None])
    times_ns = np.concatenate(edges, axis=2)
    if not joined:
        times_ns = times_ns - start_ns[:, :, None]
    return times_ns, [_GAP, _GAP, *boundaries.owner]


class _Lateness:
    """How late each rank passes each boundary, and the largest rise of that in each step."""

    def __init__(self, times_ns: Array) -> None:
        typical = np.sort(times_ns, axis=1)[:, (times_ns.shape[1] - 1) // 2]
        self.late_ns = np.maximum(times_ns - typical[:, None, :], 0)
        self._lowest = np.minimum.accumulate(self.late_ns, axis=2)
        risen_ns = self.late_ns - self._lowest
        self._peak = np.argmax(risen_ns, axis=2)
        rise_ns = risen_ns.max(axis=2)
        ranks = rise_ns.shape[1]
        others_ns = [np.sort(np.delete(rise_ns, rank, axis=1), axis=1) for rank in range(ranks)]
        # The upper median of the others: where they are two, both have to be faster.
        usual_ns = np.stack([others[:, (ranks - 1) // 2] for others in others_ns], axis=1)
        self.excess_ns = rise_ns - usual_ns

    def rises_of(self, rank: Array) -> Array:
        """By how much one rank's lateness grew up to each boundary, within its largest rise.

        Args:
            rank: int64, shape (steps,): the rank of each step.

        Returns:
            int64, shape (steps, boundaries), at least 0.
        """
        step = np.arange(len(rank))
        late_ns, peak = self.late_ns[step, rank], self._peak[step, rank][:, None]
        place = np.arange(late_ns.shape[1])
        bottom = np.take_along_axis(self._lowest[step, rank], peak, axis=1)
        lowest = np.where((late_ns == bottom) & (place <= peak), place, -1).max(axis=1)
        grown_ns = np.diff(late_ns, axis=1, prepend=late_ns[:, :1])
        inside = (place > lowest[:, None]) & (place <= peak)
        return np.where(inside, np.maximum(grown_ns, 0), 0)


def _median_interval(values: Array) -> tuple[int, int, int]:
    """The median and its 95 % interval by order statistics: no distribution is assumed."""
    ordered = np.sort(values)
    count = len(ordered)
    skipped = max(math.floor((count - _CONFIDENCE_Z * math.sqrt(count)) / 2), 0)
    places = (min(skipped, count - 1), (count - 1) // 2, max(count - 1 - skipped, 0))
    low, middle, high = (int(ordered[place]) for place in places)
    return low, middle, high
