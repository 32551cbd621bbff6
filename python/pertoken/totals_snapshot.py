"""Makes the `Totals` of a recording: names what the native aggregates number."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from pertoken import _native
from pertoken.histogram import from_native
from pertoken.identity import group_ranks, ranks_of_environment
from pertoken.schema import SPAN_CATEGORIES, STEP_KINDS
from pertoken.totals import OTHER, RequestTotals, SiteKey, SiteTotals, StepTotals, Totals
from pertoken.version import __version__

if TYPE_CHECKING:
    from pertoken.recording import Recording

_KINDS = (*STEP_KINDS, "")


def totals_of(recording: Recording) -> Totals:
    """Everything that `recording` has counted up to now."""
    recording.log.close_ended_runs()
    native = recording.recorder.totals()
    site_names = _native.site_names()
    label_sets = recording.log.label_sets.by_number()
    return Totals(
        {_KINDS[kind]: StepTotals(**_values(steps)) for kind, steps in native["steps"].items()},
        {
            _site_key(site_names, code, kind): SiteTotals(own_ns, from_native(dur_ns))
            for code, kind, own_ns, dur_ns in native["sites"]
        },
        {
            label_sets[number]: RequestTotals(**_values(requests))
            for number, requests in enumerate(native["requests"])
            if requests["started"] or requests["tokens_out"]
        },
        _losses(recording, native["losses"]),
        [_process(recording)],
    )


def _values(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _value(value) for name, value in row.items()}


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return {_KINDS[kind]: from_native(histogram) for kind, histogram in value.items()}
    return value if isinstance(value, int) else from_native(value)


def _site_key(site_names: list[tuple[int, str]], code: int, kind: int) -> SiteKey:
    if code < 0:
        return SiteKey(OTHER, "", _KINDS[kind])
    category, name = site_names[code]
    return SiteKey(name, SPAN_CATEGORIES[category], _KINDS[kind])


def _losses(recording: Recording, native: dict[str, int]) -> dict[str, int]:
    faults = native.pop("recording_faults") + native.pop("collector_faults")
    return {
        **native,
        "requests_evicted": recording.log.evicted,
        "faults": faults + sum(recording.faults.values()),
    }


def _process(recording: Recording) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        **(group_ranks() or recording.ranks or ranks_of_environment()).as_dict(),
        "device": recording.model_facts["device"],
        "model": recording.model_facts["class"],
        "modules": recording.selection,
        "pertoken_version": __version__,
        "unix_origin_ns": recording.origin_unix_ns or _native.unix_time_ns(),
        "duration_ns": recording.recorded_ns,
    }
