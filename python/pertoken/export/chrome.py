"""Chrome trace event JSON, for Perfetto, chrome://tracing and tools that read PyTorch's traces.

What a trace holds, so that a reader can count on it:

- A slice (``ph: X``) for each request, step and span. Times are microseconds with three decimals
  since the profile's origin, whose Unix time is ``baseTimeNanoseconds``.
- Each process is one, under its own id; where processes of several hosts have the same id, the
  later ones get others. Those of a merged profile are named as ``rank 2 (host, pid 17)``.
- Requests and steps of a process have rows of their own, named "requests and steps". A request is
  named ``request <id>``, a step by its kind, below its request. A decode step that finished holds
  another slice of the same extent, ``ProfilerStep#<step>``, by which HTA cuts a trace into steps.
- Spans have a row a thread, under its process and thread ids. Modules have the category
  ``python_function``, all else ``user_annotation``. ``args`` holds the row's numbers in the
  profile, those that are -1 left out.
- Intervals on one row nest and never cross: what would cross (regions of interleaved asyncio tasks,
  requests of several threads) goes on a further row, named as the first with " (2)" and so on.
- Two counters (``ph: C``): ``context_len``, with the series ``tokens``, at the start of each step
  for which it is known; and ``tokens``, with the series ``committed``, the tokens committed so far
  in this profile, at the end of each finished step for which they are known.
- A counter ``values of <site>`` for each observed site, with the series ``p1``, ``p50`` and
  ``p99`` of what it put out in a step, all rows together, at the start of the step.
- A counter ``confidence``, with the series ``top1_prob``, ``margin``, ``entropy`` and ``logprob``
  of the least confident token that a step committed, when it was, where logits were read.
- What was still running is shown up to the profile's last moment, with ``unfinished`` in its args.
- ``pertoken`` on the outermost level holds the profile's meta and losses.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from pertoken import _native
from pertoken.analysis.activation_values import site_percentiles
from pertoken.analysis.process_names import distinct_names_of
from pertoken.analysis.token_confidence import confidence_by_step
from pertoken.errors import system_errors
from pertoken.whole_file import written_aside

if TYPE_CHECKING:
    from pertoken.result import Profile
    from pertoken.table import Array, Table

# Level 1 gives files about a fifth larger than level 6 does, in 40 % of the time.
_GZIP_LEVEL = 1
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_INT64_MAX = 2**63 - 1
_INT32_MAX = 2**31 - 1
# Linux gives no process an id of 2^22 or more.
_FIRST_MADE_UP_PID = 2**22


def export_chrome_trace(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Write a profile as a Chrome trace, gzipped when `path` ends in ``.gz``.

    The file appears whole or not at all; one that was there before stays until then.

    Raises:
        PertokenError: the file cannot be written; the message says why.
    """
    name = os.fsdecode(path)
    with system_errors("write", name), written_aside(name, durable=False) as stream:
        if name.endswith(".gz"):
            _write_gzip(profile, name, stream)
        else:
            _write(profile, name, stream.fileno())


def _write_gzip(profile: Profile, name: str, stream: BinaryIO) -> None:
    compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    _write(profile, name, lambda chunk: stream.write(compressor.compress(chunk)))
    stream.write(compressor.flush())


def _write(profile: Profile, name: str, target: object) -> None:
    meta = profile.meta
    model = meta.get("model")
    root_name = model.get("class") if isinstance(model, dict) else None
    tables = {
        table: _columns(profile.tables[table]) for table in ("requests", "steps", "spans", "tracks")
    }
    counters = {
        "values of ": site_percentiles(profile),  # and a site's name
        "confidence": confidence_by_step(profile),
    }
    processes = [(_integer(meta, "pid"), "python")]
    if len(profile.processes) > 1:
        processes = _shown_processes(profile)
        pids = np.array([pid for pid, _ in processes], dtype=np.int64)
        tables["tracks"]["pid"] = pids[tables["tracks"]["process"]]
    _native.write_chrome_trace(
        tables=tables,
        counters=counters,
        strings=profile.requests.strings,
        header_json=_header(name, meta, profile.losses),
        processes=processes,
        root_name=str(root_name or "model"),
        target=target,
    )


def _shown_processes(profile: Profile) -> list[tuple[int, str]]:
    """Give each process an id of its own to be shown under, and its name."""
    shown: dict[int, str] = {}
    names = distinct_names_of(profile)
    for pid, name in zip(profile.processes["pid"].tolist(), names, strict=True):
        unusable = pid in shown or not 0 <= pid <= _INT32_MAX
        shown[max((_FIRST_MADE_UP_PID, *shown)) + 1 if unusable else pid] = name
    return list(shown.items())


def _columns(table: Table) -> dict[str, Array]:
    return {
        column: np.ascontiguousarray(
            table.codes(column) if column in table.coded else table[column]
        )
        for column in table.columns
    }


def _header(name: str, meta: Mapping[str, Any], losses: Mapping[str, Any]) -> str:
    """Serialise all that goes before the events, without the braces round it."""
    header = {
        "schemaVersion": 1,
        "deviceProperties": [],
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": _integer(meta, "unix_origin_ns"),
        # HTA finds no rank without this key, or without the space after its colon.
        "distributedInfo": {"rank": _integer(meta, "rank")},
        "traceName": name,
        "pertoken": {"meta": meta, "losses": losses},
    }
    return json.dumps(_strict(header), allow_nan=False)[1:-1]


def _integer(meta: Mapping[str, Any], key: str) -> int:
    value = meta.get(key)
    return value if isinstance(value, int) and 0 <= value <= _INT64_MAX else 0


def _strict(value: Any) -> Any:
    """Replace what strict JSON has no form for: NaN, infinities, lone surrogates, other types."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {_strict(str(key)): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    return _strict(str(value))
