"""A recording whose process is gone, put together from what it spooled, for `assemble`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pertoken.device_timing import DeviceTiming
from pertoken.generate_call import Prompt
from pertoken.identity import Ranks
from pertoken.recovered_sequences import RecoveredSequence, RowCommits
from pertoken.request_log import Generation, RequestEntry, RequestLog
from pertoken.sampling import unknown_cost
from pertoken.spool_notes import TRAITS
from pertoken.spool_reader import SpoolDamage
from pertoken.totals import Totals
from pertoken.totals_reading import read_totals

_LARGEST = 1 << 62


@dataclass
class _Modules:
    """What `describe_losses` asks the wrappers of a recording for."""

    names: list[str]
    compiled: set[str] = field(default_factory=set)
    overwritten: set[str] = field(default_factory=set)
    compiled_layers: None = None

    def note_compiled(self) -> None:
        """Nothing: the modules are gone."""


class RecoveredRecording:
    """What a recording knew, as `Recording` has it.

    Args:
        identity: the text of the spool's identity.
        recorder: a native recorder, which the records are replayed into.

    Raises:
        SpoolDamage: the identity is not one.
    """

    def __init__(self, identity: bytes, recorder: Any) -> None:
        try:
            known = json.loads(identity)
        except (ValueError, RecursionError) as error:
            raise SpoolDamage("its identity is not whole") from error
        known = _mapping(known, "identity")
        self.meta = _mapping(known.get("meta"), "identity")
        self.origin_ticks = _count(known.get("origin_ticks"))
        self.origin_unix_ns = _count(known.get("origin_unix_ns"))
        self.detail = _text(known.get("detail"))
        self.recorder = recorder
        self.log = RequestLog(1 << 40, recorder)
        self.instrumentation = _Modules([_text(name) for name in _list(known.get("modules"))])
        self.faults: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.ranks: Ranks | None = None
        self.device_timing = DeviceTiming("off")  # times on devices are not in a spool
        self.enabled = True
        self.is_cut_off = True
        self.stopped_ticks = 0
        self.recorded_ns = 0
        self._state = {"runs": True, "ticks": self.origin_ticks, "recorded_ns": 0}

    @property
    def unknown_commits(self) -> bool:
        """As of a `Recording`."""
        return self.log.has_unknown_commits

    def lasting_meta(self) -> dict[str, Any]:
        """What was known of the process and the model."""
        return dict(self.meta)

    def cost_facts(self) -> dict[str, Any]:
        """The budget, spooled at the start: rates and costs died with the process."""
        return unknown_cost(_mapping(self.meta.get("cost", {}), "identity").get("budget"))

    def thread_names(self) -> Mapping[int, str]:
        """The names of threads by their ids, where Python knows them."""
        return {}

    def totals(self) -> Totals:
        """As of a `Recording`, over what is there."""
        return read_totals(self)

    def take_note(self, payload: memoryview) -> int:
        """Takes in a note; gives the latest of the times in it, in ticks.

        Raises:
            SpoolDamage: it is not a note of this version.
        """
        try:
            kind, note = json.loads(bytes(payload))
        except (ValueError, TypeError, RecursionError) as error:
            raise SpoolDamage("a note is not of the right form") from error
        if kind == "request":
            return self._take_request(_mapping(note, kind))
        if kind == "generation":
            return self._take_generation(_mapping(note, kind))
        if kind == "state":
            note = _mapping(note, kind)
            self._state = {
                "runs": _flag(note.get("runs")),
                "ticks": _count(note.get("ticks")),
                "recorded_ns": _count(note.get("recorded_ns")),
            }
            return int(self._state["ticks"])
        if kind == "unknown":
            self.log.unknown[_text(note)] = None
        elif kind == "fault":
            reason, count = _list(note, 2)
            self.faults[_text(reason)] = _count(count)
        else:
            raise SpoolDamage("a note is of an unknown kind")
        return 0

    def finish(self, last_ticks: int, commits: RowCommits, *, is_whole: bool) -> None:
        """Sets the end, once all was taken in.

        Args:
            last_ticks: when the process is last known to have lived.
            commits: of the rows that an engine told.
            is_whole: whether no record is missing, from the beginning on.
        """
        open_rows = [g for g in self.log.generations.values() if g.by_rows and g.running]
        sequences = commits.sequences([g.number for g in open_rows], is_whole)
        for generation in open_rows:
            generation.state = sequences[generation.number]
        self.stopped_ticks = last_ticks
        self.recorded_ns = self._state["recorded_ns"]
        self.is_cut_off = bool(self._state["runs"])
        if self.is_cut_off:
            marks = np.array([self._state["ticks"], last_ticks], dtype=np.uint64)
            since_ns, until_ns = self.recorder.snapshot(self.origin_ticks, marks)["marks_ns"]
            self.recorded_ns += max(0, int(until_ns - since_ns))

    def tell(self, reasons: list[str]) -> None:
        """Puts sentences into `losses["reasons"]`."""
        self.log.unknown = dict.fromkeys([*reasons, *self.log.unknown])

    def _take_request(self, note: dict[str, Any]) -> int:
        number, end_ticks = _count(note.get("number")), _count(note.get("end_ticks"))
        labels = {_text(k): _text(v) for k, v in _mapping(note.get("labels"), "request").items()}
        entry = self.log.requests.get(number)
        if entry is None:
            entry = RequestEntry(
                number,
                _count(note.get("start_ticks")),
                _text(note.get("id")),
                _text(note.get("model_version")),
                labels,
            )
            self.log.restore_request(entry)
        if end_ticks and not entry.end_ticks:
            self.log.end_request(entry, end_ticks, _text(note.get("error")))
        return max(entry.start_ticks, end_ticks)

    def _take_generation(self, note: dict[str, Any]) -> int:
        number, end_ticks = _count(note.get("number")), _count(note.get("end_ticks", 0))
        traits = {name: _flag(note.get(name)) for name in TRAITS}
        prompt = [_size(size) for size in _list(note.get("prompt"), 3)]
        generation = self.log.generations.get(number)
        if generation is None:
            generation = Generation(number, _count(note.get("request")), prompt=Prompt(*prompt))
            for name, value in traits.items():
                setattr(generation, name, value)
            if generation.by_rows:
                generation.state = RecoveredSequence()
            self.log.restore_generation(generation)
        if generation.end_ticks:
            return end_ticks
        for name, value in traits.items():
            setattr(generation, name, value)
        if end_ticks:
            self._end_generation(generation, note, end_ticks)
        return end_ticks

    def _end_generation(self, generation: Generation, note: dict[str, Any], end_ticks: int) -> None:
        first_commit_ticks = _count(note.get("first_commit_ticks"))
        lengths = note.get("row_lengths")
        if lengths is not None:
            generation.row_lengths = [_narrow(length) for length in _list(lengths)]
        if generation.by_rows:
            tokens = _narrow(note.get("tokens"))
            unknown = _flag(note.get("tokens_unknown"))
            generation.state = RecoveredSequence(tokens, unknown, first_commit_ticks)
        generation.first_commit_ticks = first_commit_ticks
        self.log.end_generation(generation)
        generation.running, generation.end_ticks = False, end_ticks


def _mapping(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpoolDamage(f"its {what} is not of the right form")
    return value


def _list(value: object, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise SpoolDamage("a list in it is not of the right form")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise SpoolDamage("a text in it is not one")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise SpoolDamage("a mark in it is neither true nor false")
    return value


def _integer(value: object, least: int, end: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < end:
        raise SpoolDamage("a number in it is not one that can be")
    return value


def _count(value: object) -> int:
    return _integer(value, 0, _LARGEST)


def _size(value: object) -> int:
    return _integer(value, -1, _LARGEST)


def _narrow(value: object) -> int:
    return _integer(value, 0, 1 << 32)
