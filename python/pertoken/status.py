"""The line that tells a person that a recording is on, and what it costs."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from pertoken.quantity import count_text, duration_text, percent_text, plural_text
from pertoken.sampling import cost_facts
from pertoken.schema import STEP_KINDS
from pertoken.summary_cost import rates_text

if TYPE_CHECKING:
    from logging import Logger

    from pertoken.recording import Recording


def describe_status(recording: Recording) -> str:
    """One line; see `Recording.status`."""
    name = recording.model_facts["class"]
    if not recording.enabled:
        return f"{name} is not recorded: PERTOKEN=0 in the environment"
    if not recording.origin_ticks:
        return f"{name} is not recorded: not started yet"
    verb = "recording" if recording.is_recording else "stopped recording"
    preposition = "for" if recording.is_recording else "after"
    counts = recording.recorder.status()
    parts = [
        _steps_text(counts["steps"]),
        f"{plural_text(counts['tokens_in'], 'token')} fed",
        f"{_mebibytes(recording.held_bytes(counts['store_bytes']))} of "
        f"{_mebibytes(recording.memory_limit_bytes)} MiB held",
        _losses_text(counts, sum(recording.faults.values())),
    ]
    return (
        f"{verb} {name} ({recording.detail}) {preposition} "
        f"{duration_text(recording.recorded_ns)}: {', '.join(parts)}; "
        f"{_cost_text(counts, recording)}"
    )


def _steps_text(steps: list[int]) -> str:
    kinds = ", ".join(
        f"{count_text(count)} {kind}"
        for kind, count in zip(STEP_KINDS, steps, strict=True)
        if count
    )
    return plural_text(sum(steps), "step") + (f" ({kinds})" if kinds else "")


def _losses_text(counts: dict[str, Any], faults: int) -> str:
    lost = [
        (counts["records_dropped"], "record", "dropped"),
        (counts["steps_evicted"], "step", "evicted"),
        (counts["faults"] + faults, "fault", "while recording"),
    ]
    told = [f"{plural_text(count, noun)} {what}" for count, noun, what in lost if count]
    return ", ".join(told) or "nothing lost"


def _cost_text(counts: dict[str, Any], recording: Recording) -> str:
    if not counts["step_ns"]:
        return "no step has ended, so its cost is not known yet"
    facts = cost_facts(recording, counts)
    if facts["share"] is None:
        return "its cost is not known: no recording is free to measure with"
    text = f"costs about {percent_text(facts['share'])} of the steps' time (an estimate)"
    if facts["budget"] is None:
        return text
    rates = rates_text({kind: row["rates"] for kind, row in facts["kinds"].items()})
    text += f", of a budget of {percent_text(facts['budget'])}"
    return f"{text}; sampled: {rates}" if rates else text


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f}".removesuffix(".0")


class StatusLog:
    """Logs the status of a recording at an interval, from a thread that keeps nothing alive.

    Args:
        recording: what to tell of; held weakly.
        interval_s: seconds between lines.
        logger: where they go, at INFO.
    """

    def __init__(self, recording: Recording, interval_s: float, logger: Logger) -> None:
        # A plain lock: the collector may end a recording while this thread's own code runs, and a
        # forked child may end it as well.
        self._ended = threading.Lock()
        self._ended.acquire()
        self._pid = os.getpid()
        thread = threading.Thread(
            target=_log_until,
            args=(self._ended, weakref.ref(recording), interval_s, logger),
            name="pertoken-status",
            daemon=True,
        )
        thread.start()

    def end(self) -> None:
        """Ends the thread; the second call is nothing."""
        if os.getpid() == self._pid and self._ended.locked():
            try:
                self._ended.release()
            except RuntimeError:  # somebody else was quicker
                return


def _log_until(ended: Any, ref: weakref.ref[Recording], interval_s: float, logger: Logger) -> None:
    while not ended.acquire(timeout=interval_s):
        recording = ref()
        if recording is None:
            return
        try:
            logger.info("%s", recording.status())
        except Exception as error:  # the program's handler may be what fails: not logged again
            recording.faults[f"status: {type(error).__name__}: {error}"] += 1
        del recording
