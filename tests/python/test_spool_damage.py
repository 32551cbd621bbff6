"""Spools that were cut, changed or made up give a part of what was written, or one error."""

from __future__ import annotations

import os
import struct
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

import pertoken
from pertoken.errors import PertokenError
from pertoken.spool_reader import RECORD, RECORDS, Frames, batch_of
from spool_inputs import CORPUS, RING_BYTES, joined, mutated, parts, unpack

NAMES = sorted(path.name for path in CORPUS.iterdir())


def recovered(
    content: bytes, folder: Path, cut: tuple[str, int] | None = None
) -> pertoken.Profile | None:
    """What is recovered of the files in a piece, one of them cut; None where that is refused."""
    unpack(content, folder)
    if cut is not None:
        os.truncate(folder / cut[0], cut[1])
    try:
        return pertoken.recover(folder)
    except PertokenError as error:
        assert str(error)
        return None


@cache
def rows_of(name: str) -> dict[str, set[Any]]:
    """What a kept input holds: of each table its rows, each with all that identifies it."""
    with tempfile.TemporaryDirectory() as folder:
        profile = recovered((CORPUS / name).read_bytes(), Path(folder) / "input")
    assert profile is not None and len(profile.steps)
    return identified(profile)


def identified(profile: pertoken.Profile) -> dict[str, set[Any]]:
    columns = {
        "steps": ("step", "rows", "kind"),
        "spans": ("span", "parent", "step", "site"),
        "requests": ("request", "id"),
        "activations": ("observation", "step", "row", "site"),
    }
    return {
        table: set(zip(*(profile.tables[table][c].tolist() for c in names), strict=True))
        for table, names in columns.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_kept_inputs_are_recovered(name: str) -> None:
    assert rows_of(name)["steps"]


@pytest.mark.parametrize("file", ["segment-0", "journal", "ring-0", "sites"])
def test_a_file_that_ends_anywhere_gives_a_part_of_what_was_there(
    file: str, tmp_path: Path
) -> None:
    name = "generate"
    whole = rows_of(name)
    content = (CORPUS / name).read_bytes()
    size = RING_BYTES if file.startswith("ring-") else len(parts(content)[file])
    given, rng = 0, Random(7)
    for number, end in enumerate(sorted(rng.sample(range(size), min(size, 40)))):
        profile = recovered(content, tmp_path / str(number), (file, end))
        if profile is None:
            continue
        given += 1
        for table, rows in identified(profile).items():
            if table == "spans" and file == "sites":
                assert {row[:3] for row in rows} == {row[:3] for row in whole[table]}
            else:
                assert rows <= whole[table], (table, end)
    assert given >= 10


def test_of_a_frame_torn_by_the_end_of_the_process_nothing_is_lost(tmp_path: Path) -> None:
    """What it was to hold is in the ring still, which lets go of records once they are written."""
    files = parts((CORPUS / "generate").read_bytes())
    segment = files["segment-0"]
    ends, batches = [0], []
    for frame in Frames(segment):
        ends.append(ends[-1] + 16 + len(frame.payload))
        if frame.type == RECORDS:
            batches.append((ends[-2], ends[-1], batch_of(frame)))
    begin, end, batch = batches[-1]
    behind = batch.first_index + len(batch.records)

    def with_ring_from(tail: int) -> bytes:
        slots = bytearray(64 * RECORD.itemsize)
        for number, record in enumerate(batch.records, batch.first_index):
            struct.pack_into("32s", slots, number % 64 * 32, record.tobytes())
        return files["ring-0"][:4096] + struct.pack("<Q56xQ56x", behind, tail) + bytes(slots)

    whole = recovered(joined({**files, "ring-0": with_ring_from(behind)}), tmp_path / "whole")
    assert whole is not None and whole.losses["reasons"][2:] == []
    files["ring-0"] = with_ring_from(batch.first_index)
    for cut in (begin, begin + 1, begin + 15, begin + 16, begin + 200, end - 1, end, end + 20):
        torn = joined({**files, "segment-0": segment[:cut]})
        profile = recovered(torn, tmp_path / str(cut))
        assert profile is not None
        assert identified(profile) == identified(whole)
        assert profile.losses["reasons"] == whole.losses["reasons"]


def test_a_segment_without_its_head_does_not_keep_the_others_from_being_recovered(
    tmp_path: Path,
) -> None:
    """As a disk that was full when it was begun may leave it."""
    files = parts((CORPUS / "generate").read_bytes())
    head = next(iter(Frames(files["segment-0"])))
    headless = files["segment-0"][16 + len(head.payload) :]
    profile = recovered(joined({**files, "segment-1": headless}), tmp_path / "input")
    assert profile is not None
    assert identified(profile) == rows_of("generate")
    reason = f"{len(headless):,} bytes at the end of segment-1 could not be read."
    assert reason in profile.losses["reasons"]


@pytest.mark.parametrize("file", ["segment-0", "sites"])
def test_a_bit_that_was_turned_makes_up_no_row(file: str, tmp_path: Path) -> None:
    name = "generate"
    whole = rows_of(name)
    files = parts((CORPUS / name).read_bytes())
    rng = Random(11)
    told = 0
    for number in range(60):
        data = bytearray(files[file])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        profile = recovered(joined({**files, file: bytes(data)}), tmp_path / str(number))
        if profile is None:
            continue
        told += any("could not be read" in reason for reason in profile.losses["reasons"])
        for table, rows in identified(profile).items():
            if table == "spans" and file == "sites":
                assert {row[:3] for row in rows} == {row[:3] for row in whole[table]}
            else:
                assert rows <= whole[table], table
    assert told >= 20


def test_mutations_are_recovered_or_refused(tmp_path: Path) -> None:
    def flip(data: bytes, largest: int) -> bytes:
        changed = bytearray(data[:largest])
        for _ in range(rng.randrange(1, 4)):
            if changed:
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)

    rng = Random(2024)
    starts = [(CORPUS / name).read_bytes() for name in NAMES]
    given = 0
    for number in range(150):
        data = mutated(rng.choice(starts), number, 1 << 16, flip)
        profile = recovered(data, tmp_path / str(number))
        if profile is not None:
            given += 1
            profile.save(tmp_path / "saved.pertoken")
            pertoken.load(tmp_path / "saved.pertoken")
    assert 30 < given < 145
