"""Observations joined: the histogram of what a site put out, over steps and requests."""

from __future__ import annotations

import numbers

import numpy as np

from pertoken.analysis.row_index import holds_text, rows_of
from pertoken.errors import HistogramError, SelectionError
from pertoken.histogram import Histogram, from_parts
from pertoken.histogram_exchange import Buckets, HistogramParts
from pertoken.number_argument import is_number
from pertoken.quantity import name_text
from pertoken.result import Profile
from pertoken.table import Array

_COUNTS = ("zeros", "nans", "pos_infs", "neg_infs")
_NAMES_SHOWN = 8
_PERCENTILES = (1, 50, 99)
# More than any double needs at the finest scale.
_MOST_BUCKETS = 1 << 20


def site_histogram(
    profile: Profile, site: str, step: int | None = None, request: int | None = None
) -> Histogram:
    """The values of a site, merged; see `Profile.histogram`."""
    _check(site, step, request)
    table = profile.activations
    chosen = holds_text(table, "site", site)
    if not chosen.any():
        known = dict.fromkeys(table["site"].tolist())
        names = ", ".join(name_text(name) for name in list(known)[:_NAMES_SHOWN])
        raise SelectionError(
            f"site {site!r} was not observed; "
            + (f"there are {names}" if known else "profile(model, activations=...) observes sites")
        )
    if step is not None:
        chosen &= table["step"] == step
    if request is not None:
        chosen &= requests_of(profile) == request
    return merged(profile, np.flatnonzero(chosen))


def _check(site: object, step: object, request: object) -> None:
    if not isinstance(site, str):
        raise SelectionError(
            f"histogram({site!r}): give the name of a site, as `activations` has it"
        )
    for name, number in (("step", step), ("request", request)):
        if number is not None and not is_number(number, numbers.Integral):
            raise SelectionError(
                f"histogram({name}={number!r}): give the integer that the table of {name}s has"
            )


def requests_of(profile: Profile) -> Array:
    """The request of each observation: of its row, or of its step; int64, -1 none or several."""
    table, steps, step_rows = profile.activations, profile.steps, profile.step_rows
    at_step = rows_of(steps["step"], table["step"])
    of_step = np.where(at_step >= 0, steps["request"][at_step], -1) if len(steps) else at_step
    if not len(step_rows):
        return np.where(table["row"] >= 0, -1, of_step)
    # Rows of a step follow each other, from 0.
    first = rows_of(step_rows["step"], table["step"])
    at = np.minimum(first + table["row"], len(step_rows) - 1)
    is_there = (
        (first >= 0)
        & (step_rows["step"][at] == table["step"])
        & (step_rows["row"][at] == table["row"])
    )
    of_row = np.where(is_there, step_rows["request"][at], -1)
    result: Array = np.where(table["row"] >= 0, of_row, of_step)
    return result


def merged(profile: Profile, rows: Array) -> Histogram:
    """The histogram of some observations together.

    Args:
        profile: what was recorded.
        rows: int64, shape (n,): rows of `Profile.activations`.

    Raises:
        HistogramError: their counts are at odds with each other: the file was changed.
    """
    own = _BucketsByObservation(profile)
    return _joined(profile, own, rows)


def site_percentiles(profile: Profile) -> dict[str, Array]:
    """Percentiles of what each site put out in each step, all its rows together.

    Returns:
        ``time_ns`` int64, the start of the step, ``process`` int32, ``site`` int32 codes, and
        ``p1``, ``p50``, ``p99`` float64; one entry a pair of a step and a site.
    """
    table, steps = profile.activations, profile.steps
    at_step = rows_of(steps["step"], table["step"])
    rows = np.flatnonzero(at_step >= 0)
    rows = rows[np.lexsort((table["observation"][rows], table.codes("site")[rows], at_step[rows]))]
    pairs = np.stack([at_step[rows], table.codes("site")[rows]])
    begins = np.flatnonzero(np.r_[True, (np.diff(pairs) != 0).any(axis=0)]) if len(rows) else rows
    own = _BucketsByObservation(profile)
    found = [_percentiles(profile, own, group) for group in np.split(rows, begins[1:])]
    values = np.array(found, dtype=np.float64).reshape(-1, len(_PERCENTILES))[: len(begins)]
    at = at_step[rows[begins]]
    return {
        "time_ns": steps["start_ns"][at],
        "process": steps["process"][at],
        "site": table.codes("site")[rows[begins]],
        **{f"p{q:.0f}": np.ascontiguousarray(values[:, i]) for i, q in enumerate(_PERCENTILES)},
    }


class _BucketsByObservation:
    """The rows of the table of buckets, observation by observation."""

    def __init__(self, profile: Profile) -> None:
        ids = profile.activation_buckets["observation"]
        self._order = np.argsort(ids, kind="stable")
        self._ids = ids[self._order]

    def of(self, observations: Array) -> Array:
        """The rows that belong to any of some observations."""
        first = np.searchsorted(self._ids, observations)
        last = np.searchsorted(self._ids, observations, side="right")
        parts = [self._order[a:b] for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _percentiles(profile: Profile, own: _BucketsByObservation, rows: Array) -> list[float]:
    try:
        values = _joined(profile, own, rows)
    except HistogramError:
        return [np.nan] * len(_PERCENTILES)
    return [values.quantile(q / 100) for q in _PERCENTILES]


def _joined(profile: Profile, own: _BucketsByObservation, rows: Array) -> Histogram:
    result = Histogram()
    scales = profile.activations["scale"][rows]
    for scale in np.unique(scales).tolist():
        result = result.merge(_of_one_scale(profile, own, rows[scales == scale], scale))
    return result


def _of_one_scale(
    profile: Profile, own: _BucketsByObservation, rows: Array, scale: int
) -> Histogram:
    table, buckets = profile.activations, profile.activation_buckets
    held = own.of(table["observation"][rows])
    sign, index, count = (buckets[name][held] for name in ("sign", "index", "count"))
    filled = rows[table["count"][rows] > 0]
    counts = {name: int(table[name][rows].sum()) for name in _COUNTS}
    with np.errstate(all="ignore"):  # of a file that was changed
        moments = {name: float(table[name][filled].sum()) for name in ("sum", "sum_sq")}
    if min(counts.values()) < 0:
        raise HistogramError("an observation has a negative count: the file was changed")
    return from_parts(
        HistogramParts(
            scale=scale,
            positive=_side(index[sign > 0], count[sign > 0]),
            negative=_side(index[sign < 0], count[sign < 0]),
            **counts,
            sum=moments["sum"],
            sum_sq=moments["sum_sq"],
            min=float(table["min"][filled].min(initial=np.inf)),
            max=float(table["max"][filled].max(initial=-np.inf)),
        )
    )


def _side(index: Array, count: Array) -> Buckets:
    if not len(index):
        return Buckets(0, np.zeros(0, np.uint64))
    offset = int(index.min())
    length = int(index.max()) - offset + 1
    if length > _MOST_BUCKETS or count.min() < 0:
        raise HistogramError("an observation has impossible buckets: the file was changed")
    counts = np.zeros(length, np.int64)
    np.add.at(counts, index - offset, count)
    return Buckets(offset, counts.astype(np.uint64))
