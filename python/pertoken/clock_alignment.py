"""How the clocks of several processes come onto one time axis: a pure function of what is known.

Used by `pertoken.merge`. Processes of one host share its boot clock, which says of itself which
boot it counts from: between them nothing has to be measured. Hosts are joined by the offsets that
`pertoken.synchronize_clocks` measured against one of them, the reference. What neither joins is
placed by Unix time, with an error that nobody knows.

All processes of a host get one and the same map from its boot clock to the axis, so that what is
exact between them stays so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pertoken.errors import MergeError
from pertoken.table import Array

# Two quartz oscillators of 50 ppm each. Where drift was not measured, it is taken to be at most so.
ASSUMED_DRIFT = 1e-4
# No clock that is disciplined or left alone drifts so much: one of the two was set meanwhile.
_LARGEST_DRIFT = 1e-2


@dataclass(frozen=True)
class AxisMap:
    """From nanoseconds since a recording's own origin to the axis: monotone, so that spans nest."""

    start_ns: int
    drift: float

    def to_axis(self, own_ns: Array) -> Array:
        """Convert moments, int64 of shape (n,)."""
        if self.drift == 0:
            return own_ns + self.start_ns
        return own_ns + self.start_ns + np.rint(self.drift * own_ns).astype(np.int64)

    def to_own(self, axis_ns: Array) -> Array:
        """Convert back, to within a nanosecond, and exactly where there is no drift."""
        since_ns = axis_ns - self.start_ns
        if self.drift == 0:
            return since_ns
        return since_ns - np.rint(self.drift / (1 + self.drift) * since_ns).astype(np.int64)


@dataclass(frozen=True)
class Alignment:
    """How one process's times come onto the axis.

    `basis` is one of `schema.CLOCK_BASES`. `offset_ns` is what its boot clock lacks to that of the
    axis, when its recording began. `error_ns` bounds the error of its times against the axis's
    clock; -1 when nothing bounds it.
    """

    axis_map: AxisMap
    basis: str
    offset_ns: int
    error_ns: int


@dataclass(frozen=True)
class Measurement:
    """At `boot_ns`, a host's boot clock lacked `offset_ns` to the reference's, give or take."""

    boot_ns: int
    offset_ns: int
    error_ns: int


@dataclass(frozen=True)
class ClockFacts:
    """What the metadata of a recording says of its clock."""

    name: str
    boot_id: str
    boot_ns: int
    unix_ns: int | None
    duration_ns: int
    error_ns: int
    measurements: Mapping[str, tuple[Measurement, ...]]  # by the boot id of the reference

    @classmethod
    def of(cls, meta: Mapping[str, Any], name: str, position: int) -> ClockFacts:
        """Read the metadata of a recording.

        Args:
            meta: the metadata.
            name: the process, for messages.
            position: of the process among all. One that does not know its boot is on its own host.

        Raises:
            MergeError: it gives neither clock.
        """
        clock = meta.get("clock") or {}
        boot_ns, unix_ns = meta.get("boot_origin_ns"), meta.get("unix_origin_ns")
        boot_id = clock.get("boot_id") or ""
        if boot_ns is None or not boot_id:
            if unix_ns is None:
                raise MergeError(
                    f"{name} has no time base that others share: its file says neither which boot "
                    "clock it counts on nor its Unix time; record it again"
                )
            boot_id, boot_ns = f"unknown {position}", unix_ns if boot_ns is None else boot_ns
        measured: dict[str, list[Measurement]] = {}
        for entry in clock.get("synchronized") or ():
            values = (entry["boot_ns"], entry["offset_ns"], entry["error_ns"])
            measured.setdefault(entry["reference"], []).append(Measurement(*values))
        error_ns = clock.get("error_bound_ns")
        return cls(
            name=name,
            boot_id=boot_id,
            boot_ns=boot_ns,
            unix_ns=unix_ns,
            duration_ns=meta.get("duration_ns") or 0,
            error_ns=-1 if error_ns is None else error_ns,
            measurements={key: tuple(values) for key, values in measured.items()},
        )


@dataclass(frozen=True)
class HostLine:
    """A host's offset to the reference as a line: `offset_ns` at `boot_ns`, then by `drift`.

    The error is `error_ns` between `boot_ns` and `last_boot_ns`, and grows by `error_rate` outside.
    """

    boot_ns: int
    last_boot_ns: int
    offset_ns: int
    drift: float
    error_ns: int
    error_rate: float

    @classmethod
    def through(cls, measurements: Sequence[Measurement]) -> HostLine:
        """Lay a line through measurements, at least one.

        The first and the last give the drift, if they lie so far apart that it is better known than
        assumed, and the others say how far the line is off; else the narrowest one counts alone.
        Where a clock was set meanwhile, the narrowest counts, and the others are its error.
        """
        ordered = sorted(set(measurements), key=lambda m: (m.boot_ns, m.error_ns, m.offset_ns))
        first, last = ordered[0], ordered[-1]
        best = min(ordered, key=lambda m: m.error_ns)
        apart_ns = last.boot_ns - first.boot_ns
        unsure_ns = first.error_ns + last.error_ns
        if apart_ns == 0 or unsure_ns > ASSUMED_DRIFT * apart_ns:
            return cls(
                best.boot_ns, best.boot_ns, best.offset_ns, 0.0, best.error_ns, ASSUMED_DRIFT
            )
        drift = (last.offset_ns - first.offset_ns) / apart_ns
        line = cls(first.boot_ns, last.boot_ns, first.offset_ns, drift, 0, unsure_ns / apart_ns)
        if abs(drift) > _LARGEST_DRIFT:
            line = cls(first.boot_ns, last.boot_ns, best.offset_ns, 0.0, 0, ASSUMED_DRIFT)
        off_ns = max(abs(m.offset_ns - line.at(m.boot_ns)) + m.error_ns for m in ordered)
        return cls(
            line.boot_ns, line.last_boot_ns, line.offset_ns, line.drift, off_ns, line.error_rate
        )

    def at(self, boot_ns: int) -> int:
        """The offset when the host's boot clock showed `boot_ns`."""
        return self.offset_ns + round(self.drift * (boot_ns - self.boot_ns))

    def error_at(self, boot_ns: int) -> int:
        """Bound the error there."""
        outside_ns = max(self.boot_ns - boot_ns, boot_ns - self.last_boot_ns, 0)
        return self.error_ns + int(np.ceil(self.error_rate * outside_ns))


def align(facts: Sequence[ClockFacts]) -> tuple[Alignment, ...]:
    """Bring processes onto one axis, whose origin is the earliest of theirs.

    Args:
        facts: of each process.

    Returns:
        One alignment for each, in the same order.

    Raises:
        MergeError: a process has no time base in common with the others.
    """
    reference = _reference(facts)
    lines = dict(_measured_lines(facts, reference))
    placed = [f for f in facts if f.boot_id == reference or f.boot_id in lines]
    anchor = next((f for f in placed if f.unix_ns is not None), None)
    by_unix_time = _unix_offsets(facts, lines, anchor)
    made = []
    for own in facts:
        line = lines.get(own.boot_id)
        error_ns, drift = own.error_ns, 0.0
        if own.boot_id == reference:
            basis, offset_ns = "boot", 0
        elif line is not None:
            basis, offset_ns, drift = "synchronized", line.at(own.boot_ns), line.drift
            ends = (own.boot_ns, own.boot_ns + own.duration_ns)
            if error_ns >= 0:
                error_ns += max(line.error_at(boot_ns) for boot_ns in ends)
        elif own.boot_id in by_unix_time:
            basis, offset_ns, error_ns = "unix", by_unix_time[own.boot_id], -1
        else:
            raise MergeError(
                f"{own.name} has no time base in common with {placed[0].name}: another host, whose "
                "clock was not measured, and no Unix time on both; call "
                "pertoken.synchronize_clocks() on all ranks, and record again"
            )
        made.append(Alignment(AxisMap(own.boot_ns + offset_ns, drift), basis, offset_ns, error_ns))
    origin_ns = min((alignment.axis_map.start_ns for alignment in made), default=0)
    return tuple(
        Alignment(
            AxisMap(a.axis_map.start_ns - origin_ns, a.axis_map.drift),
            a.basis,
            a.offset_ns,
            a.error_ns,
        )
        for a in made
    )


def _reference(facts: Sequence[ClockFacts]) -> str:
    """Choose the host whose boot clock joins the most processes; the first of several such."""
    hosts = dict.fromkeys(f.boot_id for f in facts)
    hosts.update(dict.fromkeys(reference for f in facts for reference in f.measurements))
    joined = {
        host: {f.boot_id for f in facts if f.boot_id == host or host in f.measurements}
        for host in hosts
    }
    return max(hosts, key=lambda host: sum(f.boot_id in joined[host] for f in facts), default="")


def _measured_lines(facts: Sequence[ClockFacts], reference: str) -> Iterator[tuple[str, HostLine]]:
    measured: dict[str, list[Measurement]] = {}
    for own in facts:
        if own.boot_id != reference and reference in own.measurements:
            measured.setdefault(own.boot_id, []).extend(own.measurements[reference])
    for boot_id, measurements in measured.items():
        yield boot_id, HostLine.through(measurements)


def _unix_offsets(
    facts: Sequence[ClockFacts], lines: Mapping[str, HostLine], anchor: ClockFacts | None
) -> dict[str, int]:
    """Find what each host's boot clock lacks to the axis's by Unix time; its first process counts.

    Args:
        facts: of each process.
        lines: of the hosts that were measured.
        anchor: a process whose clock is joined to the axis and which knows its Unix time.
    """
    if anchor is None or anchor.unix_ns is None:
        return {}
    line = lines.get(anchor.boot_id)
    axis_ns = anchor.boot_ns + (line.at(anchor.boot_ns) if line else 0) - anchor.unix_ns
    offsets: dict[str, int] = {}
    for own in facts:
        if own.unix_ns is not None:
            offsets.setdefault(own.boot_id, own.unix_ns - own.boot_ns + axis_ns)
    return offsets
