"""Joining the profiles of several processes into one, on one time axis.

What a column holds is declared in the schema, and decides what happens to it:

- Ids of requests, steps, spans and observations become ``process * 2**44 + id``. They never
  collide, keep their order, stay what they were for process 0, and give process and original id
  back by a division. A process keeps its number's distance to the others when a merged profile is
  merged again, so that merging is associative.
- Tracks and processes are numbered on.
- Moments are brought onto the axis by `clock_alignment`; durations go with the moments they belong
  to, so that what nested still nests.
- Codes are those of a common table of strings. Rows keep their order, process by process.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pertoken import schema
from pertoken.analysis.process_names import distinct_names
from pertoken.clock_alignment import Alignment, AxisMap, ClockFacts, align
from pertoken.errors import MergeError
from pertoken.processes import process_columns, process_name
from pertoken.quantity import name_text
from pertoken.result import Profile
from pertoken.schema import ID_BITS
from pertoken.strings import StringTable
from pertoken.table import Array, Table
from pertoken.totals import Totals
from pertoken.version import __version__

_ROW_IDS = ("request", "step", "span", "observation")
_IDENTITY = ("host", "pid", "boot_origin_ns", "unix_origin_ns")
_OWN_KEYS = ("format_version", "pertoken_version", "processes")


def own_ids(ids: Array) -> Array:
    """Give the ids that steps, spans or requests had in their own process's profile.

    Args:
        ids: int64, shape (n,): ids of any profile, merged or not; -1 stays.
    """
    return np.where(ids < 0, ids, ids & ((1 << ID_BITS) - 1))


@dataclass(frozen=True)
class _Part:
    """One of the profiles, and what is added to its numbers."""

    profile: Profile
    metas: tuple[Mapping[str, Any], ...]
    losses: tuple[Mapping[str, Any], ...]
    first_process: int
    first_track: int
    codes: Array  # shape (strings + 1,): the new code of code -1, 0, 1, ...


def merge(profiles: Iterable[Profile]) -> Profile:
    """Join profiles of several processes into one, on one time axis.

    Processes of one host are joined by its boot clock. Hosts are joined by what
    `synchronize_clocks` measured, else by Unix time. The table `processes` says by what, and how
    large the error may be. Numbers of processes follow the order of `profiles`. The result saves,
    loads, exports and merges as any profile does.

    Args:
        profiles: at least one; merged ones may be among them.

    Raises:
        MergeError: there is none, or something else; a recording is there twice, or there is no
            common time base.
    """
    if isinstance(profiles, Profile):
        raise MergeError("merge() takes a list of profiles: merge([first, second])")
    try:
        iterator = iter(profiles)
    except TypeError:
        raise MergeError(
            f"merge() takes a list of profiles, not {name_text(repr(profiles))}"
        ) from None
    parts = tuple(iterator)
    for part in parts:
        if not isinstance(part, Profile):
            raise MergeError(
                "merge() takes profiles, as load() and result() give them, not "
                f"{name_text(repr(part))}"
            )
    try:
        return _merged(parts)
    except OverflowError as error:
        raise MergeError(
            f"a number in a profile's metadata is larger than any clock or count gives: {error}"
        ) from error


def _merged(profiles: Sequence[Profile]) -> Profile:
    strings = StringTable()
    parts = _parts(profiles, strings)
    metas = [meta for part in parts for meta in part.metas]
    losses = [own for part in parts for own in part.losses]
    _check_different(metas)
    names = distinct_names([process_name(meta) for meta in metas], metas)
    alignments = align(
        [ClockFacts.of(m, name, i) for i, (m, name) in enumerate(zip(metas, names, strict=True))]
    )
    columns = {
        name: _joined(name, parts, [alignment.axis_map for alignment in alignments])
        for name in schema.TABLES
        if name != "processes"
    }
    columns["processes"] = process_columns(metas, alignments, strings)
    return Profile.from_columns(
        columns,
        strings.strings,
        _merged_meta(metas, alignments),
        _merged_losses(losses, names, alignments),
        _merged_totals(profiles),
    )


def _parts(profiles: Sequence[Profile], strings: StringTable) -> list[_Part]:
    if not profiles:
        raise MergeError("there is nothing to merge: give at least one profile")
    parts = []
    process = track = 0
    for profile in profiles:
        meta, losses = profile.meta, profile.losses
        metas = tuple(meta.get("processes") or (meta,))
        own_losses = tuple(losses.get("processes") or (losses,))
        numbers = profile.processes["process"]
        usable = (np.abs(profile.processes["clock_drift"]) < 1).all()  # neither NaN nor infinite
        if len(numbers) != len(metas) or len(own_losses) != len(metas) or not usable:
            raise MergeError(
                f"a profile has {len(numbers)} processes, {len(metas)} descriptions of them and "
                f"{len(own_losses)} accounts of losses, or an impossible clock: its file was "
                "changed; record it again"
            )
        codes = np.append(np.int32(-1), strings.codes(profile.requests.strings)).astype(np.int32)
        parts.append(_Part(profile, metas, own_losses, process, track, codes))
        process += len(metas)
        track += _tracks_numbered(profile)
    if process > 1 << (63 - ID_BITS) or track > np.iinfo(np.int32).max:
        raise MergeError(f"{process} processes with {track} tracks are too many for one profile")
    return parts


def _tracks_numbered(profile: Profile) -> int:
    largest = -1
    for name, column in _columns_where(lambda column: column.ids_of == "track"):
        values = profile.tables[name][column.name]
        largest = max(largest, int(values.max(initial=-1)))
    return largest + 1


def _columns_where(chosen: Any) -> list[tuple[str, schema.Column]]:
    return [(name, c) for name, declared in schema.TABLES.items() for c in declared if chosen(c)]


def _check_different(metas: Sequence[Mapping[str, Any]]) -> None:
    seen: dict[tuple[Any, ...], int] = {}
    for position, meta in enumerate(metas):
        clock = meta.get("clock") or {}
        key = (clock.get("boot_id"), *(meta.get(name) for name in _IDENTITY))
        if key in seen:
            raise MergeError(
                f"the recording of {process_name(meta)} is there twice, as profiles of processes "
                f"{seen[key]} and {position}: give each once"
            )
        seen[key] = position


def _joined(name: str, parts: Sequence[_Part], maps: Sequence[AxisMap]) -> dict[str, Array]:
    declared = {column.name: column for column in schema.TABLES[name]}
    labels = dict.fromkeys(
        column
        for part in parts
        for column in part.profile.tables[name].columns
        if column not in declared
    )
    pieces: dict[str, list[Array]] = {column: [] for column in (*declared, *sorted(labels))}
    for part in parts:
        table = part.profile.tables[name]
        converted = _Conversion(part, table, maps)
        for column, made in pieces.items():
            if column not in table:
                made.append(np.full(len(table), -1, dtype=np.int32))
            else:
                made.append(converted.column(column, declared.get(column)))
    return {column: np.concatenate(made) for column, made in pieces.items()}


class _Conversion:
    """The columns of one table of one part, as they are in the merged profile."""

    def __init__(self, part: _Part, table: Table, maps: Sequence[AxisMap]) -> None:
        self._part = part
        self._table = table
        own = part.profile.processes
        self._old = [
            AxisMap(start_ns, drift)
            for start_ns, drift in zip(
                own["start_ns"].tolist(), own["clock_drift"].tolist(), strict=True
            )
        ]
        self._new = maps[part.first_process : part.first_process + len(self._old)]
        self._process = _processes_of(table, len(self._old))

    def column(self, name: str, declared: schema.Column | None) -> Array:
        if declared is None or declared.coded:
            converted: Array = self._part.codes[self._table.codes(name) + 1]
            return converted
        values = self._table[name]
        if declared.ids_of:
            return self._ids(name, declared, values)
        if declared.moment:
            moved = self._moved(values)
            if declared.optional:
                moved[values == -1] = -1
            return moved
        anchor = declared.begins_at or declared.ends_at
        if not anchor or all(old.drift == new.drift for old, new in self._changes()):
            return values
        at_ns = self._table[anchor]
        if declared.begins_at:
            lasted = self._moved(at_ns + values) - self._moved(at_ns)
        else:
            lasted = self._moved(at_ns) - self._moved(at_ns - values)
        result: Array = np.where(values < 0, values, lasted)
        return result

    def _ids(self, name: str, declared: schema.Column, values: Array) -> Array:
        if declared.ids_of in ("process", "track"):
            of_process = declared.ids_of == "process"
            first = self._part.first_process if of_process else self._part.first_track
            return np.where(values >= 0, values + values.dtype.type(first), values)
        if len(self._old) == 1 and int(values.max(initial=-1)) >= 1 << ID_BITS:
            raise MergeError(
                f"column '{name}' of table '{self._table.name}' holds an id over 2^{ID_BITS}, "
                "which cannot be merged"
            )
        added = np.int64(self._part.first_process << ID_BITS)
        return np.where(values >= 0, values + added, values)

    def _changes(self) -> zip[tuple[AxisMap, AxisMap]]:
        return zip(self._old, self._new, strict=True)

    def _moved(self, moments_ns: Array) -> Array:
        result: Array = moments_ns.copy()
        for process, (old, new) in enumerate(self._changes()):
            rows = slice(None) if len(self._old) == 1 else self._process == process
            if old.drift == new.drift:
                result[rows] += new.start_ns - old.start_ns
            else:
                result[rows] = new.to_axis(old.to_own(moments_ns[rows]))
        return result


def _processes_of(table: Table, count: int) -> Array:
    """Tell the process of each row: its own column says it, or the numbers of its ids do."""
    if count == 1:
        return np.zeros(len(table), dtype=np.int64)
    if "process" in table:
        return table["process"].astype(np.int64)
    highest = np.full(len(table), -1, dtype=np.int64)
    for column in schema.TABLES[table.name]:
        if column.ids_of in _ROW_IDS:
            np.maximum(highest, table[column.name], out=highest)
    return highest >> ID_BITS


def _merged_meta(
    metas: Sequence[Mapping[str, Any]], alignments: Sequence[Alignment]
) -> dict[str, Any]:
    """Keep what is the same in all, None for what differs; the origin is the earliest one's."""
    keys = dict.fromkeys(key for meta in metas for key in meta if key not in _OWN_KEYS)
    merged: dict[str, Any] = {
        "format_version": schema.FORMAT_VERSION,
        "pertoken_version": __version__,
    }
    merged.update({key: _common([meta.get(key) for meta in metas]) for key in keys})
    starts = [alignment.axis_map.start_ns for alignment in alignments]
    earliest = metas[starts.index(min(starts))]
    ends = [
        int(a.axis_map.to_axis(np.array([m.get("duration_ns") or 0], dtype=np.int64))[0])
        for m, a in zip(metas, alignments, strict=True)
    ]
    merged["boot_origin_ns"] = earliest.get("boot_origin_ns")
    merged["unix_origin_ns"] = earliest.get("unix_origin_ns")
    merged["duration_ns"] = max(ends)
    merged["processes"] = [dict(meta) for meta in metas]
    return merged


def _common(values: Sequence[Any]) -> Any:
    if all(isinstance(value, Mapping) for value in values):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: _common([value.get(key) for value in values]) for key in keys}
    return values[0] if all(value == values[0] for value in values) else None


def _merged_totals(profiles: Sequence[Profile]) -> Totals | None:
    merged = Totals()
    for profile in profiles:
        if profile.totals is None:
            return None
        merged = merged.merge(profile.totals)
    return merged


def _are_counts(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(count, int) for count in value.values())


def _different(items: Iterable[Any]) -> list[Any]:
    """Each of some plain data once, in the order of appearance; it may be of any kind."""
    return list({json.dumps(item, sort_keys=True): item for item in items}.values())


def _merged_losses(
    losses: Sequence[Mapping[str, Any]], names: Sequence[str], alignments: Sequence[Alignment]
) -> dict[str, Any]:
    """Add counts up and gather names; reasons say whose they are."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for own in losses for key in own if key != "processes"):
        values = [own[key] for own in losses if own.get(key) is not None]
        if all(isinstance(value, int) for value in values):
            merged[key] = sum(values)
        elif all(_are_counts(value) for value in values):
            merged[key] = dict(sum((Counter(value) for value in values), Counter()))
        elif all(isinstance(value, list) for value in values):
            merged[key] = _different(item for value in values for item in value)
    errors = [alignment.error_ns for alignment in alignments]
    merged["clock_error_ns"] = -1 if min(errors) < 0 else max(errors)
    if "device_clock_error_ns" in merged:
        merged["device_clock_error_ns"] = max(
            own.get("device_clock_error_ns") or 0 for own in losses
        )
    merged["reasons"] = [
        f"{name}: {reason}"
        for name, own in zip(names, losses, strict=True)
        for reason in own.get("reasons") or ()
    ]
    merged["reasons"] += [
        f"{name}: its clock was joined to the others by Unix time, whose error is unknown; "
        "pertoken.synchronize_clocks() measures it."
        for name, alignment in zip(names, alignments, strict=True)
        if alignment.basis == "unix"
    ]
    merged["processes"] = [dict(own) for own in losses]
    return merged
