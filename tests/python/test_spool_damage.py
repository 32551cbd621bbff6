"""Spools that were cut, changed or made up give a part of what was written, or one error."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

import pertoken
from pertoken.errors import PertokenError
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
