"""What is wrong with activations: values that are not finite, saturated formats, dead outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pertoken.analysis.distribution import usable_weights
from pertoken.analysis.row_index import rows_of
from pertoken.result import Profile
from pertoken.table import Array

# The largest finite value, of formats so narrow that values reach it by being cut to it.
_LARGEST = {
    "float16": 65504.0,
    "float8_e4m3fn": 448.0,
    "float8_e4m3fnuz": 240.0,
    "float8_e5m2": 57344.0,
    "float8_e5m2fnuz": 57344.0,
}


class FirstNonfinite(NamedTuple):
    """Where a NaN or an infinity first appeared.

    Attributes:
        site: the site that put it out; what holds it puts it out later.
        step: the step, -1 outside any.
        token: the position, in its sequence, of the token that the step produced; -1 unknown.
    """

    site: str
    step: int
    token: int


@dataclass(frozen=True)
class SiteHealth:
    """A site with something wrong.

    Attributes:
        site: its name.
        observations: how many there are of it.
        nans: values that are not a number.
        infs: infinities.
        saturated: observations that hold the largest finite value of a 16-bit or 8-bit format.
        dead: observations of nothing but zeros.
        share: of all its outputs, the part with any of that, estimated from the observed ones by
            their weights (Hájek); None where a file has lost them.
    """

    site: str
    observations: int
    nans: int
    infs: int
    saturated: int
    dead: int
    share: float | None


def first_nonfinite(profile: Profile) -> FirstNonfinite | None:
    """The first observation that holds a NaN or an infinity; None where there is none."""
    table = profile.activations
    bad = np.flatnonzero(_infs(profile) + table["nans"] > 0)
    if not len(bad):
        return None
    # Within a process in the order in which they were made; processes by the time of the step.
    at_step = rows_of(profile.steps["step"], table["step"][bad])
    start_ns = np.full(len(bad), np.iinfo(np.int64).max)
    start_ns[at_step >= 0] = profile.steps["start_ns"][at_step[at_step >= 0]]
    by_id = np.argsort(table["observation"][bad], kind="stable")
    process = table["observation"][bad] >> 44
    first_of_process = by_id[np.unique(process[by_id], return_index=True)[1]]
    first = bad[first_of_process[np.argmin(start_ns[first_of_process])]]
    step, row = int(table["step"][first]), int(table["row"][first])
    return FirstNonfinite(str(table["site"][first]), step, _token(profile, step, row))


def _token(profile: Profile, step: int, row: int) -> int:
    tokens = profile.tokens
    here = tokens["step"] == step
    if row >= 0:
        here &= tokens["row"] == row
    positions = tokens["position"][here & (tokens["position"] >= 0)]
    return int(positions.min()) if len(positions) else -1


def unhealthy_sites(profile: Profile) -> tuple[SiteHealth, ...]:
    """The sites with anything wrong, in the order of their first observations.

    A site is dead when every observation of it is; a lone one may be.
    """
    table = profile.activations
    codes = table.codes("site")
    known, first, site = np.unique(codes, return_index=True, return_inverse=True)
    observations = np.bincount(site, minlength=len(known))

    def by_site(values: Array) -> Array:
        sums = np.zeros(len(known), np.int64)
        np.add.at(sums, site, values)
        return sums

    finite = table["nans"] + _infs(profile) == 0
    cut = _cut(profile)
    dead = by_site((table["count"] > 0) & (table["zeros"] == table["count"]) & finite)
    nans, infs, saturated = by_site(table["nans"]), by_site(_infs(profile)), by_site(cut)
    is_dead = (dead == observations) & (dead > 0)
    weights = usable_weights(table["weight"], len(table))
    weighted_wrong = np.bincount(site, weights * (~finite | cut | is_dead[site]), len(known))
    weight = np.bincount(site, weights, len(known))
    wrong = np.flatnonzero((nans > 0) | (infs > 0) | (saturated > 0) | is_dead)
    names = table["site"]
    return tuple(
        SiteHealth(
            site=str(names[first[i]]),
            observations=int(observations[i]),
            nans=int(nans[i]),
            infs=int(infs[i]),
            saturated=int(saturated[i]),
            dead=int(dead[i]) if is_dead[i] else 0,
            share=float(weighted_wrong[i] / weight[i]) if weight[i] > 0 else None,
        )
        for i in wrong[np.argsort(first[wrong], kind="stable")].tolist()
    )


def _infs(profile: Profile) -> Array:
    table = profile.activations
    return np.asarray(table["pos_infs"] + table["neg_infs"])


def _cut(profile: Profile) -> Array:
    table = profile.activations
    largest = np.full(len(table), np.inf)
    for dtype, value in _LARGEST.items():
        largest[table["dtype"] == dtype] = value
    return np.asarray((table["max"] >= largest) | (table["min"] <= -largest))
