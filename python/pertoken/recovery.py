"""`recover(path)`: a `Profile` of what a recording left in its spool when its process ended.

The records are replayed into a fresh native recorder, and the notes into a fresh log of requests,
in the order in which they were written; so the profile comes out of the code that makes those of
living recordings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pertoken import _native
from pertoken.assembly import assemble
from pertoken.errors import SpoolError, system_errors
from pertoken.manifest import ManifestError, check_metadata
from pertoken.quantity import plural_text
from pertoken.recovered_recording import RecoveredRecording
from pertoken.recovered_sequences import RowCommits
from pertoken.result import Profile
from pertoken.spool_folder import IDENTITY, is_recorded_into, recordings_in
from pertoken.spool_reader import (
    CLOCK,
    LOSSES,
    NOTE,
    OBSERVATION,
    RECORDS,
    ROUND,
    SEGMENT,
    Batch,
    Frame,
    Frames,
    SpoolDamage,
    batch_of,
    batch_of_ring,
    clock_samples,
    frames_of_journal,
    losses_of,
    observation_head,
    segment_head,
    site_of,
)

_SPAN, _GAP, _STEP_BEGIN, _STEP_END, _COMMIT, _ROW_COMMIT = 0, 1, 2, 3, 4, 7
_SITE_MASK = 0x00FFFFFF
_NONE = 0xFFFFFFFF
_UNNAMED = (1, "(unknown)")
# What tables raise that are made of records which no recording writes.
_NONSENSE = (ArithmeticError, IndexError, KeyError, MemoryError, TypeError, ValueError)
# Rows that tables would have: what records say without being large themselves.
_MOST_ROWS, _MOST_ROWS_A_STEP, _MOST_TOKENS = 1 << 21, 1 << 18, 1 << 24
_LARGEST_IDENTITY_BYTES = 64 << 20
_HEADER_BYTES = 64  # of a mapped file, at least; zeros until it is in use


def recover(path: str | os.PathLike[str]) -> Profile:
    """The profile of a recording whose process is gone, from what `profile(spool=...)` left.

    Everything up to the end is there, but for the calls that were running then: they have no
    span, and their steps no end. What the spool's bound has dropped, what is damaged and how the
    recording ended is said in `losses`. Nothing in the folder is changed.

    Args:
        path: the folder given as `spool`, of which the newest recording that is over is taken; or
            the folder of one recording in it.

    Raises:
        SpoolError: there is no such recording, its process still holds it, or it is too damaged to
            be read.
        PertokenError: the system refused to read it.
    """
    folder = _find(Path(path))
    try:
        with system_errors("recover", str(folder)):
            spooled = _read(folder)
        profile = assemble(_replay(spooled))
        check_metadata(profile.meta, profile.losses)
    except _NONSENSE as error:
        is_told = isinstance(error, SpoolDamage | ManifestError)
        reason = str(error) if is_told else "its records do not fit together"
        raise SpoolError(
            f"cannot recover {str(folder)!r}: {reason}; if other recordings are beside it, "
            "give the folder of one of them"
        ) from error
    return profile


def _find(path: Path) -> Path:
    with system_errors("recover", str(path)):
        if (path / IDENTITY).exists():
            candidates = [path]
        else:
            candidates = [each for each in recordings_in(path) if (each / IDENTITY).exists()]
    if not candidates:
        raise SpoolError(
            f"{str(path)!r} holds no recording; give the folder that was given as spool, or the "
            "folder of one recording in it"
        )
    over = [each for each in candidates if not is_recorded_into(each)]
    if not over:
        raise SpoolError(
            f"{str(candidates[0])!r} is still held by the process that made it, where it may start "
            "again; ask that process for its result, or wait until it has ended or let go of it"
        )
    return over[0]


@dataclass
class _Spooled:
    """The contents of a folder, as they were written."""

    identity: bytes
    sites: dict[int, tuple[int, str]] = field(default_factory=dict)
    frames: list[Frame] = field(default_factory=list)
    first_step: int = 0
    rings: list[bytes] = field(default_factory=list)
    size_bytes: int = 0
    unread: dict[str, int] = field(default_factory=dict)  # bytes, by file


def _read(folder: Path) -> _Spooled:
    with open(folder / IDENTITY, "rb") as stream:
        spooled = _Spooled(stream.read(_LARGEST_IDENTITY_BYTES))
    names = os.listdir(folder)

    def numbered(prefix: str) -> list[Path]:
        numbers = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        found = sorted(int(number) for number in numbers if number.isascii() and number.isdigit())
        return [folder / f"{prefix}{number}" for number in found]

    def take(path: Path, frames: Frames, *, grows: bool = False) -> list[Frame]:
        found = list(frames)
        if frames.unread_bytes and not (grows and frames.is_torn):
            spooled.unread[path.name] = frames.unread_bytes
        return found

    sites = folder / "sites"
    for frame in take(sites, Frames(_content(sites)), grows=True):
        code, category, name = site_of(frame)
        spooled.sites[code] = (category, name)
    segments = numbered("segment-")
    expected = None
    for path in segments:
        content = _content(path)
        spooled.size_bytes += len(content)
        frames = take(path, Frames(content), grows=path == segments[-1])
        if not frames:  # the process was killed when it had just made it
            continue
        if frames[0].type != SEGMENT:  # nothing in it says what it follows
            spooled.unread[path.name] = len(content)
            continue
        number, first_step = segment_head(frames[0])
        if path.name != f"segment-{number}":
            raise SpoolDamage(f"{path.name} is another segment than its name says")
        if expected is None:
            spooled.first_step = first_step if number else 0
        elif number != expected:
            spooled.unread.setdefault(f"segment-{expected}", 0)
        expected = number + 1
        spooled.frames += frames[1:]
    for name in ("journal", "observations"):
        content = _content(folder / name)
        spooled.size_bytes += len(content) if name == "observations" else 0
        spooled.frames += take(folder / name, frames_of_journal(content))
    for path in numbered("ring-"):
        content = _content(path)
        if any(content[:_HEADER_BYTES]):
            spooled.rings.append(content)
            spooled.size_bytes += len(content)
    return spooled


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _replay(spooled: _Spooled) -> RecoveredRecording:
    # Large enough that what was in the files fits, also where many threads recorded little each.
    recorder = _native.Recorder((4 << 20) + 24 * spooled.size_bytes, 64)
    recording = RecoveredRecording(spooled.identity, recorder)
    samples = [clock_samples(frame) for frame in spooled.frames if frame.type == CLOCK]
    samples = [each for each in samples if len(each)]
    if not samples:
        raise SpoolDamage("it holds no time of the clock, so nothing had been recorded")
    clock = np.concatenate(samples)
    recorder.replay_clock(clock)
    recorder.replay_from(spooled.first_step)
    replay = _Replay(recording, spooled.sites)
    replay.saw(int(clock[:, 2].max()))
    for frame in spooled.frames:
        replay.take(frame)
    recorder.replay_round()
    for content in spooled.rings:
        batch = batch_of_ring(content, replay.taken)
        if batch is None:
            spooled.unread["a ring"] = len(content)
        else:
            replay.take_batch(batch)
    recorder.replay_round()
    dropped, recording_faults, collector_faults = replay.losses
    recorder.replay_losses(
        records_dropped=dropped + replay.missing,
        recording_faults=recording_faults,
        collector_faults=collector_faults,
        observations_dropped=replay.observations_missing,
    )
    is_whole = not (spooled.first_step or replay.missing or spooled.unread)
    recording.finish(replay.last_ticks, replay.commits, is_whole=is_whole)
    recording.tell(_reasons(spooled, replay, recording))
    return recording


class _Replay:
    """Takes in what was spooled, in order.

    Attributes:
        taken: for each track, the place behind its last record.
        missing: how many records are not there, between those that are.
        observations_missing: likewise; they were dropped, or could not be written.
        losses: as counted by the recording itself.
        commits: of the rows that an engine told.
    """

    def __init__(self, recording: RecoveredRecording, sites: dict[int, tuple[int, str]]) -> None:
        self.taken: dict[int, int] = {}
        self.missing = self.observations_missing = 0
        self.losses = (0, 0, 0)
        self.commits = RowCommits()
        self.frames_lost = 0
        self.last_ticks = 0
        self._recording = recording
        self._next_observation: int | None = None
        self._rows = self._steps = 0
        self._codes = np.full(max(sites, default=-1) + 2, -1, dtype=np.int64)
        for code, (category, name) in sites.items():
            self._codes[code] = _intern(category, name)

    def saw(self, ticks: int) -> None:
        """Notes that the process lived then."""
        self.last_ticks = max(self.last_ticks, ticks)

    def take(self, frame: Frame) -> None:
        """Takes a frame of a segment or of the journal."""
        if frame.type == RECORDS:
            self.take_batch(batch_of(frame))
        elif frame.type == NOTE:
            self.saw(self._recording.take_note(frame.payload))
        elif frame.type == ROUND:
            self._recording.recorder.replay_round()
        elif frame.type == LOSSES:
            *losses, self.frames_lost = losses_of(frame)
            self.losses = (losses[0], losses[1], losses[2])
        elif frame.type == OBSERVATION:
            self.take_observation(frame)
        elif frame.type != CLOCK:
            raise SpoolDamage(f"it holds a frame of type {frame.type}, which this pertoken lacks")

    def take_batch(self, batch: Batch) -> None:
        """Takes the records of one thread."""
        records, first = batch.records, batch.first_index
        expected = self.taken.get(batch.track)
        if expected is not None and first < expected:  # written twice
            records = records[expected - first :]
            first = expected
        elif expected is not None:
            self.missing += first - expected
        if not len(records):
            return
        self.taken[batch.track] = first + len(records)
        goes_on = batch.last_step is None
        is_sound = self._recording.recorder.replay(
            track=batch.track,
            tid=batch.tid,
            thread_name=batch.thread_name,
            last_step=0 if batch.last_step is None else batch.last_step,
            last_seq=0 if batch.last_seq is None else batch.last_seq,
            goes_on=goes_on,
            records=self._checked(records).tobytes(),
        )
        if not is_sound:
            raise SpoolDamage("it holds records that cannot be")

    def take_observation(self, frame: Frame) -> None:
        """Takes an observation."""
        number, site = observation_head(frame)
        expected = self._next_observation
        if expected is not None and number < expected:  # written twice
            return
        self.observations_missing += 0 if expected is None else number - expected
        self._next_observation = number + 1
        code = int(self._codes[min(site, len(self._codes) - 1)])
        known = _intern(*_UNNAMED) if code < 0 else code
        if not self._recording.recorder.replay_observation(bytes(frame.payload), known):
            raise SpoolDamage("it holds an observation that cannot be")

    def _checked(self, records: NDArray[np.void]) -> NDArray[np.void]:
        """With the codes that sites have in this process."""
        records = records.copy()
        kind = records["tag"] >> 24
        begin, end = records["start_ticks"], records["end_ticks"]
        is_span = kind <= _GAP
        ends = np.concatenate([end[is_span], begin[(kind == _STEP_BEGIN) | (kind == _STEP_END)]])
        if len(ends):
            self.saw(int(ends.max()))
        code = np.minimum(records["tag"][is_span] & _SITE_MASK, len(self._codes) - 1)
        known = self._codes[code]
        if (known < 0).any():
            known = np.where(known < 0, _intern(*_UNNAMED), known)
        records["tag"][is_span] = kind[is_span] << 24 | known.astype(np.uint32)
        rows = end[kind == _STEP_BEGIN] >> np.uint64(32)
        commits = end[(kind == _COMMIT) | (kind == _ROW_COMMIT)] & np.uint64(_NONE)
        self._rows += int(np.where(rows == _NONE, 0, rows).sum())
        self._steps += len(rows)
        most_rows = _MOST_ROWS + self._steps * _MOST_ROWS_A_STEP
        if self._rows > most_rows or commits.max(initial=0) > _MOST_TOKENS:
            raise SpoolDamage("it holds steps with more rows or tokens than can be")
        self.commits.take(records, kind)
        return records


def _intern(category: int, name: str) -> int:
    try:
        return _native.intern_site(category, name)
    except ValueError as error:
        raise SpoolDamage("it holds a site of an unknown category") from error


def _reasons(spooled: _Spooled, replay: _Replay, recording: RecoveredRecording) -> list[str]:
    reasons = ["Recovered from a spool: calls that ran when the process ended have no span."]
    if recording.is_cut_off:
        reasons.append("The recording ran until its process ended; nothing stopped it.")
    if spooled.first_step:
        reasons.append(
            f"The spool's bound has dropped the steps before number {spooled.first_step}; totals "
            "count what is left."
        )
    if replay.missing:
        reasons.append(f"The spool lacks {plural_text(replay.missing, 'record')} in between.")
    if replay.frames_lost:
        reasons.append(
            f"The recording could not write {plural_text(replay.frames_lost, 'frame')} of its "
            "spool: the disk may have been full."
        )
    for name, size in spooled.unread.items():
        reasons.append(f"{plural_text(size, 'byte')} at the end of {name} could not be read.")
    return reasons
