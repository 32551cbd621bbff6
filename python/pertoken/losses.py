"""What a recording could not see or did not keep, in numbers and in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pertoken.graph_captures import REPLAY_NAME
from pertoken.quantity import plural_text

if TYPE_CHECKING:
    from pertoken.recording import Recording
    from pertoken.recovered_recording import RecoveredRecording


def describe_losses(
    recording: Recording | RecoveredRecording, raw: dict[str, Any]
) -> dict[str, Any]:
    """The `losses` of a profile.

    Args:
        recording: the recording.
        raw: its native snapshot.

    Returns:
        Counts, names of modules that the compiler inlined, and sentences for what neither says.
    """
    native = raw["losses"]
    faults = dict(recording.faults)
    if native["recording_faults"]:
        faults["inputs of forward not understood"] = native["recording_faults"]
    if native["collector_faults"]:
        faults["records that could not be stored"] = native["collector_faults"]
    skipped = dict(recording.skipped)
    if native["observations_dropped"]:
        skipped["the collector was too far behind"] = native["observations_dropped"]
    for reason, count in native["device_observations"].items():
        if count:
            skipped[_DEVICE_OBSERVATIONS[reason]] = count
    for reason, count in native["device_logits"].items():
        if count:
            skipped[f"tokens: {_DEVICE_OBSERVATIONS[reason]}"] = count
    inlined, compiled_steps = _inlined_modules(recording, raw)
    overwritten = sorted(recording.instrumentation.overwritten)
    reasons = []
    if not recording.enabled:
        reasons.append("PERTOKEN=0 in the environment: nothing was recorded.")
    if compiled_steps:
        reasons.append(
            f"{compiled_steps} of {len(raw['steps']['step'])} steps ran what the compiler made."
        )
    if recording.instrumentation.compiled_layers is not None:
        reasons += recording.instrumentation.compiled_layers.reasons(inlined)
    if overwritten:
        reasons.append(
            "Something else replaced the wrapper of these modules, so they were not recorded "
            f"throughout: {', '.join(overwritten[:8])}."
        )
    if recording.unknown_commits:
        reasons.append(
            "This transformers does not tell how many tokens a step commits: tokens are unknown."
        )
    reasons += recording.log.unknown
    begun_before = recording.log.begun_before
    if begun_before:
        reasons.append(
            f"{plural_text(begun_before, 'request')} of an engine may have begun before the "
            "recording did: where their tokens stand, and how many there were, is unknown."
        )
    if native["spool_frames_lost"]:
        reasons.append(
            f"{plural_text(native['spool_frames_lost'], 'frame')} of the spool could not be "
            "written: after a kill, what was in them would not be recovered."
        )
    if raw["clock"]["steps"]:
        reasons.append(
            f"The system's clock jumped {raw['clock']['steps']} times, as after a suspend: "
            "intervals over a jump are longer by it."
        )
    if native["observation_failure"]:
        reasons.append(f"A GPU failed while it observed: {native['observation_failure']}.")
    if native["logit_failure"]:
        reasons.append(f"A GPU failed while it read logits: {native['logit_failure']}.")
    bound = raw["clock"]["error_bound_ns"]
    on_devices: dict[str, Any] = {}
    if recording.device_timing.reason:
        reasons.append(f"GPU times were not measured: {recording.device_timing.reason}.")
    if recording.device_timing.devices:
        has_layers = recording.detail != "root"
        on_devices, said = _device_losses(native, has_layers)
        reasons += said
    return {
        "records_dropped": native["records_dropped"],
        "spans_evicted": native["spans_evicted"],
        "steps_evicted": native["steps_evicted"],
        "requests_evicted": recording.log.evicted,
        "observations_evicted": native["observations_evicted"],
        "observations_skipped": skipped,
        "clock_error_ns": -1 if bound is None else bound,
        "faults": faults,
        "inlined_modules": inlined,
        "reasons": reasons,
        **on_devices,
    }


_DEVICE_OBSERVATIONS = {
    "no_room": "results of others, or of the graph on another stream, were on their way",
    "in_capture": "the stream was being captured into a CUDA graph",
    "late": "the GPU did not come to it in time",
    "failed": "the GPU or its context had failed",
    "lost": "the result was overwritten before it was read",
}

_DEVICE_LOSSES = {
    "no_event": "no free event was left",
    "in_capture": "the stream was being captured into a graph, where nothing runs",
    "stream_changed": "the stream changed within the call, or from one replay to the next",
    "late": "the GPU did not come to them in time",
    "failed": "the GPU or its context had failed",
    "overwritten": "their stamps in the graph's replay were overwritten before they were read",
}


def _device_losses(native: dict[str, Any], has_layers: bool) -> tuple[dict[str, Any], list[str]]:
    """What is missing of the times on devices, as numbers and as sentences."""
    lost = {reason: count for reason, count in native["device_spans"].items() if count}
    said = [
        f"{plural_text(count, 'span')} on the GPU {'is' if count == 1 else 'are'} missing: "
        f"{_DEVICE_LOSSES[reason]}."
        for reason, count in lost.items()
    ]
    if native["device_failure"]:
        said.append(f"The GPU could not be timed to the end: {native['device_failure']}.")
    pending = native["device_spans_pending"]
    if pending:
        said.append(
            f"{plural_text(pending, 'span')} on the GPU {'was' if pending == 1 else 'were'} still "
            "under way when this result was taken: a later one has them."
        )
    bare = native["bare_replays"] if has_layers else 0
    if native["no_stamps"]:
        said.append(f"Nothing inside CUDA graphs could be timed: {native['no_stamps']}.")
    elif bare:
        said.append(
            f"{plural_text(bare, 'replay')} of CUDA graphs {'has' if bare == 1 else 'have'} a time "
            "as a whole and none of layers: the graphs were captured before the recording began, "
            "or no selected module was called in them. Start the recording before the capture."
        )
    return {
        "replays_without_layers": bare,
        "device_spans_lost": lost,
        "device_spans_pending": pending,
        "device_clock_error_ns": native["device_clock_error_ns"],
    }, said


def _inlined_modules(
    recording: Recording | RecoveredRecording, raw: dict[str, Any]
) -> tuple[list[str], int]:
    """Selected modules that compiled code ran without calling, and in how many steps it did.

    They are those below a module that is compiled and that ran, at least once, with no span of
    another module inside it; and those below a compiled module that have no span at all.
    """
    instrumentation = recording.instrumentation
    instrumentation.note_compiled()
    names, spans = instrumentation.names, raw["spans"]
    if not names or not instrumentation.compiled or not len(raw["steps"]["step"]):
        return [], 0
    site_names = [name for _, name in raw["sites"]]
    # A replay is no call of modules, whether they were compiled or not. Where there may be one, a
    # step is judged once its time on the GPU is known.
    replays = np.array([name == REPLAY_NAME for name in site_names], dtype=bool)
    replayed = np.unique(spans["step"][replays[spans["site"]] & (spans["step"] >= 0)])
    is_bare = (raw["steps"]["bare"] != 0) & ~np.isin(raw["steps"]["step"], replayed)
    if recording.device_timing.devices:
        is_bare &= raw["steps"]["gpu_ns"] >= 0
    bare_steps = int(np.count_nonzero(is_bare))
    bare = {""} if bare_steps else set()
    childless = np.isin(spans["span"], spans["parent"], invert=True)
    childless &= ~np.isin(spans["step"], replayed)
    bare |= {site_names[site] for site in np.unique(spans["site"][childless]).tolist()}
    seen = {site_names[site] for site in np.unique(spans["site"]).tolist()}
    inlined = [
        name
        for name in names
        if any(
            _is_below(name, parent) and (parent in bare or name not in seen)
            for parent in instrumentation.compiled
        )
    ]
    if not inlined:
        return [], 0
    if "" in bare:
        return inlined, bare_steps
    compiled = [parent in instrumentation.compiled for parent in site_names]
    steps = spans["step"][np.array(compiled, dtype=bool)[spans["site"]]]
    return inlined, len(np.unique(steps[steps >= 0]))


def _is_below(name: str, parent: str) -> bool:
    return name.startswith(parent + ".") if parent else True
