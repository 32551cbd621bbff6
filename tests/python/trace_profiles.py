"""Profiles made of given intervals, and a strict reader of the traces that they give."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pertoken import schema
from pertoken.processes import own_process
from pertoken.result import Profile
from pertoken.strings import StringTable
from synthetic import synthetic_losses, synthetic_meta

_ABSENT: dict[str, dict[str, Any]] = {
    "requests": {"start_ns": 0, "end_ns": 0, "process": 0},
    "steps": {
        "start_ns": 0,
        "wall_ns": 0,
        "kind": "decode",
        "sample_weight": 1.0,
        "thread": 0,
        "process": 0,
    },
    "spans": {"start_ns": 0, "dur_ns": 0, "category": "module", "track": 0},
    "tracks": {"pid": 4242, "tid": 4243, "name": "MainThread", "process": 0},
}
MAIN_THREAD = {"track": 0, "pid": 4242, "tid": 4243, "name": "MainThread"}


def profile_of(
    *,
    requests: Sequence[Mapping[str, Any]] = (),
    steps: Sequence[Mapping[str, Any]] = (),
    spans: Sequence[Mapping[str, Any]] = (),
    tracks: Sequence[Mapping[str, Any]] = (MAIN_THREAD,),
    meta: Mapping[str, Any] | None = None,
    losses: Mapping[str, Any] | None = None,
) -> Profile:
    """Build a profile from rows; a column that a row leaves out is absent in it, or plausible."""
    codes: dict[str, int] = {}
    columns = {}
    given = {"requests": requests, "steps": steps, "spans": spans, "tracks": tracks}
    for table, rows in given.items():
        declared = {column.name: column for column in schema.TABLES[table]}
        labels = {key for row in rows for key in row if key.startswith(schema.LABEL_PREFIX)}
        columns[table] = {}
        for name in [*declared, *sorted(labels)]:
            column = declared.get(name)
            coded = column is None or column.coded
            absent = _ABSENT[table].get(name, "" if coded else -1)
            values = [row.get(name, absent) for row in rows]
            if coded:
                values = [codes.setdefault(v, len(codes)) if v else -1 for v in values]
            columns[table][name] = np.array(values, dtype=column.dtype if column else "int32")
    meta = {**synthetic_meta(), **(meta or {})}
    losses = {**synthetic_losses(), **(losses or {})}
    strings = StringTable(codes)
    columns["processes"] = own_process(meta, losses, strings)
    return Profile.from_columns(columns, strings.strings, meta, losses)


def crossing_profile(tasks: int = 3, calls: int = 2) -> Profile:
    """Build what asyncio tasks on one thread leave: regions that cross, module calls that do not.

    Each task opens region ``task-<i>`` and makes `calls` module calls, taking turns with the
    others. Regions begin and end in the order of the tasks, so that any two cross.
    """
    turn_ns = 1_000
    regions = [
        {
            "span": task * (calls + 1),
            "site": f"task-{task}",
            "category": "region",
            "start_ns": task * turn_ns,
            "dur_ns": tasks * (calls + 1) * turn_ns,
        }
        for task in range(tasks)
    ]
    modules = [
        {
            "span": region["span"] + 1 + call,
            "parent": region["span"],
            "site": f"model.of.{region['site']}",
            "start_ns": region["start_ns"] + (call + 1) * tasks * turn_ns + 100,
            "dur_ns": turn_ns - 200,
        }
        for region in regions
        for call in range(calls)
    ]
    spans = sorted([*regions, *modules], key=lambda s: s["start_ns"] + s["dur_ns"])
    return profile_of(spans=spans)


@dataclass(frozen=True)
class Trace:
    """A trace file, read by strict rules."""

    text: str
    document: dict[str, Any]

    def events(self, phase: str) -> list[dict[str, Any]]:
        """Give the events of one phase, in the order of the file."""
        return [event for event in self.document["traceEvents"] if event["ph"] == phase]

    def slices(self, argument: str | None = None) -> list[dict[str, Any]]:
        """Give the slices, or those only that have an argument of this name first."""
        found = self.events("X")
        if argument is None:
            return found
        return [event for event in found if next(iter(event["args"]), None) == argument]

    def row_names(self) -> dict[tuple[int, int], str]:
        """Give the name of each row by its process and thread ids."""
        return {
            (event["pid"], event["tid"]): event["args"]["name"]
            for event in self.events("M")
            if event["name"] == "thread_name"
        }

    def counter(self, name: str) -> list[tuple[int, int]]:
        """Give a counter's samples in the order of the file, each its time in ns and its value."""
        return [
            (nanoseconds(event["ts"]), next(iter(event["args"].values())))
            for event in self.events("C")
            if event["name"] == name
        ]


def export(profile: Profile, path: Path) -> Trace:
    """Export a profile and read the file back."""
    profile.export_chrome_trace(path)
    return read_strictly(path)


def read_strictly(path: Path) -> Trace:
    """Read a trace as strict JSON in UTF-8: no NaN, no key twice. Numbers stay text."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    document = json.loads(
        text, parse_constant=_refuse, object_pairs_hook=_object, parse_float=_Decimal
    )
    return Trace(text, document)


class _Decimal(str):
    """A number with a fraction, as it was written."""


def nanoseconds(microseconds: object) -> int:
    """Turn a time of the trace into integer nanoseconds; it must have exactly three decimals."""
    assert isinstance(microseconds, _Decimal)
    whole, _, fraction = microseconds.partition(".")
    assert len(fraction) == 3, microseconds
    return int(whole + fraction)


def interval(event: Mapping[str, Any]) -> tuple[int, int]:
    """Give the start and end of a slice in nanoseconds."""
    start_ns = nanoseconds(event["ts"])
    return start_ns, start_ns + nanoseconds(event["dur"])


def crossings(events: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Give each pair of intervals that cross on one row, found by comparing all pairs."""
    rows: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in events:
        rows.setdefault((event["pid"], event["tid"]), []).append(interval(event))
    return [
        (a[0], b[0]) for row in rows.values() for a in row for b in row if a[0] < b[0] < a[1] < b[1]
    ]


def without_surrogates(text: str) -> str:
    """Replace each surrogate by U+FFFD, as the writer does."""
    return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    assert len(set(keys)) == len(keys), f"a key twice among {keys}"
    return dict(pairs)
