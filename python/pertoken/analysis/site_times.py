"""How much of each step every site took by itself, inside the forward and before it.

Only spans on the host count. A site's *self time* is the time in its own spans that is not in spans
they enclose. What no span of a step covers belongs to the root module, whose site is the empty
string. Time inside generate() but outside the forward is charged to the step that follows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pertoken.analysis.distribution import usable_weights
from pertoken.analysis.latency import finished
from pertoken.analysis.ratio_interval import half_width
from pertoken.analysis.row_index import holds_text, rows_of
from pertoken.analysis.row_sums import sum_by_row
from pertoken.result import Profile
from pertoken.table import Array

_NESTED_REGIONS = 32
_BY_FULLNESS = ("root", "layers", "custom", "all")


@dataclass(frozen=True)
class Place:
    """A site and where its time is spent: `outside` means before the step, not in its forward."""

    site: str
    category: str
    outside: bool


@dataclass(frozen=True)
class SiteTimes:
    """Self time by step and place, sparse: one entry for each pair that occurs.

    `step_row`, `place` (index into `places`), `self_ns` and `calls` are int64 arrays of shape
    (entries,), sorted by step row and then place. `before_ns` is int64 of shape (steps,): the time
    inside generate that was charged to each step.
    """

    places: tuple[Place, ...]
    step_row: Array
    place: Array
    self_ns: Array
    calls: Array
    before_ns: Array


@dataclass(frozen=True)
class HotSite:
    """A site's part in the steps of one kind; means over steps, weighted by sample_weight.

    Where steps were sampled these are estimates for all of them, and the share's true value lies
    between `share_low` and `share_high` in 95 % of cases. Where none was left out they are equal,
    and with too few effective steps to say they are None.
    """

    kind: str
    site: str
    category: str
    share: float
    share_low: float | None
    share_high: float | None
    self_ns_per_step: float
    calls_per_step: float


def span_self_ns(profile: Profile, parent: Array | None = None) -> Array:
    """Self time of each span: its duration less that of its children on the same track and device.

    Args:
        profile: what was recorded.
        parent: the row of each span's parent, -1 none, when the caller has it.

    Returns:
        int64, shape (spans,), nanoseconds, at least 0.
    """
    spans = profile.spans
    dur_ns = spans["dur_ns"]
    parent = rows_of(spans["span"], spans["parent"]) if parent is None else parent
    child = parent >= 0
    child &= spans["track"] == spans["track"][parent]
    child &= spans["device"] == spans["device"][parent]
    inner_ns = sum_by_row(parent[child], np.maximum(dur_ns[child], 0), len(spans))
    return np.asarray(np.maximum(np.maximum(dur_ns, 0) - inner_ns, 0))


def site_times(profile: Profile) -> SiteTimes:
    """Add up self times by step and site."""
    spans, steps = profile.spans, profile.steps
    inside = rows_of(steps["step"], spans["step"])
    parent = rows_of(spans["span"], spans["parent"])
    generate = holds_text(spans, "category", "generate")
    before = _charged_rows(profile, generate & (inside < 0), parent, inside)
    row = np.where(inside >= 0, inside, before)
    host = (spans["device"] == -1) & (row >= 0)

    outermost = np.ones(len(spans), dtype=bool)
    outermost[parent >= 0] = (row[parent] != row)[parent >= 0]
    covering = host & outermost & (inside >= 0)
    covering &= spans["track"] == np.append(steps["thread"], 0)[inside]
    covered_ns = sum_by_row(row[covering], spans["dur_ns"][covering], len(steps))
    root_ns = np.maximum(np.maximum(steps["wall_ns"], 0) - covered_ns, 0)
    waiting = host & outermost & (inside < 0)
    before_ns = sum_by_row(row[waiting], spans["dur_ns"][waiting], len(steps))

    # A place is numbered by its site, its category and the side of the forward it is on.
    sites = len(spans.strings) + 1
    category_codes = np.unique(spans.codes("category")).tolist()
    categories = ["" if code < 0 else spans.strings[code] for code in category_codes]
    numbered = np.zeros(sites, dtype=np.int64)
    numbered[np.array(category_codes, dtype=np.int64) + 1] = np.arange(len(categories))
    if "module" not in categories:
        categories.append("module")
    side = numbered[spans.codes("category") + 1] + len(categories) * (inside < 0)
    number = _without_empty(spans.codes("site"), spans.strings) + 1 + sites * side
    root = sites * categories.index("module")
    total = 2 * sites * len(categories)

    all_rows = np.arange(len(steps))
    keys = np.concatenate([row[host] * total + number[host], all_rows * total + root])
    values = np.concatenate([span_self_ns(profile, parent)[host], root_ns])
    calls = np.concatenate([np.ones(int(host.sum())), np.zeros(len(steps))])
    order = np.argsort(keys, kind="stable")
    keys, values, calls = keys[order], values[order], calls[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    step_row, numbers = np.divmod(keys[first], total)
    seen = np.zeros(total, dtype=bool)
    seen[numbers] = True
    used = np.flatnonzero(seen)
    place = (np.cumsum(seen) - 1)[numbers]
    return SiteTimes(
        places=tuple(_place(number, sites, categories, spans.strings) for number in used.tolist()),
        step_row=step_row,
        place=place,
        self_ns=np.add.reduceat(values, first) if len(first) else np.zeros(0, np.int64),
        calls=(np.add.reduceat(calls, first) if len(first) else np.zeros(0)).astype(np.int64),
        before_ns=before_ns,
    )


def hottest_sites(
    profile: Profile, count: int = 5, times: SiteTimes | None = None
) -> dict[str, tuple[HotSite, ...]]:
    """Rank the sites of each kind of step by their share of the step time, highest first.

    The share is the self time of the site's spans over the duration of the steps, both summed over
    the steps of the kind that finished, weighted by sample_weight: the ratio of two
    Horvitz-Thompson estimates, with the interval of `half_width` and the time of steps longer than
    any of those. Only steps of the fullest detail that the kind has count: with less detail, a
    site's own time holds that of the sites inside it.

    Args:
        profile: what was recorded.
        count: sites to give for each kind.
        times: `site_times(profile)`, when the caller has it.
    """
    times = site_times(profile) if times is None else times
    steps = profile.steps
    kinds = steps["kind"]
    whole = finished(profile)
    weights = usable_weights(steps["sample_weight"], len(steps)) * whole
    detail = steps["detail"]
    outside = np.array([place.outside for place in times.places], dtype=bool)
    result: dict[str, tuple[HotSite, ...]] = {}
    for kind in dict.fromkeys(kinds.tolist()):
        chosen = whole & (kinds == kind)
        used = weights * chosen
        fullest = max(set(detail[used > 0].tolist()), key=_fullness, default="root")
        used *= detail == fullest
        wall_ns = float((steps["wall_ns"] * used).sum())
        if wall_ns <= 0:
            continue
        share_of = used[times.step_row] * ~outside[times.place]
        size = len(times.places)
        self_ns = np.bincount(times.place, weights=times.self_ns * share_of, minlength=size)
        calls = np.bincount(times.place, weights=times.calls * share_of, minlength=size)
        ranked = np.argsort(-self_ns, kind="stable")[:count]
        shares = self_ns[ranked] / wall_ns
        half = _half_widths(times, ranked, used, np.where(chosen, steps["wall_ns"], 0.0), shares)
        result[kind] = tuple(
            HotSite(
                kind=kind,
                site=times.places[place].site,
                category=times.places[place].category,
                share=share,
                share_low=None if width is None else max(0.0, share - width),
                share_high=None if width is None else min(1.0, share + width),
                self_ns_per_step=float(self_ns[place] / used.sum()),
                calls_per_step=float(calls[place] / used.sum()),
            )
            for place, share, width in zip(ranked.tolist(), shares.tolist(), half, strict=True)
            if self_ns[place] > 0
        )
    return result


def _fullness(detail: str) -> int:
    return _BY_FULLNESS.index(detail) if detail in _BY_FULLNESS else len(_BY_FULLNESS)


def _half_widths(
    times: SiteTimes, places: Array, used: Array, wall_ns: Array, shares: Array
) -> list[float | None]:
    """Half of the interval of 95 % of each place's share; None where it cannot be told.

    Each step was in the sample for itself with probability 1/weight. `wall_ns` is that of the steps
    of the kind that finished, sampled or not, and 0 of all others.
    """
    rows = np.flatnonzero(used > 0)
    weight, used_ns = used[rows], wall_ns[rows]
    left_out = np.maximum(1 - 1 / weight, 0)
    unseen = _unseen_part(wall_ns, used_ns) if left_out.any() else 0.0
    result = []
    for place, share in zip(places.tolist(), shares.tolist(), strict=True):
        own_ns = np.zeros(len(used))
        entries = times.place == place
        own_ns[times.step_row[entries]] = times.self_ns[entries]
        residual = weight * (own_ns[rows] - share * used_ns)
        half = half_width(weight * used_ns, residual, left_out)
        result.append(None if half is None else half + unseen)
    return result


def _unseen_part(wall_ns: Array, used_ns: Array) -> float:
    """Tell which part of the time was that of steps longer than any with spans.

    A site may be dear in rare steps of which none was sampled, and nothing in the sample says so.
    But all steps are timed, and the site cannot have taken more than those did.
    """
    return float(wall_ns[wall_ns > used_ns.max()].sum() / wall_ns.sum())


def _charged_rows(profile: Profile, gaps: Array, parent: Array, inside: Array) -> Array:
    """Find, for spans outside any step, the row of the step they delay; -1 for none.

    That is the next step on the same track, unless it belongs to a request that had not begun: the
    last interval of one request does not delay the next request. Regions inside such an interval
    go with it.
    """
    spans, steps, requests = profile.spans, profile.steps, profile.requests
    row = np.full(len(spans), -1, dtype=np.int64)
    owner = rows_of(requests["request"], steps["request"])
    begun_ns = np.where(
        owner >= 0, np.append(requests["start_ns"], 0)[owner], np.iinfo(np.int64).min
    )
    for track in np.unique(steps["thread"]).tolist():
        chosen = np.flatnonzero(gaps & (spans["track"] == track))
        rows = np.flatnonzero(steps["thread"] == track)
        rows = rows[np.argsort(steps["start_ns"][rows], kind="stable")]
        next_row = np.searchsorted(steps["start_ns"][rows], spans["start_ns"][chosen])
        chosen, next_row = chosen[next_row < len(rows)], next_row[next_row < len(rows)]
        following = rows[next_row]
        row[chosen] = np.where(begun_ns[following] <= spans["start_ns"][chosen], following, -1)
    pending = np.flatnonzero((inside < 0) & (row < 0) & (parent >= 0))
    for _ in range(_NESTED_REGIONS):
        found = row[parent[pending]]
        row[pending] = found
        if not (found >= 0).any():
            break
        pending = pending[found < 0]
    return row


def _without_empty(codes: Array, strings: tuple[str, ...]) -> Array:
    """Give an empty string's code as -1, so that both ways to write it are one site."""
    if "" not in strings:
        return codes.astype(np.int64)
    return np.where(codes == strings.index(""), -1, codes).astype(np.int64)


def _place(number: int, sites: int, categories: list[str], strings: tuple[str, ...]) -> Place:
    rest, site = divmod(number, sites)
    side, category = divmod(rest, len(categories))
    return Place("" if site == 0 else strings[site - 1], categories[category], side == 1)
