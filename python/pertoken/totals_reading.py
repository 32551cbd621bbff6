"""Reads the totals of a recording out of the native aggregates."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pertoken.histogram import from_native
from pertoken.schema import SIGNALS, SPAN_CATEGORIES, STEP_KINDS
from pertoken.totals import (
    OTHER,
    OUTSIDE,
    ActivationTotals,
    LabelSet,
    RequestTotals,
    SignalKey,
    SignalTotals,
    SiteKey,
    SiteTotals,
    StepTotals,
    Totals,
)

if TYPE_CHECKING:
    from pertoken.recording import Recording
    from pertoken.recovered_recording import RecoveredRecording

_KINDS = (*STEP_KINDS, OUTSIDE)
_ROWS_AT_ONCE = 64  # about 0.1 ms, for which the threads of the model may have to wait
_PAUSE_S = 50e-6


def read_totals(recording: Recording | RecoveredRecording) -> Totals:
    """The totals of a recording at this moment."""
    recording.log.close_ended_runs()
    native = recording.recorder.totals()
    label_sets = recording.log.label_sets.by_number()
    requests: dict[LabelSet, RequestTotals] = {}
    for number, of_labels in enumerate(_in_turns(native["requests"], _ROWS_AT_ONCE // 8)):
        if of_labels["started"]:
            requests[label_sets[number]] = _request_totals(of_labels)
    on_devices = sum(native["losses"].pop("device_observations").values())
    on_devices += sum(native["losses"].pop("device_logits").values())
    return Totals(
        recordings=1,
        recorded_ns=recording.recorded_ns,
        steps={_KINDS[kind]: StepTotals(**_values(row)) for kind, row in native["steps"].items()},
        sites={
            _site_key(name, kind): SiteTotals(own_ns, from_native(dur_ns))
            for name, kind, own_ns, dur_ns in _in_turns(native["sites"], _ROWS_AT_ONCE)
        },
        activations={
            _site_key(name, kind): ActivationTotals(*_weighted(row))
            for name, kind, *row in _in_turns(native["activations"], _ROWS_AT_ONCE)
        },
        logits={
            SignalKey(SIGNALS[signal], _KINDS[kind]): SignalTotals(*_weighted(row))
            for signal, kind, *row in native["logits"]
        },
        requests=requests,
        losses={
            **native["losses"],
            "requests_evicted": recording.log.evicted,
            "observations_skipped": sum(recording.skipped.values()) + on_devices,
            "faults": sum(recording.faults.values()),
        },
    )


def _in_turns(rows: Iterable[Any], at_once: int) -> Iterator[Any]:
    """The rows, with pauses in which threads that wait for the GIL get it."""
    for number, row in enumerate(rows, 1):
        yield row
        if number % at_once == 0:
            time.sleep(_PAUSE_S)


def _site_key(site: tuple[int, str], kind: int) -> SiteKey:
    category, name = site
    if category < 0:
        return SiteKey(OTHER, _KINDS[kind], "")
    return SiteKey(name, _KINDS[kind], SPAN_CATEGORIES[category])


def _weighted(row: list[Any]) -> list[Any]:
    return [*row[:-1], from_native(row[-1])]


def _request_totals(row: dict[str, Any]) -> RequestTotals:
    step_ns = {_KINDS[kind]: from_native(wall_ns) for kind, wall_ns in row.pop("step_ns").items()}
    return RequestTotals(**_values(row), step_ns=step_ns)


def _values(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, int) else from_native(value) for name, value in row.items()
    }
