"""The tokens that took longest, and where the time went that others did not take.

A token's inter-token latency is its step's forward, the work of drafts before it, the time inside
generate before it, and the rest, in which something else ran. Each part is compared with its median
over steps of the same kind and detail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pertoken.analysis.distribution import percentiles, usable_weights
from pertoken.analysis.latency import finished
from pertoken.analysis.row_index import rows_of
from pertoken.analysis.row_sums import sum_by_row
from pertoken.analysis.site_times import SiteTimes, site_times
from pertoken.result import Profile
from pertoken.table import Array

# The category of time that no recorded step and no interval inside generate accounts for.
BETWEEN = "between"


@dataclass(frozen=True)
class Contributor:
    """A site's part in a slow token: `extra_ns` is its own time less the median for that site."""

    site: str
    category: str
    own_ns: int
    median_ns: int
    extra_ns: int


@dataclass(frozen=True)
class SlowToken:
    """A slow token, and the sites that took most of its extra time.

    `tokens` is how many tokens of its step waited at all: of a batch, one token stands for all.
    `extra_ns` is `itl_ns` less `median_itl_ns`, the median over tokens of steps of the same kind
    and detail. The contributors' extra times need not add up to it, as medians do not add up.
    """

    step: int
    request: int
    row: int
    position: int
    kind: str
    tokens: int
    itl_ns: int
    median_itl_ns: int
    extra_ns: int
    contributors: tuple[Contributor, ...]


def slowest_tokens(
    profile: Profile,
    count: int = 5,
    contributors: int = 3,
    times: SiteTimes | None = None,
) -> tuple[SlowToken, ...]:
    """Find the tokens with the longest inter-token latency, one for each step, longest first.

    Medians are over steps of the same kind and detail, weighted by `steps.sample_weight`. Of a step
    whose inside was not sampled only the parts outside modules are known. A step in which a site
    did not run counts as 0 for it. Steps that were evicted, or that an exception ended, are left
    out.

    Args:
        profile: what was recorded.
        count: tokens to give.
        contributors: sites to give for each, those with the most extra time.
        times: `site_times(profile)`, when the caller has it.
    """
    tokens, steps = profile.tokens, profile.steps
    step_row = rows_of(steps["step"], tokens["step"])
    whole = finished(profile)
    kept = np.flatnonzero(
        (tokens["itl_ns"] >= 0) & (step_row >= 0) & np.append(whole, False)[step_row]
    )
    if len(kept) == 0 or count < 1:
        return ()
    step_row, itl_ns = step_row[kept], tokens["itl_ns"][kept]
    order = np.argsort(-itl_ns, kind="stable")
    _, first = np.unique(step_row[order], return_index=True)
    slowest = order[np.sort(first)[:count]]

    times = site_times(profile) if times is None else times
    owner = _owners(profile)
    group = _groups(profile)
    weights = usable_weights(steps["sample_weight"], len(steps)) * whole
    # Where every step was kept because it was unusual, these are all there is to compare with.
    weights = np.where(np.bincount(group, weights=weights)[group] > 0, weights, whole * 1.0)
    spent_ns = _spent_ns(profile, times, owner)
    between_ns = np.maximum(itl_ns - spent_ns[step_row], 0)
    parts = _parts(times, owner, group, weights)
    waited = np.bincount(step_row, minlength=len(steps))

    result = []
    for index in slowest.tolist():
        row = int(step_row[index])
        peers = group[step_row] == group[row]
        peer_weights = weights[step_row[peers]]
        if not peer_weights.sum() > 0:
            peer_weights = np.ones(int(peers.sum()))
        median_ns = round(percentiles(itl_ns[peers], (0.5,), peer_weights)[0])
        usual_ns = round(percentiles(between_ns[peers], (0.5,), peer_weights)[0])
        found = [
            Contributor(
                site=times.places[place].site,
                category=times.places[place].category,
                own_ns=own_ns,
                median_ns=usual,
                extra_ns=own_ns - usual,
            )
            for place, own_ns, usual in parts.of(row)
        ]
        own_ns = int(between_ns[index])
        found.append(Contributor("", BETWEEN, own_ns, usual_ns, own_ns - usual_ns))
        found = sorted((c for c in found if c.extra_ns > 0), key=lambda c: -c.extra_ns)
        token = int(kept[index])
        result.append(
            SlowToken(
                step=int(steps["step"][row]),
                request=int(tokens["request"][token]),
                row=int(tokens["row"][token]),
                position=int(tokens["position"][token]),
                kind=str(steps["kind"][row]),
                tokens=int(waited[row]),
                itl_ns=int(itl_ns[index]),
                median_itl_ns=median_ns,
                extra_ns=int(itl_ns[index]) - median_ns,
                contributors=tuple(found[:contributors]),
            )
        )
    return tuple(result)


@dataclass(frozen=True)
class _Parts:
    """Time of each place in what led to each step, beside its median; sorted by step row."""

    step_row: Array
    place: Array
    own_ns: Array
    median_ns: Array

    def of(self, row: int) -> list[tuple[int, int, int]]:
        begin, end = np.searchsorted(self.step_row, [row, row + 1])
        columns = (self.place, self.own_ns, self.median_ns)
        return list(zip(*(column[begin:end].tolist() for column in columns), strict=True))


def _owners(profile: Profile) -> Array:
    """Find the row of the step that each step works for: a draft's is the next that is none."""
    steps = profile.steps
    rows = np.arange(len(steps))
    draft = steps["kind"] == "draft"
    if not draft.any():
        return rows
    order = np.lexsort((steps["start_ns"], steps["thread"]))
    # Scanning backwards, each place sees the nearest step at or behind it that is not a draft.
    place = np.where(draft[order], len(steps) - 1, rows)
    served = order[np.minimum.accumulate(place[::-1])[::-1]]
    same = (steps["thread"][served] == steps["thread"][order]) & (
        steps["request"][served] == steps["request"][order]
    )
    owner = np.empty(len(steps), dtype=np.int64)
    owner[order] = np.where(same, served, order)
    return owner


def _groups(profile: Profile) -> Array:
    """Number the pairs of kind and detail: int64, shape (steps,)."""
    steps = profile.steps
    width = len(steps.strings) + 1
    pairs = (steps.codes("kind").astype(np.int64) + 1) * width + steps.codes("detail") + 1
    return np.unique(pairs, return_inverse=True)[1]


def _spent_ns(profile: Profile, times: SiteTimes, owner: Array) -> Array:
    steps = profile.steps
    own_ns = np.maximum(steps["wall_ns"], 0) + times.before_ns
    return sum_by_row(owner, own_ns, len(steps))


def _parts(times: SiteTimes, owner: Array, group: Array, weights: Array) -> _Parts:
    """Add drafts to the steps they work for, and find each place's median in each group."""
    size = len(times.places)
    keys = owner[times.step_row] * size + times.place
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    step_row, place = np.divmod(keys[first], size)
    own_ns = np.add.reduceat(times.self_ns[order], first)

    working = owner == np.arange(len(owner))
    group_weight = np.bincount(group, weights=weights * working)
    population = group[step_row] * size + place
    by_value = np.lexsort((own_ns, population))
    ordered = population[by_value]
    used = weights[step_row][by_value]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    sizes = np.diff(np.append(starts, len(ordered)))
    present = np.add.reduceat(used, starts)
    total = group_weight[ordered[starts] // size]
    # Steps without the place count as zeros, which sort before all that was measured.
    below = np.cumsum(used) - np.repeat(np.cumsum(present) - present, sizes)
    below += np.repeat(total - present, sizes)
    half = np.repeat(total, sizes) / 2
    reached = np.flatnonzero(below >= half * (1 - 1e-12))
    which = np.repeat(np.arange(len(starts)), sizes)[reached]
    at = np.flatnonzero(np.diff(which, prepend=-1))
    median = np.zeros(len(starts), dtype=np.int64)
    median[which[at]] = own_ns[by_value][reached[at]]
    median[(total - present) >= total / 2] = 0
    result = np.empty(len(own_ns), dtype=np.int64)
    result[by_value] = np.repeat(median, sizes)
    return _Parts(step_row, place, own_ns, result)
