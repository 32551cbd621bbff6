"""What a recording notes in its spool, beside the records: each note is a line of JSON.

A note tells of a request, a generation or the recording itself what is known of it by now, and
replaces what was told before. So one that is told twice does no harm. `recovery.py` reads them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pertoken import _native

if TYPE_CHECKING:
    from pertoken.request_log import Generation, RequestEntry

# What the native side does with a note when the segment that it is in is deleted: see spool.h.
_ONCE, _OPENS, _CLOSES = range(3)
_REQUEST, _GENERATION, _STATE, _UNKNOWN, _FAULT = (kind << 56 for kind in range(5))

TRAITS = (
    "by_generate",
    "by_rows",
    "from_start",
    "commits_known",
    "can_end_rows",
    "has_failed",
    "is_delegated",
    "is_beam_search",
)


class SpoolNotes:
    """Writes the notes of one recording.

    Args:
        recorder: the native recorder, which spools.
    """

    def __init__(self, recorder: Any) -> None:
        self._recorder = recorder
        self._sentences = 0

    def state(self, *, runs: bool, recorded_ns: int) -> None:
        """Notes that recording starts or stops now, with how long it ran before, in ns."""
        note = {"runs": runs, "ticks": _native.now_ticks(), "recorded_ns": recorded_ns}
        self._tell(_OPENS, _STATE, "state", note)

    def request(self, entry: RequestEntry) -> None:
        """Notes a request, which runs or has ended."""
        note = {
            "number": entry.number,
            "start_ticks": entry.start_ticks,
            "id": entry.id,
            "model_version": entry.model_version,
            "labels": entry.labels,
            "end_ticks": entry.end_ticks,
            "error": entry.error,
        }
        scope = _CLOSES if entry.end_ticks else _OPENS
        self._tell(scope, _REQUEST | entry.number, "request", note)

    def generation(self, generation: Generation, *, has_ended: bool) -> None:
        """Notes a generation, and how it went where it has ended."""
        note: dict[str, Any] = {name: getattr(generation, name) for name in TRAITS}
        prompt = generation.prompt
        note |= {
            "number": generation.number,
            "request": generation.request,
            "prompt": [prompt.rows, prompt.length, prompt.tokens],
        }
        if has_ended:
            sequence = generation.state if generation.by_rows else None
            note |= {
                "end_ticks": _native.now_ticks(),
                "first_commit_ticks": generation.known_first_commit_ticks,
                "row_lengths": generation.row_lengths,
                "tokens": None if sequence is None else int(sequence.tokens),
                "tokens_unknown": sequence is not None and bool(sequence.tokens_unknown),
            }
        scope = _CLOSES if has_ended else _OPENS
        self._tell(scope, _GENERATION | generation.number, "generation", note)

    def unknown(self, sentence: str) -> None:
        """Notes a sentence for `losses["reasons"]`."""
        self._sentences += 1
        self._tell(_OPENS, _UNKNOWN | self._sentences, "unknown", sentence)

    def fault(self, reason: str, place: int, count: int) -> None:
        """Notes how often the fault with this reason, the so many-th, has been counted."""
        if count & (count - 1) == 0:  # each time it has doubled
            self._tell(_OPENS, _FAULT | place, "fault", [reason, count])

    def _tell(self, scope: int, key: int, kind: str, note: Any) -> None:
        self._recorder.spool_note(scope, key, json.dumps([kind, note], separators=(",", ":")))
