"""The processes of a profile: how its metadata describes them, and the rows that they become.

A recording is of one process, number 0. A merged profile has several, each with the metadata and
the losses of its own recording in ``meta["processes"]`` and ``losses["processes"]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pertoken.clock_alignment import Alignment, AxisMap
from pertoken.strings import StringTable
from pertoken.table import Array

if TYPE_CHECKING:
    from pertoken.result import Profile


def process_name(meta: Mapping[str, Any]) -> str:
    """Name a process for people, from the metadata of its recording: ``rank 2 (host, pid 17)``."""
    host, pid, rank = meta.get("host") or "unknown host", meta.get("pid"), meta.get("rank")
    place = f"{host}, pid {'unknown' if pid is None else pid}"
    return f"process ({place})" if rank is None else f"rank {rank} ({place})"


def names_of_processes(profile: Profile) -> list[str]:
    """Name the processes of a profile, in order; see `process_name`."""
    columns = (profile.processes[name].tolist() for name in ("host", "pid", "rank"))
    return [
        process_name(
            {"host": host, "pid": None if pid < 0 else pid, "rank": None if rank < 0 else rank}
        )
        for host, pid, rank in zip(*columns, strict=True)
    ]


def process_columns(
    metas: Sequence[Mapping[str, Any]], alignments: Sequence[Alignment], strings: StringTable
) -> dict[str, Array]:
    """Make the columns of the table `processes`.

    Args:
        metas: the metadata of each process's own recording.
        alignments: how the times of each were brought onto the axis.
        strings: gets the texts.
    """

    def integers(key: str) -> Array:
        return np.array([_integer(meta.get(key), -1) for meta in metas], dtype=np.int64)

    def texts(key: str) -> Array:
        known = [meta.get(key) for meta in metas]
        return strings.codes([text if isinstance(text, str) else "" for text in known])

    maps = [alignment.axis_map for alignment in alignments]
    ends = [
        axis_map.to_axis(np.array([_integer(meta.get("duration_ns"), 0)], dtype=np.int64))[0]
        for axis_map, meta in zip(maps, metas, strict=True)
    ]
    return {
        "process": np.arange(len(metas), dtype=np.int32),
        "host": texts("host"),
        "pid": integers("pid"),
        "rank": integers("rank"),
        "local_rank": integers("local_rank"),
        "world_size": integers("world_size"),
        "device": texts("device"),
        "start_ns": np.array([axis_map.start_ns for axis_map in maps], dtype=np.int64),
        "end_ns": np.array(ends, dtype=np.int64),
        "clock_basis": strings.codes([alignment.basis for alignment in alignments]),
        "clock_offset_ns": np.array([a.offset_ns for a in alignments], dtype=np.int64),
        "clock_drift": np.array([axis_map.drift for axis_map in maps], dtype=np.float64),
        "clock_error_ns": np.array([a.error_ns for a in alignments], dtype=np.int64),
    }


def own_process(
    meta: Mapping[str, Any], losses: Mapping[str, Any], strings: StringTable
) -> dict[str, Array]:
    """Make the one row of `processes` of a recording, which is on its own clock.

    Args:
        meta: its metadata.
        losses: its losses.
        strings: gets the texts.
    """
    error_ns = _integer(losses.get("clock_error_ns"), -1)
    return process_columns([meta], [Alignment(AxisMap(0, 0.0), "boot", 0, error_ns)], strings)


def _integer(value: object, absent: int) -> int:
    return value if isinstance(value, int) and abs(value) < 1 << 62 else absent
