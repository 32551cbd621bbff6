"""A saved profile as bytes and as members, for tests that damage it."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertoken.errors import FileFormatError
from pertoken.result import Profile
from pertoken.storage import load, save
from synthetic import EXOTIC_NAMES, columns_of, synthetic_profile, with_columns

Members = list[tuple[str, bytes]]


def assert_same(left: Profile, right: Profile) -> None:
    before, after = columns_of(left), columns_of(right)
    assert list(before) == list(after)
    for name in before:
        assert left.tables[name].columns == right.tables[name].columns
        for column in before[name]:
            assert before[name][column].dtype == after[name][column].dtype
            np.testing.assert_array_equal(before[name][column], after[name][column])
    assert left.requests.strings == right.requests.strings
    assert left.meta == right.meta and left.losses == right.losses


@lru_cache(maxsize=1)
def original_profile() -> Profile:
    """Make the profile that the tests save: exotic names and a label."""
    return with_columns(
        synthetic_profile(exotic_names=True, layers=len(EXOTIC_NAMES), tokens=4),
        "requests",
        label__tier=["gold", ""],
    )


@lru_cache(maxsize=1)
def saved_bytes() -> bytes:
    """Give the bytes of its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.pertoken"
        save(original_profile(), path)
        return path.read_bytes()


def saved_members() -> Members:
    """Give the members of its file, unpacked."""
    with zipfile.ZipFile(io.BytesIO(saved_bytes())) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def pack(members: Members, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
    return stream.getvalue()


def edit_manifest(members: Members, edit: Callable[[dict[str, Any]], Any]) -> Members:
    manifest = json.loads(dict(members)["manifest.json"])
    edit(manifest)
    return replace(members, "manifest.json", json.dumps(manifest).encode())


def replace(members: Members, name: str, data: bytes) -> Members:
    assert name in dict(members)
    return [(n, data if n == name else d) for n, d in members]


def refused(folder: Path, data: bytes, match: str | None = None) -> str:
    """Load the bytes and check that exactly one clear error comes of it, and nothing else."""
    path = folder / "refused.pertoken"
    path.write_bytes(data)
    before = sorted(os.listdir(folder))
    with pytest.raises(FileFormatError, match=match) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 600
    assert message.isprintable()
    assert sorted(os.listdir(folder)) == before
    assert path.read_bytes() == data
    return message


def npy(values: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, values, **options)
    return stream.getvalue()


def step_table(manifest: dict[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = manifest["tables"]["steps"]
    return table
