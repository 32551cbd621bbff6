"""Makes a `Profile` of what a recording holds: joins the native columns with the requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pertoken import _native
from pertoken.losses import describe_losses
from pertoken.processes import own_process
from pertoken.result import Profile
from pertoken.schema import FORMAT_VERSION, LABEL_PREFIX, SPAN_CATEGORIES, STEP_KINDS
from pertoken.sequences import Outcome, Sequences
from pertoken.strings import StringTable
from pertoken.token_logits import with_logits

if TYPE_CHECKING:
    from pertoken.recording import Recording
    from pertoken.recovered_recording import RecoveredRecording
    from pertoken.request_log import RequestEntry

Columns = dict[str, NDArray[Any]]


def assemble(recording: Recording | RecoveredRecording) -> Profile:
    """The profile of everything that `recording` holds now."""
    entries, generations = recording.log.held()
    running = recording.stopped_ticks == 0
    marks = [entry.start_ticks for entry in entries] + [entry.end_ticks for entry in entries]
    now = _native.now_ticks()
    origin_ticks = recording.origin_ticks or now  # never started: nothing, which lasts no time
    marks.append(recording.stopped_ticks or now)
    commit_ticks = {
        number: ticks
        for number, generation in generations.items()
        if (ticks := generation.known_first_commit_ticks)
    }
    marks += commit_ticks.values()
    raw = recording.recorder.snapshot(origin_ticks, np.array(marks, dtype=np.uint64))
    if running:
        _cut(raw, int(raw["marks_ns"][2 * len(entries)]))
    _cut_observations(raw)
    strings = StringTable()
    sequences = Sequences(raw, generations)
    count = len(entries)
    first_commit_ns = dict(
        zip(commit_ticks, raw["marks_ns"][2 * count + 1 :].tolist(), strict=True)
    )
    outcome = sequences.by_request(first_commit_ns)
    meta = _meta(recording, raw, int(raw["marks_ns"][2 * count]))
    losses = describe_losses(recording, raw)
    tables = {
        "requests": _requests(entries, raw["marks_ns"], outcome, strings),
        "steps": _steps(raw["steps"], sequences, recording.detail, strings),
        "step_rows": _step_rows(sequences, strings),
        "tokens": with_logits(sequences.tokens(), raw["token_logits"], raw["steps"]),
        "spans": _spans(raw, strings),
        "activations": _activations(raw, strings),
        "activation_buckets": raw["activations"]["buckets"],
        "tracks": _tracks(raw["tracks"], recording.thread_names(), meta["pid"], strings),
        "processes": own_process(meta, losses, strings),
    }
    return Profile.from_columns(tables, strings.strings, meta, losses, recording.totals())


def _cut(raw: dict[str, Any], now_ns: int) -> None:
    """Leaves out what began after the requests were looked at, so that no step lacks its own."""
    for name in ("steps", "spans"):
        table = raw[name]
        begun = table["start_ns"] <= now_ns
        if not begun.all():
            raw[name] = {column: values[begun] for column, values in table.items()}
    # A device's clock is less exact: a step that is left out may have begun there just before.
    spans = raw["spans"]
    held = np.isin(spans["step"], np.append(raw["steps"]["step"], -1)) | (spans["device"] < 0)
    if not held.all():
        raw["spans"] = {column: values[held] for column, values in spans.items()}


def _cut_observations(raw: dict[str, Any]) -> None:
    """Leaves out what was observed in steps that are not there: cut, or their records dropped."""
    columns, buckets = raw["activations"]["observations"], raw["activations"]["buckets"]
    held = (columns["step"] < 0) | np.isin(columns["step"], raw["steps"]["step"])
    if held.all():
        return
    of_held = np.isin(buckets["observation"], columns["observation"][held])
    raw["activations"] = {
        "observations": {name: values[held] for name, values in columns.items()},
        "buckets": {name: values[of_held] for name, values in buckets.items()},
    }


def _requests(
    entries: list[RequestEntry],
    marks_ns: NDArray[np.int64],
    outcome: dict[int, Outcome],
    strings: StringTable,
) -> Columns:
    count = len(entries)
    numbers = np.array([entry.number for entry in entries], dtype=np.int64)
    start_ns, end_ns = marks_ns[:count].copy(), marks_ns[count : 2 * count].copy()
    end_ns[[entry.end_ticks == 0 for entry in entries]] = -1
    known = [outcome.get(entry.number, Outcome()) for entry in entries]
    first_commit_ns, rows, tokens_in, tokens_out, output_len = (
        np.array([own[i] for own in known], dtype=np.int64) for i in range(len(Outcome._fields))
    )
    columns: Columns = {
        "request": numbers,
        "id": strings.codes([entry.id for entry in entries]),
        "model_version": strings.codes([entry.model_version for entry in entries]),
        "start_ns": start_ns,
        "end_ns": end_ns,
        "ttft_ns": np.where(first_commit_ns >= 0, first_commit_ns - start_ns, -1),
        "rows": rows,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "output_len": output_len,
        "error": strings.codes([entry.error for entry in entries]),
        "process": np.zeros(count, dtype=np.int32),
    }
    for label in sorted({label for entry in entries for label in entry.labels}):
        columns[LABEL_PREFIX + label] = strings.codes(
            [entry.labels.get(label, "") for entry in entries]
        )
    return columns


def _steps(raw: Columns, sequences: Sequences, detail: str, strings: StringTable) -> Columns:
    count = len(raw["step"])
    kind_codes = strings.codes(list(STEP_KINDS))
    rows, query_len = raw["rows"], raw["query_len"]
    known = (rows >= 0) & (query_len >= 0)
    error_codes = strings.codes(["", "exception"])
    return {
        "step": raw["step"],
        "request": sequences.request,
        "kind": kind_codes[raw["kind"]],
        "start_ns": raw["start_ns"],
        "wall_ns": raw["wall_ns"],
        "gpu_ns": raw["gpu_ns"],
        "launch_lag_ns": raw["launch_lag_ns"],
        "gpu_idle_ns": raw["gpu_idle_ns"],
        "rows": rows,
        # Where each row was told by itself, the length is that of all together.
        "tokens_in": np.where(known, np.where(raw["has_rows"] != 0, 1, rows) * query_len, -1),
        "tokens_committed": sequences.tokens_committed,
        "context_len": sequences.context_len,
        "detail": _detail_codes(raw, detail, strings),
        "sample_weight": raw["weight"],
        "thread": raw["track"].astype(np.int32),
        "observe_ns": raw["observe_ns"],
        "error": error_codes[raw["failed"]],
        "process": np.zeros(count, dtype=np.int32),
    }


def _detail_codes(raw: Columns, detail: str, strings: StringTable) -> NDArray[np.int32]:
    """What was recorded in each step: all that was selected, where nothing was sampled."""
    codes = np.full(len(raw["step"]), strings.code(detail), dtype=np.int32)
    sampled = raw["sampled"] != 0
    codes[sampled & (raw["inside"] == 0)] = strings.code("root")
    if detail == "all":
        codes[sampled & (raw["inside"] == _native.DETAIL_LAYERS)] = strings.code("layers")
    return codes


def _step_rows(sequences: Sequences, strings: StringTable) -> Columns:
    kind_codes = strings.codes(list(STEP_KINDS))
    columns = sequences.step_rows()
    columns["phase"] = kind_codes[columns["phase"]]
    return columns


def _spans(raw: dict[str, Any], strings: StringTable) -> Columns:
    spans: Columns = raw["spans"]
    used = np.unique(spans["site"])
    site_codes = np.zeros(len(raw["sites"]), dtype=np.int32)
    category_codes = np.zeros(len(raw["sites"]), dtype=np.int32)
    for site in used:
        category, name = raw["sites"][site]
        site_codes[site] = strings.code(name)
        category_codes[site] = strings.code(SPAN_CATEGORIES[category])
    parent = spans["parent"]
    on_device = spans["device"] >= 0
    if on_device.any():  # what enclosed a span on a device may have been lost there
        parent = np.where(on_device & ~np.isin(parent, spans["span"]), -1, parent)
    return {
        "span": spans["span"],
        "parent": parent,
        "step": spans["step"],
        "site": site_codes[spans["site"]],
        "category": category_codes[spans["site"]],
        "track": spans["track"],
        "start_ns": spans["start_ns"],
        "dur_ns": spans["dur_ns"],
        "device": spans["device"],
    }


def _activations(raw: dict[str, Any], strings: StringTable) -> Columns:
    columns: Columns = raw["activations"]["observations"]
    sites = columns["site"]
    codes = np.zeros(len(raw["sites"]), dtype=np.int32)
    for site in np.unique(sites).tolist():
        codes[site] = strings.code(raw["sites"][site][1])
    formats = strings.codes(list(_native.FLOAT_FORMATS))
    own = {name: values for name, values in columns.items() if name != "format"}
    return {**own, "site": codes[sites], "dtype": formats[columns["format"]]}


def _tracks(
    tracks: list[tuple[int, int, str, int]],
    names: Mapping[int, str],
    pid: int,
    strings: StringTable,
) -> Columns:
    return {
        "track": np.array([track for track, *_ in tracks], dtype=np.int32),
        "pid": np.full(len(tracks), pid, dtype=np.int64),
        "tid": np.array([tid for _, tid, *_ in tracks], dtype=np.int64),
        "name": strings.codes(
            [name if device >= 0 else names.get(tid, name) for _, tid, name, device in tracks]
        ),
        "process": np.zeros(len(tracks), dtype=np.int32),
    }


def _meta(
    recording: Recording | RecoveredRecording, raw: dict[str, Any], duration_ns: int
) -> dict[str, Any]:
    clock, lasting = raw["clock"], recording.lasting_meta()
    return {
        "format_version": FORMAT_VERSION,
        **lasting,
        "boot_origin_ns": clock["boot_origin_ns"],
        "duration_ns": duration_ns,
        "clock": {
            **lasting["clock"],
            "ticks_per_second": clock["ticks_per_second"],
            "error_bound_ns": clock["error_bound_ns"],
        },
        "cost": recording.cost_facts(),
    }
