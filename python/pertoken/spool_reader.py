"""Reads the files that a spool leaves: bytes in, frames and records out; see `spool_format.h`.

A process that is killed may leave the last frame torn, and a disk may lose more. What does not
bear its checksum, and all behind it in the same file, is left out and counted, never guessed. Of
a torn frame nothing is lost: what it was to hold stays in ring and journal until it is written.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

VERSION = 1

SEGMENT, RECORDS, NOTE, ROUND, CLOCK, LOSSES, SITE, OBSERVATION = range(1, 9)

_FRAME = struct.Struct("<IIII")  # magic, checksum, type, bytes of the payload
_FRAME_MAGIC = 0x4D465450
_LARGEST_FRAME_BYTES = 1 << 20  # a note that fills the journal
_SEGMENT = struct.Struct("<IIQq")  # version, 0, number, first step
_RECORDS = struct.Struct("<iIQqqq16s")  # track, count, first index, last step, last seq, tid, name
_LOSSES = struct.Struct("<QQQQ")
_SITE = struct.Struct("<II")  # code, category
_OBSERVATION = struct.Struct("<QqII")  # number, last step, step, site; more behind
_MOST_SITES = 1 << 20  # more than the string table holds
_RING = struct.Struct("<QIiQq16s")  # magic, version, track, capacity, tid, name
_RING_MAGIC = int.from_bytes(b"PTKRING1", "little")
_RING_HEADER_BYTES = 4096
_HEAD_OFFSET, _TAIL_OFFSET, _SLOTS_OFFSET = 0, 64, 128  # in the block behind the header
_MOST_RING_RECORDS = 1 << 24
_JOURNAL = struct.Struct("<QIIQ")  # magic, version, 0, begin << 32 | end
_JOURNAL_MAGIC = int.from_bytes(b"PTKJRNL1", "little")
_JOURNAL_HEADER_BYTES = 64

RECORD = np.dtype(
    [
        ("start_ticks", "<u8"),
        ("end_ticks", "<u8"),
        ("tag", "<u4"),
        ("seq", "<u4"),
        ("parent_seq", "<u4"),
        ("step", "<u4"),
    ]
)


class SpoolDamage(ValueError):
    """What bears its checksum is not what this version writes."""


@dataclass(frozen=True)
class Frame:
    """A frame that is whole: its type, and what it holds."""

    type: int
    payload: memoryview


class Frames:
    """The frames at the beginning of some bytes, up to the first that is not whole.

    Attributes:
        unread_bytes: how many bytes are behind them, once they have been read.
        is_torn: whether those look like the beginning of one more, which was being written.
    """

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = memoryview(content)
        self.unread_bytes = len(self._content)
        self.is_torn = False

    def __iter__(self) -> Iterator[Frame]:
        """The frames, in order; once."""
        at = 0
        while (frame := self._frame_at(at)) is not None:
            at += _FRAME.size + len(frame.payload)
            self.unread_bytes = len(self._content) - at
            yield frame
        self.is_torn = _is_torn_frame(self._content[at:])

    def _frame_at(self, at: int) -> Frame | None:
        if len(self._content) - at < _FRAME.size:
            return None
        magic, checksum, kind, size = _FRAME.unpack_from(self._content, at)
        end = at + _FRAME.size + size
        if magic != _FRAME_MAGIC or end > len(self._content):
            return None
        if zlib.crc32(self._content[at + 8 : end]) != checksum:
            return None
        return Frame(kind, self._content[at + _FRAME.size : end])


def _is_torn_frame(content: memoryview) -> bool:
    begin = bytes(content[:4])
    if begin != _FRAME_MAGIC.to_bytes(4, "little")[: len(begin)]:
        return False
    if len(content) < _FRAME.size:
        return True
    size: int = _FRAME.unpack_from(content)[3]
    return len(content) < _FRAME.size + size <= _LARGEST_FRAME_BYTES


@dataclass(frozen=True)
class Batch:
    """Records of one thread, in the order in which they were pushed.

    Attributes:
        first_index: the place of the first among all of its thread's.
        last_step, last_seq: what numbers are to be widened against; None: those of the batch
            before.
        records: with the fields of `RECORD`.
    """

    track: int
    tid: int
    thread_name: str
    first_index: int
    last_step: int | None
    last_seq: int | None
    records: NDArray[np.void]


def segment_head(frame: Frame) -> tuple[int, int]:
    """The number of a segment, and the first step of which it and the later ones hold all.

    Raises:
        SpoolDamage: the frame does not begin a segment of this version.
    """
    if frame.type != SEGMENT or len(frame.payload) != _SEGMENT.size:
        raise SpoolDamage("a segment does not begin like one")
    version, _, number, first_step = _SEGMENT.unpack(frame.payload)
    if version != VERSION:
        raise SpoolDamage(
            f"it is of version {version} and this pertoken reads {VERSION}; use the pertoken that "
            "recorded it"
        )
    if not 0 <= first_step < 1 << 62:
        raise SpoolDamage("a segment does not begin like one")
    return number, first_step


def batch_of(frame: Frame) -> Batch:
    """The records of a frame.

    Raises:
        SpoolDamage: their number is not what the frame says.
    """
    payload = frame.payload
    if len(payload) < _RECORDS.size:
        raise SpoolDamage("a batch of records is too short")
    track, count, index, last_step, last_seq, tid, name = _RECORDS.unpack_from(payload)
    if len(payload) != _RECORDS.size + count * RECORD.itemsize or track < 0:
        raise SpoolDamage("a batch of records has not the length that it says")
    records = np.frombuffer(payload, RECORD, count, _RECORDS.size)
    return Batch(track, tid, _text(name), index, last_step, last_seq, records)


def clock_samples(frame: Frame) -> NDArray[np.int64]:
    """Samples of the clock, int64 of shape (n, 3): ticks before, boot clock in ns, ticks after.

    Raises:
        SpoolDamage: it is not a number of samples.
    """
    if len(frame.payload) % 24:
        raise SpoolDamage("the samples of the clock have not the right length")
    samples = np.frombuffer(frame.payload, "<i8").reshape(-1, 3)
    if (samples < 0).any() or (samples >= 1 << 62).any():
        raise SpoolDamage("the samples of the clock are no times")
    return samples.astype(np.int64)


def losses_of(frame: Frame) -> tuple[int, int, int, int]:
    """Records dropped, faults while recording and while collecting, frames not written.

    Raises:
        SpoolDamage: it is of another length.
    """
    if len(frame.payload) != _LOSSES.size:
        raise SpoolDamage("the losses have not the right length")
    dropped, recording, collecting, frames = _LOSSES.unpack(frame.payload)
    if max(dropped, recording, collecting, frames) >= 1 << 62:
        raise SpoolDamage("the losses are no counts")
    return dropped, recording, collecting, frames


def site_of(frame: Frame) -> tuple[int, int, str]:
    """The code of a site, the number of its category, and its name.

    Raises:
        SpoolDamage: it is not a site.
    """
    if frame.type != SITE or len(frame.payload) < _SITE.size:
        raise SpoolDamage("the names of the sites are not what they should be")
    code, category = _SITE.unpack_from(frame.payload)
    if code >= _MOST_SITES:
        raise SpoolDamage("the names of the sites are not what they should be")
    try:
        return code, category, str(frame.payload[_SITE.size :], "utf-8")
    except UnicodeDecodeError as error:
        raise SpoolDamage("the name of a site is no text") from error


def observation_head(frame: Frame) -> tuple[int, int]:
    """The place of an observation among all that were made, and the code of its site.

    Raises:
        SpoolDamage: it is too short, or has no number.
    """
    if len(frame.payload) < _OBSERVATION.size:
        raise SpoolDamage("an observation is too short")
    number, _, _, site = _OBSERVATION.unpack_from(frame.payload)
    if number >= 1 << 62:
        raise SpoolDamage("the number of an observation is none")
    return number, site


def frames_of_journal(content: bytes) -> Frames:
    """What is in a journal, of notes or of observations: it had not come into a segment."""
    if len(content) < _JOURNAL_HEADER_BYTES:
        return Frames(content)
    magic, version, _, extent = _JOURNAL.unpack_from(content)
    begin, end = extent >> 32, extent & 0xFFFFFFFF
    inside = memoryview(content)[_JOURNAL_HEADER_BYTES:]
    if magic != _JOURNAL_MAGIC or version != VERSION or not begin <= end <= len(inside):
        return Frames(inside[:0] if not any(content[:_JOURNAL_HEADER_BYTES]) else content)
    return Frames(inside[begin:end])


def batch_of_ring(content: bytes, taken: dict[int, int]) -> Batch | None:
    """The records that were in the ring of a thread and in no segment; None where it is damaged.

    Args:
        content: the file.
        taken: for each track, the place behind its last record in a segment.
    """
    if len(content) < _RING_HEADER_BYTES + _SLOTS_OFFSET:
        return None
    magic, version, track, capacity, tid, name = _RING.unpack_from(content)
    block = memoryview(content)[_RING_HEADER_BYTES:]
    head = int.from_bytes(block[_HEAD_OFFSET : _HEAD_OFFSET + 8], "little")
    tail = int.from_bytes(block[_TAIL_OFFSET : _TAIL_OFFSET + 8], "little")
    is_whole = (
        magic == _RING_MAGIC
        and version == VERSION
        and track >= 0
        and 0 < capacity <= _MOST_RING_RECORDS
        and capacity & (capacity - 1) == 0
        and len(block) == _SLOTS_OFFSET + capacity * RECORD.itemsize
        and tail <= head <= tail + capacity
    )
    if not is_whole:
        return None
    first = min(max(tail, taken.get(track, 0)), head)
    slots = np.frombuffer(block, RECORD, capacity, _SLOTS_OFFSET)
    places = np.arange(head - first, dtype=np.int64) + first % capacity
    return Batch(track, tid, _text(name), first, None, None, slots[places % capacity])


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode("utf-8", "replace")
